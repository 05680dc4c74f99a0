from __future__ import annotations

import pytest

from madewithml import errors


@pytest.mark.parametrize(
    ("said", "line", "folded"),
    [
        ("no such table: runs\n[SQL: SELECT 1]", "no such table: runs", "no such table: runs [SQL: SELECT 1]"),
        ("\n  late \n", "late", "late"),
        ("", "ValueError", "ValueError"),
    ],
)
def test_what_another_library_says_fits_a_line_and_is_never_nothing(said: str, line: str, folded: str) -> None:
    assert errors.first_line(ValueError(said)) == line
    assert errors.in_one_line(ValueError(said)) == folded
