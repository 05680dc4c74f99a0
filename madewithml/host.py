"""The machine underneath: its cores, and the traits that decide how fast each engine is on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# Instruction sets on which reduced precision pays, or does not.
FEATURES = frozenset(
    {
        "amx_bf16",
        "amx_int8",
        "amx_tile",
        "asimddp",
        "avx2",
        "avx512_bf16",
        "avx512_fp16",
        "avx512_vnni",
        "avx512f",
        "avx_vnni",
        "bf16",
        "i8mm",
        "sve",
    }
)
CPU_INFO = Path("/proc/cpuinfo")


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def traits() -> dict[str, str]:
    """What an engine's speed was measured on: system, architecture, processor and its instruction sets."""
    processor, flags = _processor()
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": processor,
        "features": " ".join(sorted(FEATURES & flags)),
    }


def _processor() -> tuple[str, set[str]]:
    """Name and instruction sets of the first core, as Linux tells them; elsewhere the name alone."""
    try:
        text = CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        return platform.processor(), set()
    entries: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())
    flags = set((entries.get("flags") or entries.get("Features") or "").split())
    return entries.get("model name") or platform.processor(), flags
