"""Exporting: a checkpoint's torch model becomes ONNX graphs that the other engines run.

    checkpoint -> export -> model.onnx (fp32) -> quantise_dynamic, quantise_static -> int8 graphs

The graphs take `input_ids` and `attention_mask`, int64 [n, length], and give `logits`, float32 [n, k], for any n and
length.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from madewithml import checkpoint, errors, models, tokenization

INPUTS = ("input_ids", "attention_mask")
OPSET = 17


class _LogitsOnly(nn.Module):
    """The classifier with plain tensors in and out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


class _FirstTokenLayer(nn.Module):
    """A BERT's last layer, for its first token alone: no other is read by the head.

    It saves most of one layer: queries, attention rows and the feed-forward part of all the other tokens.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *_: Any, **__: Any
    ) -> torch.Tensor:
        attention, first = self.layer.attention.self, hidden_states[:, :1]
        shape = (*hidden_states.shape[:2], attention.num_attention_heads, attention.attention_head_size)
        query = attention.query(first).view(shape[0], 1, *shape[2:]).transpose(1, 2)
        key = attention.key(hidden_states).view(shape).transpose(1, 2)
        value = attention.value(hidden_states).view(shape).transpose(1, 2)
        mask = None if attention_mask is None else attention_mask[:, :, :1]
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        context = context.transpose(1, 2).reshape(shape[0], 1, -1)
        output: torch.Tensor = self.layer.feed_forward_chunk(self.layer.attention.output(context, first))
        return output


def _narrow(model: Any) -> None:
    """Let a BERT compute of its last layer only what its head reads."""
    if getattr(model.config, "model_type", None) == "bert" and not model.config.is_decoder:
        layers = model.bert.encoder.layer
        layers[-1] = _FirstTokenLayer(layers[-1])


def export(source: checkpoint.Checkpoint, target: Path) -> None:
    """Write the checkpoint's model as an ONNX graph in fp32.

    Raises:
        InputError: Its architecture cannot be exported.
    """
    classifier = models.from_folder(source.folder).eval()
    _narrow(classifier)
    model = _LogitsOnly(classifier)
    ids = torch.full((2, 8), source.metadata.pad_id + 1, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0  # with padding, so that no attention is traced as if there never were any
    axes = {name: {0: "rows", 1: "length"} for name in INPUTS} | {"logits": {0: "rows"}}
    try:
        with _quiet(), torch.inference_mode():
            # The tracing exporter: OpenVINO cannot read what torch's newer one writes for these models.
            torch.onnx.export(
                model,
                (ids, mask),
                str(target),
                input_names=list(INPUTS),
                output_names=["logits"],
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
    except Exception as err:  # torch raises many kinds, some bare
        raise errors.InputError(f"the model cannot be exported to ONNX: {str(err).splitlines()[0]}") from err


def quantise_dynamic(graph: Path, target: Path) -> None:
    """Write an int8 graph whose activations are scaled anew for each batch."""
    from onnxruntime import quantization

    with _quiet():
        quantization.quantize_dynamic(
            graph,
            target,
            per_channel=True,
            op_types_to_quantize=["MatMul"],
            weight_type=quantization.QuantType.QInt8,
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
    weights = {tensor.name for tensor in model.graph.initializer}
    # Products with weights; those of attention, between activations, lose too much.
    chosen = [n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    with _quiet():
        quantization.quantize_static(
            graph,
            target,
            _calibration(rows, pad_id=pad_id),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=chosen,
        )


def _calibration(rows: Sequence[Sequence[int]], *, pad_id: int) -> Any:
    """A reader in ONNX Runtime's form, one row a batch."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = iter(rows)

        def get_next(self) -> dict[str, tokenization.Ints] | None:
            row = next(self._rows, None)
            return None if row is None else dict(zip(INPUTS, tokenization.pad([row], pad_id=pad_id), strict=True))

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
