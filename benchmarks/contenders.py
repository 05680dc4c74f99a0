"""Who is measured: for each, how it is started, what its body looks like, and what it is called in the table."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limit import Engine
from peers import install

PEERS = Path(install.__file__).parent
PROCESSES = 2
OURS = "Made With ML"
WITH_PADDING = ("fastapi", "fastapi-batched", "mosec-batched")  # one that does not batch, and the best two that do
# What would change how a server runs; a person's own settings are not part of a comparison.
DROPPED = ("RAY_", "MADEWITHML_", "PEER_", "MLFLOW_", "MOSEC_", "BENTOML_", "UVICORN_", "WEB_CONCURRENCY", "OMP_")
ADDED = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "BENTOML_DO_NOT_TRACK": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "UVICORN_LOG_LEVEL": "warning",  # MLflow starts uvicorn itself and has no option for it
    "TOKENIZERS_PARALLELISM": "false",  # one thread each
    "PYTHONPATH": os.pathsep.join((str(PEERS), str(PEERS.parents[1]))),
}


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        name: For `--only`.
        title: For people.
        command: `{port}` and `{folder}` are filled in.
        ours: Whether it is this project's.
        engine: What it computes with; None leaves it to the contender.
        variables: More of its environment.
        environment: Virtual environment that it needs, if not this one.
        prepare: Command to run first, not measured.
        path: Of the URL.
        body: What stands around a row: None for nothing.
        connections: Replaces the connection counts asked for.
    """

    name: str
    title: str
    command: tuple[str, ...]
    ours: bool = False
    engine: Engine | None = None
    variables: tuple[tuple[str, str], ...] = ()
    environment: str | None = None
    prepare: tuple[str, ...] | None = None
    path: str = "/predict/"
    body: str | None = None
    connections: tuple[int, ...] | None = None

    @property
    def missing(self) -> str | None:
        """Why it cannot be measured here; None if it can."""
        if self.environment and not install.python(self.environment).is_file():
            return f"not installed: python benchmarks/peers/install.py {self.environment}"
        return None

    def arguments(self, command: Sequence[str], *, port: int, folder: Path) -> list[str]:
        """A command of its own, filled in."""
        filled = {"{port}": str(port), "{folder}": str(folder), "python": str(self._python)}
        return [filled.get(word, word) for word in command]

    @property
    def _python(self) -> Path:
        return install.python(self.environment) if self.environment else Path(sys.executable)

    def variables_for(self, port: int) -> dict[str, str]:
        """Its whole environment."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
        kept["PATH"] = f"{self._python.parent}{os.pathsep}{kept.get('PATH', '')}"  # MLflow looks for uvicorn there
        if self.engine is None:
            return kept
        peer = {
            "PEER_CHECKPOINT": str(self.engine.checkpoint),
            "PEER_ENGINE": self.engine.name,
            "PEER_PRECISION": self.engine.precision,
            "PEER_FILE": self.engine.file or "",
            "PEER_WORKERS": str(PROCESSES),
            "PEER_PORT": str(port),
        }
        return {**kept, **ADDED, **peer, **dict(self.variables)}

    def body_of(self, row: Mapping[str, str]) -> Any:
        """The JSON body for a row."""
        return {self.body: [row]} if self.body else row


def first_answer(document: Any) -> Mapping[str, Any]:
    """The answer in a response, whatever stands around it."""
    if isinstance(document, list):
        return document[0]
    return (document.get("results") or document["predictions"])[0]


def contenders(engine: Engine, *, padded: Path) -> list[Contender]:
    """All of them, ours first.

    Args:
        engine: What the peers compute with.
        padded: Checkpoint folder with a graph that pads (`padded.py`), for those of `WITH_PADDING` once more.
    """
    peers = [*_fastapi(), *_batching(), *_ray()]
    with_padding = [
        replace(
            peer,
            name=f"{peer.name}-padded",
            title=f"{peer.title}, padded graph",
            engine=replace(engine, checkpoint=padded),
        )
        for peer in peers
        if peer.name in WITH_PADDING
    ]
    fp32 = replace(engine, name="torch", precision="fp32", file=None)
    usual = Contender("fastapi-torch", "FastAPI, torch fp32", _uvicorn("fastapi_plain"), engine=fp32)
    one_row = ("python", str(PEERS / "ray_data.py"))
    naive = Contender("ray-data", "Ray Data in the endpoint, torch fp32", one_row, engine=fp32, connections=(1, 8))
    same = [replace(peer, engine=engine) for peer in peers]
    return [*ours(engine.checkpoint), *same, *with_padding, usual, naive]


def ours(checkpoint: Path) -> list[Contender]:
    """This service, both ways of serving a checkpoint folder."""
    serve = (str(Path(sys.executable).with_name("madewithml")), "serve", "--checkpoint", str(checkpoint))
    port = ("--port", "{port}")
    local = (*serve, "--local", "--workers", str(PROCESSES), *port)
    return [
        Contender("local", f"{OURS}, --local", local, ours=True),
        Contender("ray", f"{OURS}, Ray Serve", (*serve, "--replicas", str(PROCESSES), *port), ours=True),
    ]


def _uvicorn(module: str) -> tuple[str, ...]:
    options = ("--host", "127.0.0.1", "--port", "{port}", "--workers", str(PROCESSES), "--no-access-log")
    return ("python", "-m", "uvicorn", "--factory", f"{module}:create_app", *options)


def _fastapi() -> list[Contender]:
    return [
        Contender("fastapi", "FastAPI", _uvicorn("fastapi_plain")),
        Contender("fastapi-batched", "FastAPI, batches by hand", _uvicorn("fastapi_batched")),
    ]


def _batching() -> list[Contender]:
    litserve = Contender(
        "litserve-batched", "LitServe, batches", ("python", str(PEERS / "litserve_api.py")), environment="litserve"
    )
    options = ("--address", "127.0.0.1", "--port", "{port}", "--log-level", "warning", "--timeout", "30000")
    mosec = Contender(
        "mosec-batched", "Mosec, batches", ("python", str(PEERS / "mosec_worker.py"), *options), environment="mosec"
    )
    return [
        replace(litserve, name="litserve", title="LitServe", variables=(("PEER_BATCH", "1"),)),
        litserve,
        replace(mosec, name="mosec", title="Mosec", variables=(("PEER_BATCH", "1"),)),
        mosec,
        _bentoml(),
        _mlflow(),
    ]


def _bentoml() -> Contender:
    options = ("--working-dir", str(PEERS), "--host", "127.0.0.1", "--port", "{port}")
    command = ("python", "-m", "bentoml", "serve", "bentoml_service:ClassifierService", *options)
    return Contender("bentoml", "BentoML, batchable", command, environment="bentoml", body="rows")


def _mlflow() -> Contender:
    options = ("--env-manager", "local", "--host", "127.0.0.1", "--port", "{port}", "--workers", str(PROCESSES))
    return Contender(
        "mlflow",
        "MLflow scoring server",
        ("python", "-m", "mlflow", "models", "serve", "--model-uri", "{folder}", *options),
        prepare=("python", str(PEERS / "mlflow_model.py"), "{folder}"),
        path="/invocations",
        body="dataframe_records",
    )


def _ray() -> list[Contender]:
    return [Contender("ray-batch", "Ray Serve, @serve.batch, Python proxy", ("python", str(PEERS / "ray_batch.py")))]
