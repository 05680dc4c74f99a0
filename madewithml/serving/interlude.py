"""Between two batches: the event loop answers the last one and reads what has come, then the engine takes the next.

    the engine's thread:  batch -> hold(loop) ........................................ -> next batch
    the event loop:                answers out -> requests in -> quiet for some turns -^

Without it both want the interpreter at once, and the engine starts on the first row that comes while those that came
with it are still in their sockets: more switches, more and smaller batches. It is no timer: nothing is waited for but
work that is there, and an engine that is idle starts on the next row.
"""

from __future__ import annotations

import asyncio
import threading

from madewithml.serving import turns

# Turns of the loop in which no row came: an answer takes two to leave, a request two or three from socket to queue.
QUIET_TURNS = 8
# A loop that is busy for longer has something else to do, which the engine need not wait for.
LONGEST_S = 0.005


def hold(loop: asyncio.AbstractEventLoop, waiting: turns.Turns) -> None:
    """Block the engine's thread until the event loop has caught up, or enough for a batch waits, or it takes long.

    Args:
        loop: Where the calls wait.
        waiting: The rows that wait; event loops add to them meanwhile.

    Raises:
        RuntimeError: The loop is closed.
    """
    over = threading.Event()

    def turn(quiet: int, before: int) -> None:
        tokens = waiting.tokens
        quiet = 0 if tokens > before else quiet + 1
        if over.is_set() or quiet >= QUIET_TURNS or waiting.full:
            over.set()
        else:
            loop.call_soon(turn, quiet, tokens)

    loop.call_soon_threadsafe(turn, 0, waiting.tokens)
    over.wait(LONGEST_S)
    over.set()
