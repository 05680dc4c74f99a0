"""What serving costs beside the engine: CPU a request with a model that computes next to nothing; microseconds a step.

    python benchmarks/overhead.py --checkpoint DIR --dataset-loc projects.csv

The empty model has one layer of eight numbers, behind the checkpoint's own tokenizer and labels. It is imported,
optimised and served by the commands that anybody uses, both ways, under load from `load.py`; the CPU counted is that of
all processes but the load generator. The steps of a request are timed one by one in this process, warm and alone: under
load each costs more, because the engine empties the caches between two of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import contenders
import dataset
import environment
import limit
import load
import measurement
import numpy as np
import torch
import transformers
from peers import classifier
from starlette import requests

from madewithml import cluster, config, engines, importing, optimize, predict, runs, tokenization
from madewithml.serving import app, replies, service

CONNECTIONS = 32
REPETITIONS = 2000
PREDICT = "/predict/"


class NoEngine:
    """Gives the same logits for whatever it is asked."""

    name, precision, pads = "none", "fp32", False

    def __init__(self, num_labels: int) -> None:
        self._row = np.arange(num_labels, dtype=np.float32)

    def logits(self, ids: tokenization.Ints, mask: tokenization.Ints) -> engines.Logits:  # noqa: ARG002
        """See `engines.Engine`."""
        return np.tile(self._row, (len(ids), 1))


def main() -> None:
    arguments = _arguments()
    rows = dataset.rows(arguments.dataset_loc)
    predictor = predict.TorchPredictor.from_checkpoint(arguments.checkpoint, engine="auto", threads=1)
    steps = _steps(dataclasses.replace(predictor, engine=NoEngine(len(predictor.classes))), rows)
    for name, value in steps.items():
        print(f"{value:8.1f} us  {name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = empty_checkpoint(arguments.checkpoint, arguments.dataset_loc, folder=Path(folder))
        served = _served(checkpoint, rows, arguments)
    command = f"python benchmarks/overhead.py --checkpoint DIR --dataset-loc {arguments.dataset_loc.name}"
    command += f" --rounds {arguments.rounds} --seconds {arguments.seconds}"
    result = {"microseconds": steps, "connections": CONNECTIONS, "load_generator": load.generator(), "served": served}
    print("written:", environment.write("overhead", command, result).name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--dataset-loc", type=Path, required=True, help="CSV with title, description and tag")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=6, help="of each load")
    return parser.parse_args()


def _steps(predictor: predict.Predictor, rows: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Microseconds of each step of a request of one row, median over the rows; the last two contain the others."""
    kitchen = service.Service(predictor, run_id="0" * 32, settings=config.load())
    kitchen.ready = True  # no warm-up: this engine does not reproduce the golden rows
    bodies = [json.dumps(row).encode() for row in rows]
    parsed = [kitchen.schema.parse(body) for body in bodies]
    texts = [predictor.texts(row)[0] for row in parsed]
    tokens = [predictor.tokenizer.encode([text]) for text in texts]
    logits = predictor.engine.logits(*tokenization.pad([tokens[0][0].ids], pad_id=0))
    answers = predictor.decide(logits, [False], predictor.policy)
    document = {"results": answers, "run_id": kitchen.run_id, "request_id": "0" * 32}
    request = requests.Request({"type": "http", "headers": [], "madewithml.request_id": "0" * 32, "app": _App})
    steps = {
        "read and check the body": _median(kitchen.schema.parse, bodies),
        "join the texts": _median(predictor.texts, parsed),
        **_tokenising(predictor, texts),
        "pad": _median(lambda row: tokenization.pad([row[0].ids], pad_id=0), tokens),
        "decide": _median(lambda _: predictor.decide(logits, [False], predictor.policy), texts),
        "write the answer": _median(lambda _: replies.json(request, document), texts),
    }
    steps["queue, engine's thread and back, with the steps above but the first and the last"] = asyncio.run(
        _median_of_awaits(kitchen.answer, parsed)
    )
    steps["the app, without its HTTP server"] = asyncio.run(_median_of_awaits(_caller(kitchen), bodies))
    return steps


