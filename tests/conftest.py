"""What the tests share: one tiny seeded encoder, one real training run of it, one Ray, each made once per session."""

from __future__ import annotations

import collections
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported, so it must be there before anything else
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each process of a service would compile the package anew
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads of torch would keep Ray's workers off the cores

from madewithml import config
from tests.measured import sitecustomize

if TYPE_CHECKING:
    from madewithml import checkpoint, engines, predict, train, train_worker

if sitecustomize.COVERAGES in os.environ:  # processes that tests start are measured as that module says
    os.environ[sitecustomize.KEPT] = os.environ.pop(sitecustomize.COVERAGES)
    found_first = [str(Path(sitecustomize.__file__).parent), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, found_first))

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLE = REPOSITORY / "madewithml" / "sample" / "projects.csv"
LABELS = ["computer-vision", "mlops", "natural-language-processing", "other"]
EXPERIMENT = "tiny"
VOCABULARY = 2000
MAX_TOKENS = 64
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
TOKEN_ROWS = [[2, 50, 60, 3], [2, 70, 3], [2, *range(50, 90), 3]]


def clear(environment: pytest.MonkeyPatch) -> None:
    """Remove every variable that would change what the package does."""
    for name in list(os.environ):
        if name == TRACKING_VARIABLE or (name.startswith(config.PREFIX) and name not in config.NOT_SETTINGS):
            environment.delenv(name)


@pytest.fixture(autouse=True, scope="session")
def _clean_session() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        clear(environment)
        yield


@pytest.fixture(autouse=True)
def _clean_environment(_clean_session: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # MLflow exports the address of a store that it writes to, and what the next module's fixtures start would read it.
    os.environ.pop(TRACKING_VARIABLE, None)
    clear(monkeypatch)
    yield
    os.environ.pop(TRACKING_VARIABLE, None)


@pytest.fixture(scope="session")
def sample_file() -> Path:
    """The bundled sample."""
    return SAMPLE


@pytest.fixture(scope="session")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 rows of the bundled sample, 40 of each class."""
    import pandas as pd

    table = pd.read_csv(SAMPLE)
    chosen = table.groupby("tag").sample(40, random_state=0).sample(frac=1.0, random_state=0)
    path = tmp_path_factory.mktemp("data") / "small.csv"
    chosen.to_csv(path, index=False)
    return path


def _pieces() -> list[str]:
    """The marks, every character alone and within a word, and the sample's words, those first that are met most."""
    import pandas as pd
    import tokenizers

    table = pd.read_csv(SAMPLE)
    backend = tokenizers.BertWordPieceTokenizer(lowercase=True)
    counts = collections.Counter(
        word
        for text in [*table["title"], *table["description"]]
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
    )
    characters = sorted({character for word in counts for character in word})
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return [*marks, *characters, *(f"##{character}" for character in characters), *words][:VOCABULARY]


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a WordPiece tokenizer of the sample's words, as Transformers saves it.

    Its vocabulary is made here: the trainer of the library breaks ties as they come, so no two runs would agree.
    """
    import tokenizers
    import transformers

    backend = tokenizers.BertWordPieceTokenizer({piece: index for index, piece in enumerate(_pieces())}, lowercase=True)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(mark, backend.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")],
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend._tokenizer,
        model_max_length=MAX_TOKENS,
        **{f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")},
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded BERT of two layers as Transformers saves it; it has read the sample, so that it gives sure answers."""
    import pandas as pd
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=MAX_TOKENS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=len(LABELS),
        )
    )
    table = pd.read_csv(SAMPLE).sample(frac=1.0, random_state=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer)
    texts = (table["title"] + " " + table["description"]).tolist()
    tokens = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
    truth = torch.tensor(table["tag"].map(LABELS.index).tolist())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(6):
        for rows in torch.arange(len(truth)).split(16):
            optimizer.zero_grad()
            batch = {name: tokens[name][rows] for name in ("input_ids", "attention_mask")}
            model(**batch, labels=truth[rows]).loss.backward()
            optimizer.step()
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    tokenizer.save_pretrained(folder)
    model.bert.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State folder of the session."""
    return tmp_path_factory.mktemp("home") / "state"


@pytest.fixture(scope="session")
def settings(home: Path, _clean_session: None) -> config.Settings:
    """Settings with the session's state folder and defaults elsewhere."""
    return config.load(home=home)


