from __future__ import annotations

import os
from pathlib import Path

import pytest

from madewithml import host

CPU_INFO = """processor\t: 0
model name\t: A Fine Processor
flags\t\t: fpu avx2 avx512f avx512_bf16 sse4_2

processor\t: 1
model name\t: Another
flags\t\t: fpu amx_bf16
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the platform has no affinity")
def test_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 3, 5})
    assert host.available_cores() == 3


def test_without_affinity_cores_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert host.available_cores() == 6


def test_traits_name_the_processor_and_the_instruction_sets_that_matter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(CPU_INFO, encoding="utf-8")
    monkeypatch.setattr(host, "CPU_INFO", path)
    traits = host.traits()
    assert (traits["processor"], traits["features"]) == ("A Fine Processor", "avx2 avx512_bf16 avx512f")


def test_where_linux_tells_nothing_the_traits_still_have_a_name_and_a_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "CPU_INFO", tmp_path / "nowhere")
    traits = host.traits()
    assert (set(traits), traits["features"]) == ({"system", "machine", "processor", "features"}, "")
