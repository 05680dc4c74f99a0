"""One replica's service: a predictor behind a queue, and whether it may be asked.

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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import madewithml
from madewithml import config, decision, engine_report, errors, predict, tokenization
from madewithml.serving import batching, schemas

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

logger = logging.getLogger(__name__)

# Below this many characters tokenising on the event loop (0.05 ms a row) is cheaper than a hop to a thread.
INLINE_CHARACTERS = 20_000
WATCH_EVERY_S = 0.25
HUNG = 70  # exit status of a process whose engine hangs; sysexits.h has it as "internal software error"
# Of an engine that was not measured: half a thousand tokens a batch, each batch as dear as a short text.
UNMEASURED = engine_report.CostCurve(budget_tokens=512, overhead_tokens=32.0)


class Order(NamedTuple):
    """One row on its way to the engine, with the policy that decides on it."""

    ids: list[int]
    truncated: bool
    policy: decision.DecisionPolicy


class Service:
    """A predictor that many callers share.

    Args:
        predictor: What answers.
        run_id: Where it came from.
        settings: Limits and folders.
    """

    def __init__(self, predictor: predict.Predictor, *, run_id: str, settings: config.Settings) -> None:
        self.predictor = predictor
        self.run_id = run_id
        self.settings = settings
        metadata = predictor.checkpoint.metadata
        self.schema = schemas.RequestSchema(metadata.text_fields, max_rows=settings.max_rows)
        self.ready = False
        self._batcher = batching.Batcher(
            self._compute,
            max_batch_size=settings.max_batch_size,
            curve=predictor.curve or UNMEASURED,
            max_queue_rows=settings.max_queue_rows,
            max_queue_s=settings.max_queue_s,
        )
        self._workers = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="side")
        self._evaluating = asyncio.Lock()

    def warm_up(self) -> None:
        """Check the golden rows and run the batch shapes in use once; ready afterwards.

        Raises:
            CheckpointError: The golden rows do not come out as recorded.
        """
        difference = self.predictor.check_golden()
        example = self.predictor.tokenizer.encode(self.predictor.texts([self.schema.example()]))
        order = Order(example[0].ids, truncated=False, policy=self.predictor.policy)
        for size in (1, self.settings.max_batch_size):
            started = time.monotonic()
            self._compute([order] * size)
        longest = self.predictor.checkpoint.metadata.max_length / len(order.ids)
        self._batcher.expect((time.monotonic() - started) * longest)
        logger.info("run %s is ready: golden rows agree to %.1e", self.run_id, difference)
        self.ready = True

    @property
    def hung(self) -> bool:
        """Whether the engine does not come back from a batch."""
        return self._batcher.stuck(self.settings.hang_timeout_s)

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

    async def answer(
        self,
        rows: Sequence[schemas.Row],
        *,
        policy: decision.DecisionPolicy | None = None,
        timeout_s: float | None = None,
        departure: batching.Departure | None = None,
    ) -> list[dict[str, Any]]:
        """One answer per row.

        Args:
            rows: The rows.
            policy: Decides on these rows; None takes the predictor's own.
            timeout_s: Seconds they may take; None takes the configured ones.
            departure: Awaited to learn that the client has gone; its rows are then not computed.

        Raises:
            NotReadyError: The service is starting or stopping.
            OverloadedError: The queue is full.
            DeadlineExceededError: The rows took too long.
            ClientGoneError: The client has gone.
        """
        if not self.ready:
            raise errors.NotReadyError("the service is starting or stopping", retry_after_s=1)
        inputs = self.predictor.texts(rows)
        tokens = await self._tokenise(inputs)
        chosen = policy or self.predictor.policy
        orders = [Order(row.ids, row.truncated, chosen) for row in tokens]
        return await self._batcher.submit(
            orders, timeout_s=timeout_s or self.settings.request_timeout_s, departure=departure
        )

    def _compute(self, orders: Sequence[Order]) -> list[dict[str, Any]]:
        """One batch through the engine, then each row under its own policy: one pass for those that share it."""
        ids, mask = tokenization.pad([order.ids for order in orders], pad_id=self.predictor.tokenizer.pad_id)
        logits = self.predictor.engine.logits(ids, mask)
        try:
            return self._decide(logits, orders)
        except errors.InputError as err:  # no caller's fault: the engine gave logits that cannot be decided on
            raise errors.CheckpointError(err.message) from err

    def _decide(self, logits: npt.NDArray[np.float32], orders: Sequence[Order]) -> list[dict[str, Any]]:
        truncated = [order.truncated for order in orders]
        policies = [order.policy for order in orders]
        if all(policy is policies[0] for policy in policies):
            return self.predictor.decide(logits, truncated, policies[0])
        return [
            self.predictor.decide(logits[i : i + 1], truncated[i : i + 1], policy)[0]
            for i, policy in enumerate(policies)
        ]

    def policy(self, *, max_risk: float | None, threshold: float | None) -> decision.DecisionPolicy:
        """The policy a caller asks for.

        Args:
            max_risk: A certified level.
            threshold: A threshold of the caller's own, where the operator allows that.

        Raises:
            InvalidRequestError: Both are given, the level is not certified, or callers may not choose a threshold.
        """
        own = self.predictor.policy
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

    async def _tokenise(self, inputs: Sequence[str]) -> list[tokenization.Tokens]:
        if sum(map(len, inputs)) <= INLINE_CHARACTERS:
            return self.predictor.tokenizer.encode(inputs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, self.predictor.tokenizer.encode, inputs)

    def description(self) -> dict[str, Any]:
        """What `GET /model` says."""
        metadata, engine = self.predictor.checkpoint.metadata, self.predictor.engine
        settings = self.settings
        return {
            "name": "madewithml",
            "version": madewithml.__version__,
            "run_id": self.run_id,
            "labels": metadata.labels,
            "text_fields": metadata.text_fields,
            "max_length": metadata.max_length,
            "abstain_label": self.predictor.policy.abstain_label,
            "encoder": metadata.encoder,
            "engine": {"name": engine.name, "precision": engine.precision},
            "limits": {
                "max_rows": settings.max_rows,
                "max_body_bytes": settings.max_body_bytes,
                "max_queue_rows": settings.max_queue_rows,
                "max_batch_size": settings.max_batch_size,
                "request_timeout_s": settings.request_timeout_s,
                "max_request_timeout_s": settings.max_request_timeout_s,
            },
            "hashes": {**metadata.files, "data": metadata.data_sha256},
            "libraries": metadata.libraries,
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
            return await asyncio.get_running_loop().run_in_executor(self._workers, self._evaluate, path)

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

        fields = self.predictor.checkpoint.metadata.text_fields
        try:
            rows = data.read_labelled(str(path), text_fields=fields, label_field="tag")
            return evaluate.evaluate(
                self.predictor, rows, run_id=self.run_id, dataset=path.name, slices=self.settings.slices
            )
        except errors.InputError as err:
            raise errors.InvalidRequestError(err.message.replace(str(path), path.name)) from err

    async def stop(self) -> None:
        """Refuse new work, finish what was accepted."""
        self.ready = False
        try:
            await asyncio.wait_for(self._batcher.drain(), self.settings.drain_timeout_s)
        except (TimeoutError, asyncio.TimeoutError):
            logger.warning("stopped with %d rows unanswered", self._batcher.waiting)
        self._workers.shutdown(wait=False, cancel_futures=True)
