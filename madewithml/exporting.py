"""Exporting: a checkpoint's torch model becomes ONNX graphs that the other engines run.

    checkpoint -> export -> model.onnx (fp32) -> to_openvino -> model.xml, model.bin
                                              -> quantise_dynamic, quantise_static -> int8 graphs

A BERT's graphs take ragged batches (`ragged`); those of other architectures `input_ids` and `attention_mask`, int64
[n, length]. All give `logits`, float32 [n, k], for any n and length.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from madewithml import checkpoint, errors, models, ragged, ragged_bert, tokenization

if TYPE_CHECKING:
    import onnx

INPUTS = ("input_ids", "attention_mask")
PADDED_AXES = {name: {0: "rows", 1: "length"} for name in INPUTS} | {"logits": {0: "rows"}}
RAGGED_AXES = {
    **{name: {0: "tokens"} for name in ("ids", "positions", "places")},
    **{name: {0: "rows", 1: "length"} for name in ("slots", "mask")},
    "logits": {0: "rows"},
}
OPSET = 17
LAYER = re.compile(r"/layers?\.(\d+)/")  # in the name of a node


class _LogitsOnly(nn.Module):
    """The classifier with plain tensors in and out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def export(source: checkpoint.Checkpoint, target: Path, *, may_be_ragged: bool = True) -> None:
    """Write the checkpoint's model as an ONNX graph in fp32.

    Args:
        source: The checkpoint.
        target: File to write.
        may_be_ragged: Whether the graph takes ragged batches where the architecture allows it.

    Raises:
        InputError: Its architecture cannot be exported.
    """
    classifier = models.from_folder(source.folder).eval()
    token = source.metadata.pad_id + 1
    # Rows of different length, so that no attention is traced as if there never were any padding.
    ids, mask = tokenization.pad([[token] * 8, [token] * 6], pad_id=source.metadata.pad_id)
    model: nn.Module
    if may_be_ragged and ragged_bert.suits(classifier):
        model, inputs, axes = ragged_bert.RaggedBert(classifier), ragged.lay_out(ids, mask), RAGGED_AXES
    else:
        model, inputs, axes = _LogitsOnly(classifier), dict(zip(INPUTS, (ids, mask), strict=True)), PADDED_AXES
    try:
        with _quiet(), torch.inference_mode():
            # The tracing exporter: OpenVINO cannot read what torch's newer one writes for these models.
            torch.onnx.export(
                model,
                tuple(torch.from_numpy(values) for values in inputs.values()),
                str(target),
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
    except Exception as err:  # torch raises many kinds, some bare
        raise errors.InputError(f"the model cannot be exported to ONNX: {str(err).splitlines()[0]}") from err


def to_openvino(graph: Path, target: Path) -> None:
    """Write a graph in OpenVINO's own form, `target` and beside it a `.bin` with the weights.

    OpenVINO maps that file into memory, so that all processes of a machine share one copy of it, and reads it sooner.
    """
    import openvino

    model = openvino.Core().read_model(str(graph))
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        written = Path(scratch) / target.name
        openvino.save_model(model, str(written), compress_to_fp16=False)
        # Moved into place: a service may have the file of that name mapped, and must go on reading what it read.
        for path in (written.with_suffix(".bin"), written):
            path.replace(target.with_name(path.name))


def quantise_dynamic(graph: Path, target: Path) -> None:
    """Write an int8 graph whose activations are scaled anew for each batch."""
    import onnx
    from onnxruntime import quantization

    with _quiet():
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
    with _quiet():
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
    layer_of = {name: int(match[1]) for name in found if (match := LAYER.search(name))}
    last = max(layer_of.values(), default=0)
    return [name for name in found if layer_of.get(name, last) < last] or found


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
            padded = tokenization.pad([row], pad_id=pad_id)
            return ragged.lay_out(*padded, names) if ragged.takes(names) else dict(zip(INPUTS, padded, strict=True))

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep advice for the authors of exporters off the terminal."""
    level = logging.root.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.root.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.root.setLevel(level)
