"""The command line: what each command prints, what it ends with, and how it says what is wrong."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import typer.main

from madewithml import __version__, checkpoint, cli, host, keys, ports, predict, runs
from madewithml.serving import local, on_ray, plan
from tests.conftest import EXPERIMENT, LABELS

GROUP = typer.main.get_command(cli.app).commands
COMMANDS = sorted(
    f"{name} {part}".strip() for name, command in GROUP.items() for part in getattr(command, "commands", [""])
)
RUN_ID = re.compile(r"[0-9a-f]{32}")
ROW = {"title": "Intro to CNNs", "description": "Processing images with layers."}


@dataclass(frozen=True)
class Outcome:
    """What a call left behind."""

    status: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.out.splitlines()[-1]


def call(*arguments: object) -> Outcome:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main([str(argument) for argument in arguments])
    return Outcome(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def start(*arguments: object, cwd: Path) -> Outcome:
    """Run the command line in a process of its own."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def assert_fails(outcome: Outcome, status: int, pattern: str) -> None:
    """One line on stderr that begins with `error: ` and fits the pattern, and nothing on stdout."""
    lines = outcome.err.splitlines()
    assert (status, "", 1) == (outcome.status, outcome.out, len(lines)), outcome
    assert re.match(f"error: .*{pattern}", lines[0]), lines[0]


@pytest.fixture(scope="module")
def imported(checkpoint_folder, sample_file, home) -> str:
    """A run that the command line imported: the trained checkpoint, with the whole sample to certify and to test on."""
    outcome = call(
        *("import", "--from", checkpoint_folder, "--experiment-name", "imported", "--home", home),
        *("--dataset-loc", sample_file),
    )
    assert outcome.status == 0, outcome.err
    return outcome.last_line


@pytest.fixture
def undecided(imported, settings) -> str:
    """The imported run; its decision policy is put back after the test."""
    path = runs.connect(settings).best_checkpoint(imported) / checkpoint.DECISION
    before = path.read_bytes()
    yield imported
    path.write_bytes(before)


@pytest.fixture
def address(settings) -> tuple[str, ...]:
    """Flags for a port that nothing listens on."""
    return "--home", str(settings.home), "--port", str(ports.free())


class TestKeys:
    @pytest.fixture
    def home(self, tmp_path):
        return "--home", str(tmp_path)

    def test_a_key_is_printed_once_and_kept_as_its_hash(self, home, tmp_path):
        made = call("keys", "create", "team-a", "--role", "admin", "--rows-per-second", "5", *home)

        (secret,) = made.out.splitlines()
        assert made.status == 0
        assert f"key 'team-a' (admin) is in {tmp_path}/keys.json" in made.err
        (key,) = keys.read(tmp_path / "keys.json")
        assert keys.find([key], secret) == key
        assert (key.role, key.rows_per_second) == ("admin", 5.0)
        assert secret not in call("keys", "list", *home).out

    def test_they_are_listed_and_revoked(self, home, tmp_path):
        call("keys", "create", "team-a", *home)
        call("keys", "create", "team-b", "--rows-per-second", "2.5", *home)

        listed = call("keys", "list", *home).out
        assert re.search(r"team-a .* predict .* any", listed)
        assert re.search(r"team-b .* predict .* 2.5", listed)
        assert call("keys", "revoke", "team-a", *home).status == 0
        assert [key.name for key in keys.read(tmp_path / "keys.json")] == ["team-b"]

    def test_an_entry_for_the_variable_is_kept_nowhere(self, home, tmp_path):
        made = call("keys", "create", "job", "--entry-only", *home)

        key = keys.Key(**json.loads(made.err.removeprefix("entry: ")))
        assert keys.find([key], made.out.strip()) == key
        assert list(tmp_path.iterdir()) == []

    def test_what_cannot_be_done_is_wrong_usage(self, home):
        call("keys", "create", "a", *home)

        assert call("keys", "create", "a", *home).status == 2
        assert call("keys", "create", "with space", *home).status == 2
        assert call("keys", "revoke", "b", *home).status == 2
        assert "it has: a" in call("keys", "revoke", "b", *home).err


