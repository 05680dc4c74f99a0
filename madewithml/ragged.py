"""Ragged batches: rows of different length laid end to end, so that next to nothing is computed for padding.

    ids, mask [n, length] -> lay_out -> one long row of tokens, and a rectangle in which rows stand side by side

Most of an encoder's work is done token by token and does not care which row a token belongs to; only attention looks
across a row. A graph that takes its tokens end to end (`ragged_bert`) brings them into a rectangle for attention alone,
as wide as the longest row, where short rows share a line: attention costs the square of the width for each line, and
pays for places that are empty. So a batch of short and long rows costs little more than its tokens do, whatever their
lengths: rows may go through in order of arrival, and short ones do not wait for others of their length.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from madewithml import tokenization

# The names of the graph's inputs, in the order in which the module takes them.
INPUTS = ("ids", "positions", "places", "occupants", "owners", "rows", "mask")
# The tokens and the width are filled up in steps: engines keep code and memory prepared for each shape they have seen,
# of which there are a hundred times fewer then. Steps of this many, doubled as long as a size has more than so many of
# them: what is filled up is lost in the noise, and is nothing where the processor computes in tiles.
STEP = 8
STEPS = 16
NOBODY = -1


def takes(inputs: Collection[str]) -> bool:
    """Whether a graph with these inputs takes ragged batches."""
    return set(inputs) <= set(INPUTS)


def lay_out(
    ids: tokenization.Ints, mask: tokenization.Ints, inputs: Collection[str] = INPUTS
) -> dict[str, tokenization.Ints]:
    """A padded batch as a ragged one.

    Args:
        ids: Token ids, int64 [n, length].
        mask: 1 where there is a token, int64 [n, length]; each row's tokens come first.
        inputs: Those that the graph has: one of a single layer has no use for the rectangle.

    Returns:
        By input name, all int64, for t tokens in all and a rectangle of m lines as wide as the longest row, t and the
        width rounded up by `stepped`: `ids` [t], row after row; `positions` [t], of each token in its row;
        `places` [t], of each token in the flat rectangle; `occupants` [m, width], which token stands at each place (0
        where none does); `owners` [m, width], the row it belongs to (`NOBODY` where there is none); `rows` [n, width],
        the tokens of each row; `mask` [n, width].
    """
    lengths = mask.sum(axis=1)
    width, count = stepped(int(lengths.max(initial=1))), int(lengths.sum())
    starts = np.cumsum(lengths) - lengths  # of each row among the tokens
    filled = np.arange(count) - np.repeat(starts, lengths)
    at, lines = _side_by_side(lengths.tolist(), width)
    ragged = np.zeros((3, stepped(count)), dtype=np.int64)
    ragged[0, :count] = ids[mask != 0]
    ragged[1, :count] = filled
    places = ragged[2, :count]
    places[:] = np.repeat(at, lengths) + filled
    occupants = np.zeros(lines * width, dtype=np.int64)
    occupants[places] = np.arange(count)
    owners = np.full(lines * width, NOBODY, dtype=np.int64)
    owners[places] = np.repeat(np.arange(len(ids)), lengths)
    columns = np.arange(width)
    mask = (columns < lengths[:, None]).astype(np.int64)
    rows = (starts[:, None] + columns) * mask
    shape = (lines, width)
    values = (ragged[0], ragged[1], ragged[2], occupants.reshape(shape), owners.reshape(shape), rows, mask)
    return {name: value for name, value in zip(INPUTS, values, strict=True) if name in inputs}


def stepped(count: int) -> int:
    """A size rounded up: to a multiple of 8 as far as 128, of 16 as far as 256, and so on."""
    step = STEP
    while STEPS * step < count:
        step *= 2
    return -(-count // step) * step


def _side_by_side(lengths: Sequence[int], width: int) -> tuple[tokenization.Ints, int]:
    """Where each row begins in a flat rectangle of this width, and its lines: the first with room, long rows first."""
    left: list[int] = []  # room of each line
    at = np.zeros(len(lengths), dtype=np.int64)
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[row]
        line = next((number for number, room in enumerate(left) if room >= length), len(left))
        if line == len(left):
            left.append(width)
        at[row] = line * width + width - left[line]
        left[line] -= length
    return at, max(1, len(left))
