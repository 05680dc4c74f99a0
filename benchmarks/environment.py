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
# What decides whether int8 and bfloat16 are faster than fp32; processors of one name differ in it.
INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "bf16")
LIBRARIES = ("madewithml", "ray", "fastapi", "torch", "transformers", "onnxruntime", "openvino", "numpy", "scipy")


def describe() -> dict[str, Any]:
    """Processor, what it has for matrix products, cores, memory and versions."""
    return {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "processor": _of_cpuinfo("model name") or platform.processor(),
        "instructions": [name for name in INSTRUCTIONS if name in _of_cpuinfo("flags", "Features").split()],
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def _of_cpuinfo(*names: str) -> str:
    """The first line of that name; empty if there is none."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""


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
