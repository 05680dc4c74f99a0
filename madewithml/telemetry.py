"""Nothing here reports to anybody that it is used: the libraries underneath do by default, and are told not to."""

from __future__ import annotations

import os
import sys

# Where the person has not chosen otherwise.
SILENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def disable() -> None:
    """Turn it off in this process and in those that it starts.

    OpenVINO has no variable for it: on each import it forks the process to send a message and leaves a client id in
    the home folder. Without its module for that it takes a stand-in of its own that does nothing.
    """
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
