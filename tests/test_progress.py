from __future__ import annotations

import io
import sys

import pytest
import rich.console

from madewithml import progress


def test_without_a_terminal_each_new_note_is_one_plain_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.track("training", total=10) as bar:
        bar.advance(4)
        bar.advance(2, "epoch 1: val_loss 0.5")
        bar.advance(2, "epoch 1: val_loss 0.5")
        bar.advance(2, "epoch 2: [0.4]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "training: 6/10 epoch 1: val_loss 0.5\ntraining: 10/10 epoch 2: [0.4]\n"


def test_long_work_without_notes_says_something_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([100.0, 105.0, 111.0, 112.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.track("scoring", total=None) as bar:
        for _ in range(3):
            bar.advance(7)
    assert capsys.readouterr().err == "scoring: 14\n"


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    console = rich.console.Console(file=terminal, force_terminal=True, width=100)
    monkeypatch.setattr(progress.rich.console, "Console", lambda file: console if file is sys.stderr else None)
    with progress.track("training", total=4) as bar:
        bar.advance(4, "done")
    assert "training" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()
