from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from madewithml import engines, quantising, tokenization
from tests.conftest import TOKEN_ROWS


def test_weights_of_both_int8_graphs_are_int8(graph: Path, tmp_path: Path, expected: npt.NDArray[np.float32]) -> None:
    dynamic, static = tmp_path / "dynamic.onnx", tmp_path / "static.onnx"
    quantising.quantise_dynamic(graph, dynamic)
    quantising.quantise_static(graph, static, rows=TOKEN_ROWS, pad_id=0)
    for path in (dynamic, static):
        kinds = {tensor.data_type for tensor in onnx.load(str(path)).graph.initializer}
        assert onnx.TensorProto.INT8 in kinds
        logits = engines.OnnxRuntimeEngine(path, precision="int8", threads=1).logits(
            *tokenization.pad(TOKEN_ROWS, pad_id=0)
        )
        np.testing.assert_allclose(logits, expected, atol=0.5)


def test_the_last_layer_is_not_quantised(graph: Path, tmp_path: Path) -> None:
    """Beside the weights that average the tokens, what it learned would vanish."""
    quantising.quantise_dynamic(graph, tmp_path / "dynamic.onnx")
    products = [n.name for n in onnx.load(str(tmp_path / "dynamic.onnx")).graph.node if n.op_type == "MatMulInteger"]
    assert len(products) == 6
    assert all("/layers.0/" in name for name in products)


def test_with_fixed_scales_an_answer_does_not_depend_on_its_batch(graph: Path, tmp_path: Path) -> None:
    static = tmp_path / "static.onnx"
    quantising.quantise_static(graph, static, rows=TOKEN_ROWS, pad_id=0)
    engine = engines.OnnxRuntimeEngine(static, precision="int8", threads=1)
    together = engine.logits(*tokenization.pad(TOKEN_ROWS, pad_id=0))
    alone = [engine.logits(*tokenization.pad([row], pad_id=0))[0] for row in TOKEN_ROWS]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-4)
