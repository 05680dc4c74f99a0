from __future__ import annotations

import numpy as np

from madewithml import ragged, tokenization

ROWS = [[2, 50, 60, 3], [2, 3], [2, 7, 3]]


def laid_out() -> dict[str, tokenization.Ints]:
    return ragged.lay_out(*tokenization.pad(ROWS, pad_id=0))


def test_tokens_stand_end_to_end_with_their_positions_filled_up_to_a_step() -> None:
    batch = laid_out()
    assert batch["ids"].tolist() == [2, 50, 60, 3, 2, 3, 2, 7, 3, *[0] * 7]
    assert batch["positions"].tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, *[0] * 7]


def test_the_inputs_are_those_of_the_graph_and_all_int64() -> None:
    batch = laid_out()
    assert tuple(batch) == ragged.INPUTS
    assert {values.dtype for values in batch.values()} == {np.dtype(np.int64)}


def test_through_the_rectangle_and_back_every_token_is_where_it_was() -> None:
    batch = laid_out()
    rectangle = batch["ids"][batch["slots"]]
    for row, tokens, mask in zip(rectangle, ROWS, batch["mask"], strict=True):
        assert row[mask == 1].tolist() == tokens
    assert rectangle.ravel()[batch["places"]][:9].tolist() == batch["ids"][:9].tolist()


def test_a_number_of_tokens_that_is_a_step_already_is_kept() -> None:
    assert len(ragged.lay_out(*tokenization.pad([[1] * ragged.TOKEN_STEP], pad_id=0))["ids"]) == ragged.TOKEN_STEP


def test_a_graph_is_given_the_inputs_it_has() -> None:
    """One of a single layer has no use for `places`."""
    names = {"ids", "positions", "slots", "mask"}
    assert ragged.takes(names)
    assert set(ragged.lay_out(*tokenization.pad(ROWS, pad_id=0), names)) == names
    assert not ragged.takes({"input_ids", "attention_mask"})
