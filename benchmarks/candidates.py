"""Models for `chaos.py`, made from one checkpoint: two good ones, and those that a service must refuse.

Both good ones are imported, certified and, if asked for, optimised by the commands that anybody uses. The second's last
layer differs a little, so that its probabilities tell the two apart while the labels stay.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers

from madewithml import certifying, checkpoint, config, importing, optimize, predict, runs

MODEL, ALIAS = "chaos", "champion"
ADDRESS = f"models:/{MODEL}@{ALIAS}"
EXPERIMENT = "chaos"
MAX_RISK = 0.2
DIFFERENCE = 1.1
# A model with so many times the layers is beyond what the gate lets pass, by far.
LAYERS = 5
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Bad:
    """A model to be refused.

    Attributes:
        name: What is wrong with it.
        run_id: Its run.
        reason: A part of what the refusal must say.
    """

    name: str
    run_id: str
    reason: str


@dataclass(frozen=True)
class Models:
    """What there is to serve.

    Attributes:
        settings: Where the runs are.
        good: The two good runs.
        bad: Those to be refused.
    """

    settings: config.Settings
    good: tuple[str, str]
    bad: tuple[Bad, ...]

    def predictor(self, run_id: str) -> predict.Predictor:
        """What a run answers with, on the engine that a service takes."""
        return predict.TorchPredictor.from_checkpoint(self.store.best_checkpoint(run_id), engine="auto", threads=1)

    def promote(self, run_id: str) -> None:
        """Move the alias."""
        self.store.promote(run_id, name=MODEL, alias=ALIAS)

    @property
    def store(self) -> runs.Store:
        """The runs."""
        return runs.connect(self.settings)


def make(source: Path, dataset_loc: str, *, home: Path, optimised: bool, only: Collection[str] | None = None) -> Models:
    """Make them all.

    Args:
        source: Checkpoint folder.
        dataset_loc: Labelled rows for certificates and golden rows.
        home: State folder for the runs.
        optimised: Whether the good ones get the fastest engine; otherwise all run on torch.
        only: Names of the bad ones to make; None for all.
    """
    settings = config.load(home=home)
    second = _changed(source, home / "second", _scale_last_layer)
    good = []
    for folder in (source, second):
        run_id = _imported(folder, dataset_loc, settings)
        options = certifying.CertifyOptions(run_id=run_id, max_risk=MAX_RISK)
        outcome = certifying.certify_run(options, settings)
        assert outcome["status"] == "certified", f"no certificate at {MAX_RISK}: {outcome}"
        if optimised:
            optimize.optimize_run(optimize.OptimizeOptions(run_id=run_id), settings)
        good.append(run_id)
    models = Models(settings, (good[0], good[1]), ())
    first_folder, second_folder = (models.store.best_checkpoint(run_id) for run_id in good)
    labels = tuple(f"other-{label}" for label in checkpoint.read(source).metadata.labels)
    kinds: dict[str, tuple[str, Callable[[], str]]] = {
        "wrong labels": ("other labels", lambda: _imported(second, dataset_loc, settings, labels=labels)),
        "no certificate": ("no certificate", lambda: _imported(second, dataset_loc, settings)),
        "NaN weights": ("golden rows", lambda: _recorded(second_folder, _spoil_weights, settings)),
        "slow": (
            "gate_max_latency_ratio",
            lambda: _slow(source, dataset_loc, settings, certified=first_folder),
        ),
        "certificate of another model": (
            "decision.json",
            lambda: _recorded(second_folder, _exchange(first_folder), settings),
        ),
    }
    bad = [Bad(name, made(), reason) for name, (reason, made) in kinds.items() if only is None or name in only]
    return Models(settings, models.good, tuple(bad))


def _imported(
    folder: Path, dataset_loc: str, settings: config.Settings, *, labels: tuple[str, ...] | None = None
) -> str:
    """A run of a Transformers folder; one with labels of its own takes no rows, since none carries them."""
    own = checkpoint.read(folder).metadata
    return importing.import_folder(
        importing.ImportOptions(
            source=folder,
            experiment_name=EXPERIMENT,
            text_fields=tuple(own.text_fields),
            labels=labels or tuple(own.labels),
            dataset_loc=None if labels else dataset_loc,
            abstain_label=own.abstain_label,
        ),
        settings,
    )


def _recorded(folder: Path, change: Callable[[Path], None], settings: config.Settings) -> str:
    """A run with a changed copy of a checkpoint, as a broken pipeline might have left it."""
    store = runs.connect(settings)
    scratch = _changed(folder, settings.home / change.__name__ / runs.MODEL_NAME, change)
    with store.new_run(EXPERIMENT, params={}, tags={}) as run_id:
        store.log_checkpoint(run_id, scratch, val_loss=None)
    return run_id


def _changed(folder: Path, target: Path, change: Callable[[Path], None]) -> Path:
    shutil.copytree(folder, target)
    shutil.rmtree(target / "engines", ignore_errors=True)
    change(target)
    return target


def _scale_last_layer(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    changed = {name: value * DIFFERENCE if name == "classifier.weight" else value for name, value in weights.items()}
    safetensors.torch.save_file(changed, folder / WEIGHTS, metadata={"format": "pt"})
    checkpoint.write(folder, checkpoint.read(folder).metadata)


def _spoil_weights(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    changed = {name: torch.full_like(value, torch.nan) for name, value in weights.items()}
    safetensors.torch.save_file(changed, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "decision.json").unlink()  # bound to the weights
    checkpoint.write(folder, checkpoint.read(folder).metadata)


def _exchange(other: Path) -> Callable[[Path], None]:
    def exchange_certificate(folder: Path) -> None:
        shutil.copyfile(other / "decision.json", folder / "decision.json")

    return exchange_certificate


def _slow(source: Path, dataset_loc: str, settings: config.Settings, *, certified: Path) -> str:
    """The same model with its layers several times over, under the policy of a certified one."""

    def deepen(folder: Path) -> None:
        model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        layers = model.base_model.encoder.layer
        for layer in [copy.deepcopy(layer) for _ in range(LAYERS - 1) for layer in layers]:
            layers.append(layer)
        model.config.num_hidden_layers = len(layers)
        model.save_pretrained(folder)
        checkpoint.write(folder, checkpoint.read(folder).metadata)

    run_id = _imported(_changed(source, settings.home / "deep", deepen), dataset_loc, settings)
    policy = checkpoint.read(certified).read_decision()
    checkpoint.read(runs.connect(settings).best_checkpoint(run_id)).write_decision(policy or {})
    return run_id