class TestOnTheNetwork:
    def test_without_keys_it_does_not_start(self, trained, home):
        refused = call("serve", "--run-id", trained.run_id, "--home", str(home), "--host", "0.0.0.0", "--local")

        assert refused.status == 2
        assert "there are no keys" in refused.err
        assert "madewithml keys create NAME" in refused.err
        assert "--allow-anonymous" in refused.err

    def test_a_file_of_keys_that_is_not_there_is_named(self, trained, home, tmp_path):
        path = tmp_path / "none.json"
        refused = call("serve", "--run-id", trained.run_id, "--home", str(home), "--keys-file", str(path), "--local")

        assert refused.status == 2
        assert f"cannot read the keys in {path}" in refused.err


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself_and_its_flags(self, command):
        outcome = call(*command.split(), "--help")

        assert (outcome.status, outcome.err) == (0, "")
        assert re.match(rf"Usage: .* {command} \[OPTIONS\]", outcome.out)
        assert "--home" in outcome.out

    def test_the_promised_commands_are_there(self):
        promised = {"train", "import", "best-run", "evaluate", "certify", "predict", "promote", "serve"}

        assert promised <= set(COMMANDS)
        assert (importlib.util.find_spec("madewithml.report") is not None) == ("report" in COMMANDS)

    def test_the_package_is_a_program_that_lists_its_commands(self, tmp_path):
        outcome = start("-m", "madewithml", "--help", cwd=tmp_path)

        assert (outcome.status, outcome.err) == (0, "")
        assert all(re.search(rf"^  {command}\s", outcome.out, re.MULTILINE) for command in GROUP)

    def test_without_a_command_the_help_is_shown_as_wrong_usage(self):
        outcome = call()

        assert outcome.status == 2
        assert re.match(r"Usage: .* \[OPTIONS\] COMMAND", outcome.out + outcome.err)

    def test_an_unknown_command_is_wrong_usage(self):
        outcome = call("teach")

        assert outcome.status == 2
        assert "No such command 'teach'" in outcome.err

    def test_a_missing_flag_is_named(self):
        outcome = call("evaluate", "--run-id", "x")

        assert outcome.status == 2
        assert "Missing option '--dataset-loc'" in outcome.err


class TestErrors:
    def test_a_failure_is_one_line_without_a_stack_trace(self, tmp_path):
        outcome = start("-m", "madewithml", "best-run", "--experiment-name", "nothing", cwd=tmp_path)

        assert_fails(outcome, 1, "no experiment 'nothing'")

    def test_the_message_is_shown_as_it_is(self, tmp_path):
        # Brackets are not markup, a colon word is no picture, and a long line is not broken.
        name = tmp_path / ("[bold]" + "x" * 120) / ":dog:.csv"
        outcome = call("train", "--dataset-loc", name, "--experiment-name", "any")

        assert_fails(outcome, 1, f"no file {re.escape(repr(str(name)))}: check --dataset-loc")

    def test_a_bad_setting_is_wrong_usage(self, tmp_path, monkeypatch):
        (tmp_path / "madewithml.toml").write_text("colour = 'red'\n", encoding="utf-8")
        monkeypatch.chdir(tmp_path)

        assert_fails(call("best-run", "--experiment-name", "any"), 2, "unknown setting 'colour'")

    def test_a_bad_variable_is_wrong_usage(self, home, monkeypatch):
        monkeypatch.setenv("MADEWITHML_PORT", "many")

        assert_fails(call("best-run", "--experiment-name", "any", "--home", home), 2, "bad value 'many' for 'port'")

    def test_a_home_that_is_a_file_is_named(self, small_file):
        outcome = call("best-run", "--experiment-name", "any", "--home", small_file)

        assert_fails(outcome, 1, r"cannot make the folder '.*small\.csv': File exists\. Check --home")

    @pytest.mark.parametrize("command", ["evaluate", "certify", "predict", "promote", "serve", "report"])
    def test_an_unknown_run_is_named_by_every_command(self, command, trained, address, tmp_path):
        own = {
            "evaluate": ("--dataset-loc", tmp_path / "rows.csv", *address[:2]),
            "certify": address[:2],
            "predict": ("--title", "a text", *address[:2]),
            "promote": ("--alias", "champion", *address[:2]),
            "serve": ("--local", *address),  # on Ray, in a process of its own: serving/test_command_line.py
            "report": ("--output", tmp_path / "report.html", *address[:2]),
        }

        assert_fails(call(command, "--run-id", "nothing", *own[command]), 1, r"no run 'nothing' in sqlite:.*--home")

    @pytest.mark.parametrize("flag", ["--run-id", "--run_id"])
    def test_dashes_and_underscores_are_the_same_in_flags(self, flag, trained, home):
        outcome = call("predict", flag, trained.run_id, "--title", "a text", "--home", home)

        assert (0, trained.run_id) == (outcome.status, json.loads(outcome.out)["run_id"])


