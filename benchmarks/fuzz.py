"""Mutated bodies against a running service: no 5xx, no hang, no growth.

    python benchmarks/fuzz.py --checkpoint DIR [--bodies 100000] [--seed 0]

Valid bodies of every protocol are mutated (bytes, JSON values, structure, binary tensors, gzip) and sent to a service
of one process, many at a time. What is answered with a 5xx, not within ten seconds, or with something that is no
answer of this service, is written to a file; once mended, it becomes a test in `tests/serving/test_corpus.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gzip
import json
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment
import httpx
import service

AT_ONCE = 16
TIMEOUT_S = 10.0
MOST_ROWS = 4  # of a seed: what is tried is the parsing, not the model
PARTS = 10  # memory is looked at after each
MOST_GROWTH = 1.03
ROW = {"title": "Intro to CNNs", "description": "Processing images with layers."}
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1e308,
    2**63,
    2**200,
    0.1,
    "",
    " ",
    "\x00",
    "\ud800",
    "🚀" * 50,
    [],
    {},
    [[]],
    "a" * 5000,
]
PIECES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\u0000",
    b"\\ud83d",
    b"\xff\xfe",
    b"\x00",
    b"1e999",
    b"NaN",
    b"null",
    b"[" * 2000,
]


@dataclass(frozen=True)
class Request:
    """What is sent."""

    path: str
    body: bytes
    headers: dict[str, str]


def seeds() -> list[Request]:
    """Valid requests of every protocol."""
    as_json = {"Content-Type": "application/json"}
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a text", "another"]}
    fields = [{"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [text]} for name, text in ROW.items()]
    outputs = [{"name": "label"}, {"name": "probabilities", "parameters": {"binary_data": True}}]
    split = {"columns": list(ROW), "data": [list(ROW.values())]}
    documents: list[tuple[str, Any]] = [
        ("/predict/", ROW),
        ("/predict/", [ROW] * MOST_ROWS),
        ("/predict/?threshold=0.5", ROW),
        ("/predict/?max_risk=0.05", ROW),
        ("/v2/models/madewithml/infer", {"id": "1", "inputs": [tensor], "outputs": outputs}),
        ("/v2/models/madewithml/infer", {"inputs": fields, "parameters": {"max_risk": 0.05}}),
        ("/invocations", {"dataframe_split": split, "params": {"threshold": 0.5}}),
        ("/invocations", {"dataframe_records": [ROW]}),
        ("/invocations", {"instances": [ROW]}),
        ("/invocations", {"inputs": {name: [text] for name, text in ROW.items()}}),
        ("/feedback/", {"request_id": "r", "row": 0, "label": "mlops"}),
        ("/evaluate/", {"dataset": "projects"}),
    ]
    found = [Request(path, json.dumps(document).encode(), as_json) for path, document in documents]
    found.append(Request("/invocations", b"title,description\nIntro,Layers\n", {"Content-Type": "text/csv"}))
    zipped = gzip.compress(json.dumps([ROW] * 3).encode())
    found.append(Request("/predict/", zipped, {**as_json, "Content-Encoding": "gzip"}))
    raw = b"".join(struct.pack("<I", len(text)) + text for text in (b"a text", b"another"))
    head = {"name": "text", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(raw)}}
    start = json.dumps({"inputs": [head], "outputs": outputs}).encode()
    binary = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(start))}
    found.append(Request("/v2/models/madewithml/infer", start + raw, binary))
    return found


def mutants(chance: random.Random) -> Iterator[Request]:
    """Requests without end, each a valid one with something done to it."""
    known = seeds()
    while True:
        seed = chance.choice(known)
        body, headers = seed.body, dict(seed.headers)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            body = chance.choice(MUTATIONS)(chance, body)
        if "Inference-Header-Content-Length" in headers and chance.random() < 0.3:
            headers["Inference-Header-Content-Length"] = chance.choice(
                ("0", "-1", "1", "99999999", "x", str(len(body)))
            )
        if chance.random() < 0.05:
            headers["Content-Type"] = chance.choice(
                ("application/json", "text/csv", "text/plain", "application/octet-stream")
            )
        if chance.random() < 0.05:
            headers["Content-Encoding"] = chance.choice(("gzip", "identity", "br"))
        yield Request(seed.path, body, headers)


def _flip(chance: random.Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        if changed:
            changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _cut(chance: random.Random, body: bytes) -> bytes:
    start = chance.randint(0, len(body))
    return body[:start] + body[chance.randint(start, len(body)) :]


def _insert(chance: random.Random, body: bytes) -> bytes:
    place = chance.randint(0, len(body))
    return body[:place] + chance.choice(PIECES) * chance.choice((1, 1, 3)) + body[place:]


def _repeat(chance: random.Random, body: bytes) -> bytes:
    start = chance.randint(0, len(body))
    end = chance.randint(start, len(body))
    return body[:end] + body[start:end] * chance.choice((1, 2, 50)) + body[end:]


def _value(chance: random.Random, body: bytes) -> bytes:
    """Another value, key or number of entries somewhere in the JSON, if it is still JSON."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return _flip(chance, body)
    places = list(_places(document))
    if not places:
        return json.dumps(chance.choice(ODD)).encode()
    holder, key = chance.choice(places)
    what = chance.random()
    if what < 0.6:
        holder[key] = chance.choice(ODD)
    elif what < 0.8:
        del holder[key]
    elif isinstance(holder, dict):
        holder[chance.choice(("x", "", "title", "text", "data", "shape", "a" * 300))] = holder[key]
    else:
        holder.extend([holder[key]] * chance.choice((1, 20)))
    return json.dumps(document).encode()


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    pairs = list(node.items() if isinstance(node, dict) else enumerate(node)) if isinstance(node, (dict, list)) else []
    for key, child in pairs:
        yield node, key
        yield from _places(child)


