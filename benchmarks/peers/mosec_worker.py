"""Mosec: a `Worker` behind its Rust server.

python mosec_worker.py --address 127.0.0.1 --port PORT

In batches it waits for more until `max_wait_time` has passed; its documentation asks for less than the engine takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import classifier
import mosec

MAX_WAIT_TIME_MS = 2


class ClassifierWorker(mosec.Worker):
    """One classifier in each process."""

    def __init__(self) -> None:
        self.classifier = classifier.from_environment()

    def forward(self, data: Mapping[str, str] | Sequence[Mapping[str, str]]) -> Any:
        """One response, or as many as there are bodies."""
        if isinstance(data, Mapping):
            return {"results": self.classifier.predict([classifier.text_of(data)])}
        return [{"results": [answer]} for answer in self.classifier.predict([classifier.text_of(row) for row in data])]


def main() -> None:
    server = mosec.Server()
    size = classifier.batch_size()
    waiting = {"max_batch_size": size, "max_wait_time": MAX_WAIT_TIME_MS} if size > 1 else {}
    server.append_worker(ClassifierWorker, num=classifier.workers(), route="/predict/", **waiting)
    server.run()


if __name__ == "__main__":
    main()
