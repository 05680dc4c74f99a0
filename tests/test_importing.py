"""Importing a classifier that was trained elsewhere: the same answers, named classes, and clear refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
import transformers

from madewithml import checkpoint, errors, evaluate, importing, predict, runs
from tests.conftest import MAX_TOKENS, VOCABULARY

NAMES = ["ham", "spam", "spiced ham"]
TEXTS = [
    "Intro to CNNs Processing images with layers.",
    "short",
    "Serving a model behind an API, with a queue and a cache " * 20,
    "Größe 文字",
]
SIZES = {"vocab_size": VOCABULARY, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ARCHITECTURES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "bert": (
        transformers.BertConfig,
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, **SIZES},
    ),
    "distilbert": (
        transformers.DistilBertConfig,
        {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "vocab_size": VOCABULARY},
    ),
    "roberta": (
        transformers.RobertaConfig,
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, **SIZES},
    ),
}


def make(
    folder: Path,
    tokenizer: Path,
    *,
    architecture: str = "bert",
    labels: Sequence[str] | None = NAMES,
    num_labels: int = len(NAMES),
    **more: Any,
) -> Path:
    """Save a seeded classifier just as Transformers does, with weights far enough apart that answers differ."""
    kind, values = ARCHITECTURES[architecture]
    # RoBERTa counts positions from the padding index, so it needs two more than it has tokens.
    positions = MAX_TOKENS + 2 if architecture == "roberta" else MAX_TOKENS
    named = {"id2label": dict(enumerate(labels))} if labels else {"num_labels": num_labels}
    config = kind(max_position_embeddings=positions, pad_token_id=0, **values, **named, **more)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    return folder


def plain_probabilities(folder: Path, texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """What the folder gives under plain Transformers, one text at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            logits = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits
        rows.append(torch.softmax(logits.double(), dim=1)[0].numpy())
    return np.stack(rows)


def import_folder(folder: Path, settings, **options: Any) -> str:
    given = {"experiment_name": "elsewhere", "text_fields": ("text",), **options}
    return importing.import_folder(importing.ImportOptions(source=folder, **given), settings)


@pytest.fixture
def classifier(tiny_tokenizer, tmp_path) -> Path:
    """A BERT with three named classes."""
    return make(tmp_path / "classifier", tiny_tokenizer)


@pytest.fixture
def labelled_file(tmp_path) -> Path:
    """Thirty rows, ten of each class."""
    rows = [{"text": f"row {number}", "tag": NAMES[number % 3]} for number in range(30)]
    path = tmp_path / "rows.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


class TestSameAnswers:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_probabilities_are_those_of_plain_transformers(self, architecture, tiny_tokenizer, settings, tmp_path):
        folder = make(tmp_path / "classifier", tiny_tokenizer, architecture=architecture)
        expected = plain_probabilities(folder, TEXTS)

        found = runs.connect(settings).best_checkpoint(import_folder(folder, settings))
        predictor = predict.TorchPredictor.from_checkpoint(found)

        assert np.ptp(expected, axis=0).max() > 0.01, "the texts must give different answers"
        assert predictor.classes == NAMES
        actual = predictor.predict_proba([{"text": text} for text in TEXTS])
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)

    def test_old_weights_are_rewritten_as_safetensors(self, classifier, settings):
        expected = plain_probabilities(classifier, TEXTS)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier)
        torch.save(model.state_dict(), classifier / "pytorch_model.bin")
        (classifier / "model.safetensors").unlink()

        found = runs.connect(settings).best_checkpoint(import_folder(classifier, settings))

        actual = predict.TorchPredictor.from_checkpoint(found).predict_proba([{"text": text} for text in TEXTS])
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
        assert (found / "model.safetensors").is_file()
        assert not list(found.glob("*.bin"))

    def test_half_precision_weights_compute_in_full(self, classifier, settings):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier)
        model.half().save_pretrained(classifier)
        tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
        full = transformers.AutoModelForSequenceClassification.from_pretrained(classifier, dtype=torch.float32).eval()
        with torch.inference_mode():
            expected = torch.softmax(full(tokenizer("short", return_tensors="pt")["input_ids"]).logits, dim=1).numpy()

        found = runs.connect(settings).best_checkpoint(import_folder(classifier, settings))

        actual = predict.TorchPredictor.from_checkpoint(found).predict_proba([{"text": "short"}])
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)

    def test_the_checkpoint_opens_in_transformers_as_it_stands(self, classifier, settings):
        expected = plain_probabilities(classifier, TEXTS)

        found = runs.connect(settings).best_checkpoint(import_folder(classifier, settings, labels=("a", "b", "c")))

        np.testing.assert_allclose(plain_probabilities(found, TEXTS), expected, rtol=0, atol=1e-6)
        config = transformers.AutoConfig.from_pretrained(found)
        assert config.id2label == {0: "a", 1: "b", 2: "c"}
        assert config.label2id == {"a": 0, "b": 1, "c": 2}

    def test_the_run_is_a_pyfunc_model(self, classifier, settings):
        run_id = import_folder(classifier, settings)
        store = runs.connect(settings)
        store.promote(run_id, name="elsewhere", alias="champion")

        mlflow.set_tracking_uri(settings.mlflow_uri)
        model = mlflow.pyfunc.load_model("models:/elsewhere@champion")

        expected = predict.TorchPredictor.from_checkpoint(store.best_checkpoint(run_id)).predict([{"text": "short"}])
        assert model.predict(pd.DataFrame({"text": ["short"]}))["label"].tolist() == [expected[0]["label"]]

    def test_what_was_imported_is_recorded_in_the_run(self, classifier, settings):
        run_id = import_folder(classifier, settings)
        store = runs.connect(settings)
        run, metadata = store.run(run_id), checkpoint.read(store.best_checkpoint(run_id)).metadata

        assert (run.info.status, run.data.tags["madewithml.kind"]) == ("FINISHED", "import")
        assert (run.data.params["source"], run.data.params["labels"]) == ("classifier", "ham,spam,spiced ham")
        assert (metadata.text_fields, metadata.max_length, metadata.pad_id) == (["text"], MAX_TOKENS, 0)
        assert metadata.data_sha256 is None