def _tokenising(predictor: predict.Predictor, texts: Sequence[str]) -> dict[str, float]:
    """Of one text: by the tokenizer itself, with words that are new, and where all are known."""
    ours, beginner = predictor.checkpoint.tokenizer(), predictor.checkpoint.tokenizer()
    alone = dataclasses.replace(ours, known=None)
    ours.encode(texts)
    seen = len(texts) * 4 // 5
    beginner.encode(texts[:seen])
    return {
        "tokenise, by the tokenizer alone": _median(lambda text: alone.encode([text]), texts),
        "tokenise a text that is new, after four fifths of the file": _median(
            lambda text: beginner.encode([text]), texts[seen:], repetitions=len(texts) - seen
        ),
        "tokenise": _median(lambda text: ours.encode([text]), texts),
    }


class _App:
    class state:  # noqa: N801 - as the app has it
        adds_request_id = True


def _caller(kitchen: service.Service) -> Callable[[bytes], Awaitable[None]]:
    """Calls the app as an HTTP server does."""
    application = app.create_app(kitchen)

    async def send(_message: Any) -> None:
        pass

    async def call(body: bytes) -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "method": "POST", "path": PREDICT, "query_string": b"", "headers": head}
        await application(scope, receive, send)

    return call


def _median(step: Callable[[Any], Any], inputs: Sequence[Any], *, repetitions: int = REPETITIONS) -> float:
    times = []
    for i in range(repetitions):
        started = time.perf_counter_ns()
        step(inputs[i % len(inputs)])
        times.append(time.perf_counter_ns() - started)
    return round(statistics.median(times) / 1e3, 1)


async def _median_of_awaits(step: Callable[[Any], Awaitable[Any]], inputs: Sequence[Any]) -> float:
    times = []
    for i in range(REPETITIONS):
        started = time.perf_counter_ns()
        await step(inputs[i % len(inputs)])
        times.append(time.perf_counter_ns() - started)
    return round(statistics.median(times) / 1e3, 1)


def empty_checkpoint(like: Path, dataset_loc: Path, *, folder: Path) -> Path:
    """Import and optimise a model that computes next to nothing.

    Args:
        like: Checkpoint folder whose tokenizer and labels it gets.
        dataset_loc: Labelled rows to optimise on.
        folder: Working folder.

    Returns:
        The folder of its checkpoint.
    """
    source = folder / "empty"
    labels = json.loads((like / "checkpoint.json").read_text(encoding="utf-8"))["labels"]
    given = transformers.AutoConfig.from_pretrained(like)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    torch.manual_seed(0)
    named = {"id2label": dict(enumerate(labels)), "vocab_size": given.vocab_size, "pad_token_id": given.pad_token_id}
    transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, **named)).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(like / name, source / name)
    settings = config.load(home=str(folder / "home"))
    options = importing.ImportOptions(source, "benchmark", dataset_loc=str(dataset_loc))
    with cluster.session():
        run_id = importing.import_folder(options, settings)
    optimize.optimize_run(optimize.OptimizeOptions(run_id), settings)
    return runs.connect(settings).best_checkpoint(run_id)


def _served(checkpoint: Path, rows: Sequence[dict[str, str]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways of serving, in rounds: requests a second, and CPU milliseconds a request."""
    engine = limit.Engine(checkpoint, "torch", "fp32", None)
    texts = [classifier.text_of(row) for row in rows[: measurement.NUM_CHECKED]]
    setup = measurement.Setup(rows, limit.answers(engine, texts), [CONNECTIONS], arguments.seconds)
    ours = contenders.ours(checkpoint)
    found: dict[str, Any] = {contender.title: [] for contender in ours}
    for number, contender in _rounds(ours, arguments.rounds):
        measured = measurement.measure(contender, setup)
        if "failed" in measured:
            raise SystemExit(f"{contender.title}: {measured['failed']}")
        under = measured["loads"][0]
        found[contender.title].append({**under, "start_s": measured["start_s"], "engine": measured["engine"]})
        print(f"round {number + 1}: {contender.title}: {under['cpu_ms']:.3f} ms CPU a request", flush=True)
    return {
        title: {"cpu_ms_median": statistics.median(row["cpu_ms"] for row in rounds), "rounds": rounds}
        for title, rounds in found.items()
    }


def _rounds(ours: Sequence[contenders.Contender], rounds: int) -> Iterator[tuple[int, contenders.Contender]]:
    for number in range(rounds):
        for contender in ours if number % 2 == 0 else reversed(ours):
            yield number, contender


if __name__ == "__main__":
    main()
