"""The graphs that engines run, all made from one checkpoint.

    checkpoint -> fp32 (ONNX) -> int8 (ONNX), fp32 (OpenVINO) -> int8 by groups of channels (OpenVINO)

One that cannot be made is no fault of the others: only what is made from it fails with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from madewithml import checkpoint, exporting, int8_groups, quantising

FP32, DYNAMIC, STATIC = "model.onnx", "model-int8-dynamic.onnx", "model-int8.onnx"
OPENVINO = "model.xml"
GROUPS = "model-int8-groups.xml"
MIXED = {group: f"model-int8-mixed-{group}.xml" for group in (128, 64, 32)}
SUFFIXES = (".onnx", ".xml", ".bin")
ROWS_FOR_ROUNDING = 128  # of weights, for int8 by groups
ROWS_FOR_SCALES = 24  # of activations, and to tell which products are delicate


class Graphs:
    """Writes the graphs of one checkpoint.

    Args:
        source: The checkpoint.
        folder: Where they go.
        rows: Tokenised texts such as will come.
        may_be_ragged: Whether they take ragged batches where the architecture allows it.
    """

    def __init__(
        self, source: checkpoint.Checkpoint, folder: Path, *, rows: Sequence[list[int]], may_be_ragged: bool = True
    ) -> None:
        self._source = source
        self._folder = folder
        self._rows = list(rows[:ROWS_FOR_ROUNDING])
        self._few = self._rows[:ROWS_FOR_SCALES]
        self._may_be_ragged = may_be_ragged
        self._pad_id = source.metadata.pad_id
        self._fp32, self._openvino = folder / FP32, folder / OPENVINO
        self._roundings: dict[int, int8_groups.Rounding] = {}

    def write(self) -> dict[str, str]:
        """Write them all; gives the reason for each that could not be written, by its name."""
        failed: dict[str, str] = {}
        for name, write in self._writers().items():
            reason = failed.get(FP32) or _failure(write)  # the others are made from the first
            if reason is not None:
                failed[name] = reason
        return failed

    def _writers(self) -> dict[str, Callable[[], None]]:
        few, pad_id = self._few, self._pad_id
        return {
            FP32: lambda: exporting.export(self._source, self._fp32, may_be_ragged=self._may_be_ragged),
            OPENVINO: lambda: exporting.to_openvino(self._fp32, self._openvino),
            DYNAMIC: lambda: quantising.quantise_dynamic(self._fp32, self._folder / DYNAMIC),
            STATIC: lambda: quantising.quantise_static(self._fp32, self._folder / STATIC, rows=few, pad_id=pad_id),
            GROUPS: lambda: int8_groups.write(self._openvino, self._folder / GROUPS, self._rounding(128)),
            **{name: functools.partial(self._write_mixed, group) for group, name in MIXED.items()},
        }

    def _write_mixed(self, group: int) -> None:
        int8_groups.write(self._openvino, self._folder / MIXED[group], self._rounding(group), names=self._sturdy)

    @functools.cached_property
    def _seen(self) -> dict[str, int8_groups.Activations]:
        return int8_groups.observe(self._openvino, rows=self._rows, pad_id=self._pad_id)

    def _rounding(self, group: int) -> int8_groups.Rounding:
        if group not in self._roundings:
            self._roundings[group] = int8_groups.rounding_of(self._openvino, seen=self._seen, group=group)
        return self._roundings[group]

    @functools.cached_property
    def _sturdy(self) -> list[str]:
        """The products that may be rounded; the others are too delicate."""
        return int8_groups.mixed(self._openvino, self._rounding(128), rows=self._few, pad_id=self._pad_id)


def tidy(folder: Path, *, keep: Iterable[str]) -> None:
    """Remove the graphs that no engine will run."""
    kept = set(keep)
    for path in folder.iterdir():
        if path.suffix in SUFFIXES and path.name not in kept:
            path.unlink()


def _failure(write: Callable[[], None]) -> str | None:
    """Why it failed; None if it did not."""
    try:
        write()
    except Exception as err:  # noqa: BLE001 - exporters raise every kind; the candidate is rejected with the reason
        return first_line(err)
    return None


def first_line(err: BaseException) -> str:
    """What an error of a library's says, in one line."""
    return next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)[:200]