MUTATIONS: list[Callable[[random.Random, bytes], bytes]] = [_flip, _cut, _insert, _repeat, _value, _value, _value]


@dataclass
class Outcome:
    """What came of all of them."""

    statuses: Counter[str]
    failures: list[dict[str, Any]]
    slowest_s: float


async def attack(url: str, requests: Iterator[Request], *, number: int, outcome: Outcome) -> None:
    """Send them, and look at every answer."""
    left = iter(range(number))

    async def send_all(client: httpx.AsyncClient) -> None:
        for _ in left:
            await _send(client, next(requests), outcome)

    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        await asyncio.gather(*(send_all(client) for _ in range(AT_ONCE)))


async def _send(client: httpx.AsyncClient, request: Request, outcome: Outcome) -> None:
    started = time.monotonic()
    try:
        response = await client.post(request.path, content=request.body, headers=request.headers)
    except httpx.HTTPError as err:
        fault: str | None = f"{type(err).__name__}: {err}"
        outcome.statuses["none"] += 1
    else:
        fault = _fault(request, response)
        outcome.statuses[str(response.status_code)] += 1
    outcome.slowest_s = max(outcome.slowest_s, time.monotonic() - started)
    if fault is not None:
        body = base64.b64encode(request.body).decode()
        outcome.failures.append({"path": request.path, "headers": request.headers, "body": body, "fault": fault})


def _fault(request: Request, response: httpx.Response) -> str | None:
    if response.status_code >= 500:
        return f"status {response.status_code}: {response.text[:200]}"
    if response.status_code >= 400:
        wanted = "application/json" if request.path.startswith("/v2") else "application/problem+json"
        if response.headers.get("content-type") != wanted:
            return f"{response.status_code} as {response.headers.get('content-type')}"
    return None


def main() -> None:
    """Run the attack and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bodies", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    requests = mutants(random.Random(arguments.seed))
    served = ("--checkpoint", str(arguments.checkpoint.resolve()), "--local")
    with tempfile.TemporaryDirectory() as scratch, service.running(Path(scratch), *served) as attacked:
        outcome, memory = Outcome(Counter(), [], 0.0), []
        started = time.monotonic()
        for _ in range(PARTS):
            asyncio.run(attack(attacked.url, requests, number=arguments.bodies // PARTS, outcome=outcome))
            memory.append(attacked.server.memory().total_mb)
            print(f"{sum(outcome.statuses.values())} sent, {memory[-1]} MB", flush=True)
        seconds = time.monotonic() - started
    result = {
        "bodies": arguments.bodies,
        "seed": arguments.seed,
        "seconds": round(seconds),
        "statuses": dict(sorted(outcome.statuses.items())),
        "slowest_s": round(outcome.slowest_s, 2),
        "memory_mb": memory,
        "failures": outcome.failures[:100],
        "num_failures": len(outcome.failures),
    }
    command = f"python benchmarks/fuzz.py --checkpoint DIR --bodies {arguments.bodies} --seed {arguments.seed}"
    path = environment.write("fuzz", command, result)
    print(json.dumps({name: value for name, value in result.items() if name != "failures"}, indent=2))
    print(f"written to {path}")
    # What is loaded on first use, and what an allocator keeps, has come by the middle.
    sys.exit(bool(outcome.failures) or memory[-1] > MOST_GROWTH * memory[PARTS // 2])


if __name__ == "__main__":
    main()
