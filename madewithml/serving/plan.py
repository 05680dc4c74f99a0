"""What is to be served: what was asked for, and what was found for it.

Wanted --check--> nothing is in the way --find--> Found: run, checkpoint, hashes checked
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from madewithml import checkpoint, config, errors, host, keys, ports
from madewithml.serving import following, pointer

if TYPE_CHECKING:
    from madewithml.serving import replica


@dataclass(frozen=True)
class Wanted:
    """What somebody asked for.

    Attributes:
        settings: Address, limits, threshold.
        run_id: MLflow run; one of this, `model` and `checkpoint_folder` is given.
        model: Address in the model registry.
        checkpoint_folder: Checkpoint.
        replicas: Ray Serve replicas, or uvicorn processes.
        shadow: Address of a second model that sees a share of the traffic.
    """

    settings: config.Settings
    run_id: str | None = None
    model: str | None = None
    checkpoint_folder: Path | None = None
    replicas: int = 1
    shadow: str | None = None

    def check(self) -> None:
        """Check what takes no time: that the question is clear, nobody is let in by oversight, and the port is free.

        Raises:
            UsageError: None or several of run, model and checkpoint are given, or there are no keys for the network.
            CheckpointError: There is no such folder, or no checkpoint in it.
            StartError: The port is taken.
        """
        if sum(given is not None for given in (self.run_id, self.model, self.checkpoint_folder)) != 1:
            raise errors.UsageError("give one of --run-id ID, --model models:/NAME@ALIAS, --checkpoint DIR")
        check_keys(self.settings)
        ports.check(self.settings.host, self.settings.port)
        if self.checkpoint_folder is not None:
            checkpoint.read(self.checkpoint_folder)

    def find(self) -> Found:
        """Find it and check that it is whole; takes seconds where MLflow is asked.

        Raises:
            NotFoundError: There is no such run or model.
            CheckpointError: The checkpoint is damaged.
        """
        paths = {name: getattr(self.settings, name).resolve() for name in ("home", "datasets")}
        absolute = self.settings.model_copy(update={**paths, "keys_file": self.settings.keys_path.resolve()})
        if self.model is not None:
            target = following.first_target(absolute, self.model)
        else:
            folder = self.checkpoint_folder or _best_checkpoint(absolute, str(self.run_id))
            target = pointer.Target(self.run_id or "", str(folder))
        return Found(
            target=_checked(target),
            replicas=self.replicas,
            settings=absolute,
            model=self.model,
            shadow=_checked(following.resolver(absolute, self.shadow)()) if self.shadow else None,
        )


@dataclass(frozen=True)
class Found:
    """What is to be served, found and checked before anything starts.

    Attributes:
        target: The model: run, folder, version.
        replicas: Ray Serve replicas, or uvicorn processes.
        settings: Address, limits, threshold.
        model: The address in the registry that it was asked for by; None if it was not.
        shadow: A second model that sees a share of the traffic; None if there is none.
    """

    target: pointer.Target
    replicas: int
    settings: config.Settings
    model: str | None = None
    shadow: pointer.Target | None = None

    @property
    def run_id(self) -> str:
        """Named in every answer."""
        return self.target.run_id

    @property
    def checkpoint(self) -> Path:
        """Folder to load."""
        return Path(self.target.checkpoint)

    def for_replicas(self, folder: Path | None) -> replica.Plan:
        """What each replica is told.

        Args:
            folder: Says what to run from now on; None where nothing is followed.
        """
        from madewithml.serving import replica  # late, as all that only the serving itself needs

        return replica.Plan(
            run_id=self.target.run_id,
            checkpoint=self.target.checkpoint,
            settings=self.settings.model_dump(mode="json"),
            threads=self.threads,
            sharers=self.replicas,
            version=self.target.version,
            pointer=str(folder) if folder else None,
            shadow=(self.shadow.run_id, self.shadow.checkpoint) if self.shadow else None,
        )

    @property
    def threads(self) -> int:
        """Threads of one computation: the cores, shared among the replicas."""
        return max(1, host.available_cores() // self.replicas)

    @property
    def announcement(self) -> str:
        """The line that says the service is up, with a call to try."""
        from madewithml import engines, predict
        from madewithml.serving import schemas

        found = checkpoint.read(self.checkpoint)
        policy = predict.policy_of(found, threshold=self.settings.threshold)
        example = schemas.RequestSchema(found.metadata.text_fields, max_rows=1).example()
        url = f"http://{self.settings.host}:{self.settings.port}"
        body = ", ".join(f'"{name}": "{text}"' for name, text in example.items())
        return (
            f"serving run {self.run_id} on {url} (threshold {policy.threshold:g}, source: {policy.source}; engine: "
            f"{engines.choose(found, self.settings.engine)})\n"
            f"try:  curl -X POST {url}/predict/ -H 'Content-Type: application/json' -d '{{{body}}}'\n"
            "stop: Ctrl-C"
        )


def _best_checkpoint(settings: config.Settings, run_id: str) -> Path:
    from madewithml import runs

    return runs.connect(settings).best_checkpoint(run_id)


def _checked(target: pointer.Target) -> pointer.Target:
    """The model, found whole, under an absolute folder; one without a run is named by its weights."""
    found = checkpoint.read(Path(target.checkpoint).resolve())
    found.verify()
    found.read_decision()
    return dataclasses.replace(target, run_id=target.run_id or found.weights_sha256[:32], checkpoint=str(found.folder))


def check_keys(settings: config.Settings) -> None:
    """Check that nobody is let in by oversight.

    Raises:
        UsageError: The network can reach the address and there are no keys, or their file cannot be read.
    """
    given = settings.keys_file is not None or settings.keys_path.exists()
    found = (*settings.keys, *(keys.read(settings.keys_path) if given else ()))
    if not (found or settings.is_on_loopback or settings.allow_anonymous):
        msg = (
            f"{settings.host} can be reached from the network, and there are no keys. Make one with "
            "'madewithml keys create NAME', or let anyone in with --allow-anonymous."
        )
        raise errors.UsageError(msg)