class TestLabels:
    def test_given_names_replace_those_of_the_folder(self, classifier, settings):
        run_id = import_folder(classifier, settings, labels=("a", "b", "c"))

        assert checkpoint.read(runs.connect(settings).best_checkpoint(run_id)).metadata.labels == ["a", "b", "c"]

    def test_more_than_ten_classes_stay_in_index_order(self, tiny_tokenizer, settings, tmp_path):
        names = [f"class {letter}" for letter in "lkjihgfedcba"]
        folder = make(tmp_path / "classifier", tiny_tokenizer, labels=names)

        run_id = import_folder(folder, settings)

        assert checkpoint.read(runs.connect(settings).best_checkpoint(run_id)).metadata.labels == names

    def test_two_classes_are_the_default_that_transformers_leaves_out(self, tiny_tokenizer, settings, tmp_path):
        folder = make(tmp_path / "classifier", tiny_tokenizer, labels=None, num_labels=2)
        assert "id2label" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))

        run_id = import_folder(folder, settings, labels=("no", "yes"))

        found = runs.connect(settings).best_checkpoint(run_id)
        actual = predict.TorchPredictor.from_checkpoint(found).predict_proba([{"text": text} for text in TEXTS])
        assert checkpoint.read(found).metadata.labels == ["no", "yes"]
        np.testing.assert_allclose(actual, plain_probabilities(folder, TEXTS), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("count", [2, 3])
    def test_classes_without_names_ask_for_them(self, count, tiny_tokenizer, settings, tmp_path):
        folder = make(tmp_path / "classifier", tiny_tokenizer, labels=None, num_labels=count)

        with pytest.raises(errors.InputError, match=rf"the model's {count} classes have no names .*: give --labels a"):
            import_folder(folder, settings)

    def test_another_number_of_names_is_an_error(self, classifier, settings):
        with pytest.raises(errors.InputError, match="--labels names 2 classes, the model has 3"):
            import_folder(classifier, settings, labels=("a", "b"))

    def test_a_name_given_twice_is_an_error(self, classifier, settings):
        with pytest.raises(errors.InputError, match="--labels repeats a class: a, b, a"):
            import_folder(classifier, settings, labels=("a", "b", "a"))


class TestRows:
    def test_labelled_rows_are_recorded_for_calibration_and_test(self, classifier, settings, labelled_file):
        run_id = import_folder(classifier, settings, dataset_loc=str(labelled_file))
        store = runs.connect(settings)
        calibration, test = store.recorded_rows(run_id, "calibration"), store.recorded_rows(run_id, "test")

        assert (len(calibration), len(test)) == (21, 9)
        assert set(calibration.labels) == set(test.labels) == set(NAMES)
        assert sorted(calibration.texts + test.texts) == sorted(f"row {number}" for number in range(30))
        with pytest.raises(errors.NotFoundError, match="recorded no train rows"):
            store.recorded_rows(run_id, "train")

    def test_some_of_them_become_golden_rows(self, classifier, settings, labelled_file):
        run_id = import_folder(classifier, settings, dataset_loc=str(labelled_file))
        found = runs.connect(settings).best_checkpoint(run_id)

        golden = checkpoint.read(found).read_golden()
        assert golden is not None
        assert set(golden.texts) <= {f"row {number}" for number in range(30)}
        np.testing.assert_allclose(
            np.exp(golden.logits) / np.exp(golden.logits).sum(axis=1, keepdims=True),
            plain_probabilities(classifier, golden.texts),
            rtol=0,
            atol=1e-5,
        )

    def test_the_run_can_be_evaluated_like_any_other(self, classifier, settings, labelled_file):
        run_id = import_folder(classifier, settings)
        guesses = plain_probabilities(classifier, [f"row {number}" for number in range(30)]).argmax(axis=1)
        right = sum(guess == number % 3 for number, guess in enumerate(guesses))

        document = evaluate.evaluate_run(run_id, str(labelled_file), settings)

        assert document["overall"]["accuracy"] == pytest.approx(right / 30)

    def test_a_label_the_model_does_not_know_is_an_error(self, classifier, settings, labelled_file):
        with pytest.raises(errors.InputError, match=r"rows\.csv' has the label 'spam', which the model does not know"):
            import_folder(classifier, settings, dataset_loc=str(labelled_file), labels=("ham", "b", "spiced ham"))

    def test_a_missing_column_is_named(self, classifier, settings, labelled_file):
        with pytest.raises(errors.InputError, match=r"rows\.csv' has no column 'body'; it has 'text', 'tag'"):
            import_folder(classifier, settings, dataset_loc=str(labelled_file), text_fields=("body",))

    def test_a_class_with_one_row_cannot_be_split(self, classifier, settings, labelled_file):
        pd.read_csv(labelled_file).drop(index=range(3, 30, 3)).to_csv(labelled_file, index=False)

        with pytest.raises(errors.InputError, match=r"class 'ham' has 1 row\(s\); at least 2 are needed"):
            import_folder(classifier, settings, dataset_loc=str(labelled_file), experiment_name="unsplit")
        with pytest.raises(errors.NotFoundError, match="no finished run of experiment 'unsplit'"):
            runs.connect(settings).best_run("unsplit")


class TestFolders:
    def test_a_folder_without_configuration_is_named(self, settings, tmp_path):
        with pytest.raises(errors.InputError, match=r"has no config\.json: --from expects a Transformers"):
            import_folder(tmp_path, settings)

    @pytest.mark.parametrize("content", ["{", "[]", '{"id2label": ["a", "b"]}', '{"id2label": {"zero": "a"}}'])
    def test_a_configuration_that_is_none_is_an_error(self, content, settings, tmp_path):
        (tmp_path / "config.json").write_text(content, encoding="utf-8")

        with pytest.raises(errors.InputError, match=r"config\.json' is no model configuration with id2label"):
            import_folder(tmp_path, settings)

    def test_an_encoder_without_a_head_is_no_classifier(self, tiny_encoder, settings):
        with pytest.raises(errors.InputError, match="is no trained sequence classifier: its weights lack 'classifier"):
            import_folder(tiny_encoder, settings, labels=("a", "b", "c", "d"))

    def test_missing_weights_are_an_error(self, classifier, settings):
        (classifier / "model.safetensors").unlink()

        with pytest.raises(errors.InputError, match=r"cannot be loaded as a classifier: .*model\.safetensors"):
            import_folder(classifier, settings)

    def test_weights_that_are_cut_short_are_an_error(self, classifier, settings):
        path = classifier / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])

        with pytest.raises(errors.InputError, match="classifier' cannot be loaded as a classifier: "):
            import_folder(classifier, settings)

    def test_a_pickle_that_runs_code_is_not_run(self, classifier, settings, tmp_path):
        class Trap:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "sprung",))

        torch.save({"trap": Trap()}, classifier / "pytorch_model.bin")
        (classifier / "model.safetensors").unlink()

        with pytest.raises(errors.InputError, match="classifier' cannot be loaded as a classifier: "):
            import_folder(classifier, settings)
        assert not (tmp_path / "sprung").exists()

    def test_a_missing_tokenizer_is_an_error(self, classifier, settings):
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            (classifier / name).unlink(missing_ok=True)

        with pytest.raises(errors.InputError, match=r"tokenizer"):
            import_folder(classifier, settings)
