"""What one process of a service holds: built from a plan that can be sent to another process.

Plan -> predictor -> Service, warm -> and beside it, where asked for: the changeover and the shadow model
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madewithml import config, predict
from madewithml.serving import changeover, gate, loader, pointer, service, shadow, trial


@dataclass(frozen=True)
class Plan:
    """What a process is to serve; plain values only.

    Attributes:
        run_id: Named in every answer.
        checkpoint: Folder to load.
        settings: Settings as `config.Settings.model_dump` gives them.
        threads: Threads of one computation.
        sharers: Processes that serve it, among which calls are spread.
        version: In the model registry; None if it did not come from there.
        pointer: Folder that says what to run from now on; None where nothing is followed.
        shadow: Run id and checkpoint of a second model; None if there is none.
    """

    run_id: str
    checkpoint: str
    settings: dict[str, Any]
    threads: int
    sharers: int = 1
    version: str | None = None
    pointer: str | None = None
    shadow: tuple[str, str] | None = None


def open_service(plan: Plan) -> service.Service:
    """Load and warm up what the plan names; ready when this returns.

    Raises:
        CheckpointError: The model is damaged, or does not compute what it did.
        UsageError: Its engine cannot run here.
    """
    gc.freeze()  # what is imported stays: to look through it again would stop every call for a tenth of a second
    settings = config.restore(plan.settings)
    own = loader.Loader(settings.engine, plan.threads, settings.threshold)
    where = pointer.Pointer(Path(plan.pointer)) if plan.pointer else None
    # One that starts late, after a crash for instance, runs what the others run by then.
    target = where.accepted() if where else pointer.Target(plan.run_id, plan.checkpoint, plan.version)
    predictor = own.load(target.checkpoint)
    kitchen = service.Service(predictor, run_id=target.run_id, settings=settings, version=target.version)
    kitchen.warm_up()
    if where is not None:
        interval_s = min(changeover.LOOK_INTERVAL_S, settings.follow_interval_s)
        watch = changeover.Changeover(
            kitchen, where, serving=target, load=own.load, attempt=_attempt(own, settings), interval_s=interval_s
        )
        watch.start()
        kitchen.helpers.append(watch)
    if plan.shadow is not None:
        run_id, folder = plan.shadow
        _add_shadow(kitchen, own.load(folder), run_id=run_id)
    return kitchen


def _attempt(own: loader.Loader, settings: config.Settings) -> changeover.Attempt:
    def attempt(
        present: pointer.Target, candidate: pointer.Target, texts: Sequence[str], stop: threading.Event
    ) -> trial.Verdict:
        question = trial.Question(
            present=present.checkpoint,
            candidate=candidate.checkpoint,
            loader=own,
            texts=list(texts),
            limits=gate.Limits.of(settings),
        )
        return trial.run(question, stop=stop)

    return attempt


def _add_shadow(kitchen: service.Service, predictor: predict.Predictor, *, run_id: str) -> None:
    predictor.check_golden()
    kitchen.shadow = shadow.Shadow(
        predictor,
        run_id=run_id,
        share=kitchen.settings.shadow_share,
        is_idle=lambda: kitchen.current.unanswered == 0,
    )
    kitchen.shadow.start()
    kitchen.helpers.append(kitchen.shadow)
