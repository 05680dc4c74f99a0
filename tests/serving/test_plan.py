"""What is found and checked before anything is served."""

import socket
from pathlib import Path

import pytest

from madewithml import checkpoint, errors, host, ports, predict, runs
from madewithml.serving import plan


@pytest.fixture
def free(settings):
    """Settings with a port that nothing listens on."""
    return settings.model_copy(update={"port": ports.free()})


def find(settings, **given):
    wanted = plan.Wanted(settings, **given)
    wanted.check()
    return wanted.find()


class TestWanted:
    def test_a_run_is_served_from_its_best_checkpoint(self, free, trained, checkpoint_folder):
        planned = find(free, run_id=trained.run_id)

        assert (trained.run_id, checkpoint_folder, 1) == (planned.run_id, planned.checkpoint, planned.replicas)

    def test_a_model_address_is_served_from_the_run_behind_its_alias(self, free, trained, checkpoint_folder):
        runs.connect(free).promote(trained.run_id, name="served", alias="champion")
        planned = find(free, model="models:/served@champion")

        assert (trained.run_id, checkpoint_folder) == (planned.run_id, planned.checkpoint)

    def test_a_model_version_works_as_well_as_an_alias(self, free, trained):
        version = runs.connect(free).promote(trained.run_id, name="versioned", alias="champion")

        assert trained.run_id == find(free, model=f"models:/versioned/{version}").run_id

    def test_a_folder_is_served_under_the_hash_of_its_weights(self, free, checkpoint_folder):
        planned = find(free, checkpoint_folder=checkpoint_folder)

        assert checkpoint.read(checkpoint_folder).weights_sha256[:32] == planned.run_id

    def test_folders_are_absolute_because_a_replica_runs_elsewhere(self, free, checkpoint_folder, monkeypatch):
        monkeypatch.chdir(checkpoint_folder.parent)
        relative = free.model_copy(update={"home": Path("state"), "datasets": Path("data")})
        planned = find(relative, checkpoint_folder=Path(checkpoint_folder.name))

        assert checkpoint_folder.resolve() == planned.checkpoint
        assert checkpoint_folder.parent.resolve() / "state" == planned.settings.home
        assert checkpoint_folder.parent.resolve() / "data" == planned.settings.datasets

    @pytest.mark.parametrize(
        "given",
        [
            {},
            {"run_id": "a", "model": "models:/m@a"},
            {"run_id": "a", "checkpoint_folder": Path("c")},
            {"run_id": "a", "model": "models:/m@a", "checkpoint_folder": Path("c")},
        ],
        ids=["none", "run and model", "run and folder", "all"],
    )
    def test_none_or_several_of_run_model_and_folder_are_wrong_usage(self, free, given):
        with pytest.raises(errors.UsageError, match="give one of --run-id ID, --model models:/NAME@ALIAS, --checkpoin"):
            find(free, **given)

    def test_an_unknown_run_is_named(self, free, trained):
        with pytest.raises(errors.NotFoundError, match="no run 'nothing' in sqlite"):
            find(free, run_id="nothing")

    def test_an_unknown_alias_is_named(self, free, trained):
        with pytest.raises(errors.NotFoundError, match="no model 'models:/served@nobody'"):
            find(free, model="models:/served@nobody")

    def test_a_bad_model_address_is_wrong_usage(self, free, trained):
        with pytest.raises(errors.UsageError, match="bad model address 'served@champion': expected models:/NAME@ALIAS"):
            find(free, model="served@champion")

    def test_a_missing_folder_is_named(self, free, tmp_path):
        with pytest.raises(errors.CheckpointError, match=r"no checkpoint folder '.*missing'"):
            find(free, checkpoint_folder=tmp_path / "missing")

    def test_changed_weights_are_noticed(self, free, spoiled):
        path = spoiled / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

        with pytest.raises(errors.CheckpointError, match=r"is damaged: model.safetensors has SHA-256"):
            find(free, checkpoint_folder=spoiled)

    def test_a_decision_edited_by_hand_is_noticed(self, free, spoiled):
        found = checkpoint.read(spoiled)
        path = found.write_decision(predict.policy_of(found).to_dict())
        path.write_text(path.read_text(encoding="utf-8").replace("0.9", "0.1"), encoding="utf-8")

        with pytest.raises(errors.CheckpointError, match="was edited or is damaged: its seal does not fit"):
            find(free, checkpoint_folder=spoiled)

    def test_a_port_in_use_is_told_before_anything_is_looked_up(self, settings):
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            held.listen()
            taken = settings.model_copy(update={"port": held.getsockname()[1]})
            with pytest.raises(errors.StartError, match=r"is in use by another program. Choose another with --port"):
                find(taken, run_id="nothing")


class TestFound:
    @pytest.mark.parametrize(("cores", "replicas", "threads"), [(4, 1, 4), (4, 2, 2), (2, 2, 1), (2, 3, 1), (5, 2, 2)])
    def test_the_cores_are_shared_among_the_replicas(
        self, free, checkpoint_folder, monkeypatch, cores, replicas, threads
    ):
        monkeypatch.setattr(host, "available_cores", lambda: cores)

        assert threads == find(free, checkpoint_folder=checkpoint_folder, replicas=replicas).threads

    def test_the_announcement_has_the_address_the_threshold_and_a_call_to_try(self, free, trained):
        text = find(free, run_id=trained.run_id).announcement

        assert text.splitlines() == [
            f"serving run {trained.run_id} on http://127.0.0.1:{free.port} (threshold 0.9, source: default; "
            "engine: torch fp32)",
            f"try:  curl -X POST http://127.0.0.1:{free.port}/predict/ -H 'Content-Type: application/json' "
            '-d \'{"title": "Intro to CNNs", "description": "Processing images with layers."}\'',
            "stop: Ctrl-C",
        ]

    def test_the_announcement_names_an_operators_threshold(self, free, trained):
        text = find(free.model_copy(update={"threshold": 0.5}), run_id=trained.run_id).announcement

        assert "(threshold 0.5, source: operator; engine: torch fp32)" in text
