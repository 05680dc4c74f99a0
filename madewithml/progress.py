"""Progress of long work: a bar on a terminal, plain lines elsewhere. Always on stderr, so that stdout stays clean."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import rich.console
import rich.progress

SECONDS_BETWEEN_LINES = 10.0


class Progress(Protocol):
    """What long work reports to."""

    def advance(self, amount: int, note: str = "") -> None:
        """Say that `amount` more units are done."""
        ...


class _Bar:
    def __init__(self, bar: rich.progress.Progress, task: rich.progress.TaskID) -> None:
        self._bar, self._task = bar, task

    def advance(self, amount: int, note: str = "") -> None:
        self._bar.update(self._task, advance=amount, note=note)


class _Lines:
    """A line at most every ten seconds, and one whenever there is a new note."""

    def __init__(self, title: str, total: int | None, console: rich.console.Console) -> None:
        self._title, self._total, self._console = title, total, console
        self._done, self._note, self._last = 0, "", time.monotonic()

    def advance(self, amount: int, note: str = "") -> None:
        self._done += amount
        now = time.monotonic()
        if (note and note != self._note) or now - self._last > SECONDS_BETWEEN_LINES:
            of_total = f"/{self._total}" if self._total is not None else ""
            self._console.print(
                f"{self._title}: {self._done}{of_total} {note}".rstrip(), highlight=False, soft_wrap=True
            )
            self._note, self._last = note, now


@contextmanager
def track(title: str, *, total: int | None) -> Iterator[Progress]:
    """Report progress on `title` for as long as the block lasts; `total` units, None if unknown."""
    console = rich.console.Console(file=sys.stderr)
    if not console.is_terminal:
        yield _Lines(title, total, console)
        return
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("{task.fields[note]}"),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        yield _Bar(bar, bar.add_task(title, total=total, note=""))
