"""LitServe: a `LitAPI`, one worker process a core, as many API servers.

python litserve_api.py

`fast_queue` is what its documentation asks for above 100 requests a second. In batches, a timeout of 0 makes its
workers spin on an empty queue, so it waits 5 ms at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import classifier
import litserve


class ClassifierAPI(litserve.LitAPI):
    """Text in, answer out; lists of them in batches."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe passes it
        """Load the model, once in each worker."""
        self.classifier = classifier.from_environment()

    def decode_request(self, request: Mapping[str, str]) -> str:
        """Body to text."""
        return classifier.text_of(request)

    def predict(self, x: str | Sequence[str]) -> Any:
        """One answer, or as many as there are texts."""
        return self.classifier.predict([x])[0] if isinstance(x, str) else self.classifier.predict(x)

    def encode_response(self, output: Mapping[str, Any]) -> dict[str, Any]:
        """Answer to response."""
        return {"results": [output]}


def main() -> None:
    size = classifier.batch_size()
    api = ClassifierAPI(max_batch_size=size, batch_timeout=0.005 if size > 1 else 0.0, api_path="/predict/")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=classifier.workers(), fast_queue=True)
    server.run(host="127.0.0.1", port=classifier.port(), log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