@pytest.fixture(scope="session")
def ray_session(_clean_session: None) -> Iterator[None]:
    """One Ray of two cores for every test that needs one; ended by what started it."""
    from madewithml import cluster

    with cluster.session(num_cpus=2):
        yield


@pytest.fixture(scope="session")
def training_options(tiny_encoder: Path, small_file: Path) -> train.TrainOptions:
    """What the session's training run is asked to do: tiny encoder, 160 rows, one fit of two epochs, one worker."""
    from madewithml import fitting, train

    return train.TrainOptions(
        dataset_loc=str(small_file),
        experiment_name=EXPERIMENT,
        encoder=str(tiny_encoder),
        parameters=fitting.Hyperparameters(num_epochs=2, learning_rate=1e-3, head_learning_rate=1e-2, num_fits=1),
    )


@pytest.fixture
def job(training_options: train.TrainOptions, tiny_tokenizer: Path) -> train_worker.Job:
    """What the workers of that run are given."""
    from madewithml import data, encoders, train

    options, encoder = training_options, encoders.find(training_options.encoder)
    rows = data.read_labelled(options.dataset_loc, text_fields=options.text_fields, label_field="tag")
    parts = data.split(rows.labels, shares=options.shares, seed=0)
    return train._job(tiny_tokenizer, train._metadata(options, encoder, LABELS, rows), rows, parts, options.parameters)


@pytest.fixture(scope="session")
def trained(ray_session: None, training_options: train.TrainOptions, settings: config.Settings) -> train.TrainResult:
    """A real training run by Ray Train, in MLflow on SQLite."""
    from madewithml import train

    return train.train(training_options, settings)


@pytest.fixture(scope="session")
def checkpoint_folder(trained: train.TrainResult) -> Path:
    """The training run's checkpoint. Copy it before changing anything in it."""
    return trained.checkpoint


@pytest.fixture(scope="session")
def graph(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training run's model as an ONNX graph in fp32."""
    from madewithml import checkpoint, exporting

    path = tmp_path_factory.mktemp("graphs") / "model.onnx"
    exporting.export(checkpoint.read(checkpoint_folder), path)
    return path


@pytest.fixture(scope="session")
def expected(checkpoint_folder: Path) -> engines.Logits:
    """Torch's logits of `TOKEN_ROWS`, by the training run's model."""
    from madewithml import checkpoint, engines, tokenization

    engine = engines.load(checkpoint.read(checkpoint_folder), name="torch", threads=1)
    return engine.logits(*tokenization.pad(TOKEN_ROWS, pad_id=0))


@pytest.fixture
def spoiled(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A copy of the training run's checkpoint, to be spoiled."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_folder, folder)
    return folder


@pytest.fixture(scope="session")
def predictor(checkpoint_folder: Path) -> predict.Predictor:
    """A predictor on the training run's checkpoint, with the recorded policy."""
    from madewithml import predict

    return predict.TorchPredictor.from_checkpoint(checkpoint_folder)


@pytest.fixture(scope="session")
def real_encoder_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> checkpoint.Checkpoint:
    """A checkpoint of the packaged default encoder with a seeded, untrained head."""
    import torch

    from madewithml import checkpoint, encoders, models, packing

    encoder = encoders.find("sentence-transformers/all-MiniLM-L6-v2")
    folder = tmp_path_factory.mktemp("real") / "checkpoint"
    folder.mkdir()
    torch.manual_seed(0)
    models.save(models.from_encoder(encoder, LABELS), folder)
    models.save_tokenizer(encoder.folder, folder)
    metadata = checkpoint.Metadata(
        labels=LABELS,
        text_fields=["title", "description"],
        max_length=models.max_length(encoder.folder),
        pad_id=models.pad_id(encoder.folder),
        abstain_label="other",
        encoder={"name": encoder.name, "sha256": encoder.sha256},
        data_sha256=None,
        libraries=packing.library_versions(),
    )
    examples = ["Intro to CNNs Processing images with layers.", "Serving a model behind an API", "A short text"]
    return packing.finish(folder, metadata, examples)
