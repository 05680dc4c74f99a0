from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers

from madewithml import checkpoint, engines, errors, host, tokenization


@pytest.fixture(scope="module")
def found(checkpoint_folder: Path) -> checkpoint.Checkpoint:
    return checkpoint.read(checkpoint_folder)


def test_torch_gives_the_logits_of_plain_transformers(found: checkpoint.Checkpoint) -> None:
    ids, mask = tokenization.pad([[2, 50, 60, 3], [2, 70, 3]], pad_id=0)
    engine = engines.load(found, name="torch", threads=1)
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(found.folder).eval()
    with torch.inference_mode():
        expected = reference(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
    actual = engine.logits(ids, mask)
    assert (actual.dtype, actual.shape) == (np.float32, (2, 4))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_padding_changes_no_logit(found: checkpoint.Checkpoint) -> None:
    engine = engines.load(found, name="torch", threads=1)
    row = [2, 50, 60, 3]
    alone = engine.logits(*tokenization.pad([row], pad_id=0))
    beside = engine.logits(*tokenization.pad([row, [2, *range(50, 90), 3]], pad_id=0))
    np.testing.assert_allclose(beside[:1], alone, atol=1e-5)


def test_auto_loads_an_engine_and_says_which(found: checkpoint.Checkpoint) -> None:
    engine = engines.load(found)
    assert (engine.name in engines.NAMES, engine.precision != "") == (True, True)


def test_torch_uses_the_threads_it_is_given(found: checkpoint.Checkpoint) -> None:
    engines.load(found, name="torch", threads=1)
    assert torch.get_num_threads() == 1


def test_without_a_number_torch_uses_every_core(found: checkpoint.Checkpoint) -> None:
    try:
        engines.load(found, name="torch")
        assert torch.get_num_threads() == host.available_cores()
    finally:
        torch.set_num_threads(1)


def test_an_unknown_engine_is_refused_with_the_known_ones(found: checkpoint.Checkpoint) -> None:
    with pytest.raises(errors.UsageError, match=r"^no engine 'tensorrt': choose from auto, torch"):
        engines.load(found, name="tensorrt")


def test_a_graph_that_another_version_exported_is_an_error_that_says_so(tmp_path: Path) -> None:
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None]) for name in ("ids", "slots")]
    output = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [None])
    node = onnx.helper.make_node("Add", ["ids", "slots"], ["logits"])
    graph = onnx.helper.make_graph([node], "old", inputs, [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(
        errors.CheckpointError, match=r"inputs of another version \(ids, slots\): optimise the run again"
    ):
        engines.OnnxRuntimeEngine(tmp_path / "model.onnx", precision="fp32", threads=1)
