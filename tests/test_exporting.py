from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from madewithml import checkpoint, engines, errors, exporting, tokenization
from tests.conftest import TOKEN_ROWS


@pytest.fixture(scope="module")
def found(checkpoint_folder: Path) -> checkpoint.Checkpoint:
    return checkpoint.read(checkpoint_folder)


def test_the_graph_gives_the_logits_of_torch_for_any_number_of_rows_and_any_length(
    graph: Path, expected: npt.NDArray[np.float32]
) -> None:
    engine = engines.OnnxRuntimeEngine(graph, precision="fp32", threads=1)
    np.testing.assert_allclose(engine.logits(*tokenization.pad(TOKEN_ROWS, pad_id=0)), expected, atol=1e-5)
    for row, logits in zip(TOKEN_ROWS, expected, strict=True):
        np.testing.assert_allclose(engine.logits(*tokenization.pad([row], pad_id=0))[0], logits, atol=1e-5)


def test_openvino_gives_the_same_from_the_same_graph(graph: Path, expected: npt.NDArray[np.float32]) -> None:
    engine = engines.OpenVinoEngine(graph, precision="fp32", threads=1, max_length=64)
    actual = engine.logits(*tokenization.pad(TOKEN_ROWS, pad_id=0))
    assert (actual.dtype, actual.shape) == (np.float32, expected.shape)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_an_answer_of_openvino_is_not_overwritten_by_the_next(graph: Path) -> None:
    engine = engines.OpenVinoEngine(graph, precision="fp32", threads=1, max_length=64)
    first = engine.logits(*tokenization.pad(TOKEN_ROWS[:1], pad_id=0))
    kept = first.copy()
    engine.logits(*tokenization.pad(TOKEN_ROWS[1:2], pad_id=0))
    np.testing.assert_array_equal(first, kept)


def test_openvino_gives_the_same_from_a_graph_of_its_own_form(
    graph: Path, expected: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    exporting.to_openvino(graph, tmp_path / "model.xml")
    engine = engines.OpenVinoEngine(tmp_path / "model.xml", precision="fp32", threads=1, max_length=64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    np.testing.assert_allclose(engine.logits(*tokenization.pad(TOKEN_ROWS, pad_id=0)), expected, atol=1e-5)


def test_a_graph_that_is_written_again_leaves_a_reader_of_the_first_alone(graph: Path, tmp_path: Path) -> None:
    exporting.to_openvino(graph, tmp_path / "model.xml")
    with (tmp_path / "model.bin").open("rb") as reader:
        first = reader.read()
        exporting.to_openvino(graph, tmp_path / "model.xml")
        reader.seek(0)
        assert reader.read() == first
        assert (tmp_path / "model.bin").stat().st_ino != os.fstat(reader.fileno()).st_ino


def test_a_bert_takes_ragged_batches_unless_told_otherwise(
    graph: Path, found: checkpoint.Checkpoint, expected: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    exporting.export(found, tmp_path / "padded.onnx", may_be_ragged=False)
    padded = engines.OnnxRuntimeEngine(tmp_path / "padded.onnx", precision="fp32", threads=1)
    assert (engines.OnnxRuntimeEngine(graph, precision="fp32", threads=1).pads, padded.pads) == (False, True)
    np.testing.assert_allclose(padded.logits(*tokenization.pad(TOKEN_ROWS, pad_id=0)), expected, atol=1e-5)
    wide = engines.OpenVinoEngine(tmp_path / "padded.onnx", precision="fp32", threads=1, max_length=64)
    np.testing.assert_allclose(wide.logits(*tokenization.pad(TOKEN_ROWS, pad_id=0)), expected, atol=1e-5)


def test_a_model_that_cannot_be_exported_is_an_error_that_says_so(
    found: checkpoint.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise RuntimeError("no symbolic for aten::strange\nmore")

    monkeypatch.setattr(exporting.torch.onnx, "export", broken)
    with pytest.raises(
        errors.InputError, match=r"^the model cannot be exported to ONNX: no symbolic for aten::strange$"
    ):
        exporting.export(found, tmp_path / "model.onnx")
