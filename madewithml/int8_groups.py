"""Graphs with int8 weights for OpenVINO, with scales fine enough to keep the model's answers.

    fp32 graph, typical rows -> observe -> what goes into each product
                             -> rounding_of -> int8 weights, a scale for each output and group of input channels
                             -> write -> int8 graph; of `mixed` with the most delicate products left as they are

The engine rounds activations likewise, token by token, in groups of as many neighbouring channels (`engines`): so no
answer depends on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from madewithml import engines, exporting, quantising, rounding, tokenization

if TYPE_CHECKING:
    import openvino

SAMPLE_TOKENS = 512  # kept of what goes into a product; of the others only sums
ROWS_AT_ONCE = 32
# Of the squared error of the logits that rounding all products makes; left to those that `mixed` rounds.
TOLERATED = 0.65


@dataclass
class Activations:
    """What goes into a product, token by token: a sample, the largest of each channel, and X'X."""

    sample: npt.NDArray[np.float32]
    largest: npt.NDArray[np.float32]
    moments: npt.NDArray[np.float64]

    @classmethod
    def none(cls, width: int) -> Activations:
        """Nothing seen yet of so many channels."""
        return cls(np.empty((0, width), np.float32), np.zeros(width, np.float32), np.zeros((width, width)))

    def add(self, tokens: npt.NDArray[np.float32]) -> None:
        """Take in some more, [m, width]."""
        self.sample = np.concatenate([self.sample, tokens[: SAMPLE_TOKENS - len(self.sample)]])
        self.largest = np.maximum(self.largest, np.abs(tokens).max(axis=0))
        self.moments += tokens.T @ tokens


class Rounded(NamedTuple):
    """A product's weights: int8 [n, k], scales [n, k / group], and what its activations are divided by, [k]."""

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    divisor: npt.NDArray[np.float32]


class Rounding(NamedTuple):
    """The weights of all products, by name, and the number of channels that share a scale."""

    group: int
    products: Mapping[str, Rounded]


def observe(graph: Path, *, rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, Activations]:
    """What goes into the products that are to be rounded, by the name of where it comes from.

    Args:
        graph: The fp32 graph, in OpenVINO's own form.
        rows: Token ids of typical rows. Each is computed by itself, so that nothing that is seen is padding.
        pad_id: Id that fills short rows.
    """
    model = _read(graph)
    sources = {_source(product): product.input_value(0) for product in _products(model)}
    first = len(model.outputs)
    model.add_outputs(list(sources.values()))
    run = _Runner(model, pad_id=pad_id)
    seen: dict[str, Activations] = {}
    for start in range(0, len(rows), ROWS_AT_ONCE):
        found: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in sources}
        for row in rows[start : start + ROWS_AT_ONCE]:
            for name, values in zip(sources, run(row)[first:], strict=True):
                found[name].append(values.reshape(-1, values.shape[-1])[: len(row)].copy())
        for name, parts in found.items():
            tokens = np.concatenate(parts)
            seen.setdefault(name, Activations.none(tokens.shape[1])).add(tokens)
    return seen


def rounding_of(graph: Path, *, seen: Mapping[str, Activations], group: int) -> Rounding:
    """Round the weights of all products.

    Args:
        graph: The fp32 graph, in OpenVINO's own form.
        seen: What `observe` saw in it.
        group: Channels that share a scale; where they do not divide a product's, all of that product's share one.
    """
    sharing: dict[str, list[Any]] = {}  # queries, keys and values have the same activations, and so the same divisor
    for product in _products(_read(graph)):
        sharing.setdefault(_source(product), []).append(product)
    found = {}
    for source, products in sharing.items():
        weights, own = [_weights(product) for product in products], seen[source]
        channels = weights[0].shape[1]
        size = group if channels % group == 0 else channels
        divisor = rounding.smoothing(np.concatenate(weights), own.sample, own.largest, group=size)
        moments = own.moments / np.outer(divisor, divisor)
        for product, values in zip(products, weights, strict=True):
            found[_name(product)] = Rounded(*rounding.rounded(values * divisor, moments, group=size), divisor)
    return Rounding(group, found)


def write(graph: Path, target: Path, rounded: Rounding, *, names: Collection[str] | None = None) -> None:
    """Write the graph with int8 weights.

    Args:
        graph: The fp32 graph, in OpenVINO's own form.
        target: File to write, with a `.bin` beside it.
        rounded: Its weights.
        names: The products that are rounded; None for all.
    """
    model = _read(graph)
    _replace(model, rounded, rounded.products if names is None else names)
    exporting.save(model, target)


