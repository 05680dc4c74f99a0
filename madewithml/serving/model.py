"""One model in service: a predictor, the run it came from, and the queue to its engine.

A service holds one `LoadedModel` and may change to another while it answers. A request takes the model when it is
admitted and is tokenised, queued, computed and decided with that one, so that no batch mixes two models and every
answer is that of the run it names. A model that was replaced answers what it has taken and is then released.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from madewithml import config, decision, engine_report, errors, predict, tokenization
from madewithml.serving import batching

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

logger = logging.getLogger(__name__)

# Of an engine that was not measured: half a thousand tokens a batch, each batch as dear as a short text.
UNMEASURED = engine_report.CostCurve(budget_tokens=512, overhead_tokens=32.0)


class Order(NamedTuple):
    """One row on its way to the engine, with the policy that decides on it."""

    ids: list[int]
    truncated: bool
    policy: decision.DecisionPolicy


class LoadedModel:
    """A predictor with a queue of its own.

    `with` gives back what `admit` took: the model may be released once nothing is left to answer.

    Args:
        predictor: What answers.
        run_id: Where it came from.
        settings: Limits of the queue.
        version: In the model registry; None if it did not come from there.
    """

    def __init__(
        self, predictor: predict.Predictor, *, run_id: str, settings: config.Settings, version: str | None = None
    ) -> None:
        self.predictor = predictor
        self.run_id = run_id
        self.version = version
        self._max_batch_size = settings.max_batch_size
        self.batcher = batching.Batcher(
            # Not a method: the queue would hold the model, and the two would outlive their release together.
            functools.partial(_compute, predictor),
            max_batch_size=settings.max_batch_size,
            curve=predictor.curve or UNMEASURED,
            max_queue_rows=settings.max_queue_rows,
            max_queue_s=settings.max_queue_s,
        )
        self._lock = threading.Lock()
        self._unanswered = 0
        self._retired = False
        self._empty = threading.Event()

    @property
    def name(self) -> str:
        """How callers name it: its version in the registry, else its run."""
        return self.version or self.run_id

    @property
    def unanswered(self) -> int:
        """Requests that were admitted and not answered yet."""
        return self._unanswered

    def admit(self) -> bool:
        """Take one request more; False once the model was replaced."""
        with self._lock:
            if self._retired:
                return False
            self._unanswered += 1
            return True

    def __enter__(self) -> LoadedModel:
        """The model, of a request that was admitted."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The request is answered, or has failed."""
        with self._lock:
            self._unanswered -= 1
            if self._retired and not self._unanswered:
                self._empty.set()

    def warm_up(self, example: str) -> float:
        """Check the golden rows and run the batch shapes in use once, which also says how long a batch may take.

        Args:
            example: A text to warm up on.

        Returns:
            How far the golden rows are off; see `Predictor.check_golden`.

        Raises:
            CheckpointError: The golden rows do not come out as recorded.
        """
        difference = self.predictor.check_golden()
        (tokens,) = self.predictor.tokenizer.encode([example])
        for rows in self._shapes(tokens.ids):
            started = time.monotonic()
            _compute(self.predictor, [Order(ids, truncated=False, policy=self.predictor.policy) for ids in rows])
            self.batcher.expect(time.monotonic() - started)
        return difference

    def _shapes(self, ids: list[int]) -> list[list[list[int]]]:
        """The smallest batch, and the largest of short and of long rows: engines keep memory for the largest they saw.

        A batch holds no more tokens than the budget, unless it is one text that is longer.
        """
        longest = self.predictor.checkpoint.metadata.max_length
        long = (ids * longest)[:longest]
        return [[ids], [ids] * self._max_batch_size, [long] * max(1, self.batcher.budget_tokens // longest)]

    def retire(self, *, patience_s: float) -> bool:
        """Admit nothing more, wait until everything admitted is answered, and let the engine's thread go.

        Blocks; not for the event loop. The engine itself goes with the last reference to this object.

        Args:
            patience_s: Seconds to wait.

        Returns:
            Whether everything was answered.
        """
        with self._lock:
            self._retired = True
            if not self._unanswered:
                self._empty.set()
        if not self._empty.wait(patience_s):
            logger.warning("run %s ended with %d requests unanswered", self.run_id, self._unanswered)
            return False
        asyncio.run(self.batcher.drain())  # nothing is left in it: this only ends the engine's thread
        return True


def _compute(predictor: predict.Predictor, orders: Sequence[Order]) -> list[dict[str, Any]]:
    """One batch through the engine, then each row under its own policy: one pass for those that share it."""
    ids, mask = tokenization.pad([order.ids for order in orders], pad_id=predictor.tokenizer.pad_id)
    logits = predictor.engine.logits(ids, mask)
    try:
        return _decide(predictor, logits, orders)
    except errors.InputError as err:  # no caller's fault: the engine gave logits that cannot be decided on
        raise errors.CheckpointError(err.message) from err


def _decide(
    predictor: predict.Predictor, logits: npt.NDArray[np.float32], orders: Sequence[Order]
) -> list[dict[str, Any]]:
    truncated = [order.truncated for order in orders]
    policies = [order.policy for order in orders]
    if all(policy is policies[0] for policy in policies):
        return predictor.decide(logits, truncated, policies[0])
    return [predictor.decide(logits[i : i + 1], truncated[i : i + 1], policy)[0] for i, policy in enumerate(policies)]
