"""Serving: a run behind an HTTP window, on Ray Serve or without it.

    python madewithml/serve.py --run_id ID [--threshold 0.9]
    madewithml serve --run-id ID [--local]

`ModelDeployment` is the Ray Serve deployment; the app behind it, and behind `--local`, is `serving.app`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script, Python puts this folder on the path and not the one above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])


def __getattr__(name: str) -> Any:
    """`ModelDeployment`, made on first use: importing Ray Serve takes a second, and reads variables set here."""
    if name != "ModelDeployment":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from madewithml.serving import ray_environment

    ray_environment.prepare_imports()
    from madewithml.serving import deployment

    return deployment.ModelDeployment


if __name__ == "__main__":
    from madewithml import cli

    cli.main(["serve", *sys.argv[1:]])
