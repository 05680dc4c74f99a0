from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from madewithml import encoders, errors, models

LABELS = ["x", "y", "z"]


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> encoders.Encoder:
    return encoders.find(str(tiny_encoder))


def write_configuration(folder: Path, *, config: dict[str, Any], tokenizer: dict[str, Any] | None = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def test_a_new_classifier_has_the_encoders_weights_and_a_head_for_the_labels(encoder: encoders.Encoder) -> None:
    model: Any = models.from_encoder(encoder, LABELS)
    pretrained = transformers.BertModel.from_pretrained(encoder.folder)
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(model.bert.state_dict()[name], pretrained.state_dict()[name])
    assert model.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert model.config.label2id == {"x": 0, "y": 1, "z": 2}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_same_seed_gives_the_same_head(encoder: encoders.Encoder) -> None:
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model: Any = models.from_encoder(encoder, LABELS)
        heads.append(model.classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_making_a_classifier_leaves_the_verbosity_of_transformers_as_it_was(encoder: encoders.Encoder) -> None:
    before = transformers.logging.get_verbosity()
    models.from_encoder(encoder, LABELS)
    assert transformers.logging.get_verbosity() == before


def test_the_head_is_what_the_encoder_does_not_have(encoder: encoders.Encoder) -> None:
    model = models.from_encoder(encoder, LABELS)
    shapes = [tuple(p.shape) for p in models.head_parameters(model)]
    assert shapes == [(3, 32), (3,)]


def test_a_saved_classifier_comes_back_with_the_same_weights(encoder: encoders.Encoder, tmp_path: Path) -> None:
    model = models.from_encoder(encoder, LABELS)
    models.save(model, tmp_path)
    again = models.from_folder(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert all(torch.equal(weights, again.state_dict()[name]) for name, weights in model.state_dict().items())


def test_an_encoder_without_a_head_is_no_trained_classifier(encoder: encoders.Encoder) -> None:
    with pytest.raises(
        errors.InputError,
        match=r"is no trained sequence classifier: its weights lack 'classifier\.bias' and 1 more",
    ):
        models.from_folder(encoder.folder)


def test_a_folder_that_transformers_cannot_read_is_named(tmp_path: Path) -> None:
    write_configuration(tmp_path, config={"model_type": "no-such-model"})
    with pytest.raises(errors.InputError, match=r"cannot be loaded as a classifier: .*no-such-model"):
        models.from_folder(tmp_path)


def test_weights_that_are_no_safetensors_are_named(encoder: encoders.Encoder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder.folder, tmp_path / "broken"))
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(errors.InputError, match=r"broken' cannot be loaded as a classifier: "):
        models.from_folder(folder)


@pytest.mark.parametrize(
    ("config", "tokenizer", "expected"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, {"model_max_length": 256}, 256),
        ({"model_type": "bert", "max_position_embeddings": 128}, {"model_max_length": 512}, 128),
        ({"model_type": "bert", "max_position_embeddings": 128}, {"model_max_length": 10**30}, 128),
        ({"model_type": "bert", "max_position_embeddings": 128}, None, 128),
        ({"model_type": "roberta", "max_position_embeddings": 514}, None, 512),
        ({"model_type": "t5"}, {}, 512),
    ],
)
def test_the_length_that_fits_is_the_smaller_of_what_model_and_tokenizer_state(
    tmp_path: Path, config: dict[str, Any], tokenizer: dict[str, Any] | None, expected: int
) -> None:
    assert models.max_length(write_configuration(tmp_path, config=config, tokenizer=tokenizer)) == expected


def test_the_pad_id_is_the_configurations(tmp_path: Path) -> None:
    assert models.pad_id(write_configuration(tmp_path, config={"pad_token_id": 7})) == 7


@pytest.mark.parametrize("config", [{}, {"pad_token_id": None}])
def test_a_model_without_a_pad_id_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(errors.InputError, match=r"has no pad_token_id: rows could not be batched"):
        models.pad_id(write_configuration(tmp_path, config=config))


def test_the_tokenizer_is_written_in_its_fast_form(encoder: encoders.Encoder, tmp_path: Path) -> None:
    models.save_tokenizer(encoder.folder, tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()


def test_an_old_vocabulary_file_becomes_a_tokenizer_json(tmp_path: Path) -> None:
    source, target = tmp_path / "old", tmp_path / "new"
    source.mkdir()
    target.mkdir()
    (source / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "images", "text"]))
    write_configuration(source, config={"model_type": "bert"}, tokenizer={"tokenizer_class": "BertTokenizer"})
    models.save_tokenizer(source, target)
    document = json.loads((target / "tokenizer.json").read_text())
    assert document["model"]["vocab"]["images"] == 5


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    write_configuration(tmp_path, config={"model_type": "bert"})
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(errors.InputError, match=r"has no tokenizer: expected one of tokenizer\.json, "):
        models.save_tokenizer(tmp_path, target)


