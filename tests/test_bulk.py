"""Bulk scoring: every row comes back once, in order, with the answer it would get by itself; or nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

from madewithml import bulk, checkpoint, errors, packing, predict

pytestmark = pytest.mark.usefixtures("ray_session")

ANSWER = ["prediction", "label", "confidence", "decision", "reason", "threshold", "source", "truncated"]
AWKWARD = [
    {"title": "Two\nlines", "description": 'a "quoted" cell, with a comma'},
    {"title": "NA", "description": "null"},
    {"title": "", "description": "Only the second field says something"},
    {"title": " ", "description": ""},
    {"title": "Größe 文字 \U0001f600", "description": "-0.10"},
    {"title": "long " * 200, "description": "far beyond what fits"},
]


@pytest.fixture
def copied(checkpoint_folder, tmp_path_factory) -> Path:
    """A copy of the training run's checkpoint, to be spoiled."""
    folder = tmp_path_factory.mktemp("copied") / "checkpoint"
    shutil.copytree(checkpoint_folder, folder)
    return folder


@pytest.fixture
def rows(small_file) -> pd.DataFrame:
    """Rows of the sample and awkward ones, with columns that are no texts."""
    table = pd.concat([pd.DataFrame(AWKWARD), pd.read_csv(small_file).head(24)], ignore_index=True)
    return table[["title", "description"]].assign(number=range(100, 100 + len(table)), share=0.5)


