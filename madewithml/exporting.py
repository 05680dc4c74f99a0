"""Exporting: a checkpoint's torch model becomes ONNX graphs that the other engines run.

    checkpoint -> export -> model.onnx (fp32) -> to_openvino -> model.xml, model.bin (fp32)
                                              -> `quantising`, `int8_groups` -> int8 graphs

A BERT's graphs take ragged batches (`ragged`); those of other architectures `input_ids` and `attention_mask`, int64
[n, length]. All give `logits`, float32 [n, k], for any n and length.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from madewithml import checkpoint, engines, errors, models, ragged, ragged_bert, tokenization

if TYPE_CHECKING:
    import openvino

PADDED_AXES = {name: {0: "rows", 1: "length"} for name in engines.PADDED_INPUTS} | {"logits": {0: "rows"}}
RAGGED_AXES = {
    **{name: {0: "tokens"} for name in ("ids", "positions", "places")},
    **{name: {0: "lines", 1: "width"} for name in ("occupants", "owners")},
    **{name: {0: "rows", 1: "length"} for name in ("rows", "mask")},
    "logits": {0: "rows"},
}
OPSET = 17


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
        model, inputs, axes = (
            _LogitsOnly(classifier),
            dict(zip(engines.PADDED_INPUTS, (ids, mask), strict=True)),
            PADDED_AXES,
        )
    try:
        with quiet(), torch.inference_mode():
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
        raise errors.InputError(f"the model cannot be exported to ONNX: {errors.first_line(err)}") from err


def to_openvino(graph: Path, target: Path) -> None:
    """Write a graph in OpenVINO's own form, `target` and beside it a `.bin` with the weights.

    OpenVINO maps that file into memory, so that all processes of a machine share one copy of it, and reads it sooner.
    """
    import openvino

    save(openvino.Core().read_model(str(graph)), target)


def save(model: openvino.Model, target: Path) -> None:
    """Write a model of OpenVINO as `target` and a `.bin` beside it."""
    import openvino

    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        written = Path(scratch) / target.name
        openvino.save_model(model, str(written), compress_to_fp16=False)
        # Moved into place: a service may have the file of that name mapped, and must go on reading what it read.
        for path in (written.with_suffix(".bin"), written):
            path.replace(target.with_name(path.name))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep advice for the authors of exporters off the terminal."""
    level = logging.root.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.root.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.root.setLevel(level)
