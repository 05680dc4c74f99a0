"""Which model a service shall run: a small folder that one follower writes and every replica reads.

    wanted.json     what the alias points at, written by the follower (`following.py`)
    claim-SEQ       the replica that judges the wanted model for all; made by whoever comes first
    accepted.json   what every replica runs: first the model of the start, then each candidate that was found good
    refused.json    the last candidate that was found bad, with the reasons

Each wanted model has a number, one higher than the last. One replica judges it (`changeover.py`) and the others do as
it found, so that the replicas of a service never differ for longer than a load takes; one that starts later runs what
is accepted. A claim without a verdict is the mark of a candidate that took its judge down with it, and is not tried
again.

It is a folder because the replicas read the checkpoint itself from one as well: whoever can load the model can read
this, on one machine or on a cluster with a shared MADEWITHML_HOME. Ray Serve's own way, a changed `user_config`, takes
each replica out of the routing while it is reconfigured: a service of one replica would answer 503 meanwhile. Every
file is replaced as a whole; no reader sees half of one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madewithml import files

FOLDER = "serving"
MAX_BEFORE = 20
WANTED, ACCEPTED, REFUSED = "wanted.json", "accepted.json", "refused.json"


@dataclass(frozen=True)
class Target:
    """A model to run.

    Attributes:
        run_id: Named in every answer.
        checkpoint: Folder to load.
        version: In the model registry; None if it did not come from there.
        promoted: When it was last promoted, in MLflow's words; promoting again asks for another try.
        seq: Its number in this service; the highest wins.
    """

    run_id: str
    checkpoint: str
    version: str | None = None
    promoted: str | None = None
    seq: int = 0

    def same_as(self, other: Target) -> bool:
        """Whether both are the same model, promoted at the same time, whatever their numbers."""
        return dataclasses.replace(self, seq=other.seq) == other

    def is_model_of(self, other: Target) -> bool:
        """Whether both are the same model, whenever it was promoted."""
        return (self.run_id, self.checkpoint) == (other.run_id, other.checkpoint)


@dataclass(frozen=True)
class Refusal:
    """A candidate that was found bad.

    Attributes:
        target: The candidate.
        reasons: Why, in words.
        report: What was measured; empty if it did not come to that.
    """

    target: Target
    reasons: list[str]
    report: dict[str, Any]


class Pointer:
    """The folder, both directions.

    Args:
        folder: Where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, home: Path, target: Target) -> Pointer:
        """A new folder under `home`, with the model of the start as what is accepted.

        Raises:
            OSError: It cannot be written.
        """
        above = home / FOLDER
        above.mkdir(parents=True, exist_ok=True)
        pointer = cls(Path(tempfile.mkdtemp(prefix="service-", dir=above)))
        pointer._write(ACCEPTED, {"target": dataclasses.asdict(target), "before": []})
        return pointer

    def remove(self) -> None:
        """Remove the folder; what cannot be removed stays."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def wanted(self) -> Target | None:
        """What the alias points at; None as long as it was not moved."""
        document = self._read(WANTED)
        return None if document is None else Target(**document)

    def want(self, target: Target) -> None:
        """Announce what the alias points at."""
        self._write(WANTED, dataclasses.asdict(target))

    def accepted(self) -> Target:
        """What every replica shall run."""
        return Target(**(self._read(ACCEPTED) or {})["target"])

    def was_accepted(self, target: Target) -> bool:
        """Whether the replicas run this model, or ran it before."""
        document = self._read(ACCEPTED) or {}
        known = [Target(**each) for each in (document["target"], *document["before"])]
        return any(target.is_model_of(each) for each in known)

    def accept(self, target: Target) -> bool:
        """Have every replica run the target; False if something newer is accepted or wanted meanwhile."""
        if self._is_old(target):
            return False
        document = self._read(ACCEPTED) or {}
        before = [document["target"], *document["before"]][:MAX_BEFORE]
        self._write(ACCEPTED, {"target": dataclasses.asdict(target), "before": before})
        return True

    def refusal(self) -> Refusal | None:
        """The last candidate that was found bad, or None."""
        document = self._read(REFUSED)
        if document is None:
            return None
        return Refusal(Target(**document["target"]), document["reasons"], document["report"])

    def refuse(self, target: Target, reasons: Sequence[str], report: Mapping[str, Any]) -> bool:
        """Have every replica stay with what is accepted; False if something newer is wanted meanwhile."""
        if self._is_old(target):
            return False
        self._write(REFUSED, dataclasses.asdict(Refusal(target, list(reasons), dict(report))))
        return True

    def _is_old(self, target: Target) -> bool:
        wanted = self.wanted()
        return target.seq <= self.accepted().seq or (wanted is not None and wanted.seq > target.seq)

    def claim(self, target: Target) -> bool:
        """Be the one that judges the target; False if another is."""
        try:
            os.close(os.open(self.folder / f"claim-{target.seq}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True

    def give_up(self, target: Target) -> None:
        """Judge the target no more, through no fault of its own: another replica may."""
        (self.folder / f"claim-{target.seq}").unlink(missing_ok=True)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return document

    def _write(self, name: str, document: Mapping[str, Any]) -> None:
        files.write_whole(self.folder / name, json.dumps(document))
