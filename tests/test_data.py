from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from madewithml import data, errors

FIELDS = ("title", "description")


def write(folder: Path, content: str | bytes, name: str = "rows.csv") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(location: str) -> data.LabelledText:
    return data.read_labelled(location, text_fields=FIELDS, label_field="tag")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("a.csv", "csv"),
        ("A.CSV", "csv"),
        ("https://host/a.csv?token=1", "csv"),
        ("a.jsonl", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.json", "jsonl"),
        ("a.b.parquet", "parquet"),
    ],
)
def test_the_ending_tells_the_format(location: str, expected: str) -> None:
    assert data.file_format(location) == expected


def test_an_unknown_ending_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(errors.InputError, match=r"cannot tell the format of 'a\.xlsx': expected .*\.csv, \.jsonl"):
        data.file_format("a.xlsx")


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_the_same_rows_give_the_same_hash_in_every_format(tmp_path: Path, name: str) -> None:
    table = pd.DataFrame(
        {"title": ["one", 'a "quoted", text\nof two lines'], "description": ["ünïcode 🚀", ""], "tag": ["x", "y"]}
    )
    path = tmp_path / name
    if name.endswith("csv"):
        table.to_csv(path, index=False)
    elif name.endswith("jsonl"):
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    rows = read(str(path))
    assert rows.texts == ["one ünïcode 🚀", 'a "quoted", text\nof two lines']
    assert rows.labels == ["x", "y"]
    assert rows.sha256 == data.LabelledText([], rows.texts, ["x", "y"]).sha256


def test_the_hash_depends_on_texts_labels_and_order() -> None:
    hashes = {
        data.LabelledText([], texts, labels).sha256
        for texts, labels in [
            (["a", "b"], ["x", "y"]),
            (["b", "a"], ["x", "y"]),
            (["a", "b"], ["y", "x"]),
            (["ab", ""], ["x", "y"]),
        ]
    }
    assert len(hashes) == 4


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    location = write(tmp_path, b"\xef\xbb\xbftitle,description,tag\na,b,x\n")
    assert data.read_table(location).columns.tolist() == ["title", "description", "tag"]


def test_words_that_pandas_takes_for_missing_stay_text(tmp_path: Path) -> None:
    location = write(tmp_path, "title,tag\nNA,null\nNaN,None\n")
    assert data.read_table(location).to_numpy().tolist() == [["NA", "null"], ["NaN", "None"]]


def test_numbers_dates_and_missing_values_become_strings(tmp_path: Path) -> None:
    lines = ['{"title": "2020-01-01", "tag": 1, "more": null}', '{"title": null, "tag": 2}', '{"tag": 3}']
    table = data.read_table(write(tmp_path, "\n".join(lines), "rows.jsonl"))
    assert table.to_dict("records") == [
        {"title": "2020-01-01", "tag": "1", "more": ""},
        {"title": "", "tag": "2", "more": ""},
        {"title": "", "tag": "3", "more": ""},
    ]


def test_nan_in_parquet_counts_as_empty_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"title": ["a", None], "description": [np.nan, 2.5], "tag": [1, 2]}).to_parquet(path)
    rows = read(str(path))
    assert (rows.texts, rows.labels) == (["a", "2.5"], ["1", "2"])


@pytest.mark.parametrize("name", ["nowhere.csv", "nowhere.jsonl", "nowhere.parquet"])
def test_an_unknown_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.InputError, match=rf"^no file '.*{name}': check --dataset-loc"):
        data.read_table(str(tmp_path / name))


def test_a_url_that_does_not_answer_is_named() -> None:
    with pytest.raises(errors.InputError, match=r"'http://127\.0\.0\.1:9/a\.csv' cannot be read as csv: .*refused"):
        data.read_table("http://127.0.0.1:9/a.csv")


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").mkdir()
    with pytest.raises(errors.InputError, match=r"rows\.csv' cannot be read as csv: .*[Dd]irectory"):
        data.read_table(str(tmp_path / "rows.csv"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.csv", "", "is empty: expected a header line and rows"),
        ("rows.jsonl", "", "has no rows"),
        ("rows.parquet", "", "cannot be read as parquet: .*size is 0 bytes"),
        ("rows.csv", "title,description,tag\n", "has no rows"),
        ("rows.csv", 'title,tag\n"never closed,x\n', "cannot be read as csv: .*EOF inside string"),
        ("rows.csv", "title,tag\na,x\na,b,x\n", "cannot be read as csv: .*Expected 2 fields in line 3, saw 3"),
        ("rows.jsonl", '{"title": 1}\nnot json\n', "cannot be read as jsonl"),
        ("rows.parquet", "title,tag\na,x\n", "cannot be read as parquet"),
    ],
)
def test_a_file_without_rows_or_in_another_format_says_so(
    tmp_path: Path, name: str, content: str, expected: str
) -> None:
    with pytest.raises(errors.InputError, match=expected):
        data.read_table(write(tmp_path, content, name))


