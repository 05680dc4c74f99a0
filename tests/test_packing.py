from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
from pathlib import Path

import pytest

from madewithml import checkpoint, packing, predict


@pytest.fixture
def unpacked(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A folder with model and tokenizer, not yet a checkpoint."""
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "checkpoint"))
    for name in ("checkpoint.json", "decision.json", "golden.jsonl"):
        (folder / name).unlink()
    return folder


@pytest.fixture
def metadata(checkpoint_folder: Path) -> checkpoint.Metadata:
    return dataclasses.replace(checkpoint.read(checkpoint_folder).metadata, files={}, abstain_label="none of these")


def test_packing_makes_a_whole_verified_checkpoint(unpacked: Path, metadata: checkpoint.Metadata) -> None:
    packing.finish(unpacked, metadata, ["a text"])
    found = checkpoint.read(unpacked)
    found.verify()
    assert found.metadata.labels == metadata.labels


def test_a_packed_checkpoint_abstains_below_the_default_threshold_with_its_own_label(
    unpacked: Path, metadata: checkpoint.Metadata
) -> None:
    packing.finish(unpacked, metadata, [])
    policy = predict.Predictor.from_checkpoint(unpacked).policy
    assert (policy.threshold, policy.source, policy.abstain_label) == (0.9, "default", "none of these")


def test_golden_rows_are_taken_from_short_and_long_texts(unpacked: Path, metadata: checkpoint.Metadata) -> None:
    texts = ["word " * n for n in range(1, 101)]
    golden = packing.finish(unpacked, metadata, texts).read_golden()
    assert golden is not None
    assert (len(golden.texts), golden.logits.shape) == (packing.GOLDEN_ROWS, (packing.GOLDEN_ROWS, 4))
    assert (golden.texts[0], golden.texts[-1]) == (texts[0], texts[-1])


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_texts_than_golden_rows_are_each_taken_once(
    unpacked: Path, metadata: checkpoint.Metadata, count: int
) -> None:
    golden = packing.finish(unpacked, metadata, [f"text {i}" for i in range(count)]).read_golden()
    assert golden is not None
    assert golden.texts == [f"text {i}" for i in range(count)]


def test_without_texts_there_are_no_golden_rows(unpacked: Path, metadata: checkpoint.Metadata) -> None:
    assert packing.finish(unpacked, metadata, []).read_golden() is None


def test_the_versions_of_what_wrote_a_checkpoint_are_recorded(checkpoint_folder: Path) -> None:
    libraries = checkpoint.read(checkpoint_folder).metadata.libraries
    assert libraries["torch"] == importlib.metadata.version("torch")
    assert sorted(libraries) == ["madewithml", "python", "tokenizers", "torch", "transformers"]
