"""MLflow: where runs, their checkpoints and their recorded rows live. Nothing else talks to MLflow.

A run's checkpoints are MLflow logged models (pyfunc), so `mlflow.pyfunc.load_model("models:/...")`, the registry and
its aliases work on them; the checkpoint folder lies in the model's `data/checkpoint`. The best one of a run is the
one with the lowest `val_loss`. Which row went into which split is the run's artifact `splits.parquet`.
"""

from __future__ import annotations

import datetime
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlparse

import mlflow
import mlflow.entities
import mlflow.exceptions
import mlflow.pyfunc
import pandas as pd

from madewithml import config, data, errors, texts

BEST_METRIC = "val_loss"
SPLITS_FILE = "splits.parquet"
SPLIT_COLUMNS = ("split", "text_sha256", "label")
CHECKPOINT_PATH = "data/checkpoint"
MODEL_NAME = "checkpoint"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
# Of a model version, for each alias: when it was last promoted to it. A service that follows the alias looks at it.
PROMOTED_TAG = "madewithml.promoted."


class ModelVersion(NamedTuple):
    """A version of a registered model.

    Attributes:
        run_id: The run behind it.
        version: Its number.
        promoted: When it was last promoted to the alias by which it was found; None if that is not known.
    """

    run_id: str
    version: str
    promoted: str | None


