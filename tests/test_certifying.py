"""Certifying a run: what is recorded, what is refused, and which rows may be used."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from madewithml import certifying, checkpoint, config, decision, errors, importing, predict, runs, texts

FIELDS = ["title", "description"]


@pytest.fixture(scope="module")
def fresh_file(trained, settings, sample_file, tmp_path_factory) -> Path:
    """Rows of the sample that the run was not fitted on."""
    splits = runs.connect(settings).read_splits(trained.run_id)
    fitted = set(splits.loc[splits["split"].isin(["train", "validation"]), "text_sha256"])
    table = pd.read_csv(sample_file)
    hashes = [texts.text_sha256(texts.row_text(row, FIELDS)) for row in table.to_dict("records")]
    path = tmp_path_factory.mktemp("fresh") / "fresh.csv"
    table[[h not in fitted for h in hashes]].to_csv(path, index=False)
    return path


@pytest.fixture
def run_id(trained, settings) -> str:
    """The trained run with the decision it had before the test."""
    store = runs.connect(settings)
    folder = store.best_checkpoint(trained.run_id)
    before = (folder / checkpoint.DECISION).read_bytes()
    yield trained.run_id
    (folder / checkpoint.DECISION).write_bytes(before)


def policy_of(run_id: str, settings: config.Settings) -> decision.DecisionPolicy:
    return predict.policy_of(checkpoint.read(runs.connect(settings).best_checkpoint(run_id)))


def test_a_certificate_becomes_the_policy_of_the_run(run_id, fresh_file, settings) -> None:
    options = certifying.CertifyOptions(run_id, dataset_loc=str(fresh_file), max_risk=0.3)

    document = certifying.certify_run(options, settings)
    policy = policy_of(run_id, settings)

    assert document["status"] == "certified"
    assert document["recorded"] is True
    assert document["risk_upper_bound"] <= 0.3
    assert (policy.source, policy.threshold) == ("certificate", document["threshold"])
    assert policy.temperature == document["temperature"]
    assert policy.certificates["weights_sha256"] == document["weights_sha256"]


def test_the_document_has_the_promised_keys_and_the_ladder(run_id, fresh_file, settings) -> None:
    options = certifying.CertifyOptions(run_id, dataset_loc=str(fresh_file), max_risk=0.3)

    document = certifying.certify_run(options, settings)

    promised = {"status", "max_risk", "confidence_level", "threshold", "temperature", "num_rows", "num_accepted"}
    assert promised | {"num_errors", "risk_upper_bound", "coverage", "levels"} <= set(document)
    assert [level["max_risk"] for level in document["levels"]] == [0.01, 0.02, 0.05, 0.1, 0.3]
    assert json.loads(json.dumps(document)) == document


def test_by_default_the_run_tunes_on_validation_and_certifies_on_calibration_rows(run_id, settings) -> None:
    splits = runs.connect(settings).read_splits(run_id)
    counts = splits["split"].value_counts()

    document = certifying.certify_run(certifying.CertifyOptions(run_id, max_risk=0.5), settings)

    assert document["num_tune_rows"] == counts["validation"]
    assert document["num_certify_rows"] == counts["calibration"]


def test_a_refusal_says_what_is_missing_and_keeps_the_default_threshold(run_id, settings) -> None:
    document = certifying.certify_run(certifying.CertifyOptions(run_id, max_risk=0.001), settings)
    policy = policy_of(run_id, settings)

    assert document["status"] == "refused"
    assert "reason" in document
    assert {"needed_rows", "best_max_risk"} <= set(document)
    assert (policy.source, policy.threshold) == ("default", decision.DEFAULT_THRESHOLD)


def test_a_refusal_never_replaces_a_certificate(run_id, fresh_file, settings, caplog) -> None:
    certified = certifying.CertifyOptions(run_id, dataset_loc=str(fresh_file), max_risk=0.3)
    threshold = certifying.certify_run(certified, settings)["threshold"]

    document = certifying.certify_run(dataclasses.replace(certified, max_risk=0.0001), settings)

    assert (document["status"], document["recorded"]) == ("refused", False)
    assert policy_of(run_id, settings).threshold == threshold
    assert f"run {run_id} keeps the certificate it has" in caplog.text


def test_rows_seen_in_fitting_are_refused_by_name(run_id, small_file, settings) -> None:
    with pytest.raises(errors.InputError, match=r"\d+ of 160 rows in '.*small\.csv' were used in fitting run"):
        certifying.certify_run(certifying.CertifyOptions(run_id, dataset_loc=str(small_file)), settings)


def test_a_label_the_model_does_not_know_is_an_error(run_id, fresh_file, settings, tmp_path) -> None:
    table = pd.read_csv(fresh_file)
    table.loc[0, "tag"] = "gardening"
    path = tmp_path / "foreign.csv"
    table.to_csv(path, index=False)

    with pytest.raises(errors.InputError, match="has the label 'gardening', which the model does not know"):
        certifying.certify_run(certifying.CertifyOptions(run_id, dataset_loc=str(path)), settings)


def test_per_class_thresholds_abstain_where_nothing_could_be_certified(run_id, fresh_file, settings) -> None:
    options = certifying.CertifyOptions(run_id, dataset_loc=str(fresh_file), max_risk=0.3, per_class=True)

    document = certifying.certify_run(options, settings)
    policy = policy_of(run_id, settings)

    thresholds = [level["threshold"] for level in document["per_class"]]
    assert list(policy.class_thresholds) == document["labels"]
    assert list(policy.class_thresholds.values()) == thresholds
    assert len(thresholds) == 4


def test_an_abstained_answer_names_the_classes_that_remain(run_id, fresh_file, settings) -> None:
    options = certifying.CertifyOptions(run_id, dataset_loc=str(fresh_file), max_risk=0.3, candidate_coverage=0.95)
    certifying.certify_run(options, settings)
    folder = runs.connect(settings).best_checkpoint(run_id)

    predictor = predict.TorchPredictor.from_checkpoint(folder, threshold=1.0)
    answers = predictor.predict(pd.read_csv(fresh_file).head(40).to_dict("records"))
    abstained = [answer for answer in answers if answer["decision"] == "abstained"]

    assert abstained
    assert all(answer["candidates"][0] == answer["label"] for answer in abstained)
    assert policy_of(run_id, settings).candidate_coverage == 0.95


def test_a_certificate_of_another_model_is_refused_by_name(run_id, fresh_file, settings, tmp_path) -> None:
    certifying.certify_run(certifying.CertifyOptions(run_id, dataset_loc=str(fresh_file), max_risk=0.3), settings)
    folder = tmp_path / "other"
    shutil.copytree(runs.connect(settings).best_checkpoint(run_id), folder)
    metadata = json.loads((folder / checkpoint.METADATA).read_text())
    metadata["files"]["model.safetensors"] = "0" * 64
    (folder / checkpoint.METADATA).write_text(json.dumps(metadata))

    with pytest.raises(
        errors.CheckpointError, match=r"decision\.json' belongs to another model .*never outlives its model"
    ):
        predict.policy_of(checkpoint.read(folder))


def test_a_hand_edited_threshold_is_refused_by_name(run_id, fresh_file, settings) -> None:
    certifying.certify_run(certifying.CertifyOptions(run_id, dataset_loc=str(fresh_file), max_risk=0.3), settings)
    path = runs.connect(settings).best_checkpoint(run_id) / checkpoint.DECISION
    document = json.loads(path.read_text())
    document["policy"]["threshold"] = 0.1
    path.write_text(json.dumps(document))

    with pytest.raises(errors.CheckpointError, match=r"decision\.json' was edited or is damaged"):
        policy_of(run_id, settings)


def test_an_imported_run_is_certified_on_its_recorded_rows_split_in_two(
    checkpoint_folder, fresh_file, settings, caplog
) -> None:
    options = importing.ImportOptions(checkpoint_folder, "imported", dataset_loc=str(fresh_file))
    imported = importing.import_folder(options, settings)

    document = certifying.certify_run(certifying.CertifyOptions(imported, max_risk=0.3), settings)
    again = certifying.CertifyOptions(imported, dataset_loc=str(fresh_file), max_risk=0.3)
    certifying.certify_run(again, settings)

    assert document["num_tune_rows"] < document["num_certify_rows"]
    assert "is taken on trust" in caplog.text


def test_a_run_without_recorded_rows_asks_for_a_file(checkpoint_folder, settings) -> None:
    imported = importing.import_folder(importing.ImportOptions(checkpoint_folder, "imported"), settings)

    with pytest.raises(errors.NotFoundError, match="recorded no calibration rows: give a labelled file"):
        certifying.certify_run(certifying.CertifyOptions(imported), settings)


def test_a_level_of_the_ladder_can_be_chosen_and_an_uncertified_one_lists_those_that_are(
    run_id, fresh_file, settings
) -> None:
    options = certifying.CertifyOptions(run_id, dataset_loc=str(fresh_file), max_risk=0.3)
    threshold = certifying.certify_run(options, settings)["threshold"]
    policy = policy_of(run_id, settings)

    chosen = policy.at_risk(0.3)

    assert (chosen.threshold, chosen.source) == (threshold, "certificate")
    with pytest.raises(
        errors.InputError, match=r"max_risk 0\.123 is not certified for this model; certified levels: .*0\.3"
    ):
        policy.at_risk(0.123)
