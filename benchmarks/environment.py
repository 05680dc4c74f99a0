"""What a result file says about where it was measured: processor, cores, memory, versions. No names, no paths."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("madewithml", "ray", "fastapi", "torch", "transformers", "onnxruntime", "openvino", "numpy", "scipy")


def describe() -> dict[str, Any]:
    """Processor, cores, memory and versions."""
    return {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def write(name: str, command: str, result: dict[str, Any]) -> Path:
    """Write a dated result file; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    environment = describe()
    path = RESULTS / f"{name}-{environment['date']}.json"
    document = {"command": command, "environment": environment, "result": result}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return path
