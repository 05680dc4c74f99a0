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
    rectangle = batch["ids"][batch["occupants"]]
    for row, tokens in enumerate(ROWS):
        assert rectangle[batch["owners"] == row].tolist() == tokens
    assert rectangle.ravel()[batch["places"]][:9].tolist() == batch["ids"][:9].tolist()


def test_short_rows_share_a_line_and_know_whose_each_place_is() -> None:
    """Four tokens, two and three: the one of two would fit beside none, so that two and four stand alone."""
    batch = laid_out()
    assert batch["owners"].tolist() == [[0, 0, 0, 0], [2, 2, 2, -1], [1, 1, -1, -1]]
    shared = ragged.lay_out(*tokenization.pad([[2, 3], [2, 50, 60, 3], [2, 3]], pad_id=0))
    assert shared["owners"].tolist() == [[1, 1, 1, 1], [0, 0, 2, 2]]


def test_the_tokens_of_each_row_are_known_too() -> None:
    batch = laid_out()
    for row, tokens, mask in zip(batch["ids"][batch["rows"]], ROWS, batch["mask"], strict=True):
        assert row[mask == 1].tolist() == tokens


def test_columns_without_a_token_cost_nothing() -> None:
    ids, mask = tokenization.pad(ROWS, pad_id=0)
    wide = ragged.lay_out(np.pad(ids, ((0, 0), (0, 9))), np.pad(mask, ((0, 0), (0, 9))))
    for name in ("ids", "positions", "places", "occupants", "owners"):
        assert wide[name].tolist() == laid_out()[name].tolist()


def test_a_number_of_tokens_that_is_a_step_already_is_kept() -> None:
    assert len(ragged.lay_out(*tokenization.pad([[1] * ragged.TOKEN_STEP], pad_id=0))["ids"]) == ragged.TOKEN_STEP


def test_a_graph_is_given_the_inputs_it_has() -> None:
    """One of a single layer has no use for the rectangle."""
    names = {"ids", "positions", "rows", "mask"}
    assert ragged.takes(names)
    assert set(ragged.lay_out(*tokenization.pad(ROWS, pad_id=0), names)) == names
    assert not ragged.takes({"input_ids", "attention_mask"})
