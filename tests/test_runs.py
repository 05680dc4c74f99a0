from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest

from madewithml import checkpoint, config, data, errors, runs, texts, train
from tests.conftest import EXPERIMENT


@pytest.fixture(scope="module")
def own_settings(tmp_path_factory: pytest.TempPathFactory) -> config.Settings:
    """A store that these tests may fill and that knows nothing of the session's."""
    return config.load(home=tmp_path_factory.mktemp("runs") / "own home with ünïcode")


@pytest.fixture
def store(own_settings: config.Settings) -> runs.Store:
    return runs.connect(own_settings)


def new_run(store: runs.Store, experiment: str, **metrics: float) -> str:
    with store.new_run(experiment, params={}, tags={}) as run_id:
        store.log_metrics(run_id, metrics)
    return run_id


def copied(source: Path, folder: Path, marker: str) -> Path:
    """A checkpoint of its own, told apart by its abstain label."""
    target = folder / marker / "checkpoint"
    shutil.copytree(source, target)
    checkpoint.read(target).write_decision({"abstain_label": marker})
    return target


def test_connecting_makes_the_local_store_where_the_settings_say(own_settings: config.Settings) -> None:
    runs.connect(own_settings)
    assert (own_settings.home / "mlflow.db").is_file()


def test_a_run_keeps_its_parameters_tags_and_metrics(store: runs.Store) -> None:
    with store.new_run("basics", params={"seed": 3, "none": None}, tags={"kind": "test"}) as run_id:
        store.log_metrics(run_id, {"val_loss": 0.5}, step=1)
        store.log_metrics(run_id, {"val_loss": 0.4}, step=2)
    run = store.run(run_id)
    assert (run.info.status, run.data.params, run.data.metrics) == (
        "FINISHED",
        {"seed": "3", "none": "None"},
        {"val_loss": 0.4},
    )
    assert run.data.tags["kind"] == "test"
    history = store.client.get_metric_history(run_id, "val_loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.4)]


def test_a_run_whose_work_fails_is_marked_so(store: runs.Store) -> None:
    with pytest.raises(KeyboardInterrupt), store.new_run("basics", params={}, tags={}) as run_id:
        raise KeyboardInterrupt
    assert store.run(run_id).info.status == "FAILED"


def test_artifacts_lie_under_home(store: runs.Store, own_settings: config.Settings) -> None:
    run_id = new_run(store, "basics")
    store.log_json(run_id, {"a": 1}, "some/result.json")
    found = list((own_settings.home / "artifacts").rglob("result.json"))
    assert len(found) == 1


def test_an_unknown_run_is_named_with_the_place_it_was_looked_for(store: runs.Store) -> None:
    with pytest.raises(errors.NotFoundError, match=r"no run 'nope' in sqlite:////.*mlflow\.db\. Check the id, --home"):
        store.run("nope")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:///{file}/mlflow.db"])
def test_a_store_that_cannot_be_reached_is_named(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    address = uri.format(file=tmp_path / "file")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(errors.NotFoundError, match=rf"MLflow at {address} cannot be reached: .*MLFLOW_TRACKING_URI"):
        runs.connect(config.load(tracking_uri=address))


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        errors.InputError, match=r"cannot make the folder '.*/file': .*Check --home \(MADEWITHML_HOME\)"
    ):
        runs.connect(config.load(home=tmp_path / "file"))


def test_the_best_run_is_the_finished_one_with_the_best_metric(store: runs.Store) -> None:
    ids = [new_run(store, "compared", val_loss=loss, accuracy=1 - loss) for loss in (0.5, 0.2, 0.8)]
    new_run(store, "compared", other=0.0)
    failed = new_run(store, "compared", val_loss=0.0)
    store.client.set_terminated(failed, "FAILED")
    assert store.best_run("compared") == ids[1]
    assert store.best_run("compared", mode="DESC") == ids[2]
    assert store.best_run("compared", metric="accuracy", mode="DESC") == ids[1]


def test_an_unknown_experiment_is_named_with_the_known_ones(store: runs.Store) -> None:
    new_run(store, "basics")
    with pytest.raises(errors.NotFoundError, match=r"no experiment 'nope'; there are .*'basics'"):
        store.best_run("nope")


def test_a_metric_that_no_finished_run_has_is_named(store: runs.Store) -> None:
    new_run(store, "basics")
    with pytest.raises(errors.NotFoundError, match="no finished run of experiment 'basics' has a metric 'bleu'"):
        store.best_run("basics", metric="bleu")


def test_the_best_checkpoint_is_the_one_with_the_lowest_validation_loss(
    store: runs.Store, checkpoint_folder: Path, tmp_path: Path
) -> None:
    with store.new_run("checkpoints", params={}, tags={}) as run_id:
        for step, (marker, loss) in enumerate({"first": 0.5, "best": 0.3, "last": 0.4}.items()):
            store.log_checkpoint(run_id, copied(checkpoint_folder, tmp_path, marker), val_loss=loss, step=step)
    found = checkpoint.read(store.best_checkpoint(run_id))
    found.verify()
    assert found.read_decision() == {"abstain_label": "best"}


def test_a_checkpoint_without_a_validation_loss_still_counts(
    store: runs.Store, checkpoint_folder: Path, tmp_path: Path
) -> None:
    with store.new_run("checkpoints", params={}, tags={}) as run_id:
        store.log_checkpoint(run_id, copied(checkpoint_folder, tmp_path, "only"), val_loss=None)
    assert checkpoint.read(store.best_checkpoint(run_id)).read_decision() == {"abstain_label": "only"}


def test_a_checkpoint_that_lies_elsewhere_is_downloaded_from_the_store_of_the_settings(
    store: runs.Store, checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.new_run("checkpoints", params={}, tags={}) as run_id:
        store.log_checkpoint(run_id, copied(checkpoint_folder, tmp_path, "far"), val_loss=None)
    model_id = store._best_model(run_id).model_id
    far_away = SimpleNamespace(artifact_location="mlflow-artifacts:/somewhere", model_id=model_id)
    monkeypatch.setattr(runs.Store, "_best_model", lambda _store, _run_id: far_away)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/another.db")
    folder = store.best_checkpoint(run_id)
    assert folder.is_relative_to(store.settings.home / "checkpoints" / model_id)
    assert checkpoint.read(folder).read_decision() == {"abstain_label": "far"}
    assert store.best_checkpoint(run_id) == folder


def test_a_run_without_a_checkpoint_says_so(store: runs.Store) -> None:
    run_id = new_run(store, "basics")
    with pytest.raises(errors.NotFoundError, match=rf"run '{run_id}' has no checkpoint \(status FINISHED\)"):
        store.best_checkpoint(run_id)


def test_a_file_added_to_a_checkpoint_afterwards_is_found_in_it(
    store: runs.Store, checkpoint_folder: Path, tmp_path: Path
) -> None:
    with store.new_run("checkpoints", params={}, tags={}) as run_id:
        store.log_checkpoint(run_id, copied(checkpoint_folder, tmp_path, "before"), val_loss=None)
    changed = checkpoint.read(copied(checkpoint_folder, tmp_path, "after")).folder / "decision.json"
    store.add_to_checkpoint(run_id, changed)
    assert checkpoint.read(store.best_checkpoint(run_id)).read_decision() == {"abstain_label": "after"}


def test_logging_a_checkpoint_leaves_later_settings_alone(
    own_settings: config.Settings, store: runs.Store, checkpoint_folder: Path, tmp_path: Path
) -> None:
    with store.new_run("checkpoints", params={}, tags={}) as run_id:
        store.log_checkpoint(run_id, copied(checkpoint_folder, tmp_path, "x"), val_loss=None)
    store.promote(run_id, name="leak", alias="champion")
    other = config.load(home=tmp_path / "other")
    assert other.mlflow_uri == other.sqlite_uri


def test_promoting_registers_a_model_once_and_moves_its_alias(
    store: runs.Store, checkpoint_folder: Path, tmp_path: Path
) -> None:
    ids = []
    for marker in ("one", "two"):
        with store.new_run("promoted", params={}, tags={}) as run_id:
            store.log_checkpoint(run_id, copied(checkpoint_folder, tmp_path, marker), val_loss=None)
        ids.append(run_id)
    versions = [store.promote(run_id, name="shop", alias="champion") for run_id in (*ids, ids[0])]
    assert versions == ["1", "2", "1"]
    assert store.model_version("models:/shop@champion").run_id == ids[0]
    assert store.model_version("models:/shop/2").run_id == ids[1]


@pytest.mark.parametrize(("name", "alias"), [("", "champion"), ("a/b", "champion"), ("it's", "champion"), ("a", "v1")])
def test_a_name_or_alias_that_mlflow_does_not_take_is_refused_in_one_line(
    store: runs.Store, checkpoint_folder: Path, tmp_path: Path, name: str, alias: str
) -> None:
    with store.new_run("promoted", params={}, tags={}) as run_id:
        store.log_checkpoint(run_id, copied(checkpoint_folder, tmp_path, "x"), val_loss=None)
    with pytest.raises(errors.UsageError) as caught:
        store.promote(run_id, name=name, alias=alias)
    assert caught.value.message.startswith(f"cannot register a model {name!r} with the alias {alias!r}: ")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("uri", ["models:/nope@champion", "models:/nope/1", "models:/nope/abc"])
def test_an_unknown_model_is_named(store: runs.Store, uri: str) -> None:
    with pytest.raises(errors.NotFoundError, match=rf"no model '{uri}' in sqlite.*madewithml promote"):
        store.model_version(uri)


@pytest.mark.parametrize("uri", ["shop@champion", "models:/shop", "models:/@champion", "models:/shop@", ""])
def test_what_is_no_model_address_is_refused(store: runs.Store, uri: str) -> None:
    with pytest.raises(errors.UsageError, match=rf"bad model address '{uri}': expected models:/NAME@ALIAS or models:"):
        store.model_version(uri)


def test_splits_are_read_back_with_texts_for_every_part_but_train(store: runs.Store) -> None:
    rows = data.LabelledText([{"t": f"text {i}"} for i in range(4)], [f"text {i}" for i in range(4)], list("xyxy"))
    parts = {"train": [0, 1], "validation": [2], "calibration": [3], "test": []}
    with store.new_run("splits", params={}, tags={}) as run_id:
        store.log_splits(run_id, rows, parts)
    table = store.read_splits(run_id)
    assert table is not None
    assert table["split"].tolist() == ["train", "train", "validation", "calibration"]
    assert table["text_sha256"].tolist() == [texts.text_sha256(text) for text in rows.texts]
    assert table["t"].isna().tolist() == [True, True, False, False]
    recorded = store.recorded_rows(run_id, "calibration")
    assert (recorded.rows, recorded.texts, recorded.labels) == ([{"t": "text 3"}], ["text 3"], ["y"])


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_part_without_recorded_texts_asks_for_a_file(store: runs.Store, part: str) -> None:
    rows = data.LabelledText([{"t": "a"}], ["a"], ["x"])
    with store.new_run("splits", params={}, tags={}) as run_id:
        store.log_splits(run_id, rows, {"train": [0], "test": []})
    with pytest.raises(errors.NotFoundError, match=rf"recorded no {part} rows: give a labelled file"):
        store.recorded_rows(run_id, part)


def test_a_run_without_splits_has_none(store: runs.Store) -> None:
    assert store.read_splits(new_run(store, "basics")) is None


def test_a_training_run_records_stratified_splits_that_share_no_text(
    trained: train.TrainResult, settings: config.Settings, small_file: Path
) -> None:
    table = runs.connect(settings).read_splits(trained.run_id)
    assert table is not None
    assert table["text_sha256"].is_unique
    assert len(table) == len(pd.read_csv(small_file))
    assert set(table["split"]) == set(data.DEFAULT_SHARES)
    for part in data.DEFAULT_SHARES:
        counts = Counter(table.loc[table["split"] == part, "label"])
        assert max(counts.values()) - min(counts.values()) <= 1


def test_a_training_run_is_found_as_the_best_of_its_experiment(
    trained: train.TrainResult, settings: config.Settings
) -> None:
    assert runs.connect(settings).run(trained.run_id).info.status == "FINISHED"
    assert runs.connect(settings).best_run(EXPERIMENT)
