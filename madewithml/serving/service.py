"""One replica's service: the model that answers, and whether it may be asked.

It is what the routes talk to, whether the app runs under Ray Serve, uvicorn or a test client.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import madewithml
from madewithml import config, decision, errors, predict, tokenization
from madewithml.serving import calls, feedback, model, sample, schemas

if TYPE_CHECKING:
    from madewithml.serving import shadow

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Below this many characters tokenising on the event loop (0.05 ms a row) is cheaper than a hop to a thread.
INLINE_CHARACTERS = 20_000
WATCH_EVERY_S = 0.25
# Settings that bound what a caller may send, and for how long; `GET /model` shows them.
LIMITS = (
    *("max_rows", "max_body_bytes", "max_text_characters", "max_headers", "max_header_bytes", "body_timeout_s"),
    *("max_queue_rows", "max_queue_s", "max_batch_size", "request_timeout_s", "max_request_timeout_s"),
)
HUNG = 70  # exit status of a process whose engine hangs; sysexits.h has it as "internal software error"


class Helper(Protocol):
    """Something that runs beside the service and ends with it."""

    def stop(self) -> None:
        """Begin nothing more."""
        ...


class Service:
    """A predictor that many callers share, and that may be replaced by another while they do.

    Attributes:
        current: The model that answers. A request reads it once, by `take`.
        recent: A sample of the texts that were asked about; None where no model may take over.
        candidate: What `GET /model` says of a model that may take over; None if there is none.
        swaps: How often another model took over.
        refused: How many candidates were refused.
        shadow: A second model that sees a share of the traffic; None if there is none.
        feedback: True labels that callers tell afterwards.

    Args:
        predictor: What answers.
        run_id: Where it came from.
        settings: Limits and folders.
        version: In the model registry; None if it did not come from there.
    """

    def __init__(
        self, predictor: predict.Predictor, *, run_id: str, settings: config.Settings, version: str | None = None
    ) -> None:
        self.settings = settings
        self.current = model.LoadedModel(predictor, run_id=run_id, settings=settings, version=version)
        # Of every model to come: one with other text fields may not take over.
        self.schema = schemas.RequestSchema(
            predictor.checkpoint.metadata.text_fields,
            max_rows=settings.max_rows,
            max_text_characters=settings.max_text_characters,
        )
        self.ready = False
        self.recent: sample.RecentTexts | None = None
        self.candidate: dict[str, Any] | None = None
        self.swaps = 0
        self.refused = 0
        self.shadow: shadow.Shadow | None = None
        self.feedback = feedback.Feedback(settings.records)
        self.helpers: list[Helper] = []
        self._leaving: list[model.LoadedModel] = []  # replaced, with calls that are not answered yet
        self._workers = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="side")
        self._evaluating = asyncio.Lock()

    @property
    def predictor(self) -> predict.Predictor:
        """What answers at the moment."""
        return self.current.predictor

    @property
    def run_id(self) -> str:
        """Where it came from."""
        return self.current.run_id

    @property
    def example(self) -> str:
        """A text to warm up on."""
        return self.predictor.texts([self.schema.example()])[0]

    def warm_up(self) -> None:
        """Check the golden rows and run the batch shapes in use once; ready afterwards.

        Raises:
            CheckpointError: The golden rows do not come out as recorded.
        """
        difference = self.current.warm_up(self.example)
        logger.info("run %s is ready: golden rows agree to %.1e", self.run_id, difference)
        self.ready = True

    @property
    def hung(self) -> bool:
        """Whether the engine does not come back from a batch."""
        return any(one.batcher.stuck(self.settings.hang_timeout_s) for one in (self.current, *self._leaving))

    def exit_when_hung(self) -> None:
        """End this process, from a thread of its own, when the engine hangs.

        Nothing else helps a thread that does not come back. Whoever started the process starts another, and HAProxy
        sends the calls that wait behind the engine to another replica.
        """
        threading.Thread(target=self._watch_engine, name="watch", daemon=True).start()

    def _watch_engine(self) -> None:
        while not self.hung:
            time.sleep(WATCH_EVERY_S)
        msg = f"a batch has been with the engine for more than {self.settings.hang_timeout_s:g} s: this process ends"
        logger.critical(msg)
        print(f"error: {msg}", file=sys.stderr, flush=True)  # noqa: T201 - log handlers may be buffering
        os._exit(HUNG)

    def prepare(self, predictor: predict.Predictor, *, run_id: str, version: str | None) -> model.LoadedModel:
        """A warm model that could take over.

        Raises:
            CheckpointError: The golden rows do not come out as recorded.
        """
        prepared = model.LoadedModel(predictor, run_id=run_id, settings=self.settings, version=version)
        prepared.warm_up(self.example)
        return prepared

    def swap(self, prepared: model.LoadedModel) -> model.LoadedModel:
        """Answer with another model from the next request on; gives the old one, to be released."""
        old = self.current
        self._leaving.append(old)
        self.current = prepared
        self.swaps += 1
        return old

    def release(self, old: model.LoadedModel) -> None:
        """Wait until a model that was replaced has answered everything, and let it go. Blocks."""
        old.retire(patience_s=self.settings.max_request_timeout_s)
        self._leaving.remove(old)

    def take(self) -> model.LoadedModel:
        """The model for one request, to be used in a `with` block; it stays until the block ends.

        Raises:
            NotReadyError: The service is starting or stopping.
        """
        if not self.ready:
            raise errors.NotReadyError("the service is starting or stopping", retry_after_s=1)
        while not (taken := self.current).admit():
            pass  # replaced between the two steps: the next one is there already
        return taken

    async def answer(
        self,
        rows: Sequence[schemas.Row],
        *,
        taken: model.LoadedModel | None = None,
        policy: decision.DecisionPolicy | None = None,
        timeout_s: float | None = None,
        departure: calls.Departure | None = None,
        offered: float | None = None,
    ) -> list[dict[str, Any]]:
        """One answer per row.

        Args:
            rows: The rows.
            taken: The model that `take` gave; None takes the one that answers at the moment.
            policy: Decides on these rows; None takes the model's own.
            timeout_s: Seconds they may take; None takes the configured ones.
            departure: Awaited to learn that the client has gone; its rows are then not computed.
            offered: Calls a second that came for this replica; see `Admission.check`.

        Raises:
            NotReadyError: The service is starting or stopping.
            OverloadedError: The queue is full.
            DeadlineExceededError: The rows took too long.
            ClientGoneError: The client has gone.
        """
        if taken is None:
            with self.take() as own:
                return await self.answer(
                    rows, taken=own, policy=policy, timeout_s=timeout_s, departure=departure, offered=offered
                )
        inputs = taken.predictor.texts(rows)
        if self.recent is not None:
            self.recent.offer(inputs)
        taken.batcher.admit(taken.predictor.tokenizer.estimate(inputs), offered=offered)
        tokens = await self._tokenise(taken, inputs)
        chosen = policy or taken.predictor.policy
        orders = [model.Order(row.ids, row.truncated, chosen) for row in tokens]
        return await taken.batcher.submit(
            orders, timeout_s=timeout_s or self.settings.request_timeout_s, departure=departure, admitted=True
        )

    def policy(
        self, own: decision.DecisionPolicy, *, max_risk: float | None, threshold: float | None
    ) -> decision.DecisionPolicy:
        """The policy a caller asks for.

        Args:
            own: Of the model that is to answer.
            max_risk: A certified level.
            threshold: A threshold of the caller's own, where the operator allows that.

        Raises:
            InvalidRequestError: Both are given, the level is not certified, or callers may not choose a threshold.
        """
        if max_risk is not None and threshold is not None:
            raise errors.InvalidRequestError("give max_risk or threshold, not both")
        if threshold is not None:
            if not self.settings.allow_caller_threshold:
                msg = "this service does not let callers choose a threshold (allow_caller_threshold); try max_risk"
                raise errors.InvalidRequestError(msg)
            return own.with_threshold(threshold, source="caller")
        if max_risk is None:
            return own
        try:
            return own.at_risk(max_risk)
        except errors.InputError as err:
            raise errors.InvalidRequestError(err.message) from err

    async def _tokenise(self, taken: model.LoadedModel, inputs: Sequence[str]) -> list[tokenization.Tokens]:
        tokenizer = taken.predictor.tokenizer
        if sum(min(len(text), tokenizer.prefix) for text in inputs) <= INLINE_CHARACTERS:
            return tokenizer.encode(inputs)
        return await self.run_beside(tokenizer.encode, inputs)

    def description(self) -> dict[str, Any]:
        """What `GET /model` says."""
        current, settings = self.current, self.settings
        metadata, engine = current.predictor.checkpoint.metadata, current.predictor.engine
        return {
            "name": "madewithml",
            "version": madewithml.__version__,
            "run_id": current.run_id,
            "model_version": current.version,
            "labels": metadata.labels,
            "text_fields": metadata.text_fields,
            "max_length": metadata.max_length,
            "abstain_label": current.predictor.policy.abstain_label,
            "encoder": metadata.encoder,
            "engine": {"name": engine.name, "precision": engine.precision},
            "limits": {name: getattr(settings, name) for name in LIMITS},
            "hashes": {**metadata.files, "data": metadata.data_sha256},
            "libraries": metadata.libraries,
            "changes": {"swaps": self.swaps, "refused": self.refused},
            "candidate": self.candidate,
        }

    async def evaluate(self, name: str) -> dict[str, Any]:
        """Evaluate on a named file of the configured dataset folder, one evaluation at a time.

        Raises:
            UnknownResourceError: No such file there.
            OverloadedError: Another evaluation is running.
            InvalidRequestError: The file cannot be evaluated on.
        """
        path = self._dataset(name)
        if self._evaluating.locked():
            raise errors.OverloadedError("an evaluation is running: try again when it is done", retry_after_s=10)
        async with self._evaluating:
            return await self.run_beside(self._evaluate, path)

    def _dataset(self, name: str) -> Path:
        from madewithml import data  # late, as in `_evaluate`

        folder = self.settings.datasets
        # A listing, not a path built from the caller's words: nothing outside the folder can be named.
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if (
                name in (path.name, path.stem)
                and path.suffix in data.READERS
                and path.is_file()
                and not path.is_symlink()
            ):
                return path
        raise errors.UnknownResourceError(f"no dataset {name[:100]!r} in the configured dataset folder")

    def _evaluate(self, path: Path) -> dict[str, Any]:
        # Late: pandas, scikit-learn and MLflow, two seconds of every replica's start for a call that few make.
        from madewithml import data, evaluate

        current = self.current
        fields = current.predictor.checkpoint.metadata.text_fields
        try:
            rows = data.read_labelled(str(path), text_fields=fields, label_field="tag")
            return evaluate.evaluate(
                current.predictor, rows, run_id=current.run_id, dataset=path.name, slices=self.settings.slices
            )
        except errors.InputError as err:
            raise errors.InvalidRequestError(err.message.replace(str(path), path.name)) from err

    async def run_beside(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call something that blocks in a thread beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)

    async def keep_feedback(self, body: bytes, *, caller: str) -> int:
        """Keep true labels; gives how many.

        Raises:
            RequestError: See `feedback.parse` and `Feedback.put`.
        """
        given = feedback.parse(body, classes=self.predictor.classes, max_rows=self.settings.max_rows)
        await self.run_beside(self.feedback.put, given, caller)
        return len(given)

    async def stop(self) -> None:
        """Refuse new work, finish what was accepted."""
        self.ready = False
        for helper in self.helpers:
            helper.stop()
        last = time.monotonic() + self.settings.drain_timeout_s
        for each in (*self._leaving, self.current):
            await asyncio.to_thread(each.retire, patience_s=max(0.0, last - time.monotonic()))
        self._workers.shutdown(wait=False, cancel_futures=True)
