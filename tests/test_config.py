from __future__ import annotations

from pathlib import Path

import pydantic
import pytest

from madewithml import config, errors


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder: `madewithml.toml` is looked for there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_any_source_the_defaults_hold() -> None:
    settings = config.load()
    assert (settings.home, settings.host, settings.port, settings.threshold) == (
        Path(".madewithml"),
        "127.0.0.1",
        8000,
        None,
    )


def test_a_flag_beats_a_variable_which_beats_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "madewithml.toml").write_text("port = 1111\nmax_rows = 7\nhost = '0.0.0.0'\n")
    monkeypatch.setenv("MADEWITHML_PORT", "2222")
    monkeypatch.setenv("MADEWITHML_MAX_ROWS", "8")
    settings = config.load(port=3333)
    assert (settings.port, settings.max_rows, settings.host) == (3333, 8, "0.0.0.0")


def test_a_flag_that_was_not_given_does_not_hide_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADEWITHML_THRESHOLD", "0.75")
    assert config.load(threshold=None).threshold == 0.75


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADEWITHML_PORT", "")
    assert config.load().port == 8000


def test_slices_are_read_from_a_table_of_the_file(folder: Path) -> None:
    (folder / "madewithml.toml").write_text('[slices]\nquestions = "\\\\?$"\n')
    assert config.load().slices == {"questions": "\\?$"}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("port", 0, "greater than or equal to 1"),
        ("port", 65536, "less than or equal to 65535"),
        ("threshold", 1.5, "less than or equal to 1"),
        ("max_batch_size", 0, "greater than or equal to 1"),
        ("request_timeout_s", 0, "greater than 0"),
    ],
)
def test_a_bad_flag_is_refused_by_name_and_value(name: str, value: float, reason: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        config.load(**{name: value})
    assert caught.value.message.startswith(f"bad value {value!r} for {name!r}: ")
    assert reason in caught.value.message
    assert caught.value.message.endswith(f"(flag, MADEWITHML_{name.upper()} or madewithml.toml)")


def test_a_bad_variable_is_refused_by_name_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADEWITHML_PORT", "eight")
    with pytest.raises(errors.UsageError, match="bad value 'eight' for 'port'"):
        config.load()


def test_every_bad_value_is_named_at_once() -> None:
    with pytest.raises(errors.UsageError, match=r"for 'port': .*; bad value 2 for 'threshold'"):
        config.load(port=0, threshold=2)


def test_an_unknown_variable_is_refused_and_the_known_ones_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADEWITHML_TRESHOLD", "0.9")
    with pytest.raises(
        errors.UsageError, match=r"unknown variable 'MADEWITHML_TRESHOLD'\. Known: .*MADEWITHML_THRESHOLD"
    ):
        config.load()


def test_an_unknown_key_in_the_file_is_refused_by_name(folder: Path) -> None:
    (folder / "madewithml.toml").write_text("prot = 8000\n")
    with pytest.raises(errors.UsageError, match=r"unknown setting 'prot' \(in madewithml.toml\?\)\. Known: .*port"):
        config.load()


@pytest.mark.parametrize("content", [b"port = \n", b"host = '\xff'\n"])
def test_a_file_that_is_no_toml_is_one_clear_error(folder: Path, content: bytes) -> None:
    (folder / "madewithml.toml").write_bytes(content)
    with pytest.raises(errors.UsageError, match=r"settings could not be read: .*Check madewithml\.toml"):
        config.load()


def test_a_variable_that_is_no_json_where_a_table_is_expected_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADEWITHML_SLICES", "{bad")
    with pytest.raises(errors.UsageError, match=r'settings could not be read: .*"slices"'):
        config.load()


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = config.load()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


def test_reading_settings_makes_no_folder(folder: Path) -> None:
    assert config.load().mlflow_uri == f"sqlite:///{folder.resolve()}/.madewithml/mlflow.db"
    assert sorted(folder.iterdir()) == []


def test_the_tracking_address_is_the_setting_then_mlflows_variable_then_sqlite(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config.load(home=folder).mlflow_uri == f"sqlite:///{folder}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert config.load(home=folder).mlflow_uri == "http://tracking:5000"
    assert config.load(home=folder, tracking_uri="sqlite:///other.db").mlflow_uri == "sqlite:///other.db"
