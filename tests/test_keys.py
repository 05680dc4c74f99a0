"""API keys: made, kept, found, revoked."""

import json
import stat

import pytest

from madewithml import errors, keys


def test_a_secret_is_found_by_its_hash_and_kept_nowhere(tmp_path):
    secret, key = keys.create("team-a")
    keys.add(tmp_path / "keys.json", key)
    assert secret.startswith(keys.PREFIX)
    assert len(secret) >= 43 + len(keys.PREFIX)  # 32 bytes in base 64
    assert secret not in (tmp_path / "keys.json").read_text()
    assert keys.find(keys.read(tmp_path / "keys.json"), secret) == key


def test_another_secret_is_not_found():
    _, key = keys.create("team-a")
    other, _ = keys.create("team-a")
    assert keys.find([key], other) is None
    assert keys.find([key], "") is None
    assert keys.find([key], "\udcff") is None  # what a header that is no UTF-8 may become


def test_each_secret_is_new():
    assert len({keys.create("a")[0] for _ in range(100)}) == 100


def test_the_file_is_for_its_owner_alone(tmp_path):
    path = tmp_path / "state" / "keys.json"
    keys.add(path, keys.create("a")[1])
    keys.add(path, keys.create("b", role="admin", rows_per_second=10)[1])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [(key.name, key.role, key.rows_per_second) for key in keys.read(path)] == [
        ("a", "predict", None),
        ("b", "admin", 10),
    ]
    assert [each.name for each in path.parent.iterdir()] == ["keys.json"]


def test_a_name_is_given_once(tmp_path):
    keys.add(tmp_path / "keys.json", keys.create("a")[1])
    before = (tmp_path / "keys.json").read_bytes()
    with pytest.raises(errors.UsageError, match="has a key 'a' already"):
        keys.add(tmp_path / "keys.json", keys.create("a")[1])
    assert (tmp_path / "keys.json").read_bytes() == before


def test_a_revoked_key_is_gone(tmp_path):
    path = tmp_path / "keys.json"
    secret, key = keys.create("a")
    keys.add(path, key)
    keys.revoke(path, "a")
    assert keys.find(keys.read(path), secret) is None
    with pytest.raises(errors.UsageError, match="has no key 'a'; it has: none"):
        keys.revoke(path, "a")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "with space"}, "'with space' for name"),
        ({"name": ""}, "'' for name"),
        ({"name": "a", "role": "root"}, "'root' for role"),
        ({"name": "a", "rows_per_second": 0}, "0 for rows_per_second"),
    ],
)
def test_what_cannot_be_used_is_named(options, said):
    with pytest.raises(errors.UsageError, match=said):
        keys.create(**options)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"keys": [{"name": "a"}]}', '{"keys": [{"name": "a", "sha256": "short"}]}', '{"keys": {"a": 1}}'],
)
def test_another_file_is_told_from_one_of_keys(tmp_path, text):
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(errors.UsageError, match=r"keys.json is no file of keys: .* madewithml keys create NAME"):
        keys.read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(errors.UsageError, match=r"cannot read the keys in .*keys.json: No such file"):
        keys.read(tmp_path / "keys.json")


def test_the_entry_of_the_file_is_the_entry_of_the_setting(tmp_path, monkeypatch):
    from madewithml import config

    _, key = keys.create("a", rows_per_second=2.5)
    keys.add(tmp_path / "keys.json", key)
    entries = json.loads((tmp_path / "keys.json").read_text())["keys"]
    monkeypatch.setenv("MADEWITHML_KEYS", json.dumps(entries))
    settings = config.load(home=tmp_path)
    assert settings.keys == (key,)
    assert config.restore(settings.model_dump(mode="json")).keys == (key,)
