"""What computes logits: torch, ONNX Runtime or OpenVINO behind one small interface.

An engine takes token ids and a mask and gives logits; it knows nothing of texts, labels or thresholds. Torch in fp32
is the reference and always there; the others run the graphs that `madewithml optimize` put into the checkpoint.

    engine = load(checkpoint, name="auto", threads=1)
    engine.logits(ids, mask)        # int64 [n, length] twice -> float32 [n, k]
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from madewithml import errors, host, ragged

if TYPE_CHECKING:
    from madewithml import checkpoint, engine_report, tokenization

logger = logging.getLogger(__name__)

Logits = npt.NDArray[np.float32]
NAMES = ("auto", "torch", "onnxruntime", "openvino")
PADDED_INPUTS = ("input_ids", "attention_mask")
# Of each precision what OpenVINO calls that of the computation, and how many channels share a scale when activations
# are rounded to int8; 0 where they are not.
OPENVINO_PRECISIONS = {
    "fp32": ("f32", 0),
    "bf16": ("bf16", 0),
    "int8-groups-128": ("f32", 128),
    "int8-mixed-128": ("f32", 128),
    "int8-mixed-64": ("f32", 64),
    "int8-mixed-32": ("f32", 32),
}


class Engine(Protocol):
    """The interface of all engines.

    Attributes:
        name: `torch`, `onnxruntime` or `openvino`.
        precision: Number format of the computation, `fp32` for instance.
        pads: Whether each row of a batch costs what the longest of them costs.
    """

    name: str
    precision: str
    pads: bool

    def logits(self, ids: tokenization.Ints, mask: tokenization.Ints) -> Logits:
        """Compute logits.

        Args:
            ids: Token ids, int64 [n, length].
            mask: 1 where there is a token, int64 [n, length].

        Returns:
            float32 [n, k].
        """
        ...


class TorchEngine:
    """PyTorch in fp32: the reference that every other engine is compared with.

    Args:
        source: The checkpoint.
        threads: Threads of one computation.
    """

    name = "torch"
    precision = "fp32"
    pads = True

    def __init__(self, source: checkpoint.Checkpoint, *, threads: int) -> None:
        import torch  # late: a process that uses another engine never needs it

        from madewithml import models

        torch.set_num_threads(threads)
        self._torch = torch
        self._model = models.from_folder(source.folder).eval()

    def logits(self, ids: tokenization.Ints, mask: tokenization.Ints) -> Logits:
        """See `Engine.logits`."""
        torch = self._torch
        with torch.inference_mode():
            output = self._model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        result: Logits = output.logits.numpy()
        return result


class OnnxRuntimeEngine:
    """ONNX Runtime on an exported graph.

    Args:
        graph: The ONNX file.
        precision: Number format of the graph.
        threads: Threads of one computation.
    """

    name = "onnxruntime"

    def __init__(self, graph: Path, *, precision: str, threads: int) -> None:
        import onnxruntime  # late: only the engine in use is imported

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # it warns of processors it does not know
        # Waiting threads sleep: spinning would take the cores from the event loop and from other replicas.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.precision = precision
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._names = {node.name for node in self._session.get_inputs()}
        self.pads = _pads(self._names, graph)

    def logits(self, ids: tokenization.Ints, mask: tokenization.Ints) -> Logits:
        """See `Engine.logits`."""
        result: Logits = self._session.run(None, inputs_of(self._names, ids, mask))[0]
        return result


class OpenVinoEngine:
    """OpenVINO on an exported graph; `bf16` computes an fp32 graph in bfloat16, `int8-*-N` one with int8 weights.

    Args:
        graph: The graph, in ONNX or OpenVINO's own form.
        precision: Number format of the computation.
        threads: Threads of one computation.
        max_length: Tokens that fit the model.
    """

    name = "openvino"

    def __init__(self, graph: Path, *, precision: str, threads: int, max_length: int) -> None:
        import openvino  # late: only the engine in use is imported

        computation, group_size = OPENVINO_PRECISIONS[precision]
        compiled = openvino.Core().compile_model(
            str(graph),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": computation,
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": group_size,
                # Pinned, the threads of two processes would share one core and leave another idle.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self.precision = precision
        self._names = {node.any_name for node in compiled.inputs}
        self.pads = _pads(self._names, graph)
        self._request = compiled.create_infer_request()
        self._output = compiled.output(0)
        self._lock = threading.Lock()  # the request's memory holds one computation, and several threads may ask
        self._max_length = max_length

    def logits(self, ids: tokenization.Ints, mask: tokenization.Ints) -> Logits:
        """See `Engine.logits`."""
        inputs = self._inputs(ids, mask)
        with self._lock:
            outputs = self._request.infer(inputs, share_inputs=True)
            return np.array(outputs[self._output])  # a copy: the next call writes into the same memory

    def _inputs(self, ids: tokenization.Ints, mask: tokenization.Ints) -> dict[str, tokenization.Ints]:
        if self.pads:
            ids, mask = self._widened(ids), self._widened(mask)
        return inputs_of(self._names, ids, mask)

    def _widened(self, values: tokenization.Ints) -> tokenization.Ints:
        """With columns that the mask leaves out, up to the next length that the engine shall know.

        It keeps prepared code and memory for each shape it ever saw: 640 MB after a minute of mixed lengths, 340 MB
        with lengths in steps of eight, at the same speed.
        """
        rows, length = values.shape
        width = min(ragged.stepped(length), max(length, self._max_length))
        if width == length:
            return values
        wide = np.zeros((rows, width), dtype=np.int64)
        wide[:, :length] = values
        return wide


def inputs_of(names: set[str], ids: tokenization.Ints, mask: tokenization.Ints) -> dict[str, tokenization.Ints]:
    """What a graph whose inputs have these names is given for a padded batch, both int64 [n, length]."""
    if ragged.takes(names):
        return ragged.lay_out(ids, mask, names)
    return dict(zip(PADDED_INPUTS, (ids, mask), strict=True))


def _pads(names: set[str], graph: Path) -> bool:
    """Whether a graph with these inputs takes padded batches, not ragged ones.

    Raises:
        CheckpointError: It takes neither: another version exported it.
    """
    if names <= set(PADDED_INPUTS):
        return True
    if ragged.takes(names):
        return False
    msg = f"the graph {str(graph)!r} has inputs of another version ({', '.join(sorted(names))}): optimise the run again"
    raise errors.CheckpointError(msg)


class Choice(NamedTuple):
    """Which engine is to be loaded, and what kept the fastest one from being taken."""

    engine: str
    precision: str
    file: str | None
    instead_of: str | None = None

    @classmethod
    def of(cls, candidate: engine_report.Candidate, *, instead_of: str | None = None) -> Choice:
        """The choice of a candidate."""
        return cls(candidate.engine, candidate.precision, candidate.file, instead_of)

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


TORCH = Choice("torch", "fp32", None)


def load(source: checkpoint.Checkpoint, *, name: str = "auto", threads: int | None = None) -> Engine:
    """Load a checkpoint into an engine.

    Args:
        source: A checkpoint, already verified.
        name: Engine name; `auto` takes what `optimize` chose, where this host is the one it was measured on, and
            otherwise falls back to fp32.
        threads: Threads of one computation; None means every core this process may use.

    Raises:
        UsageError: No such engine, or it cannot run this checkpoint here.
        CheckpointError: The engine report or the graph it names is damaged.
    """
    choice = choose(source, name)
    if choice.instead_of:
        logger.warning("engine %s: %s", choice, choice.instead_of)
    if choice.file is not None:
        source.verify_engine(choice.file)
    return build(source, choice, threads=threads)


def choose(source: checkpoint.Checkpoint, name: str) -> Choice:
    """Which engine `load` would take.

    Raises:
        UsageError: No such engine, or it cannot run this checkpoint here.
        CheckpointError: The engine report is damaged.
    """
    if name not in NAMES:
        raise errors.UsageError(f"no engine {name!r}: choose from {', '.join(NAMES)}")
    if name == "torch":
        return TORCH
    report = source.read_engines()
    return _auto(report) if name == "auto" else _named(name, report)


def build(source: checkpoint.Checkpoint, choice: Choice, *, threads: int | None = None) -> Engine:
    """The engine of a choice, whatever the report says of it."""
    count = threads or host.available_cores()
    if choice.file is None:
        return TorchEngine(source, threads=count)
    graph = source.engines_folder / choice.file
    if choice.engine == "onnxruntime":
        return OnnxRuntimeEngine(graph, precision=choice.precision, threads=count)
    limit = source.metadata.max_length
    return OpenVinoEngine(graph, precision=choice.precision, threads=count, max_length=limit)


def installed(name: str) -> bool:
    """Whether an engine's library is there."""
    return importlib.util.find_spec(name) is not None


