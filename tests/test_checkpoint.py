from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from madewithml import checkpoint, errors

METADATA = checkpoint.Metadata(
    labels=["x", "y"],
    text_fields=["title"],
    max_length=16,
    pad_id=0,
    abstain_label="other",
    encoder={"name": "tiny", "sha256": "0"},
    data_sha256=None,
    libraries={},
)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder that looks like one with model and tokenizer: the format does not care what is in the files."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "x", "1": "y"}}))
    return folder


@pytest.fixture
def copied(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A copy of the trained checkpoint that may be damaged."""
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "copied"))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_what_was_written_is_read_back(bare: Path) -> None:
    written = checkpoint.write(bare, METADATA)
    assert checkpoint.read(bare) == written
    assert dataclasses.replace(written.metadata, files={}) == METADATA
    assert sorted(written.metadata.files) == ["config.json", "model.safetensors", "tokenizer.json"]
    written.verify()


def test_a_trained_checkpoint_holds_every_file_of_the_format(checkpoint_folder: Path) -> None:
    names = {path.name for path in checkpoint_folder.iterdir()}
    assert {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "checkpoint.json",
        "decision.json",
        "golden.jsonl",
    } <= names
    assert not [name for name in names if name.endswith((".bin", ".pkl", ".pt", ".py"))]


def test_a_trained_checkpoint_opens_in_transformers_as_it_stands(checkpoint_folder: Path) -> None:
    metadata = checkpoint.read(checkpoint_folder).metadata
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint_folder)
    assert list(model.config.id2label.values()) == metadata.labels
    expected = checkpoint.read(checkpoint_folder).tokenizer().encode(["Images with CNNs"])[0].ids
    assert tokenizer("Images with CNNs")["input_ids"] == expected


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.CheckpointError, match=r"no checkpoint folder '.*/nowhere'"):
        checkpoint.read(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors", "tokenizer.json", "config.json"])
def test_a_checkpoint_that_lacks_a_file_names_it(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(errors.CheckpointError, match=rf"copied' is no whole checkpoint: it has no {name}$"):
        checkpoint.read(copied)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_file_that_was_changed_by_one_byte_is_named(copied: Path, name: str) -> None:
    path = copied / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(
        errors.CheckpointError,
        match=rf"copied' is damaged: {name} has SHA-256 \w{{12}}\.\.\., checkpoint\.json says \w{{12}}\.\.\.\. Restore",
    ):
        checkpoint.read(copied).verify()


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("checkpoint.json", lambda _: None),
        ("decision.json", checkpoint.Checkpoint.read_decision),
        ("golden.jsonl", checkpoint.Checkpoint.read_golden),
    ],
)
def test_a_document_that_was_cut_is_named(
    copied: Path, name: str, read: Callable[[checkpoint.Checkpoint], object]
) -> None:
    path = copied / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(errors.CheckpointError, match=rf"{name}' is (not JSON|damaged): "):
        read(checkpoint.read(copied))


@pytest.mark.parametrize("content", [b"[1]", b"\xff\xfe", b""])
def test_a_checkpoint_json_that_holds_no_object_is_refused(copied: Path, content: bytes) -> None:
    (copied / "checkpoint.json").write_bytes(content)
    with pytest.raises(errors.CheckpointError, match=r"checkpoint\.json' (does not hold a JSON object|is not JSON)"):
        checkpoint.read(copied)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "args.bin", "model.PT", "engines/graph.pkl", "extra/a.pickle"])
def test_a_pickle_is_refused_wherever_it_lies(copied: Path, name: str) -> None:
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).write_bytes(b"\x80\x04N.")
    with pytest.raises(errors.CheckpointError, match="can run code when it is loaded"):
        checkpoint.read(copied)


def test_the_weights_of_a_graph_are_no_pickle(copied: Path) -> None:
    (copied / "engines").mkdir(exist_ok=True)
    for name in ("graph.xml", "graph.bin"):
        (copied / "engines" / name).touch()
    checkpoint.read(copied)


def test_a_link_out_of_the_folder_is_refused(copied: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (copied / "config.json").unlink()
    (copied / "config.json").symlink_to(secret)
    with pytest.raises(errors.CheckpointError, match=r"config.json' is a link out of the checkpoint"):
        checkpoint.read(copied)


def test_a_link_within_the_folder_is_followed(copied: Path) -> None:
    (copied / "config.json").rename(copied / "stored.json")
    (copied / "config.json").symlink_to("stored.json")
    checkpoint.read(copied).verify()


def test_a_file_without_end_is_not_read(copied: Path) -> None:
    with (copied / "golden.jsonl").open("wb") as file:
        file.truncate(checkpoint.MAX_DOCUMENT_BYTES + 1)  # a hole: it takes no room
    with pytest.raises(errors.CheckpointError, match=r"golden.jsonl has \d+ bytes, at most \d+ are read"):
        checkpoint.read(copied)


@pytest.mark.parametrize("version", [2, 99, "1", None])
def test_a_newer_or_strange_format_version_asks_for_an_upgrade(copied: Path, version: Any) -> None:
    edit(copied / "checkpoint.json", lambda document: document.update(format_version=version))
    with pytest.raises(
        errors.CheckpointError,
        match=rf"checkpoint\.json' has format version {version!r}; this version of madewithml reads up to 1\. Upgrade",
    ):
        checkpoint.read(copied)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"labels": []}, "labels are empty or repeat"),
        ({"labels": None}, "labels are empty or repeat"),
        ({"labels": ["a", "a", "b", "c"]}, "labels are empty or repeat"),
        ({"labels": ["a", "b"]}, "2 labels for a model of 4"),
        ({"text_fields": []}, "text_fields is empty"),
        ({"files": {}}, "hashes are recorded for"),
        ({"files": None}, "hashes are recorded for"),
        ({"surprise": 1}, "unexpected keyword argument 'surprise'"),
    ],
)
def test_a_checkpoint_json_that_contradicts_itself_is_refused(
    copied: Path, change: dict[str, Any], expected: str
) -> None:
    edit(copied / "checkpoint.json", lambda document: document.update(change))
    with pytest.raises(errors.CheckpointError, match=rf"checkpoint\.json' is damaged: .*{expected}"):
        checkpoint.read(copied)


def test_a_checkpoint_json_that_lacks_a_key_names_it(copied: Path) -> None:
    edit(copied / "checkpoint.json", lambda document: document.pop("pad_id"))
    with pytest.raises(errors.CheckpointError, match=r"checkpoint\.json' is damaged: .*'pad_id'"):
        checkpoint.read(copied)


def test_labels_in_another_order_than_the_models_are_refused(copied: Path) -> None:
    edit(copied / "checkpoint.json", lambda document: document["labels"].reverse())
    with pytest.raises(errors.CheckpointError, match=r"checkpoint\.json' is damaged: .*labels"):
        checkpoint.read(copied)


def test_a_model_of_two_labels_may_leave_them_out_of_its_configuration(bare: Path) -> None:
    (bare / "config.json").write_text("{}")
    checkpoint.write(bare, METADATA)
    assert checkpoint.read(bare).metadata.labels == ["x", "y"]


def test_a_checkpoint_without_a_decision_or_golden_rows_says_none(bare: Path) -> None:
    found = checkpoint.write(bare, METADATA)
    assert (found.read_decision(), found.read_golden()) == (None, None)


def test_a_recorded_decision_is_read_back(bare: Path) -> None:
    found = checkpoint.write(bare, METADATA)
    policy = {"threshold": 0.8, "temperature": 1.5, "class_thresholds": {"é": 0.5}}
    assert found.write_decision(policy) == bare / "decision.json"
    assert found.read_decision() == policy


def test_a_decision_edited_by_hand_is_refused(bare: Path) -> None:
    found = checkpoint.write(bare, METADATA)
    found.write_decision({"threshold": 0.9})
    edit(bare / "decision.json", lambda document: document["policy"].update(threshold=0.1))
    with pytest.raises(
        errors.CheckpointError,
        match=r"decision\.json' was edited or is damaged: its seal does not fit\.",
    ):
        found.read_decision()


@pytest.mark.parametrize("document", [{}, {"policy": None}, {"policy": {"threshold": 0.5}}])
def test_a_decision_without_a_seal_is_refused(bare: Path, document: dict[str, Any]) -> None:
    found = checkpoint.write(bare, METADATA)
    (bare / "decision.json").write_text(json.dumps(document))
    with pytest.raises(errors.CheckpointError, match="its seal does not fit"):
        found.read_decision()


def test_a_decision_of_another_model_is_refused(bare: Path) -> None:
    checkpoint.write(bare, METADATA).write_decision({"threshold": 0.5})
    (bare / "model.safetensors").write_bytes(b"other weights")
    found = checkpoint.write(bare, METADATA)
    with pytest.raises(
        errors.CheckpointError,
        match=r"decision\.json' belongs to another model \(weights \w{12}\.\.\., here \w{12}\.\.\.\): a threshold "
        "never outlives its model",
    ):
        found.read_decision()


def test_golden_rows_are_read_back(bare: Path) -> None:
    found = checkpoint.write(bare, METADATA)
    logits = np.array([[1.5, -2.0], [0.25, 3e-7]], dtype=np.float32)
    found.write_golden(["ünïcode\nof two lines", "\u2028"], logits)
    golden = found.read_golden()
    assert golden is not None
    assert golden.texts == ["ünïcode\nof two lines", "\u2028"]
    assert np.array_equal(golden.logits, logits)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n",
        "not json\n",
        '{"text": "a"}\n',
        "[1]\n",
        '{"text": "a", "logits": [1, 2]}\n{"text": "b", "logits": [1]}\n',
        '{"text": "a", "logits": [1, 2, 3]}\n',
    ],
)
def test_golden_rows_that_are_no_rows_of_this_model_are_refused(bare: Path, content: str) -> None:
    found = checkpoint.write(bare, METADATA)
    (bare / "golden.jsonl").write_text(content)
    with pytest.raises(errors.CheckpointError, match=r"golden\.jsonl' is damaged: "):
        found.read_golden()
