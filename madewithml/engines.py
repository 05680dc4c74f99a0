"""What computes logits.

An engine takes token ids and a mask and gives logits; it knows nothing of texts, labels or thresholds.

    engine = load(checkpoint, name="torch", threads=1)
    engine.logits(ids, mask)        # int64 [n, length] twice -> float32 [n, k]
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from madewithml import errors

if TYPE_CHECKING:
    from madewithml import checkpoint, tokenization

NAMES = ("auto", "torch")


class Engine(Protocol):
    """The interface of all engines.

    Attributes:
        name: `torch` for now.
        precision: Number format of the computation, `fp32` for instance.
    """

    name: str
    precision: str

    def logits(self, ids: tokenization.Ints, mask: tokenization.Ints) -> npt.NDArray[np.float32]:
        """Compute logits.

        Args:
            ids: Token ids, int64 [n, length].
            mask: 1 where there is a token, int64 [n, length].

        Returns:
            float32 [n, k].
        """
        ...


class TorchEngine:
    """PyTorch in fp32: the reference that every other engine is compared with.

    Args:
        source: The checkpoint.
        threads: Threads of one computation.
    """

    name = "torch"
    precision = "fp32"

    def __init__(self, source: checkpoint.Checkpoint, *, threads: int) -> None:
        import torch  # late: a process that uses another engine never needs it

        from madewithml import models

        torch.set_num_threads(threads)
        self._torch = torch
        self._model = models.from_folder(source.folder).eval()

    def logits(self, ids: tokenization.Ints, mask: tokenization.Ints) -> npt.NDArray[np.float32]:
        """See `Engine.logits`."""
        torch = self._torch
        with torch.inference_mode():
            output = self._model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        result: npt.NDArray[np.float32] = output.logits.numpy()
        return result


def load(source: checkpoint.Checkpoint, *, name: str = "auto", threads: int | None = None) -> Engine:
    """Load a checkpoint into an engine.

    Args:
        source: A checkpoint, already verified.
        name: Engine name; `auto` takes the fastest that is admitted on this host.
        threads: Threads of one computation; None means every core this process may use.

    Raises:
        UsageError: No such engine.
    """
    if name not in NAMES:
        raise errors.UsageError(f"no engine {name!r}: choose from {', '.join(NAMES)}")
    return TorchEngine(source, threads=threads or available_cores())


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