@dataclass(frozen=True)
class Store:
    """An MLflow tracking store.

    Attributes:
        client: MLflow's client for it.
        settings: The settings it was opened with.
    """

    client: mlflow.MlflowClient
    settings: config.Settings

    @contextmanager
    def new_run(self, experiment_name: str, *, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[str]:
        """A run that ends FINISHED, or FAILED when the body raises; yields its id."""
        run = self.client.create_run(self._experiment_id(experiment_name), tags=dict(tags))
        run_id: str = run.info.run_id
        self.client.log_batch(run_id, params=[mlflow.entities.Param(k, str(v)) for k, v in params.items()])
        try:
            yield run_id
        except BaseException:
            self.client.set_terminated(run_id, "FAILED")
            raise
        self.client.set_terminated(run_id, "FINISHED")

    def _experiment_id(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        # A tracking server chooses its own place; beside our SQLite file the artifacts belong under `home`.
        location = (self.settings.home.resolve() / "artifacts").as_uri() if self.settings.has_own_mlflow else None
        return str(self.client.create_experiment(name, artifact_location=location))

    def run(self, run_id: str) -> mlflow.entities.Run:
        """An existing run.

        Raises:
            NotFoundError: The store has no such run.
        """
        try:
            return self.client.get_run(run_id)
        except mlflow.exceptions.MlflowException as err:
            msg = (
                f"no run {run_id!r} in {self.settings.mlflow_uri}. Check the id, --home (MADEWITHML_HOME) and "
                "MLFLOW_TRACKING_URI; `madewithml best-run --experiment-name NAME` prints the best one."
            )
            raise errors.NotFoundError(msg) from err

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log numbers to a run."""
        entities = [mlflow.entities.Metric(k, float(v), 0, step) for k, v in metrics.items()]
        self.client.log_batch(run_id, metrics=entities)

    def log_json(self, run_id: str, document: Mapping[str, Any], name: str) -> None:
        """Log a JSON artifact."""
        self.client.log_dict(run_id, dict(document), name)

    def log_checkpoint(self, run_id: str, folder: Path, *, val_loss: float | None, step: int = 0) -> None:
        """Log a checkpoint folder as a pyfunc model of the run.

        Args:
            run_id: The run.
            folder: The checkpoint; its name must be `checkpoint`.
            val_loss: Validation loss by which the best is chosen; None if unknown.
            step: Epoch.
        """
        with _fluent(self.settings.mlflow_uri), mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name=MODEL_NAME,
                loader_module="madewithml.pyfunc",
                data_path=str(folder),
                pip_requirements=["madewithml"],
                step=step,
            )
        if val_loss is not None:
            self.client.log_metric(run_id, BEST_METRIC, val_loss, step=step, model_id=info.model_id)

    def best_checkpoint(self, run_id: str) -> Path:
        """Folder of the run's best checkpoint, downloaded if the store is elsewhere.

        Raises:
            NotFoundError: There is no such run, or it has no checkpoint.
        """
        model = self._best_model(run_id)
        location = urlparse(str(model.artifact_location))
        if location.scheme in ("", "file"):
            return Path(unquote(location.path)) / CHECKPOINT_PATH
        target = self.settings.home / "checkpoints" / str(model.model_id)
        target.mkdir(parents=True, exist_ok=True)
        uri = f"models:/{model.model_id}"
        with _fluent(self.settings.mlflow_uri):
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(target))) / CHECKPOINT_PATH

    def add_to_checkpoint(self, run_id: str, file: Path, *, folder: str = "") -> None:
        """Store a file that was added to the best checkpoint after the run, such as `decision.json`.

        Args:
            run_id: The run.
            file: The file, in the folder that `best_checkpoint` gave.
            folder: Folder of the checkpoint it belongs in.
        """
        target = f"{CHECKPOINT_PATH}/{folder}" if folder else CHECKPOINT_PATH
        self.client.log_model_artifact(str(self._best_model(run_id).model_id), str(file), target)

    def _best_model(self, run_id: str) -> mlflow.entities.LoggedModel:
        run = self.run(run_id)
        models = [
            model
            for model in self.client.search_logged_models(
                [run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'"
            )
            if model.name == MODEL_NAME
        ]
        if not models:
            msg = f"run {run_id!r} has no checkpoint (status {run.info.status}): did its training end?"
            raise errors.NotFoundError(msg)
        return min(models, key=_validation_loss)

    def best_run(self, experiment_name: str, *, metric: str = BEST_METRIC, mode: Literal["ASC", "DESC"] = "ASC") -> str:
        """Id of the run with the best metric.

        Raises:
            NotFoundError: No such experiment, or none of its finished runs has the metric.
        """
        experiment = self.client.get_experiment_by_name(experiment_name)
        if experiment is None:
            known = ", ".join(repr(e.name) for e in self.client.search_experiments())
            raise errors.NotFoundError(f"no experiment {experiment_name!r}; there are {known}")
        found = self.client.search_runs(
            [experiment.experiment_id],
            filter_string="attributes.status = 'FINISHED'",
            order_by=[f"metrics.`{metric}` {mode}"],
            max_results=100,
        )
        with_metric = [run for run in found if metric in run.data.metrics]
        if not with_metric:
            raise errors.NotFoundError(f"no finished run of experiment {experiment_name!r} has a metric {metric!r}")
        return str(with_metric[0].info.run_id)

    def log_splits(self, run_id: str, rows: data.LabelledText, parts: Mapping[str, Sequence[int]]) -> None:
        """Record which row went where: hashes for all, texts for all but the train rows, which are never used again."""
        records = [
            {
                "split": part,
                "text_sha256": texts.text_sha256(rows.texts[i]),
                "label": rows.labels[i],
                **(dict.fromkeys(rows.rows[i]) if part == "train" else rows.rows[i]),
            }
            for part, positions in parts.items()
            for i in positions
        ]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / SPLITS_FILE
            pd.DataFrame(records).to_parquet(path)
            self.client.log_artifact(run_id, str(path))

    def read_splits(self, run_id: str) -> pd.DataFrame | None:
        """The recorded splits (`split`, `text_sha256`, `label`, text fields), or None if none were recorded."""
        self.run(run_id)
        if SPLITS_FILE not in {item.path for item in self.client.list_artifacts(run_id)}:
            return None
        with tempfile.TemporaryDirectory() as folder:
            return pd.read_parquet(self.client.download_artifacts(run_id, SPLITS_FILE, folder))

    def recorded_hashes(self, run_id: str) -> dict[str, set[str]] | None:
        """Hashes of the texts that went into each part, or None if no splits were recorded."""
        table = self.read_splits(run_id)
        if table is None:
            return None
        return {str(part): set(rows) for part, rows in table.groupby("split")["text_sha256"]}

    def recorded_rows(self, run_id: str, part: str) -> data.LabelledText:
        """The rows of one part (`validation`, `calibration` or `test`) that the run recorded.

        Raises:
            NotFoundError: It recorded none.
        """
        table = self.read_splits(run_id)
        fields = [] if table is None else [name for name in table.columns if name not in SPLIT_COLUMNS]
        chosen = None if table is None else table[(table["split"] == part) & table[fields].notna().any(axis=1)]
        if chosen is None or chosen.empty:
            msg = f"run {run_id!r} recorded no {part} rows: give a labelled file with --dataset-loc"
            raise errors.NotFoundError(msg)
        rows = data.as_rows(chosen[fields])
        return data.LabelledText(rows, [texts.row_text(row, fields) for row in rows], chosen["label"].tolist())

    def promote(self, run_id: str, *, name: str, alias: str) -> str:
        """Register the run's best checkpoint under `name` and point `alias` at it; returns the version.

        Raises:
            NotFoundError: There is no such run, or it has no checkpoint.
            UsageError: MLflow does not take the name or the alias.
        """
        model = self._best_model(run_id)
        try:
            with _fluent(self.settings.mlflow_uri):  # a client looks `models:/ID` up in the global store
                return self._point_alias(model, run_id, name=name, alias=alias)
        except mlflow.exceptions.MlflowException as err:
            msg = f"cannot register a model {name!r} with the alias {alias!r}: {errors.first_line(err)}"
            raise errors.UsageError(msg) from err

    def _point_alias(self, model: mlflow.entities.LoggedModel, run_id: str, *, name: str, alias: str) -> str:
        source = f"models:/{model.model_id}"
        if not self.client.search_registered_models(filter_string=f"name = '{name}'"):
            self.client.create_registered_model(name)
        for version in self.client.search_model_versions(f"name = '{name}'"):
            if version.source == source:
                break
        else:
            version = self.client.create_model_version(name, source, run_id=run_id)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat()
        self.client.set_model_version_tag(name, str(version.version), f"{PROMOTED_TAG}{alias}", now)
        self.client.set_registered_model_alias(name, alias, str(version.version))
        return str(version.version)

    def model_version(self, uri: str) -> ModelVersion:
        """What is behind `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

        Raises:
            NotFoundError: No such model, alias or version.
            UsageError: Not a model address.
        """
        name, version_or_alias, by_alias = _parse_model_uri(uri)
        try:
            if by_alias:
                version = self.client.get_model_version_by_alias(name, version_or_alias)
            else:
                version = self.client.get_model_version(name, version_or_alias)
        except mlflow.exceptions.MlflowException as err:
            msg = (
                f"no model {uri!r} in {self.settings.mlflow_uri}; `madewithml promote --run-id ID --alias A` makes one"
            )
            raise errors.NotFoundError(msg) from err
        promoted = version.tags.get(f"{PROMOTED_TAG}{version_or_alias}") if by_alias else None
        return ModelVersion(str(version.run_id), str(version.version), promoted)


@contextmanager
def _fluent(uri: str) -> Iterator[None]:
    """MLflow's fluent interface on one store, for as long as the block lasts."""
    # It exports the address for child processes; kept, a later store of this process would be opened there.
    before = os.environ.get(TRACKING_VARIABLE)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        os.environ.pop(TRACKING_VARIABLE, None)
        if before is not None:
            os.environ[TRACKING_VARIABLE] = before


def _quieten() -> None:
    """Keep MLflow's set-up and transfer chatter off the terminal."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow.store.db.utils", "mlflow.utils.requirements_utils", "mlflow.tracking.fluent", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def connect(settings: config.Settings) -> Store:
    """Open the store that the settings name, and create the local one if it is not there yet.

    Raises:
        InputError: The folder `home` cannot be made.
        NotFoundError: The tracking server or database cannot be reached.
    """
    _quieten()
    if settings.has_own_mlflow:
        try:
            settings.home.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            msg = f"cannot make the folder {str(settings.home)!r}: {err.strerror}. Check --home (MADEWITHML_HOME)."
            raise errors.InputError(msg) from err
    try:
        client = mlflow.MlflowClient(settings.mlflow_uri)
        client.search_experiments(max_results=1)
    except Exception as err:  # MLflow lets SQLAlchemy's, requests' and its own errors through
        msg = f"MLflow at {settings.mlflow_uri} cannot be reached: {errors.first_line(err)}. Check MLFLOW_TRACKING_URI."
        raise errors.NotFoundError(msg) from err
    return Store(client, settings)


def _validation_loss(model: mlflow.entities.LoggedModel) -> float:
    values = [metric.value for metric in model.metrics or () if metric.key == BEST_METRIC]
    return float(values[-1]) if values else float("inf")


def _parse_model_uri(uri: str) -> tuple[str, str, bool]:
    bare = uri.removeprefix("models:/")
    for mark in ("@", "/"):
        name, found, rest = bare.partition(mark)
        if uri != bare and name and found and rest:
            return name, rest, mark == "@"
    raise errors.UsageError(f"bad model address {uri!r}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
