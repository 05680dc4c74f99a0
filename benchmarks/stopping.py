"""Stops the engine's thread of a process while it computes, as a fault in a driver would. Linux only.

    python benchmarks/stopping.py PID    # until the process ends; prints a line once the thread stands still

The thread is taken hold of by ptrace. It must be inside the engine's own code at that moment: stopped while it holds
the interpreter's lock it would stop the whole process, which is another fault.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STOPPED = "stopped"
ATTEMPTS = 2000
SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
WAIT_ALL = 0x40000000  # __WALL: of threads too
ENGINES = ("openvino", "onnxruntime", "libtorch")


def stop_engine(pid: int) -> subprocess.Popen[str]:
    """Stop the engine's thread of a process, from another process; returns once it stands still.

    Raises:
        RuntimeError: It could not be stopped; the message says why.
    """
    holder = subprocess.Popen(
        [sys.executable, __file__, str(pid)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert holder.stdout is not None
    line = holder.stdout.readline().strip()
    if line != STOPPED:
        with holder:
            holder.kill()
        raise RuntimeError(f"the engine's thread could not be stopped: {line or 'no word from the process'}")
    return holder


def _main(pid: int) -> None:
    for _ in range(ATTEMPTS):
        thread = _busiest(pid)
        if _held_in_engine(pid, thread):
            print(STOPPED, flush=True)
            _wait_for_the_end(thread)
            return
        time.sleep(0.001)
    print("it was never inside the engine's code; is there any load?", flush=True)


def _busiest(pid: int) -> int:
    """The thread that gained most CPU time in a moment: the engine's."""
    before = _times(pid)
    time.sleep(0.05)
    after = _times(pid)
    return max(after, key=lambda thread: after[thread] - before.get(thread, 0))


def _times(pid: int) -> dict[int, int]:
    found = {}
    for path in Path(f"/proc/{pid}/task").iterdir():
        try:
            fields = (path / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue  # the thread ended after it was listed
        found[int(path.name)] = int(fields[11]) + int(fields[12])
    return found


def _held_in_engine(pid: int, thread: int) -> bool:
    """Stop a thread; let it go again and say False if it is not inside the engine's code, or has ended."""
    try:
        _ptrace(SEIZE, thread)
    except ProcessLookupError:
        return False
    _ptrace(INTERRUPT, thread)
    os.waitpid(thread, WAIT_ALL)
    place = int((Path(f"/proc/{pid}/task/{thread}") / "syscall").read_text(encoding="utf-8").split()[-1], 16)
    if _is_engine(pid, place):
        return True
    _ptrace(DETACH, thread)
    return False


def _is_engine(pid: int, place: int) -> bool:
    """Whether an address is in an engine's library, or in code that one has made: no file stands behind that."""
    for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
        area, rights, _, _, _, *file = line.split(maxsplit=5)
        low, high = (int(end, 16) for end in area.split("-"))
        if low <= place < high:
            return "x" in rights and (not file or any(name in file[0] for name in ENGINES))
    return False


def _wait_for_the_end(thread: int) -> None:
    """A thread that is held and ends is only gone once it was waited for."""
    while True:
        try:
            _, status = os.waitpid(thread, WAIT_ALL)
        except ChildProcessError:
            return
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            return


def _ptrace(request: int, thread: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(request, thread, None, None) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {os.strerror(number)}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        _main(int(sys.argv[1]))
    except OSError as err:
        print(err, flush=True)
