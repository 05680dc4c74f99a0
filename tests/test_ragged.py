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
    """Four tokens and three in one line of eight, two in the next; then twice four, and six."""
    assert laid_out()["owners"].tolist() == [[0] * 4 + [2] * 3 + [-1], [1] * 2 + [-1] * 6]
    shared = ragged.lay_out(*tokenization.pad([[2, 50, 60, 3], [2, 5, 6, 7, 8, 3], [2, 50, 60, 3]], pad_id=0))
    assert shared["owners"].tolist() == [[1] * 6 + [-1] * 2, [0] * 4 + [2] * 4]


def test_the_tokens_of_each_row_are_known_too() -> None:
    batch = laid_out()
    for row, tokens, mask in zip(batch["ids"][batch["rows"]], ROWS, batch["mask"], strict=True):
        assert row[mask == 1].tolist() == tokens


def test_columns_without_a_token_cost_nothing() -> None:
    ids, mask = tokenization.pad(ROWS, pad_id=0)
    wide = ragged.lay_out(np.pad(ids, ((0, 0), (0, 9))), np.pad(mask, ((0, 0), (0, 9))))
    assert {name: values.tolist() for name, values in wide.items()} == {
        name: values.tolist() for name, values in laid_out().items()
    }


def test_shapes_come_in_steps() -> None:
    """Engines keep code and memory for each shape: of rows of 1 to 24 tokens, alone, there are three."""
    batches = [ragged.lay_out(*tokenization.pad([[1] * length], pad_id=0)) for length in range(1, 3 * ragged.STEP + 1)]
    shapes = {tuple(values.shape for values in batch.values()) for batch in batches}
    assert sorted(shape[0] for shape in shapes) == [(ragged.STEP,), (2 * ragged.STEP,), (3 * ragged.STEP,)]


def test_large_sizes_come_in_larger_steps_and_never_grow_by_more_than_an_eighth() -> None:
    assert [ragged.stepped(size) for size in (1, 8, 9, 128, 129, 256, 257)] == [8, 8, 16, 128, 144, 256, 288]
    sizes = range(1, 5000)
    assert all(size <= ragged.stepped(size) <= max(size + ragged.STEP - 1, 9 / 8 * size) for size in sizes)
    assert len({ragged.stepped(size) for size in sizes}) < 64


def test_a_graph_is_given_the_inputs_it_has() -> None:
    """One of a single layer has no use for the rectangle."""
    names = {"ids", "positions", "rows", "mask"}
    assert ragged.takes(names)
    assert set(ragged.lay_out(*tokenization.pad(ROWS, pad_id=0), names)) == names
    assert not ragged.takes({"input_ids", "attention_mask"})
