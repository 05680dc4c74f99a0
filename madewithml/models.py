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
POOLING_FILE = "1_Pooling/config.json"  # Sentence Transformers' own
POOLING_GAIN = 8.0  # weight of the mean against the first token itself
POOLER_SCALE = 0.5  # keeps the pooler's tanh in its nearly straight part
ALMOST_NOTHING = 0.1  # of the usual random weights


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
    """A classifier with the encoder's weights and a new head for `labels`, in index order.

    A BERT that was trained to be averaged over its tokens gets one layer more, which does that; see
    `_become_pooling_layer`.
    """
    averages = _is_averaged(encoder.folder)
    with _quiet():
        config = _loaded(transformers.AutoConfig, encoder.folder)
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.num_hidden_layers += 1 if averages else 0
        model: torch.nn.Module = _from_pretrained(encoder.folder, config=config, ignore_mismatched_sizes=True)
    if averages:
        _become_pooling_layer(cast("Any", model).bert)
    return model


def _is_averaged(folder: Path) -> bool:
    """Whether it is a BERT whose sentence vector is the mean of its tokens, by its Sentence Transformers file."""
    path = folder / POOLING_FILE
    if not path.is_file() or _read(folder / "config.json").get("model_type") != "bert":
        return False
    return bool(_read(path).get("pooling_mode_mean_tokens"))


@torch.no_grad()
def _become_pooling_layer(bert: Any) -> None:
    """Make the last layer a mean over the tokens, as a start for fitting.

    The classification head of BERT reads the first token alone, which such an encoder never learned to fill; on few
    rows that costs two points of F1. With even attention, identities for value and output, and nothing from the
    feed-forward part, the first token leaves this layer as the layer norm of (itself + GAIN x the mean), so the head
    starts from the sentence vector, and the model is still a plain BERT to every tool that reads it.
    """
    layer, pooler = bert.encoder.layer[-1], bert.pooler.dense
    attention, identity = layer.attention.self, torch.eye(bert.config.hidden_size)
    for linear in (attention.query, attention.key, layer.output.dense):
        linear.weight.mul_(ALMOST_NOTHING)  # not zero, from which these would not learn
        linear.bias.zero_()
    for linear, scale in ((attention.value, 1.0), (layer.attention.output.dense, POOLING_GAIN), (pooler, POOLER_SCALE)):
        linear.weight.copy_(scale * identity)
        linear.bias.zero_()


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
    return _loaded(transformers.AutoModelForSequenceClassification, folder, dtype=torch.float32, **options)


def _loaded(kind: Any, folder: Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except pickle.UnpicklingError as err:
        msg = f"{str(folder)!r} cannot be loaded as a classifier: its .bin holds more than weights; use safetensors"
        raise errors.InputError(msg) from err
    except (OSError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError) as err:
        msg = f"{str(folder)!r} cannot be loaded as a classifier: {errors.first_line(err)}"
        raise errors.InputError(msg) from err


def head_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters outside the pretrained encoder: the head, which learns faster."""
    body = {id(p) for p in getattr(model, str(cast("Any", model).base_model_prefix)).parameters()}
    return [p for p in model.parameters() if id(p) not in body]


def freeze_embeddings(model: torch.nn.Module) -> None:
    """Keep the embeddings as they were pretrained.

    They are half of a small encoder's weights. A few hundred rows show each word a few times, so what they would learn
    of it is chance, and words that come later would be left behind.
    """
    base = getattr(model, str(cast("Any", model).base_model_prefix))
    embeddings = getattr(base, "embeddings", None) or base.get_input_embeddings()
    for parameter in embeddings.parameters():
        parameter.requires_grad_(requires_grad=False)


def classifier_layer(model: torch.nn.Module, num_labels: int) -> torch.nn.Linear | None:
    """The head's last layer, which gives the logits; None if it is no plain linear one."""
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == num_labels]
    head = {id(p) for p in head_parameters(model)}
    return next((layer for layer in reversed(layers) if id(layer.weight) in head), None)


def max_length(folder: Path) -> int:
    """Tokens that fit the model in `folder`, special tokens included, by its configuration and tokenizer."""
    config = _read(folder / "config.json")
    tokenizer_file = folder / "tokenizer_config.json"
    stated = _read(tokenizer_file).get("model_max_length") if tokenizer_file.is_file() else None
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
        raise errors.InputError(f"no tokenizer can be loaded from {str(source)!r}: {errors.first_line(err)}") from err
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
    value = _read(folder / "config.json").get("pad_token_id")
    if value is None:
        raise errors.InputError(f"the model in {str(folder)!r} has no pad_token_id: rows could not be batched")
    return int(value)


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document
