"""The torch module: a pretrained encoder with a classification head, as Transformers defines it.

Using the library's own sequence-classification classes means that any encoder architecture works, and that a
checkpoint opens in Transformers as it stands. This is the only module that imports Transformers.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
import transformers

from madewithml import encoders, errors

# Where a tokenizer or a model states no limit it states a huge number instead.
NO_LIMIT = 1_000_000


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Transformers from reporting that the head is new: it is meant to be."""
    previous = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(previous)


def from_encoder(encoder: encoders.Encoder, labels: Sequence[str]) -> torch.nn.Module:
    """A classifier with the encoder's weights and a new head for `labels`, in index order."""
    with _quiet():
        model: torch.nn.Module = _from_pretrained(
            encoder.folder,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            ignore_mismatched_sizes=True,
        )
    return model


def from_folder(folder: Path) -> torch.nn.Module:
    """A classifier with everything from the folder.

    Raises:
        InputError: Weights are missing from the folder: it holds no trained classifier.
    """
    with _quiet():
        model, report = _from_pretrained(folder, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:
        msg = (
            f"{str(folder)!r} is no trained sequence classifier: its weights lack {missing[0]!r}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}"
        )
        raise errors.InputError(msg)
    return cast("torch.nn.Module", model)


def _from_pretrained(folder: Path, **options: Any) -> Any:
    try:
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32, **options
        )
    except pickle.UnpicklingError as err:
        msg = f"{str(folder)!r} cannot be loaded as a classifier: its .bin holds more than weights; use safetensors"
        raise errors.InputError(msg) from err
    except (OSError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError) as err:
        msg = f"{str(folder)!r} cannot be loaded as a classifier: {str(err).splitlines()[0]}"
        raise errors.InputError(msg) from err


def head_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters outside the pretrained encoder: the head, which learns faster."""
    body = {id(p) for p in getattr(model, str(cast("Any", model).base_model_prefix)).parameters()}
    return [p for p in model.parameters() if id(p) not in body]


def max_length(folder: Path) -> int:
    """Tokens that fit the model in `folder`, special tokens included, by its configuration and tokenizer."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer_file = folder / "tokenizer_config.json"
    stated = (
        json.loads(tokenizer_file.read_text(encoding="utf-8")).get("model_max_length")
        if tokenizer_file.is_file()
        else None
    )
    positions = config.get("max_position_embeddings")
    if positions and config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer"):
        positions -= 2  # these count positions from the padding index
    limits = [int(limit) for limit in (stated, positions) if limit and limit < NO_LIMIT]
    return min(limits, default=512)


def save_tokenizer(source: Path, target: Path) -> None:
    """Write the source's tokenizer to `target` as `tokenizer.json`, converted if it was an older form.

    Raises:
        InputError: There is no tokenizer, or it has no fast form.
    """
    if not any((source / name).is_file() for name in encoders.TOKENIZER_FILES):  # Transformers would make an empty one
        msg = f"{str(source)!r} has no tokenizer: expected one of {', '.join(encoders.TOKENIZER_FILES)}"
        raise errors.InputError(msg)
    try:
        with _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True, use_fast=True)
    except (OSError, ValueError, KeyError, ImportError) as err:
        raise errors.InputError(f"no tokenizer can be loaded from {str(source)!r}: {str(err).splitlines()[0]}") from err
    if not tokenizer.is_fast:
        raise errors.InputError(f"the tokenizer in {str(source)!r} has no fast form (tokenizer.json)")
    tokenizer.save_pretrained(target)


def save(model: torch.nn.Module, target: Path) -> None:
    """Write `config.json` and `model.safetensors`."""
    cast("Any", model).save_pretrained(target)


def pad_id(folder: Path) -> int:
    """Token id that fills short rows, by the configuration in `folder`.

    Raises:
        InputError: The model has none, so rows of different length cannot share a batch.
    """
    value = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("pad_token_id")
    if value is None:
        raise errors.InputError(f"the model in {str(folder)!r} has no pad_token_id: rows could not be batched")
    return int(value)