def write(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        table.to_parquet(path)
    return path


def read(path: Path) -> pd.DataFrame:
    """A scored file with `probabilities` as a dictionary, whatever the format."""
    if path.suffix == ".csv":
        table = pd.read_csv(path, keep_default_na=False)
        return table.assign(probabilities=table["probabilities"].map(json.loads))
    if path.suffix == ".jsonl":
        return pd.DataFrame([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    table = pd.read_parquet(path)
    columns = [name for name in table.columns if name.startswith("probability_")]
    named = table[columns].rename(columns=lambda name: name.removeprefix("probability_"))
    return table.drop(columns=columns).assign(probabilities=named.to_dict("records"))


def score(folder: Path, source: Path, output: Path, **options: Any) -> pd.DataFrame:
    count = bulk.predict_file(folder, dataset_loc=str(source), output_loc=str(output), num_workers=1, **options)
    table = read(output)
    assert len(table) == count
    return table


def with_weights(folder: Path, value: float) -> None:
    """Give every bias of the head the value, and make the checkpoint whole again."""
    path = folder / "model.safetensors"
    weights = safetensors.numpy.load_file(path)
    weights["classifier.bias"] = np.full_like(weights["classifier.bias"], value)
    safetensors.numpy.save_file(weights, path, metadata={"format": "pt"})
    packing.finish(folder, checkpoint.read(folder).metadata, [])


def assert_left_alone(folder: Path, *names: str) -> None:
    """There is nothing in the folder but what was there before, hidden files included."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize(
    ("before", "after"),
    [("csv", "csv"), ("jsonl", "jsonl"), ("parquet", "parquet"), ("csv", "parquet"), ("parquet", "jsonl")],
)
def test_each_row_gets_the_answer_it_would_get_by_itself(before, after, rows, predictor, checkpoint_folder, tmp_path):
    source = write(rows, tmp_path / f"rows.{before}")
    expected = predictor.predict(rows[["title", "description"]].to_dict("records"))

    scored = score(checkpoint_folder, source, tmp_path / f"scored.{after}")

    assert scored["title"].tolist() == rows["title"].tolist()
    assert scored["description"].tolist() == rows["description"].tolist()
    for answer, probabilities in zip(expected, scored["probabilities"], strict=True):
        assert probabilities == pytest.approx(answer["probabilities"], abs=1e-4)
    for column in ("prediction", "label", "decision", "source", "truncated"):
        assert scored[column].tolist() == [answer[column] for answer in expected]
    assert scored["confidence"].tolist() == pytest.approx([answer["confidence"] for answer in expected], abs=1e-4)


def test_columns_that_are_no_texts_are_kept_as_text(rows, checkpoint_folder, tmp_path):
    source = write(rows.assign(nothing=None), tmp_path / "rows.parquet")

    scored = score(checkpoint_folder, source, tmp_path / "scored.parquet")

    assert list(scored.columns[:5]) == ["title", "description", "number", "share", "nothing"]
    assert sorted(scored.columns[5:]) == sorted([*ANSWER, "probabilities"])
    assert scored["number"].tolist() == [str(number) for number in rows["number"]]
    assert set(scored["share"]) == {"0.5"}
    assert set(scored["nothing"]) == {""}


def test_a_column_named_like_a_part_of_the_answer_gives_way_to_it(rows, predictor, checkpoint_folder, tmp_path):
    source = write(rows.assign(label="mine"), tmp_path / "rows.csv")

    scored = score(checkpoint_folder, source, tmp_path / "scored.csv")

    assert list(scored.columns).count("label") == 1
    assert scored["label"].tolist() == [answer["label"] for answer in predictor.predict(rows.to_dict("records"))]


def test_a_row_without_text_keeps_its_place(checkpoint_folder, predictor, tmp_path):
    texts = ["first", "", "   ", "last"]
    source = write(pd.DataFrame({"title": texts, "description": ""}), tmp_path / "rows.csv")

    scored = score(checkpoint_folder, source, tmp_path / "scored.jsonl")

    empty = predictor.predict([{}])[0]
    assert scored["title"].tolist() == texts
    assert scored["probabilities"][1] == pytest.approx(empty["probabilities"], abs=1e-4)
    assert scored["probabilities"][2] == pytest.approx(empty["probabilities"], abs=1e-4)


def test_many_blocks_come_out_in_order_with_a_worker_on_each_core(checkpoint_folder, tmp_path):
    count = 3000
    assert count > 2 * bulk.BLOCK_ROWS
    texts = [f"row {number}" for number in range(count)]
    source = write(pd.DataFrame({"title": texts, "description": ""}), tmp_path / "rows.csv")
    output = tmp_path / "scored.csv"

    assert bulk.predict_file(checkpoint_folder, dataset_loc=str(source), output_loc=str(output)) == count
    assert read(output)["title"].tolist() == texts


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_blocks_that_differ_in_their_answers_fit_together(ending, copied, small_file, tmp_path):
    # The first block holds accepted answers only, so no reason and no candidates; the last one abstained ones.
    found = checkpoint.read(copied)
    by_confidence = predict.Predictor.from_checkpoint(copied).predict([{"title": "sure"}, {"title": "unsure"}])
    sure, unsure = sorted(zip([a["confidence"] for a in by_confidence], ["sure", "unsure"], strict=True))[::-1]
    policy = predict.policy_of(found).with_threshold((sure[0] + unsure[0]) / 2, source="operator").to_dict()
    found.write_decision({**policy, "candidate_quantile": 1.0, "candidate_coverage": 0.9})
    texts = [sure[1]] * bulk.BLOCK_ROWS + [unsure[1]] * 100
    source = write(pd.DataFrame({"title": texts, "description": ""}), tmp_path / "rows.csv")

    scored = score(copied, source, tmp_path / f"scored.{ending}")

    first, last = scored.iloc[0], scored.iloc[-1]
    assert scored["decision"].tolist() == ["accepted"] * bulk.BLOCK_ROWS + ["abstained"] * 100
    assert (first["truncated"], last["truncated"]) == (False, False)
    assert (first["reason"] or None, last["reason"]) == (None, "low_confidence")
    candidates = last["candidates"] if ending == "jsonl" else json.loads(last["candidates"])
    assert (first["candidates"] or None, candidates[0], len(candidates)) == (None, last["label"], 4)


def test_a_threshold_of_the_operator_decides(rows, checkpoint_folder, tmp_path):
    source = write(rows, tmp_path / "rows.csv")

    scored = score(checkpoint_folder, source, tmp_path / "scored.csv", threshold=1.0)

    assert set(scored["decision"]) == {"abstained"}
    assert set(scored["prediction"]) == {"other"}
    assert set(scored["source"]) == {"operator"}


def test_a_file_that_is_there_is_replaced(rows, checkpoint_folder, tmp_path):
    source, output = write(rows, tmp_path / "rows.csv"), tmp_path / "scored.csv"
    output.write_text("yesterday's", encoding="utf-8")

    score(checkpoint_folder, source, output)

    assert_left_alone(tmp_path, "rows.csv", "scored.csv")
    assert "yesterday" not in output.read_text(encoding="utf-8")


class TestErrors:
    def test_a_missing_column_is_named(self, rows, checkpoint_folder, tmp_path):
        source = write(rows.rename(columns={"description": "body"}), tmp_path / "rows.csv")

        with pytest.raises(errors.InputError, match=r"rows\.csv' has no column 'description'; it has 'title', 'body'"):
            score(checkpoint_folder, source, tmp_path / "scored.csv")
        assert_left_alone(tmp_path, "rows.csv")

    @pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
    def test_an_unknown_file_is_named(self, ending, checkpoint_folder, tmp_path):
        with pytest.raises(errors.InputError, match=rf"no file '.*rows\.{ending}': check --dataset-loc"):
            score(checkpoint_folder, tmp_path / f"rows.{ending}", tmp_path / "scored.csv")
        assert_left_alone(tmp_path)

    def test_an_unknown_ending_of_the_input_is_an_error(self, rows, checkpoint_folder, tmp_path):
        source = write(rows, tmp_path / "rows.csv").rename(tmp_path / "rows.txt")

        with pytest.raises(errors.InputError, match=r"cannot tell the format of '.*rows\.txt': expected a name ending"):
            score(checkpoint_folder, source, tmp_path / "scored.csv")
        assert_left_alone(tmp_path, "rows.txt")

    def test_an_unknown_ending_of_the_output_is_an_error(self, rows, checkpoint_folder, tmp_path):
        source = write(rows, tmp_path / "rows.csv")

        with pytest.raises(errors.InputError, match=r"cannot tell the format of '.*scored\.xlsx'"):
            score(checkpoint_folder, source, tmp_path / "scored.xlsx")
        assert_left_alone(tmp_path, "rows.csv")

    def test_a_missing_folder_for_the_output_is_named(self, rows, checkpoint_folder, tmp_path):
        source = write(rows, tmp_path / "rows.csv")

        with pytest.raises(errors.InputError, match=r"no folder '.*missing' to write 'scored\.csv' into"):
            score(checkpoint_folder, source, tmp_path / "missing" / "scored.csv")
        assert_left_alone(tmp_path, "rows.csv")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("rows.csv", b"", r"cannot be read as csv: No columns to parse"),
            ("rows.csv", b"title,description\n", r"rows\.csv' has no rows"),
            ("rows.csv", b"title,description\na,b,c\n", r"Expected 2 columns, got 3"),
            ("rows.csv", b"title,description\ncaf\xe9,b\n", r"cannot be read as csv: .*UTF"),
            ("rows.jsonl", b"no json\n", r"cannot be read as jsonl: "),
            ("rows.parquet", b"no parquet", r"cannot be read as parquet: "),
        ],
        ids=["empty", "header only", "too many cells", "not UTF-8", "not JSON", "not Parquet"],
    )
    @pytest.mark.parametrize("ending", ["csv", "parquet"])
    def test_a_file_that_cannot_be_read_is_named(self, name, content, message, ending, checkpoint_folder, tmp_path):
        (tmp_path / name).write_bytes(content)

        with pytest.raises(errors.InputError, match=message):
            score(checkpoint_folder, tmp_path / name, tmp_path / f"scored.{ending}")
        assert_left_alone(tmp_path, name)

    def test_a_bad_threshold_is_wrong_usage(self, rows, checkpoint_folder, tmp_path):
        source = write(rows, tmp_path / "rows.csv")

        with pytest.raises(errors.UsageError, match=r"threshold is 1\.5: expected a number from 0 to 1"):
            score(checkpoint_folder, source, tmp_path / "scored.csv", threshold=1.5)
        assert_left_alone(tmp_path, "rows.csv")

    def test_a_damaged_checkpoint_is_noticed_before_any_work(self, rows, copied, tmp_path):
        source = write(rows, tmp_path / "rows.csv")
        with (copied / "model.safetensors").open("ab") as file:
            file.write(b"\0")

        with pytest.raises(errors.CheckpointError, match=r"is damaged: model\.safetensors has SHA-256"):
            score(copied, source, tmp_path / "scored.csv")
        assert_left_alone(tmp_path, "rows.csv")

    @pytest.mark.parametrize("ending", ["csv", "parquet"])
    def test_a_model_that_fails_on_the_way_leaves_no_file_and_keeps_an_old_one(self, ending, rows, copied, tmp_path):
        source, output = write(rows, tmp_path / "rows.csv"), tmp_path / f"scored.{ending}"
        output.write_text("yesterday's", encoding="utf-8")
        with_weights(copied, float("nan"))

        with pytest.raises(errors.InputError, match=r"scoring failed: .*the model gave NaN or infinite logits"):
            score(copied, source, output)
        assert_left_alone(tmp_path, "rows.csv", output.name)
        assert output.read_text(encoding="utf-8") == "yesterday's"
