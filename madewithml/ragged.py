"""Ragged batches: rows of different length laid end to end, so that nothing is computed for padding.

    ids, mask [n, length] -> lay_out -> one long row of tokens, and where each of them stands

Most of an encoder's work is done token by token and does not care which row a token belongs to; only attention looks
across a row. A graph that takes its tokens end to end (`ragged_bert`) brings them into the rectangle for attention
alone. A batch of short and long rows then costs what its tokens cost, whatever their lengths: rows may go through
in order of arrival, and short ones do not wait for others of their length.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from madewithml import tokenization

# The names of the graph's inputs, in the order in which the module takes them.
INPUTS = ("ids", "positions", "places", "slots", "mask")
# Tokens are filled up to a multiple of this: engines keep code and memory prepared for each number they have seen.
TOKEN_STEP = 8


def takes(inputs: Collection[str]) -> bool:
    """Whether a graph with these inputs takes ragged batches."""
    return set(inputs) <= set(INPUTS)


def lay_out(
    ids: tokenization.Ints, mask: tokenization.Ints, inputs: Collection[str] = INPUTS
) -> dict[str, tokenization.Ints]:
    """A padded batch as a ragged one.

    Args:
        ids: Token ids, int64 [n, length].
        mask: 1 where there is a token, int64 [n, length].
        inputs: Those that the graph has: one of a single layer never goes back from the rectangle.

    Returns:
        By input name, all int64, for t tokens in all, rounded up to a multiple of `TOKEN_STEP`:
        `ids` [t], row after row; `positions` [t], of each token in its row; `places` [t], of each token in the flat
        rectangle; `slots` [n, length], which token stands at each place of the rectangle (0 where none does); `mask`.
    """
    places = np.flatnonzero(mask)
    count = len(places)
    total = -(-count // TOKEN_STEP) * TOKEN_STEP
    ragged = np.zeros((3, total), dtype=np.int64)
    ragged[0, :count] = ids.ravel()[places]
    ragged[1, :count] = places % mask.shape[1]
    ragged[2, :count] = places
    slots = np.zeros(mask.size, dtype=np.int64)
    slots[places] = np.arange(count)
    values = (ragged[0], ragged[1], ragged[2], slots.reshape(mask.shape), mask)
    return {name: value for name, value in zip(INPUTS, values, strict=True) if name in inputs}
