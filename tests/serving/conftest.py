"""What the tests of serving share: a service in process, engines that a test holds or spoils, and a client for both."""

import asyncio
import contextlib
import dataclasses
import json
import os
import threading
import time

import httpx
import pytest

from madewithml.serving import app, neighbours, service

ROW = {"title": "Intro to CNNs", "description": "Processing images with layers."}


class HeldEngine:
    """Computes as another engine does, but waits in its thread until it is released."""

    name = "held"
    precision = "fp32"

    def __init__(self, engine):
        self._engine = engine
        self._gate = threading.Event()
        self.entered = threading.Event()

    def logits(self, ids, mask):
        self.entered.set()
        assert self._gate.wait(60)
        return self._engine.logits(ids, mask)

    def release(self):
        self._gate.set()


class FailingEngine:
    """Raises whatever it is given."""

    name = "failing"
    precision = "fp32"

    def __init__(self, err):
        self._err = err

    def logits(self, ids, mask):
        raise self._err


class ConstantEngine:
    """Gives the same logit for everything."""

    name = "constant"
    precision = "fp32"

    def __init__(self, engine, value):
        self._engine = engine
        self._value = value

    def logits(self, ids, mask):
        result = self._engine.logits(ids, mask)
        result[:] = self._value
        return result


class Window:
    """An app in process as a client sees it. Errors that the app lets through become answers, as under a server."""

    def __init__(self, kitchen, **options):
        self.kitchen = kitchen
        self.app = app.create_app(kitchen, **options)

    @contextlib.asynccontextmanager
    async def client(self):
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", follow_redirects=False) as client:
            yield client

    def request(self, method, path, **options):
        async def send():
            async with self.client() as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, **options):
        return self.request("POST", path, **options)


class Clock:
    """Stands for the module `time` where it is only read: stands still unless a test sets it forward."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def make_table():
    """Makes tables of neighbours, of so many places."""
    with contextlib.ExitStack() as stack:

        def make(size):
            table = neighbours.Table.create(size)
            stack.callback(os.close, table.descriptor)
            return table

        yield make


def stop_clock(monkeypatch, *modules):
    """Give the modules a clock that stands still; returns it."""
    clock = Clock()
    for module in modules:
        monkeypatch.setattr(module, "time", clock)
    return clock


async def until(condition):
    """Poll until the condition holds."""
    last = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < last, "waited 30 s in vain"
        await asyncio.sleep(0.001)


@pytest.fixture(scope="session")
def datasets(tmp_path_factory, small_file):
    """A dataset folder with good files, bad ones, and ways out of it."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.csv").write_text("title,description,tag\na,b,other\n", encoding="utf-8")
    folder = outside / "datasets"
    folder.mkdir()
    (folder / "projects.csv").write_bytes(small_file.read_bytes())
    (folder / "strange.csv").write_text("title,description,tag\nCNNs,Layers,gardening\n", encoding="utf-8")
    (folder / "latin.csv").write_bytes("title,description,tag\nÜber,b,other\n".encode("latin-1"))
    (folder / "columns.csv").write_text("text,label\na,other\n", encoding="utf-8")
    (folder / "notes.txt").write_text("not data", encoding="utf-8")
    (folder / "link.csv").symlink_to(outside / "secret.csv")
    (folder / "folder.csv").mkdir()
    (folder / "inner").mkdir()
    (folder / "inner" / "inner.csv").write_text("title,description,tag\na,b,other\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def make_service(predictor, settings, datasets):
    """Builds a service on the training run: another engine, other settings, another policy if wanted."""

    def build(*, engine=None, policy=None, ready=True, **changes):
        chosen = dataclasses.replace(predictor, engine=engine or predictor.engine, policy=policy or predictor.policy)
        limits = settings.model_copy(update={"datasets": datasets, **changes})
        kitchen = service.Service(chosen, run_id="a-run", settings=limits)
        kitchen.ready = ready
        return kitchen

    return build


@pytest.fixture
def make_window(make_service):
    """Builds an app in process; see `make_service`."""
    return lambda **changes: Window(make_service(**changes))


@pytest.fixture(scope="session")
def window(make_service):
    """The app on the training run as it is."""
    return Window(make_service())


@pytest.fixture
def held(predictor):
    """An engine that computes nothing until the test releases it; released at the end in any case."""
    engine = HeldEngine(predictor.engine)
    yield engine
    engine.release()


@pytest.fixture
def other_golden(spoiled):
    """A checkpoint whose golden rows its weights do not reproduce: it looks whole until it computes."""
    path = spoiled / "golden.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["logits"] = [value + 1 for value in row["logits"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return spoiled
