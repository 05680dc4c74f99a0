"""Graphs with int8 weights for ONNX Runtime, made from an fp32 graph of `exporting`.

    model.onnx -> quantise_dynamic -> activations scaled anew for each batch
               -> quantise_static  -> activation scales fixed beforehand, from typical rows

All activations of a product share one scale, which costs more of the answers than the finer scales of `int8_groups`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madewithml import engines, exporting, tokenization

if TYPE_CHECKING:
    import onnx

LAYER = re.compile(r"/layers?\.(\d+)/")  # in the name of a node


def quantise_dynamic(graph: Path, target: Path) -> None:
    """Write an int8 graph whose activations are scaled anew for each batch."""
    import onnx
    from onnxruntime import quantization

    with exporting.quiet():
        quantization.quantize_dynamic(
            graph,
            target,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=_products_with_weights(onnx.load(str(graph))),
        )


def quantise_static(graph: Path, target: Path, *, rows: Sequence[Sequence[int]], pad_id: int) -> None:
    """Write an int8 graph whose activation scales are fixed, so that no answer depends on its neighbours.

    Args:
        graph: The fp32 graph.
        target: File to write.
        rows: Token ids of typical rows, from which the scales are taken.
        pad_id: Id that fills short rows.
    """
    import onnx
    from onnxruntime import quantization

    model = onnx.load(str(graph))
    names = {value.name for value in model.graph.input}
    with exporting.quiet():
        quantization.quantize_static(
            graph,
            target,
            _calibration(rows, pad_id=pad_id, names=names),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=_products_with_weights(model),
        )


def _products_with_weights(model: onnx.ModelProto) -> list[str]:
    """The products to compute in int8: those with weights, but for the last layer's.

    Products of attention, between activations, lose too much. So does the last layer where it was made to average the
    tokens (`models`): beside weights of 8 the small ones that were learned vanish. It costs next to nothing, since only
    the first token of each row goes through most of it.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    found = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    return but_for_the_last_layer(found)


def but_for_the_last_layer(products: Sequence[str]) -> list[str]:
    """The products outside the last layer, by their names; all of them where the names tell no layers."""
    layer_of = {name: int(match[1]) for name in products if (match := LAYER.search(name))}
    last = max(layer_of.values(), default=0)
    return [name for name in products if layer_of.get(name, last) < last] or list(products)


def _calibration(rows: Sequence[Sequence[int]], *, pad_id: int, names: set[str]) -> Any:
    """A reader in ONNX Runtime's form, one row a batch."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = iter(rows)

        def get_next(self) -> dict[str, tokenization.Ints] | None:
            row = next(self._rows, None)
            if row is None:
                return None
            return engines.inputs_of(names, *tokenization.pad([row], pad_id=pad_id))

    return Reader()