@pytest.fixture(scope="module")
def training(ray_session, tiny_encoder, small_file, home, tmp_path_factory) -> tuple[Outcome, dict]:
    """What `train` printed, and its results file."""
    results = tmp_path_factory.mktemp("results") / "train.json"
    outcome = call(
        *("train", "--dataset-loc", small_file, "--experiment-name", "by-command", "--encoder", tiny_encoder),
        *("--num-epochs", 1, "--num-fits", 2, "--class-weights", "--max-length", 32, "--seed", 3),
        *("--results_fp", results, "--home", home),
    )
    assert outcome.status == 0, outcome.err
    return outcome, json.loads(results.read_text(encoding="utf-8"))


class TestTrain:
    def test_stdout_is_the_run_id_alone(self, training):
        outcome, document = training

        assert outcome.out == f"{document['run_id']}\n"
        assert RUN_ID.fullmatch(document["run_id"])

    def test_the_results_name_run_metrics_and_checkpoint(self, training, settings):
        _, document = training

        assert {"run_id", "metrics", "checkpoint"} <= set(document)
        assert {"epoch", "train_loss", "val_loss", "val_accuracy"} <= set(document["metrics"])
        assert runs.connect(settings).best_checkpoint(document["run_id"]) == Path(document["checkpoint"])

    def test_the_flags_reach_the_run(self, training, settings):
        _, document = training
        params = runs.connect(settings).run(document["run_id"]).data.params

        asked = {"num_epochs": "1", "num_fits": "2", "class_weights": "True", "seed": "3", "max_length": "32"}
        assert {name: params[name] for name in asked} == asked
        assert checkpoint.read(Path(document["checkpoint"])).metadata.max_length == 32

    def test_progress_goes_to_stderr_as_plain_lines(self, training):
        outcome, _ = training

        assert re.search(r"^training: \d+/\d+ epoch 1: val_loss \d\.\d{3}, accuracy \d\.\d{3}$", outcome.err, re.M)
        assert re.search(r"^training: \d+/\d+ average: val_loss \d\.\d{3}, accuracy \d\.\d{3}$", outcome.err, re.M)
        assert "\x1b" not in outcome.err

    def test_a_missing_folder_for_the_results_is_noticed_before_training(self, small_file, home, tmp_path):
        outcome = call(
            *("train", "--dataset-loc", small_file, "--experiment-name", "never", "--home", home),
            *("--results-fp", tmp_path / "missing" / "train.json"),
        )

        assert_fails(outcome, 1, r"no folder '.*missing' to write 'train.json' into")
        assert_fails(call("best-run", "--experiment-name", "never", "--home", home), 1, "no experiment 'never'")

    def test_a_missing_column_is_named(self, small_file, home):
        outcome = call(
            *("train", "--dataset-loc", small_file, "--experiment-name", "never", "--home", home),
            *("--text-fields", "title, body"),
        )

        assert_fails(outcome, 1, "has no column 'body'; it has 'title', 'description', 'tag'")

    def test_text_fields_must_name_something(self, small_file):
        outcome = call("train", "--dataset-loc", small_file, "--experiment-name", "never", "--text-fields", " , ")

        assert_fails(outcome, 2, "expected comma-separated names, got ' , '")

    @pytest.mark.parametrize("flag", ["--num-epochs", "--num-fits", "--batch-size", "--num-workers"])
    def test_counts_start_at_one(self, flag, small_file):
        outcome = call("train", "--dataset-loc", small_file, "--experiment-name", "never", flag, 0)

        assert outcome.status == 2
        assert f"Invalid value for '{flag}'" in outcome.err


