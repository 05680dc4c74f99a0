"""The model that every peer serves, so that what differs between them is the server and nothing else.

text -> `tokenizers` -> rectangle -> engine, one thread -> softmax -> answers. It knows a checkpoint folder, and of Made
With ML only what a graph is fed with and what a precision is called: the engine is the same for all.
Which checkpoint, engine and precision is said by the environment (`from_environment`): PEER_CHECKPOINT, PEER_ENGINE
(torch, onnxruntime, openvino), PEER_PRECISION, PEER_FILE (under `engines/`).
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from madewithml import engines

THRESHOLD = 0.9
ABSTAIN_LABEL = "other"
MAX_BATCH_SIZE = 16

Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Classifier:
    """A checkpoint in an engine.

    Args:
        checkpoint_folder: Folder with `checkpoint.json`, `tokenizer.json` and, for an exported engine, `engines/`.
        engine: `torch`, `onnxruntime` or `openvino`.
        precision: `fp32`, `bf16` or `int8-*-N`; openvino alone takes notice of it, other quantised graphs say it
            themselves.
        file: Graph under `engines/`; `torch` reads the weights of the folder instead.
    """

    def __init__(
        self, checkpoint_folder: Path | str, *, engine: str = "torch", precision: str = "fp32", file: str | None = None
    ) -> None:
        folder = Path(checkpoint_folder)
        metadata = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        self.labels: list[str] = metadata["labels"]
        self._pad_id: int = metadata["pad_id"]
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(metadata["max_length"])
        self._run = load(folder, engine=engine, precision=precision, file=file)
        # Some servers call from a pool of threads; each process shall compute on one core all the same.
        self._lock = threading.Lock()

    def predict(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """One answer per text, all of them in one call of the engine."""
        return self.answers(self.logits(*self.pad(self.tokenize(texts))))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask, int64 [n, longest row]."""
        ids = np.full((len(rows), max(map(len, rows))), self._pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return ids, mask

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Logits [n, k], one caller at a time."""
        with self._lock:
            return self._run(ids, mask)

    def answers(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """Softmax at temperature 1, and the threshold."""
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return [self._answer(row) for row in (powers / powers.sum(axis=1, keepdims=True)).tolist()]

    def _answer(self, probabilities: list[float]) -> dict[str, Any]:
        confidence = max(probabilities)
        label = self.labels[probabilities.index(confidence)]
        accepted = confidence >= THRESHOLD
        return {
            "prediction": label if accepted else ABSTAIN_LABEL,
            "probabilities": dict(zip(self.labels, probabilities, strict=True)),
            "label": label,
            "confidence": confidence,
            "decision": "accepted" if accepted else "abstained",
        }


def from_environment() -> Classifier:
    """The classifier that the environment names."""
    return Classifier(
        os.environ["PEER_CHECKPOINT"],
        engine=os.environ.get("PEER_ENGINE", "torch"),
        precision=os.environ.get("PEER_PRECISION", "fp32"),
        file=os.environ.get("PEER_FILE") or None,
    )


@functools.cache
def shared() -> Classifier:
    """The same, once in a process."""
    return from_environment()


def workers() -> int:
    """Processes, or replicas, that compute."""
    return int(os.environ.get("PEER_WORKERS", "2"))


def port() -> int:
    """Port to listen on."""
    return int(os.environ["PEER_PORT"])


def batch_size() -> int:
    """Rows that may go through the engine together; 1 is no batching."""
    return int(os.environ.get("PEER_BATCH", str(MAX_BATCH_SIZE)))


def text_of(row: Mapping[str, str]) -> str:
    """The model's input for a row: title and description, one space between."""
    parts = ((row.get(name) or "").strip() for name in ("title", "description"))
    return " ".join(part for part in parts if part)


def load(folder: Path, *, engine: str, precision: str, file: str | None) -> Run:
    """The engine of that name on one thread."""
    if engine == "torch":
        return _torch(folder)
    graph = folder / "engines" / Path(file or "model.onnx").name
    return {"onnxruntime": _onnxruntime, "openvino": _openvino}[engine](graph, precision)


def _torch(folder: Path) -> Run:
    import torch
    import transformers

    torch.set_num_threads(1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()

    return run


def _onnxruntime(graph: Path, _precision: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return session.run(["logits"], engines.inputs_of(names, ids, mask))[0]

    return run


def _openvino(graph: Path, precision: str) -> Run:
    import openvino

    computation, group_size = engines.OPENVINO_PRECISIONS[precision]
    configuration = {
        "INFERENCE_NUM_THREADS": 1,
        "ENABLE_CPU_PINNING": False,  # on, two processes share one core
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": computation,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group_size,
    }
    compiled = openvino.Core().compile_model(str(graph), "CPU", configuration)
    request, names = compiled.create_infer_request(), {node.any_name for node in compiled.inputs}

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return request.infer(engines.inputs_of(names, ids, mask), share_inputs=True)["logits"]

    return run