def mixed(graph: Path, rounded: Rounding, *, rows: Sequence[Sequence[int]], pad_id: int) -> list[str]:
    """The products to round so that two thirds of the error is left, and as much of the work as possible is in int8.

    Errors of different products have nothing to do with each other, so that their squares add up. Left out are those
    that make the most of it for the work they are.

    Args:
        graph: The fp32 graph, in OpenVINO's own form.
        rounded: Its weights.
        rows: Token ids of some typical rows.
        pad_id: Id that fills short rows.
    """
    expected = _logits(_read(graph), rows, pad_id=pad_id, group=0)
    error, work = {}, {}
    for name, product in rounded.products.items():
        model = _read(graph)
        _replace(model, rounded, [name])
        change = _logits(model, rows, pad_id=pad_id, group=rounded.group) - expected
        error[name], work[name] = float(np.square(change).sum()), product.values.size
    kept, left = set(rounded.products), sum(error.values())
    tolerated = TOLERATED * left
    for name in sorted(error, key=lambda name: error[name] / work[name], reverse=True):
        if left <= tolerated:
            break
        kept.discard(name)
        left -= error[name]
    return sorted(kept)


class _Runner:
    """A model on rows, each by itself."""

    def __init__(self, model: openvino.Model, *, pad_id: int, group: int = 0) -> None:
        import openvino

        options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": group}
        self._compiled = openvino.Core().compile_model(model, "CPU", options)
        self._request = self._compiled.create_infer_request()
        self._names = {node.any_name for node in model.inputs}
        self._pad_id = pad_id

    def __call__(self, row: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """All of its outputs; valid until the next call."""
        inputs = engines.inputs_of(self._names, *tokenization.pad([row], pad_id=self._pad_id))
        outputs = self._request.infer(inputs)
        return [outputs[output] for output in self._compiled.outputs]


def _logits(model: openvino.Model, rows: Sequence[Sequence[int]], *, pad_id: int, group: int) -> npt.NDArray[Any]:
    run = _Runner(model, pad_id=pad_id, group=group)
    return np.concatenate([run(row)[0].copy() for row in rows])


def _read(graph: Path) -> openvino.Model:
    import openvino

    return openvino.Core().read_model(str(graph))


def _products(model: openvino.Model) -> list[Any]:
    """The nodes to compute in int8: products with weights, but for the last layer's."""
    found = {
        _name(node): node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "MatMul" and node.input_value(1).get_node().get_type_name() == "Constant"
    }
    return [found[name] for name in quantising.but_for_the_last_layer(list(found))]


def _name(product: Any) -> str:
    name: str = product.get_friendly_name()
    return name


def _source(product: Any) -> str:
    """What a product's activations come from."""
    source = product.input_value(0)
    return f"{source.get_node().get_friendly_name()}:{source.get_index()}"


def _weights(product: Any) -> npt.NDArray[np.float32]:
    """Its weights, [outputs, inputs]."""
    values = np.array(product.input_value(1).get_node().get_data(), dtype=np.float32)
    return values if product.get_attributes()["transpose_b"] else values.T


def _replace(model: openvino.Model, rounded: Rounding, names: Collection[str]) -> None:
    """Put int8 weights in the place of those of these products."""
    from openvino import opset13 as opset

    smooth: dict[str, Any] = {}
    for product in _products(model):
        name, source = _name(product), _source(product)
        if name not in names:
            continue
        values, scales, divisor = rounded.products[name]
        if source not in smooth:
            inverse = opset.constant((1.0 / divisor).astype(np.float32))
            smooth[source] = opset.multiply(product.input_value(0), inverse)
        outputs, groups = scales.shape
        integers = opset.convert(opset.constant(values.reshape(outputs, groups, -1)), "f32")
        scaled = opset.multiply(integers, opset.constant(scales[:, :, None]))
        weights = opset.reshape(scaled, opset.constant(np.array(values.shape, dtype=np.int64)), special_zero=False)
        replacement = opset.matmul(smooth[source], weights, transpose_a=False, transpose_b=True)
        replacement.set_friendly_name(name)
        product.output(0).replace(replacement.output(0))