class TestImport:
    def test_stdout_is_the_run_id_of_a_run_like_any_other(self, checkpoint_folder, settings):
        outcome = call(
            *("import", "--from", checkpoint_folder, "--experiment-name", "imported", "--home", settings.home),
            *("--text-fields", "body", "--labels", "a, b, c, d"),
        )
        run_id = outcome.out.strip()
        metadata = checkpoint.read(runs.connect(settings).best_checkpoint(run_id)).metadata

        assert (0, f"{run_id}\n", "") == (outcome.status, outcome.out, outcome.err)
        assert (metadata.labels, metadata.text_fields) == (["a", "b", "c", "d"], ["body"])

    def test_a_folder_without_a_model_is_refused_in_one_line(self, tmp_path, home):
        outcome = call("import", "--from", tmp_path, "--experiment-name", "imported", "--home", home)

        assert_fails(outcome, 1, r"has no config\.json: --from expects a Transformers sequence-classification folder")


class TestBestRun:
    def test_the_best_run_of_an_experiment_is_printed_alone(self, trained, home):
        outcome = call("best-run", "--experiment-name", EXPERIMENT, "--home", home)

        assert (0, f"{trained.run_id}\n") == (outcome.status, outcome.out)

    def test_metric_and_mode_can_be_chosen(self, trained, home):
        outcome = call(
            *("best-run", "--experiment-name", EXPERIMENT, "--home", home),
            *("--metric", "val_accuracy", "--mode", "desc"),
        )

        assert (0, f"{trained.run_id}\n") == (outcome.status, outcome.out)

    def test_a_mode_that_is_no_order_is_wrong_usage(self, home):
        outcome = call("best-run", "--experiment-name", EXPERIMENT, "--mode", "best", "--home", home)

        assert_fails(outcome, 2, "--mode is 'best': expected ASC or DESC")

    def test_a_metric_that_no_run_has_is_named(self, trained, home):
        outcome = call("best-run", "--experiment-name", EXPERIMENT, "--metric", "beauty", "--home", home)

        assert_fails(outcome, 1, "no finished run of experiment 'tiny' has a metric 'beauty'")