def _auto(report: engine_report.EngineReport | None) -> Choice:
    if report is None:
        return TORCH
    obstacle = _obstacle(report.engine, report)
    if obstacle is None:
        return Choice.of(report.chosen)
    if installed("onnxruntime") and (exact := report.best("onnxruntime", precision="fp32")):
        return Choice.of(exact, instead_of=obstacle)
    return TORCH._replace(instead_of=obstacle)


def _named(name: str, report: engine_report.EngineReport | None) -> Choice:
    """The fastest of the named engine; what was measured on another host is only trusted in fp32."""
    if not installed(name):
        raise errors.UsageError(f"engine {name!r} is not installed: pip install {name}")
    if report is None:
        raise errors.UsageError(f"engine {name!r} needs an exported graph: run `madewithml optimize` first")
    obstacle = _obstacle(name, report)
    found = report.best(name, precision=None if obstacle is None else "fp32")
    if found is None:
        rejected = [f"{c.precision}: {c.reason}" for c in report.candidates if c.engine == name and c.reason]
        told = obstacle or "; ".join(rejected) or "it was not tried"
        raise errors.UsageError(f"engine {name!r} may not serve this checkpoint: {told}. Try --engine auto.")
    return Choice.of(found, instead_of=obstacle)


def _obstacle(name: str, report: engine_report.EngineReport) -> str | None:
    """Why what was measured does not hold here."""
    if not installed(name):
        return f"{name} is not installed"
    here = host.traits()
    if dict(report.host) != here:
        different = sorted(key for key in {*here, *report.host} if here.get(key) != report.host.get(key))
        return f"the engines were measured on another host (other {', '.join(different)}); run `madewithml optimize`"
    return None
