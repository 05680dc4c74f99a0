from __future__ import annotations

import hashlib

from madewithml import texts


def test_text_fields_are_joined_by_one_space_in_their_given_order() -> None:
    row = {"description": "second", "title": "first", "tag": "ignored"}
    assert texts.row_text(row, ["title", "description"]) == "first second"


def test_missing_null_and_blank_fields_leave_no_gap() -> None:
    assert texts.row_text({"title": None, "description": " b "}, ["title", "description"]) == "b"
    assert texts.row_text({"title": "a", "description": " \n\t"}, ["title", "description"]) == "a"
    assert texts.row_text({}, ["title", "description"]) == ""


def test_only_the_ends_of_a_field_are_stripped() -> None:
    assert texts.row_text({"title": "  a  b\nc "}, ["title"]) == "a  b\nc"


def test_a_row_is_recognised_by_the_sha256_of_its_text() -> None:
    assert texts.text_sha256("café") == hashlib.sha256("café".encode()).hexdigest()