class TestEvaluate:
    def test_a_table_is_shown_and_the_results_are_in_the_file(self, trained, small_file, home, tmp_path):
        results = tmp_path / "evaluation.json"
        outcome = call(
            *("evaluate", "--run-id", trained.run_id, "--dataset-loc", small_file, "--home", home),
            *("--results-fp", results, "--slice", "networks=(?i)network", "--slice", "nothing=zzzz"),
        )
        document = json.loads(results.read_text(encoding="utf-8"))
        numbers = {"precision", "recall", "f1", "accuracy", "log_loss", "brier", "ece", "num_samples"}

        assert (outcome.status, outcome.err) == (0, "")
        assert {"run_id", "dataset", "overall", "per_class", "slices", "confusion_matrix"} <= set(document)
        assert (trained.run_id, str(small_file)) == (document["run_id"], document["dataset"])
        assert numbers <= set(document["overall"])
        assert list(document["per_class"]) == LABELS
        assert all({"precision", "recall", "f1", "num_samples"} <= set(row) for row in document["per_class"].values())
        assert list(document["slices"]) == ["short_text", "mentions_llm", "networks", "nothing"]
        assert all(name in outcome.out for name in [*LABELS, *document["slices"], trained.run_id, "precision"])

    def test_slices_of_the_settings_file_and_of_the_flags_come_together(
        self, trained, small_file, home, tmp_path, monkeypatch
    ):
        (tmp_path / "madewithml.toml").write_text("[slices]\nimages = '(?i)image'\n", encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        call(
            *("evaluate", "--run-id", trained.run_id, "--dataset-loc", small_file, "--home", home),
            *("--results-fp", "evaluation.json", "--slice", "networks=(?i)network"),
        )
        document = json.loads(Path("evaluation.json").read_text(encoding="utf-8"))

        assert list(document["slices"]) == ["short_text", "mentions_llm", "images", "networks"]

    def test_a_slice_without_a_rule_is_wrong_usage(self, trained, small_file, home):
        outcome = call(
            *("evaluate", "--run-id", trained.run_id, "--dataset-loc", small_file, "--home", home),
            *("--slice", "networks"),
        )

        assert_fails(outcome, 2, "--slice is 'networks': expected NAME=VALUE")

    def test_a_slice_that_is_no_regular_expression_is_quoted(self, trained, small_file, home):
        outcome = call(
            *("evaluate", "--run-id", trained.run_id, "--dataset-loc", small_file, "--home", home),
            *("--slice", "broken=(", "--slice", "fine=a=b"),
        )

        assert_fails(outcome, 1, r"slice 'broken': '\(' is not a regular expression")

    def test_a_folder_is_no_place_for_the_results(self, trained, small_file, home, tmp_path):
        outcome = call(
            *("evaluate", "--run-id", trained.run_id, "--dataset-loc", small_file, "--home", home),
            *("--results-fp", tmp_path),
        )

        assert_fails(outcome, 1, "is a folder: --results-fp expects a file to write")

    def test_a_missing_folder_for_the_results_is_an_error(self, trained, small_file, home, tmp_path):
        outcome = call(
            *("evaluate", "--run-id", trained.run_id, "--dataset-loc", small_file, "--home", home),
            *("--results-fp", tmp_path / "missing" / "evaluation.json"),
        )

        assert_fails(outcome, 1, r"no folder '.*missing' to write 'evaluation.json' into")

    def test_labels_are_shown_as_they_are(self, checkpoint_folder, small_file, home, tmp_path):
        run_id = call(
            *("import", "--from", checkpoint_folder, "--experiment-name", "imported", "--home", home),
            *("--labels", "[spam],[/ham],:dog:,d"),
        ).last_line
        rows = pd.read_csv(small_file).head(8).assign(tag=["[spam]", "[/ham]", ":dog:", "d"] * 2)
        rows.to_csv(tmp_path / "[rows].csv", index=False)

        outcome = call("evaluate", "--run-id", run_id, "--dataset-loc", tmp_path / "[rows].csv", "--home", home)

        assert (outcome.status, outcome.err) == (0, "")
        assert all(name in outcome.out for name in ("[spam]", "[/ham]", ":dog:", "[rows].csv"))


class TestOptimize:
    def test_every_engine_is_shown_and_the_chosen_one_serves_from_then_on(self, undecided, home, tmp_path):
        results = tmp_path / "engines.json"
        outcome = call("optimize", "--run-id", undecided, "--home", home, "--results-fp", results)
        document = json.loads(results.read_text(encoding="utf-8"))
        keys = {"engine", "precision", "rows_per_second", "agreement", "max_probability_change", "passed", "reason"}

        assert outcome.status == 0
        assert document["run_id"] == undecided
        assert all(keys <= set(candidate) for candidate in document["candidates"])
        assert all(f"{c['engine']} {c['precision']}" in outcome.out for c in document["candidates"])
        assert "chosen" in outcome.out

    def test_an_engine_that_was_not_optimised_for_is_refused(self, trained, home):
        outcome = call("predict", "--run-id", trained.run_id, "--title", "a", "--engine", "openvino", "--home", home)

        assert_fails(outcome, 2, "engine 'openvino' needs an exported graph: run `madewithml optimize` first")


class TestCertify:
    def test_a_certificate_is_shown_written_and_served_from_then_on(self, undecided, home, tmp_path):
        results = tmp_path / "certificate.json"
        outcome = call(
            *("certify", "--run-id", undecided, "--max-risk", 0.3, "--home", home, "--results-fp", results),
        )
        document = json.loads(results.read_text(encoding="utf-8"))
        answer = json.loads(call("predict", "--run-id", undecided, "--title", "a text", "--home", home).out)
        promised = {"status", "max_risk", "confidence_level", "threshold", "temperature", "num_rows", "num_accepted"}

        assert (outcome.status, outcome.err) == (0, "")
        assert promised | {"num_errors", "risk_upper_bound", "coverage", "levels"} <= set(document)
        assert (document["status"], document["max_risk"]) == ("certified", 0.3)
        assert "at most 30.0% of those answers are wrong" in " ".join(outcome.out.split())
        assert document["threshold"] == answer["results"][0]["threshold"]

    def test_a_refusal_ends_with_status_three_and_says_what_is_missing(self, undecided, home, tmp_path):
        results = tmp_path / "refusal.json"
        outcome = call(
            *("certify", "--run-id", undecided, "--max-risk", 0.0001, "--home", home, "--results-fp", results),
        )
        document = json.loads(results.read_text(encoding="utf-8"))

        assert (outcome.status, len(outcome.err.splitlines())) == (3, 1)
        assert re.match(
            r"error: risk 0\.0001 cannot be certified: .*\. The best these rows could certify is about 0\.", outcome.err
        )
        assert document["status"] == "refused"
        assert {"needed_rows", "best_max_risk"} <= set(document)
        assert "refused" in outcome.out

    def test_joint_and_per_class_certificates_can_be_asked_for(self, undecided, home):
        outcome = call(
            *("certify", "--run-id", undecided, "--max-risk", 0.3, "--home", home),
            *("--joint", "--per-class", "--candidate-coverage", 0.8),
        )

        assert outcome.status == 0
        assert "all levels hold at once" in outcome.out
        assert all(re.search(rf"^{label}: (threshold \d|refused)", outcome.out, re.M) for label in LABELS)

    def test_a_run_without_calibration_rows_asks_for_a_file(self, checkpoint_folder, home):
        run_id = call(
            "import", "--from", checkpoint_folder, "--experiment-name", "imported", "--home", home
        ).out.strip()

        outcome = call("certify", "--run-id", run_id, "--home", home)

        assert_fails(outcome, 1, "recorded no calibration rows: give a labelled file with --dataset-loc")

    @pytest.mark.parametrize("flag", ["--max-risk", "--confidence-level"])
    @pytest.mark.parametrize("value", ["0", "1", "1.5", "nan"])
    def test_a_share_outside_nought_and_one_is_quoted(self, flag, value, imported, home):
        outcome = call("certify", "--run-id", imported, flag, value, "--home", home)

        assert_fails(outcome, 1, flag.removeprefix("--").replace("-", ".") + f".*{value}")


class TestPredict:
    def test_one_row_is_answered_as_json(self, trained, predictor, home):
        outcome = call("predict", "--run-id", trained.run_id, *flags(ROW), "--home", home)
        document = json.loads(outcome.out)

        assert (outcome.status, outcome.err) == (0, "")
        assert document["run_id"] == trained.run_id
        assert_same_answers(predictor.predict([ROW]), document["results"])

    def test_any_text_field_can_be_given_by_name(self, checkpoint_folder, settings):
        home = settings.home
        run_id = call(
            *("import", "--from", checkpoint_folder, "--experiment-name", "imported", "--home", home),
            *("--text-fields", "body,footer"),
        ).last_line

        outcome = call("predict", "--run-id", run_id, "--field", "body=a = b", "--field", "footer=c", "--home", home)

        direct = predict.Predictor.from_checkpoint(runs.connect(settings).best_checkpoint(run_id))
        assert_same_answers(direct.predict([{"body": "a = b", "footer": "c"}]), json.loads(outcome.out)["results"])

    def test_a_threshold_of_the_operator_decides(self, trained, home):
        outcome = call("predict", "--run-id", trained.run_id, *flags(ROW), "--threshold", 1, "--home", home)
        answer = json.loads(outcome.out)["results"][0]

        assert (answer["threshold"], answer["decision"], answer["prediction"]) == (1.0, "abstained", "other")

    def test_a_threshold_above_one_is_wrong_usage(self, trained, home):
        outcome = call("predict", "--run-id", trained.run_id, *flags(ROW), "--threshold", 1.5, "--home", home)

        assert_fails(outcome, 2, "bad value 1.5 for 'threshold'")

    def test_an_unknown_field_is_named_with_the_known_ones(self, trained, home):
        outcome = call("predict", "--run-id", trained.run_id, *flags(ROW), "--field", "body=x", "--home", home)

        assert_fails(outcome, 2, "the model has no text field 'body'; it has title, description")

    def test_a_field_without_a_value_is_wrong_usage(self, trained, home):
        outcome = call("predict", "--run-id", trained.run_id, "--field", "title", "--home", home)

        assert_fails(outcome, 2, "--field is 'title': expected NAME=VALUE")

    def test_a_row_of_blanks_is_not_answered(self, trained, home):
        outcome = call("predict", "--run-id", trained.run_id, "--title", " ", "--description", "", "--home", home)

        assert_fails(outcome, 1, "the row has no text")

    def test_bytes_that_are_no_text_are_not_answered(self, trained, home):
        # What Python makes of an argument that is not UTF-8.
        outcome = call("predict", "--run-id", trained.run_id, "--title", "caf\udce9", "--home", home)

        assert_fails(outcome, 1, "the row has bytes that are not UTF-8")

    @pytest.mark.parametrize(
        "given",
        [
            (),
            ("--title", "x", "--dataset-loc", "rows.csv", "--output-loc", "out.csv"),
            ("--dataset-loc", "rows.csv"),
            ("--output-loc", "out.csv"),
            ("--title", "x", "--output-loc", "out.csv"),
        ],
        ids=["nothing", "both", "no output", "no input", "a row and an output"],
    )
    def test_one_row_or_one_file_must_be_given(self, given, trained, home):
        outcome = call("predict", "--run-id", trained.run_id, "--home", home, *given)

        assert_fails(outcome, 2, "give either --title and --description, or --dataset-loc and --output-loc")

    def test_a_file_is_scored_into_a_file(self, ray_session, trained, predictor, small_file, home, tmp_path):
        output = tmp_path / "scored.csv"
        outcome = call(
            *("predict", "--run-id", trained.run_id, "--home", home, "--num-workers", 1, "--threshold", 0.5),
            *("--dataset-loc", small_file, "--output-loc", output),
        )
        scored, rows = pd.read_csv(output), pd.read_csv(small_file)

        assert (0, f"160 rows written to {output}\n") == (outcome.status, outcome.out)
        assert rows["title"].tolist() == scored["title"].tolist()
        assert [a["label"] for a in predictor.predict(rows.to_dict("records"))] == scored["label"].tolist()
        assert scored["threshold"].unique().tolist() == [0.5]

    def test_the_console_command_answers_too(self, trained, home, tmp_path):
        outcome = start(
            "-m", "madewithml", "predict", "--run_id", trained.run_id, *flags(ROW), "--home", home, cwd=tmp_path
        )

        assert (outcome.status, outcome.err) == (0, "")
        assert trained.run_id == json.loads(outcome.out)["run_id"]


class TestPromote:
    def test_an_alias_can_be_served_afterwards(self, trained, home, address, monkeypatch):
        promoted = call(
            "promote", "--run-id", trained.run_id, "--alias", "best", "--name", "by-command", "--home", home
        )
        found = capture(monkeypatch, on_ray)
        served = call("serve", "--model", "models:/by-command@best", *address)

        assert (0, f"models:/by-command@best is now version 1 (run {trained.run_id})\n") == (
            promoted.status,
            promoted.out,
        )
        assert (0, [trained.run_id]) == (served.status, [one.run_id for one in found])

    def test_promoting_the_same_run_again_makes_no_new_version(self, trained, home):
        twice = [
            call("promote", "--run-id", trained.run_id, "--alias", alias, "--name", "twice", "--home", home)
            for alias in ("first", "second")
        ]

        assert [outcome.out.partition(" (")[0] for outcome in twice] == [
            "models:/twice@first is now version 1",
            "models:/twice@second is now version 1",
        ]


class TestReport:
    def test_the_page_is_written_and_named(self, imported, home, tmp_path):
        output = tmp_path / "report.html"
        outcome = call("report", "--run-id", imported, "--output", output, "--home", home)

        assert (0, f"written: {output}\n", "") == (outcome.status, outcome.out, outcome.err)
        assert "</html>" in output.read_text(encoding="utf-8")


class TestServe:
    @pytest.mark.parametrize(
        "given",
        [
            (),
            ("--run-id", "a", "--model", "models:/m@a"),
            ("--run-id", "a", "--checkpoint", "c"),
            ("--model", "models:/m@a", "--checkpoint", "c"),
        ],
        ids=["nothing", "run and model", "run and folder", "model and folder"],
    )
    def test_one_of_run_model_and_folder_must_be_given(self, given, address):
        assert_fails(call("serve", *given, *address), 2, "give one of --run-id ID, --model models:/NAME@ALIAS")

    @pytest.mark.parametrize("value", ["many", "0", "-1", "1.5", ""])
    def test_replicas_are_a_number_or_auto(self, value, address):
        outcome = call("serve", "--run-id", "a", "--replicas", value, *address)

        assert_fails(outcome, 2, f"--replicas is '{value}': expected a number from 1 or 'auto'")

    def test_processes_start_at_one(self, address):
        outcome = call("serve", "--run-id", "a", "--local", "--workers", 0, *address)

        assert outcome.status == 2
        assert "Invalid value for '--workers'" in outcome.err

    @pytest.mark.parametrize("port", [0, 70000])
    def test_a_port_that_does_not_exist_is_wrong_usage(self, port, home):
        outcome = call("serve", "--run-id", "a", "--home", home, "--port", port)

        assert_fails(outcome, 2, f"bad value {port} for 'port'")

    def test_a_missing_checkpoint_folder_is_named(self, tmp_path, address):
        outcome = call("serve", "--checkpoint", tmp_path / "missing", *address)

        assert_fails(outcome, 1, r"no checkpoint folder '.*missing'")

    @pytest.mark.parametrize(
        ("given", "runner", "replicas"),
        [
            ((), on_ray, 1),
            (("--replicas", "3"), on_ray, 3),
            (("--replicas", "auto"), on_ray, host.available_cores()),
            (("--local",), local, 1),
            (("--local", "--workers", "2"), local, 2),
        ],
        ids=["plain", "three replicas", "a replica per core", "local", "two processes"],
    )
    def test_what_was_asked_for_is_what_is_started(
        self, given, runner, replicas, trained, checkpoint_folder, address, monkeypatch
    ):
        found = capture(monkeypatch, runner)
        outcome = call("serve", "--run-id", trained.run_id, "--threshold", 0.7, "--host", "127.0.0.1", *address, *given)

        assert (outcome.status, len(found)) == (0, 1), outcome.err
        assert (trained.run_id, checkpoint_folder, replicas) == (
            found[0].run_id,
            found[0].checkpoint,
            found[0].replicas,
        )
        assert (0.7, int(address[-1])) == (found[0].settings.threshold, found[0].settings.port)


def test_the_version_is_that_of_the_package():
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", __version__)


def flags(row: dict[str, str]) -> list[str]:
    return [part for name, text in row.items() for part in (f"--{name}", text)]


def assert_same_answers(expected: list[dict], actual: list[dict]) -> None:
    assert len(expected) == len(actual)
    for one, other in zip(expected, actual, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
        different = {"probabilities", "confidence"}
        assert {k: v for k, v in one.items() if k not in different} == {
            k: v for k, v in other.items() if k not in different
        }


def capture(monkeypatch: pytest.MonkeyPatch, runner: types.ModuleType) -> list[plan.Found]:
    """Collect what would be served, and serve none."""
    found: list[plan.Found] = []
    monkeypatch.setattr(runner, "run", lambda wanted: found.append(wanted.find()))
    return found