@pytest.mark.parametrize("rows", ["a,b,x,\nc,d,y,\n", "a,b,x,more\nc,d,y\n"])
def test_rows_with_more_cells_than_the_header_are_refused_and_never_shifted(tmp_path: Path, rows: str) -> None:
    location = write(tmp_path, "title,description,tag\n" + rows)
    with pytest.raises(errors.InputError, match=r"rows\.csv' cannot be read as csv: .*more cells than the header"):
        data.read_table(location)


@pytest.mark.parametrize(
    ("name", "content"), [("rows.csv", "title,tag\ncafé,x\n"), ("rows.jsonl", '{"title": "café", "tag": "x"}\n')]
)
def test_a_file_that_is_not_utf8_names_the_byte_and_its_place(tmp_path: Path, name: str, content: str) -> None:
    raw = content.encode("latin-1")
    location = write(tmp_path, raw, name)
    with pytest.raises(errors.InputError, match=r"is not UTF-8 \(byte 0xe9 at position \d+\): save it as UTF-8"):
        data.read_table(location)


def test_a_missing_column_is_named_with_the_ones_that_are_there(tmp_path: Path) -> None:
    location = write(tmp_path, "title,text,label\na,b,x\n")
    with pytest.raises(
        errors.InputError,
        match=r"has no column 'description'; it has 'title', 'text', 'label'\. .*--text-fields and --label-field",
    ):
        read(location)
    with pytest.raises(errors.InputError, match="has no column 'tag'"):
        data.read_labelled(location, text_fields=("title", "text"), label_field="tag")


def test_rows_without_text_or_label_are_left_out_and_counted_with_their_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    location = write(tmp_path, "title,description,tag\na,b,x\n , ,x\nc,d,\n,,y\ne,,y\n")
    with caplog.at_level(logging.WARNING, logger="madewithml.data"):
        rows = read(location)
    assert (rows.texts, rows.labels) == (["a b", "e"], ["x", "y"])
    assert rows.rows == [{"title": "a", "description": "b"}, {"title": "e", "description": ""}]
    expected = ["left out 2 rows without any text (line 3, 5)", "left out 1 row without a label (line 4)"]
    assert rows.notes == expected
    assert [record.getMessage() for record in caplog.records] == [f"{location}: {note}" for note in expected]


def test_of_rows_with_the_same_text_the_first_is_kept_whatever_the_later_labels(tmp_path: Path) -> None:
    lines = ["a,b,x", "a b,,x", "a,b,y", *["a,b, x"] * 5]
    rows = read(write(tmp_path, "title,description,tag\n" + "\n".join(lines) + "\n"))
    assert (rows.texts, rows.labels, len(rows)) == (["a b"], ["x"], 1)
    assert rows.notes == [
        "left out 6 rows repeating an earlier text (line 3, 5, 6, 7, 8, ...)",
        "left out 1 row repeating an earlier text with another label (line 4)",
    ]


def test_labels_are_stripped_so_that_a_blank_makes_no_new_class(tmp_path: Path) -> None:
    assert read(write(tmp_path, "title,description,tag\na,,x \nb,, x\n")).labels == ["x", "x"]


def test_a_file_without_any_usable_row_is_refused_with_the_reasons(tmp_path: Path) -> None:
    location = write(tmp_path, "title,description,tag\n,,x\na,b,\n")
    with pytest.raises(errors.InputError, match=r"has no usable row: left out 1 row without any text \(line 2\); "):
        read(location)


def test_unknown_labels_are_named_with_the_known_ones() -> None:
    data.require_known_labels(["x", "y"], ["x", "y", "z"], dataset="d.csv")
    with pytest.raises(
        errors.InputError, match=r"^'d\.csv' has the label 'w', which the model does not know; it knows 'x', 'y'$"
    ):
        data.require_known_labels(["x", "w", "w"], ["x", "y"], dataset="d.csv")
    with pytest.raises(errors.InputError, match=r"the label 'v', which the model does not know \(and 1 more\);"):
        data.require_known_labels(["w", "v"], ["x"], dataset="d.csv")