def test_a_damaged_tokenizer_is_named(encoder: encoders.Encoder, tmp_path: Path) -> None:
    source = Path(shutil.copytree(encoder.folder, tmp_path / "source"))
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(errors.InputError, match=r"no tokenizer can be loaded from '.*source'"):
        models.save_tokenizer(source, tmp_path)


def test_a_bin_that_would_run_code_is_refused_and_runs_none(encoder: encoders.Encoder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder.folder, tmp_path / "malicious"))
    (folder / "model.safetensors").unlink()
    trace = tmp_path / "trace"

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (trace,)

    torch.save({"weights": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(errors.InputError, match=r"malicious' .*: its \.bin holds more than weights"):
        models.from_folder(folder)
    assert not trace.exists()


@pytest.fixture(scope="module")
def averaged(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> encoders.Encoder:
    """The tiny encoder with the file by which Sentence Transformers says that its tokens are averaged."""
    folder = tmp_path_factory.mktemp("averaged") / "encoder"
    shutil.copytree(tiny_encoder, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return encoders.find(str(folder))


def test_a_bert_that_is_averaged_gets_a_layer_whose_first_token_is_the_mean(averaged: encoders.Encoder) -> None:
    torch.manual_seed(0)
    model: Any = models.from_encoder(averaged, LABELS).eval()
    ids, mask = torch.tensor([[2, 50, 60, 70, 3], [2, 80, 3, 0, 0]]), torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    with torch.inference_mode():
        output = model.bert(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    tokens = output.hidden_states[2]
    mean = (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    assert model.config.num_hidden_layers == 3
    assert torch.nn.functional.cosine_similarity(output.last_hidden_state[:, 0], mean).min() > 0.97


def test_its_other_layers_are_the_encoders(averaged: encoders.Encoder) -> None:
    model: Any = models.from_encoder(averaged, LABELS)
    pretrained = transformers.BertModel.from_pretrained(averaged.folder).state_dict()
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(model.bert.state_dict()[name], pretrained[name])


def test_a_model_with_that_layer_opens_in_transformers_as_it_stands(averaged: encoders.Encoder, tmp_path: Path) -> None:
    model: Any = models.from_encoder(averaged, LABELS).eval()
    models.save(model, tmp_path)
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[2, 50, 60, 3]])
    with torch.inference_mode():
        torch.testing.assert_close(opened(ids).logits, model(ids).logits)


def test_other_encoders_keep_their_layers(encoder: encoders.Encoder) -> None:
    model: Any = models.from_encoder(encoder, LABELS)
    assert model.config.num_hidden_layers == 2


def test_frozen_embeddings_are_the_only_weights_that_learn_nothing(encoder: encoders.Encoder) -> None:
    model: Any = models.from_encoder(encoder, LABELS)
    models.freeze_embeddings(model)
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"embeddings"}
    assert all(p.requires_grad for p in model.bert.encoder.parameters())


def test_the_layer_that_gives_the_logits_is_found(encoder: encoders.Encoder) -> None:
    model: Any = models.from_encoder(encoder, LABELS)
    assert models.classifier_layer(model, len(LABELS)) is model.classifier
    assert models.classifier_layer(model, 7) is None
