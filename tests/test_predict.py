from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import transformers

from madewithml import checkpoint, decision, errors, predict, tokenization, train
from tests.conftest import EXPERIMENT, LABELS, MAX_TOKENS

ROW = {"title": "Intro to CNNs", "description": "Processing images with layers."}


@pytest.fixture
def copied(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A copy of the trained checkpoint that may be changed."""
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "copied"))


def test_the_best_run_and_checkpoint_are_found_by_the_names_that_scripts_use(
    trained: train.TrainResult, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MADEWITHML_HOME", str(home))
    run_id = predict.get_best_run_id(EXPERIMENT, "val_loss", "ASC")
    assert predict.get_best_checkpoint(trained.run_id) == trained.checkpoint
    assert predict.get_best_checkpoint(run_id).is_dir()


def test_an_answer_has_what_the_design_promises(predictor: predict.Predictor) -> None:
    answer = predictor.predict([ROW])[0]
    promised = {"prediction", "probabilities", "label", "confidence", "decision", "reason", "threshold", "truncated"}
    assert promised - set(answer) == set()
    assert list(answer["probabilities"]) == LABELS
    assert answer["confidence"] == max(answer["probabilities"].values())
    assert sum(answer["probabilities"].values()) == pytest.approx(1.0)
    assert (answer["threshold"], answer["truncated"]) == (0.9, False)


def test_probabilities_are_those_of_plain_transformers(predictor: predict.Predictor) -> None:
    folder = predictor.checkpoint.folder
    pipeline = transformers.pipeline("text-classification", model=str(folder), tokenizer=str(folder), top_k=None)
    expected = {item["label"]: item["score"] for item in pipeline("Intro to CNNs Processing images with layers.")[0]}
    assert predictor.predict([ROW])[0]["probabilities"] == pytest.approx(expected, abs=1e-5)


def test_the_model_has_learnt_something_so_that_other_tests_can_fail(predictor: predict.Predictor) -> None:
    rows = [ROW, {"title": "Deploying models", "description": "CI/CD, monitoring and serving of models in production"}]
    first, second = predictor.predict_proba(rows)
    assert np.abs(first - second).max() > 0.1


def test_a_row_gives_the_same_probabilities_alone_and_among_long_ones(predictor: predict.Predictor) -> None:
    rows = [{"title": "word " * n, "description": ""} for n in range(1, 60)]
    rows.insert(17, ROW)
    together = predictor.predict_proba(rows)
    np.testing.assert_allclose(together[17], predictor.predict_proba([ROW])[0], atol=1e-5)
    np.testing.assert_allclose(together[40], predictor.predict_proba([rows[40]])[0], atol=1e-5)


def test_no_rows_give_no_answers(predictor: predict.Predictor) -> None:
    assert predictor.predict([]) == []


def test_missing_fields_count_as_empty_text(predictor: predict.Predictor) -> None:
    rows = [{"title": "Intro"}, {"title": "Intro", "description": None}, {"title": " Intro ", "description": ""}]
    assert predictor.texts(rows) == ["Intro", "Intro", "Intro"]


def test_ten_megabytes_in_one_cell_are_answered_and_said_to_be_truncated(predictor: predict.Predictor) -> None:
    answers = predictor.predict([{"title": "images " * 1_500_000, "description": ""}, ROW])
    assert [answer["truncated"] for answer in answers] == [True, False]
    assert answers[1]["probabilities"] == pytest.approx(predictor.predict([ROW])[0]["probabilities"], abs=1e-5)


def test_a_text_of_one_token_too_many_is_truncated(predictor: predict.Predictor) -> None:
    room = MAX_TOKENS - 2
    answers = predictor.predict([{"title": "the " * room}, {"title": "the " * (room + 1)}])
    assert [answer["truncated"] for answer in answers] == [False, True]
    assert answers[0]["probabilities"] == pytest.approx(answers[1]["probabilities"], abs=1e-6)


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "\u202e\u200b", "🚀" * 10, "\ud7ff\ue000", "[SEP] [CLS]"])
def test_strange_texts_are_answered(predictor: predict.Predictor, text: str) -> None:
    assert sum(predictor.predict([{"title": text}])[0]["probabilities"].values()) == pytest.approx(1.0)


def test_an_operators_threshold_replaces_the_recorded_one(checkpoint_folder: Path) -> None:
    predictors = [predict.Predictor.from_checkpoint(checkpoint_folder, threshold=value) for value in (0.0, 1.0)]
    assert [p.policy.source for p in predictors] == ["operator", "operator"]
    assert [p.predict([ROW])[0]["decision"] for p in predictors] == ["accepted", "abstained"]
    assert predictors[1].predict([ROW])[0]["prediction"] == "other"


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_an_operators_threshold_outside_0_to_1_is_refused(checkpoint_folder: Path, threshold: float) -> None:
    with pytest.raises(errors.UsageError, match=rf"threshold is {threshold}: expected a number from 0 to 1"):
        predict.Predictor.from_checkpoint(checkpoint_folder, threshold=threshold)


def test_a_recorded_policy_is_in_force(copied: Path) -> None:
    policy = decision.DecisionPolicy(threshold=0.3, temperature=2.0, source="certificate", abstain_label="pass")
    checkpoint.read(copied).write_decision(policy.to_dict())
    found = predict.Predictor.from_checkpoint(copied)
    assert found.policy == policy
    softer, sharper = found.predict_proba([ROW]), predict.Predictor.from_checkpoint(copied).predict_proba([ROW])
    assert np.array_equal(softer, sharper)
    cold = dataclasses.replace(found, policy=dataclasses.replace(policy, temperature=1.0)).predict_proba([ROW])
    assert cold.max() > softer.max()


def test_a_policy_with_an_unknown_key_is_refused(copied: Path) -> None:
    checkpoint.read(copied).write_decision({"mystery": 1})
    with pytest.raises(errors.MadeWithMLError, match="unknown key 'mystery' in a decision policy"):
        predict.Predictor.from_checkpoint(copied)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_predictor_of_a_damaged_checkpoint_is_refused(copied: Path, name: str) -> None:
    path = copied / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(errors.CheckpointError, match=rf"(damaged: {name} has SHA-256|{name}' is not JSON)"):
        predict.Predictor.from_checkpoint(str(copied))


def test_a_decision_edited_by_hand_stops_the_predictor(copied: Path) -> None:
    path = copied / "decision.json"
    path.write_text(path.read_text().replace("0.9", "0.1"))
    with pytest.raises(errors.CheckpointError, match="was edited or is damaged"):
        predict.Predictor.from_checkpoint(copied)


def test_a_decision_of_another_model_stops_the_predictor(
    copied: Path, real_encoder_checkpoint: checkpoint.Checkpoint
) -> None:
    shutil.copy(real_encoder_checkpoint.folder / "decision.json", copied / "decision.json")
    with pytest.raises(errors.CheckpointError, match="belongs to another model"):
        predict.Predictor.from_checkpoint(copied)


def test_golden_rows_come_out_as_recorded(predictor: predict.Predictor) -> None:
    assert 0.0 <= predictor.check_golden() < 1e-4


def test_golden_rows_that_come_out_differently_are_refused(copied: Path) -> None:
    found = checkpoint.read(copied)
    golden = found.read_golden()
    assert golden is not None
    found.write_golden(golden.texts, golden.logits + np.float32(0.01))
    with pytest.raises(
        errors.CheckpointError,
        match=r"does not reproduce the golden rows of .*: a logit is off by 0\.01.* \(at most 0\.001\)",
    ):
        predict.TorchPredictor.from_checkpoint(copied).check_golden()


def test_an_engine_that_gives_nan_fails_the_golden_rows(predictor: predict.Predictor) -> None:
    class Broken:
        name, precision = "broken", "fp32"

        def logits(self, ids: tokenization.Ints, _mask: tokenization.Ints) -> np.ndarray:
            return np.full((len(ids), len(LABELS)), np.nan, dtype=np.float32)

    with pytest.raises(errors.CheckpointError, match=r"engine 'broken' \(fp32\) does not reproduce .* off by nan"):
        dataclasses.replace(predictor, engine=Broken()).check_golden()


def test_without_golden_rows_there_is_nothing_to_differ(copied: Path) -> None:
    (copied / "golden.jsonl").unlink()
    assert predict.TorchPredictor.from_checkpoint(copied).check_golden() == 0.0


def test_a_ray_dataset_is_answered_row_by_row_in_order(
    predictor: predict.Predictor, small_file: Path, ray_session: None
) -> None:
    import ray.data

    table = pd.read_csv(small_file)
    table.loc[3, "description"] = None
    answers = predict.predict_proba(ray.data.from_pandas(table), predictor)
    expected = predictor.predict(table.fillna("").to_dict("records"))
    assert [answer["prediction"] for answer in answers] == [answer["prediction"] for answer in expected]
    for actual, answer in zip(answers, expected, strict=True):
        assert actual["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-4)


def test_the_real_encoder_is_read_and_answers(real_encoder_checkpoint: checkpoint.Checkpoint) -> None:
    found = predict.TorchPredictor.from_checkpoint(real_encoder_checkpoint.folder, threads=1)
    assert found.check_golden() < 1e-4
    assert found.predict([ROW])[0]["label"] in LABELS