def test_taking_rows_keeps_texts_labels_and_fields_together() -> None:
    rows = data.LabelledText([{"t": "a"}, {"t": "b"}, {"t": "c"}], ["a", "b", "c"], ["x", "y", "z"])
    taken = rows.take(iter([2, 0]))
    assert (taken.rows, taken.texts, taken.labels) == ([{"t": "c"}, {"t": "a"}], ["c", "a"], ["z", "x"])


def test_every_row_is_in_exactly_one_split() -> None:
    labels = ["x"] * 70 + ["y"] * 30
    parts = data.split(labels, shares=data.DEFAULT_SHARES, seed=0)
    assert tuple(parts) == tuple(data.DEFAULT_SHARES)
    assert sorted(i for positions in parts.values() for i in positions) == list(range(100))
    assert all(positions == sorted(positions) for positions in parts.values())


def test_each_split_holds_each_class_in_proportion() -> None:
    labels = ["x"] * 200 + ["y"] * 40
    shares = {"train": 0.55, "validation": 0.10, "calibration": 0.20, "test": 0.15}
    parts = data.split(labels, shares=shares, seed=3)
    assert {name: dict(Counter(labels[i] for i in positions)) for name, positions in parts.items()} == {
        "train": {"x": 110, "y": 22},
        "validation": {"x": 20, "y": 4},
        "calibration": {"x": 40, "y": 8},
        "test": {"x": 30, "y": 6},
    }


def test_a_rare_class_is_still_in_every_split() -> None:
    labels = ["x"] * 100 + ["rare"] * 4
    parts = data.split(labels, shares=data.DEFAULT_SHARES, seed=0)
    assert [[labels[i] for i in positions].count("rare") for positions in parts.values()] == [1, 1, 1, 1]


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    labels = ["x", "y"] * 50
    first = data.split(labels, shares=data.DEFAULT_SHARES, seed=5)
    assert data.split(labels, shares=data.DEFAULT_SHARES, seed=5) == first
    assert data.split(labels, shares=data.DEFAULT_SHARES, seed=6) != first


def test_a_part_without_a_share_stays_empty() -> None:
    parts = data.split(["x", "y"] * 10, shares={"train": 0.5, "validation": 0.0, "test": 0.5}, seed=0)
    assert [len(positions) for positions in parts.values()] == [10, 0, 10]


def test_what_the_other_parts_do_not_take_is_trained_on() -> None:
    found = data.shares(validation=0.1, calibration=0.0, test=0.25)
    assert found == {"train": pytest.approx(0.65), "validation": 0.1, "calibration": 0.0, "test": 0.25}


@pytest.mark.parametrize(
    ("validation", "calibration", "test"),
    [(0.0, 0.2, 0.2), (0.1, -0.1, 0.2), (0.3, 0.3, 0.35), (float("nan"), 0.1, 0.1), (2.0, 0.0, 0.0)],
)
def test_shares_that_leave_nothing_to_train_or_validate_on_are_refused(
    validation: float, calibration: float, test: float
) -> None:
    with pytest.raises(errors.UsageError, match=rf"the shares validation {validation:g}, calibration {calibration:g}"):
        data.shares(validation=validation, calibration=calibration, test=test)


def test_a_class_with_one_row_cannot_be_split_and_is_named() -> None:
    with pytest.raises(
        errors.InputError,
        match=r"class 'lonely' has 1 row\(s\); at least 4 are needed, one for each of train, validation, calibration",
    ):
        data.split(["x"] * 10 + ["lonely"], shares=data.DEFAULT_SHARES, seed=0)


def test_duplicate_rows_are_never_in_two_splits(tmp_path: Path) -> None:
    distinct = [{"title": f"text {i}", "description": "", "tag": "xy"[i % 2]} for i in range(60)]
    respaced = [{"title": "", "description": f" {row['title']} ", "tag": row["tag"]} for row in distinct]
    lines = "\n".join(json.dumps(row) for row in [*distinct, *respaced, *distinct])
    rows = read(write(tmp_path, lines, "rows.jsonl"))
    parts = data.split(rows.labels, shares=data.DEFAULT_SHARES, seed=0)
    places = Counter(rows.texts[i] for positions in parts.values() for i in positions)
    assert places == Counter({f"text {i}": 1 for i in range(60)})


def test_ten_megabytes_in_one_cell_are_read_whole(tmp_path: Path) -> None:
    long = "word " * 2_000_000
    rows = read(write(tmp_path, f"title,description,tag\n{long},end,x\n"))
    assert len(rows.texts[0]) == len(long.strip()) + len(" end")
