"""How a service loads models: each with the same engine and threads, and the operator's threshold over its own."""

from __future__ import annotations

from dataclasses import dataclass

from madewithml import predict


@dataclass(frozen=True)
class Loader:
    """What every model of one service has in common; plain values, to be sent to another process.

    Attributes:
        engine: What computes logits.
        threads: Threads of one computation.
        threshold: An operator's, over the model's own; None if there is none.
    """

    engine: str
    threads: int
    threshold: float | None

    def load(self, folder: str) -> predict.Predictor:
        """The model of a checkpoint folder, verified.

        Raises:
            CheckpointError: The folder is damaged, or its policy belongs to other weights.
            UsageError: Its engine cannot run here.
        """
        return predict.TorchPredictor.from_checkpoint(
            folder, engine=self.engine, threads=self.threads, threshold=self.threshold
        )
