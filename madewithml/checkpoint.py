"""The checkpoint folder, both directions; nothing else knows its format.

    config.json, model.safetensors, tokenizer.json   opens in Transformers as it stands
    checkpoint.json                                  what this package needs to know (`Metadata`), and the file hashes
    decision.json                                    how to decide; bound by hash to the weights
    golden.jsonl                                     inputs and the logits they must give, checked at every start
    engines/                                         exported graphs and the report that admitted them

A checkpoint is self-contained: no network, no code download, no pickle. Loading is strict.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from madewithml import encoders, engine_report, errors, tokenization

FORMAT_VERSION = 1
METADATA = "checkpoint.json"
DECISION = "decision.json"
GOLDEN = "golden.jsonl"
ENGINES = "engines"
ENGINE_REPORT = "report.json"
# Files that a loader may unpickle, whatever is in them.
PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
DOCUMENTS = frozenset({".json", ".jsonl", ".txt"})
MAX_DOCUMENT_BYTES = 64 * 2**20  # read into memory as a whole
MAX_FILE_BYTES = 16 * 2**30
# Their hashes are in the metadata. config.json is among them because it says how the weights are read.
HASHED = ("model.safetensors", "tokenizer.json", "config.json")


@dataclass(frozen=True)
class Metadata:
    """What `checkpoint.json` says.

    Attributes:
        labels: Class names in the order of the logits.
        text_fields: Columns whose texts are the model's input.
        max_length: Tokens that fit the model, special tokens included.
        pad_id: Token id that fills short rows.
        abstain_label: Prediction of an abstained answer.
        encoder: Name and weight hash of the pretrained encoder.
        data_sha256: Hash of the data it was fitted on; None if unknown.
        libraries: Versions that wrote it.
        files: SHA-256 of each hashed file.
        normalisation: What happens to a text field before tokenising.
        format_version: Version of this format.
    """

    labels: list[str]
    text_fields: list[str]
    max_length: int
    pad_id: int
    abstain_label: str
    encoder: dict[str, str]
    data_sha256: str | None
    libraries: dict[str, str]
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    normalisation: str = "strip"
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Golden:
    """Texts and the logits the reference engine gave for them, float32 [n, k]."""

    texts: list[str]
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Checkpoint:
    """A folder that was read and found whole."""

    folder: Path
    metadata: Metadata

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights: what a decision policy is bound to."""
        return self.metadata.files["model.safetensors"]

    def tokenizer(self) -> tokenization.Tokenizer:
        """The tokenizer, set to the model's length."""
        path = self.folder / "tokenizer.json"
        return tokenization.Tokenizer.from_file(path, max_length=self.metadata.max_length, pad_id=self.metadata.pad_id)

    def verify(self) -> None:
        """Compare every hashed file with its recorded hash.

        Raises:
            CheckpointError: A file was changed or cut; names it.
        """
        for name, expected in self.metadata.files.items():
            actual = encoders.file_sha256(self.folder / name)
            if actual != expected:
                msg = (
                    f"checkpoint {str(self.folder)!r} is damaged: {name} has SHA-256 {actual[:12]}..., "
                    f"{METADATA} says {expected[:12]}.... Restore the file, or train or import again."
                )
                raise errors.CheckpointError(msg)

    def read_decision(self) -> dict[str, Any] | None:
        """The recorded decision policy as JSON values, or None if there is none.

        Raises:
            CheckpointError: The file belongs to other weights, or was edited by hand.
        """
        path = self.folder / DECISION
        if not path.is_file():
            return None
        document = _read_json(path)
        policy = document.get("policy")
        if not isinstance(policy, dict) or document.get("sha256") != _seal(policy, document.get("weights_sha256")):
            msg = f"{str(path)!r} was edited or is damaged: its seal does not fit. Certify the run again."
            raise errors.CheckpointError(msg)
        if document["weights_sha256"] != self.weights_sha256:
            msg = (
                f"{str(path)!r} belongs to another model (weights {document['weights_sha256'][:12]}..., here "
                f"{self.weights_sha256[:12]}...): a threshold never outlives its model. Run `madewithml certify` again."
            )
            raise errors.CheckpointError(msg)
        return policy

    def write_decision(self, policy: Mapping[str, Any]) -> Path:
        """Record a decision policy, bound to these weights."""
        values = dict(policy)
        document = {
            "policy": values,
            "weights_sha256": self.weights_sha256,
            "sha256": _seal(values, self.weights_sha256),
        }
        path = self.folder / DECISION
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        return path

    @property
    def engines_folder(self) -> Path:
        """Where exported graphs and their report lie."""
        return self.folder / ENGINES

    def read_engines(self) -> engine_report.EngineReport | None:
        """What `optimize` found out about the engines, or None if it never ran.

        Raises:
            CheckpointError: The report is damaged or belongs to other weights.
        """
        path = self.engines_folder / ENGINE_REPORT
        if not path.is_file():
            return None
        try:
            report = engine_report.EngineReport.from_dict(_read_json(path))
        except errors.InputError as err:
            raise errors.CheckpointError(f"{str(path)!r}: {err.message}") from err
        if report.weights_sha256 != self.weights_sha256:
            msg = f"{str(path)!r} belongs to another model: run `madewithml optimize` again"
            raise errors.CheckpointError(msg)
        return report

    def write_engines(self, report: engine_report.EngineReport) -> Path:
        """Record an engine report; returns its file."""
        self.engines_folder.mkdir(exist_ok=True)
        path = self.engines_folder / ENGINE_REPORT
        path.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
        return path

    def verify_engine(self, name: str) -> None:
        """Compare a graph, and the weights beside it where they are a file of their own, with the report's hashes.

        Raises:
            CheckpointError: It is missing or was changed.
        """
        report = self.read_engines()
        known = report.files if report else {}
        weights = engine_report.weights_file(name)
        for part in (name, weights) if weights in known else (name,):
            path = self.engines_folder / part
            if not path.is_file() or encoders.file_sha256(path) != known.get(part):
                msg = f"{str(path)!r} is missing or damaged: run `madewithml optimize` again or use --engine torch"
                raise errors.CheckpointError(msg)

    def read_golden(self) -> Golden | None:
        """The golden rows, or None if the checkpoint has none."""
        path = self.folder / GOLDEN
        if not path.is_file():
            return None
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            texts = [str(line["text"]) for line in lines]
            logits = np.array([line["logits"] for line in lines], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as err:
            raise errors.CheckpointError(f"{str(path)!r} is damaged: {err}") from err
        expected = (len(lines), len(self.metadata.labels))
        if not lines or logits.shape != expected:
            msg = f"{str(path)!r} is damaged: its logits have the shape {logits.shape}, expected {expected} with rows"
            raise errors.CheckpointError(msg)
        return Golden(texts, logits)

    def write_golden(self, texts: Sequence[str], logits: npt.NDArray[np.float32]) -> None:
        """Record golden rows: texts and reference logits [n, k]."""
        lines = (json.dumps({"text": t, "logits": z}) for t, z in zip(texts, logits.tolist(), strict=True))
        (self.folder / GOLDEN).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write(folder: Path, metadata: Metadata) -> Checkpoint:
    """Complete a folder that holds model and tokenizer: hash the files and write `checkpoint.json`."""
    hashes = {name: encoders.file_sha256(folder / name) for name in HASHED}
    complete = dataclasses.replace(metadata, files=hashes)
    (folder / METADATA).write_text(json.dumps(dataclasses.asdict(complete), indent=2) + "\n", encoding="utf-8")
    return Checkpoint(folder, complete)


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint folder and check that it is whole (by name; `verify` compares the hashes).

    Raises:
        CheckpointError: It is no checkpoint, lacks a file, or is of a newer format; says what was looked for where.
    """
    if not folder.is_dir():
        raise errors.CheckpointError(f"no checkpoint folder {str(folder)!r}")
    _check_files(folder)
    for name in (METADATA, *HASHED):
        if not (folder / name).is_file():
            raise errors.CheckpointError(f"{str(folder)!r} is no whole checkpoint: it has no {name}")
    document = _read_json(folder / METADATA)
    version = document.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        msg = (
            f"{str(folder / METADATA)!r} has format version {version!r}; this version of madewithml reads up to "
            f"{FORMAT_VERSION}. Upgrade madewithml."
        )
        raise errors.CheckpointError(msg)
    try:
        metadata = Metadata(**document)
    except TypeError as err:
        raise errors.CheckpointError(f"{str(folder / METADATA)!r} is damaged: {err}") from err
    _check(metadata, folder)
    return Checkpoint(folder, metadata)


def _check_files(folder: Path) -> None:
    """Refuse what a folder that comes from elsewhere could do harm with: code, ways out of it, and endless files."""
    inside = folder.resolve()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise errors.CheckpointError(f"{str(path)!r} is a link out of the checkpoint: copy the file that it names")
        if not path.is_file():
            continue
        graph = name.parts[0] == ENGINES and path.with_suffix(".xml").is_file()  # OpenVINO's weights: plain numbers
        if path.suffix.lower() in PICKLES and not graph:
            msg = f"{str(path)!r} can run code when it is loaded: remove it; weights are in model.safetensors"
            raise errors.CheckpointError(msg)
        most = MAX_DOCUMENT_BYTES if path.suffix.lower() in DOCUMENTS else MAX_FILE_BYTES
        if path.stat().st_size > most:
            size = path.stat().st_size
            raise errors.CheckpointError(f"{str(folder)!r}: {name} has {size} bytes, at most {most} are read")


def _check(metadata: Metadata, folder: Path) -> None:
    config = _read_json(folder / "config.json")
    labels, files = metadata.labels or [], metadata.files or {}
    named = config.get("id2label")
    num_labels = len(named or ()) or 2  # Transformers leaves out its default of two
    faults = [
        (not labels or len(set(labels)) != len(labels), "labels are empty or repeat"),
        (not metadata.text_fields, "text_fields is empty"),
        (len(labels) != num_labels, f"{len(labels)} labels for a model of {num_labels}"),
        (named and named != {str(i): label for i, label in enumerate(labels)}, "labels are not those of config.json"),
        (set(files) != set(HASHED), f"hashes are recorded for {sorted(files)}, not {sorted(HASHED)}"),
    ]
    for failed, what in faults:
        if failed:
            raise errors.CheckpointError(f"{str(folder / METADATA)!r} is damaged: {what}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise errors.CheckpointError(f"{str(path)!r} is not JSON: {err}") from err
    if not isinstance(document, dict):
        raise errors.CheckpointError(f"{str(path)!r} does not hold a JSON object")
    return document


def _seal(policy: Mapping[str, Any], weights_sha256: Any) -> str:
    canonical = json.dumps([policy, weights_sha256], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
