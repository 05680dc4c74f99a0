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
from tests.conftest import LABELS

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
    return table[["title", "description"]].assign(
        number=range(100, 100 + len(table)), share=0.5, code="007", created_at="2021-05-01"
    )


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
        table = pd.read_csv(path, keep_default_na=False, dtype={"code": str})
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


def scorer(folder: Path) -> bulk._Scorer:
    """A member of the pool, in this process."""
    return bulk._Scorer(str(folder), "torch", None, 1)


def with_weights(folder: Path, value: float) -> None:
    """Give every bias of the head the value, and make the checkpoint whole again."""
    path = folder / "model.safetensors"
    weights = safetensors.numpy.load_file(path)
    weights["classifier.bias"] = np.full_like(weights["classifier.bias"], value)
    safetensors.numpy.save_file(weights, path, metadata={"format": "pt"})
    packing.finish(folder, checkpoint.read(folder).metadata, [])


def is_missing(value: Any) -> bool:
    return bool(pd.isna(value)) or value == ""


def assert_left_alone(folder: Path, *names: str) -> None:
    """There is nothing in the folder but what was there before, hidden files included."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize(("before", "after"), [("csv", "csv"), ("jsonl", "parquet"), ("parquet", "jsonl")])
def test_each_row_gets_the_answer_it_would_get_by_itself(before, after, rows, predictor, checkpoint_folder, tmp_path):
    rows.loc[6, "description"] = "ten chars\n" * 1_000_000
    source, output = write(rows, tmp_path / f"rows.{before}"), tmp_path / f"scored.{after}"
    output.write_text("yesterday's", encoding="utf-8")
    expected = predictor.predict(rows[["title", "description"]].to_dict("records"))

    scored = score(checkpoint_folder, source, output)

    for column in ("title", "description", "code", "created_at"):
        assert scored[column].tolist() == rows[column].tolist()
    for answer, probabilities in zip(expected, scored["probabilities"], strict=True):
        assert probabilities == pytest.approx(answer["probabilities"], abs=1e-4)
    for column in ("prediction", "label", "decision", "source", "truncated"):
        assert scored[column].tolist() == [answer[column] for answer in expected]
    assert scored["confidence"].tolist() == pytest.approx([answer["confidence"] for answer in expected], abs=1e-4)
    assert_left_alone(tmp_path, source.name, output.name)


def test_many_blocks_come_out_in_order_with_a_worker_on_each_core(checkpoint_folder, tmp_path):
    import ray.data  # late, as in the package: it reads the environment

    count = 3000
    assert count > 2 * bulk.BLOCK_ROWS
    texts = [f"row {number}" for number in range(count)]
    source = write(pd.DataFrame({"title": texts, "description": ""}), tmp_path / "rows.csv")
    output = tmp_path / "scored.csv"
    settings = ray.data.DataContext.get_current()
    before = settings.copy()

    assert count == bulk.predict_file(
        checkpoint_folder, dataset_loc=str(source), output_loc=str(output), threshold=1.0, num_workers=None
    )
    scored = read(output)
    assert scored["title"].tolist() == texts
    assert set(zip(scored["prediction"], scored["decision"], scored["source"], strict=True)) == {
        ("other", "abstained", "operator")
    }
    assert ray.data.DataContext.get_current() is settings
    assert settings == before  # they are the process's, not ours


class TestScorer:
    def test_columns_that_are_no_texts_are_kept_as_text(self, rows, checkpoint_folder):
        scored = scorer(checkpoint_folder)(rows.assign(nothing=None))

        assert list(scored.columns[:7]) == [*rows.columns, "nothing"]
        assert sorted(scored.columns[7:]) == sorted([*ANSWER, "probabilities"])
        assert scored["number"].tolist() == [str(number) for number in rows["number"]]
        assert (set(scored["share"]), set(scored["nothing"])) == ({"0.5"}, {""})

    def test_a_column_named_like_a_part_of_the_answer_gives_way_to_it(self, rows, predictor, checkpoint_folder):
        scored = scorer(checkpoint_folder)(rows.assign(label="mine"))

        assert list(scored.columns).count("label") == 1
        assert scored["label"].tolist() == [a["label"] for a in predictor.predict(rows.to_dict("records"))]

    def test_a_row_without_text_is_answered_in_its_place(self, checkpoint_folder, predictor):
        scored = scorer(checkpoint_folder)(pd.DataFrame({"title": ["first", "", None], "description": [None, " ", ""]}))

        expected = [json.dumps(answer["probabilities"]) for answer in predictor.predict([{"title": "first"}, {}, {}])]
        for actual, answer in zip(scored["probabilities"], expected, strict=True):
            assert json.loads(actual) == pytest.approx(json.loads(answer), abs=1e-4)

    @pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
    def test_blocks_that_differ_in_their_answers_fit_together(self, ending, copied, tmp_path):
        # The first block holds accepted answers only, so no reason and no candidates; the second abstained ones.
        found = checkpoint.read(copied)
        answers = predict.Predictor.from_checkpoint(copied).predict([{"title": "images"}, {"title": "a"}])
        (low, unsure), (high, sure) = sorted(zip([a["confidence"] for a in answers], ["images", "a"], strict=True))
        policy = predict.policy_of(found).with_threshold((low + high) / 2, source="operator").to_dict()
        found.write_decision({**policy, "candidate_quantile": 1.0, "candidate_coverage": 0.9})
        score_block, path = scorer(copied), tmp_path / f"scored.{ending}"

        with bulk._writer(path, ending) as writer:
            for text in (sure, unsure):
                writer.write(score_block(pd.DataFrame({"title": [text], "description": [""]})))

        first, second = (row for _, row in read(path).iterrows())
        assert (first["decision"], second["decision"]) == ("accepted", "abstained")
        assert (is_missing(first["reason"]), second["reason"]) == (True, "low_confidence")
        assert not first["truncated"]
        assert not second["truncated"]
        candidates = second["candidates"] if ending == "jsonl" else json.loads(second["candidates"])
        assert (is_missing(first["candidates"]), candidates[0]) == (True, second["label"])
        assert sorted(candidates) == LABELS


class TestWriter:
    @pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
    def test_what_fails_on_the_way_leaves_no_file(self, ending, rows, checkpoint_folder, tmp_path):
        block = scorer(checkpoint_folder)(rows)

        def write_two() -> None:
            with bulk._writer(tmp_path / "scored", ending) as writer:
                writer.write(block)
                assert_left_alone(tmp_path, "scored")
                writer.write(block["no such column"])

        with pytest.raises(KeyError, match="no such column"):
            write_two()
        assert_left_alone(tmp_path)


class TestErrors:
    @pytest.mark.parametrize("ending", ["csv", "parquet"])
    def test_a_missing_column_is_named(self, ending, rows, checkpoint_folder, tmp_path):
        source = write(rows.rename(columns={"description": "body"}), tmp_path / f"rows.{ending}")

        message = r"' has no column 'description'; it has 'title', 'body'.*\. The model reads 'title', 'description'"
        with pytest.raises(errors.InputError, match=message):
            score(checkpoint_folder, source, tmp_path / "scored.csv")
        assert_left_alone(tmp_path, source.name)

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
            ("rows.csv", b"", r"rows\.csv' is empty: expected a header line and rows"),
            (
                "rows.csv",
                b"title,description\na,b,c\n",
                r"cannot be read as csv: its rows have more cells than the header",
            ),
            (
                "rows.csv",
                b"title,description\ncaf\xe9,b\n",
                r"rows\.csv' is not UTF-8 \(byte 0xe9 at position",
            ),
            ("rows.jsonl", b"no json\n", r"cannot be read as jsonl: "),
            ("rows.parquet", b"no parquet", r"cannot be read as parquet: "),
        ],
        ids=["empty", "too many cells", "not UTF-8", "not JSON", "not Parquet"],
    )
    def test_a_file_that_cannot_be_read_is_named(self, name, content, message, checkpoint_folder, tmp_path):
        (tmp_path / name).write_bytes(content)

        with pytest.raises(errors.InputError, match=message):
            score(checkpoint_folder, tmp_path / name, tmp_path / "scored.csv")
        assert_left_alone(tmp_path, name)

    def test_a_row_that_cannot_be_read_far_down_leaves_no_file(self, checkpoint_folder, tmp_path):
        good = "a title,a description\n" * 2 * bulk.BLOCK_ROWS
        (tmp_path / "rows.csv").write_text(f"title,description\n{good}a,b,c\n", encoding="utf-8")

        last = 2 * bulk.BLOCK_ROWS + 2
        with pytest.raises(errors.InputError, match=rf"scoring failed: .*Expected 2 fields in line {last}, saw 3"):
            score(checkpoint_folder, tmp_path / "rows.csv", tmp_path / "scored.csv")
        assert_left_alone(tmp_path, "rows.csv")

    @pytest.mark.parametrize("ending", ["csv", "parquet"])
    def test_a_file_without_rows_is_named(self, ending, checkpoint_folder, tmp_path):
        source = write(pd.DataFrame({"title": [], "description": []}, dtype=str), tmp_path / f"rows.{ending}")

        with pytest.raises(errors.InputError, match=rf"rows\.{ending}' has no rows"):
            score(checkpoint_folder, source, tmp_path / f"scored.{ending}")
        assert_left_alone(tmp_path, source.name)

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

    def test_a_model_that_fails_on_the_way_leaves_the_file_of_before(self, rows, copied, tmp_path):
        source, output = write(rows, tmp_path / "rows.csv"), tmp_path / "scored.csv"
        output.write_text("yesterday's", encoding="utf-8")
        with_weights(copied, float("nan"))

        with pytest.raises(errors.InputError, match=r"scoring failed: .*the model gave NaN or infinite logits"):
            score(copied, source, output)
        assert_left_alone(tmp_path, "rows.csv", "scored.csv")
        assert output.read_text(encoding="utf-8") == "yesterday's"
