"""The direction of imports, and what importing does not do."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "madewithml"
# From the top of the house to its foundation. A module may import from rows below its own and, where no cycle
# comes of it, from its own row. A module of `serving` stands in the row of its package.
ROWS = [
    ["__main__"],
    ["cli"],
    ["cli_keys"],
    ["cli_options"],
    ["serve"],
    ["serving"],
    ["train", "evaluate", "importing", "bulk", "certify", "certifying", "report", "optimize", "pyfunc"],
    ["graphs", "train_worker"],
    [
        "packing",
        "fitting",
        "averaging",
        "certificate",
        "refusal",
        "pictures",
        "exporting",
        "quantising",
        "int8_groups",
        "speed",
        "ragged_bert",
    ],
    ["predict"],
    ["runs"],
    ["fidelity"],
    ["engines", "decision"],
    ["metrics", "selective", "risk_control", "calibration", "rounding"],
    ["checkpoint", "ragged"],
    ["data", "models", "encoders", "tokenization", "texts"],
    ["engine_report", "words"],
    ["cluster", "progress", "config", "tables", "host", "ports"],
    ["keys"],
    ["client"],
    ["errors", "files", "asking", "telemetry"],
]
LEVEL = {name: level for level, names in enumerate(ROWS) for name in names}

# The libraries come first: what they do when they are imported is theirs.
IMPORT_ALL = """
import importlib, logging, os, pathlib, signal, threading
import fastapi, mlflow, mlflow.pyfunc, pandas, ray, ray.data, ray.serve, ray.train, scipy.stats, sklearn.metrics
import torch, transformers, typer

def state():
    loggers = logging.getLogger(), logging.getLogger("madewithml")
    return {
        "variables": dict(os.environ),
        "logging": [(list(logger.handlers), logger.level) for logger in loggers],
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": threading.active_count(),
        "tracking": mlflow.get_tracking_uri(),
    }

before = state()
for name in MODULES:
    importlib.import_module(name)
after = state()
print([what for what in before if before[what] != after[what]], sorted(map(str, pathlib.Path(".").iterdir())))
"""


@dataclass(frozen=True)
class Import:
    """One module of ours importing another, and whether that happens while it is itself imported."""

    importer: str
    imported: str
    line: int
    at_import_time: bool

    @property
    def goes_up(self) -> bool:
        return _level(self.imported) < _level(self.importer)

    def __str__(self) -> str:
        return f"{self.importer} imports {self.imported} (line {self.line})"


def _level(module: str) -> int:
    return LEVEL[module.split(".", maxsplit=1)[0]]


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


MODULES = _modules()


def _imports(name: str, path: Path) -> Iterator[Import]:
    """Every import of ours in a module, those of `if __name__ == "__main__"` left out: nobody imports those."""
    pending: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), True)]
    while pending:
        node, at_import_time = pending.pop()
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            at_import_time = False
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            at_import_time = False
        for target in _targets(node):
            if target != name:
                yield Import(name, target, node.lineno, at_import_time)
        pending.extend((child, at_import_time) for child in ast.iter_child_nodes(node))


def _targets(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.removeprefix("madewithml.") for alias in node.names if alias.name.startswith("madewithml.")]
    if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("madewithml"):
        return []
    package = str(node.module).removeprefix("madewithml").removeprefix(".")
    named = [f"{package}.{alias.name}".lstrip(".") for alias in node.names]
    return [target if target in MODULES else package for target in named if target in MODULES or package]


IMPORTS = [each for name, path in MODULES.items() for each in _imports(name, path)]


def _run(code: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stderr if done.returncode else "") == ""
    return done.stdout


def test_every_module_has_its_place_in_the_house() -> None:
    assert sorted({name.split(".")[0] for name in MODULES} - set(LEVEL)) == []


def test_imports_are_found_wherever_they_stand() -> None:
    found = {(each.importer, each.imported, each.at_import_time) for each in IMPORTS}
    expected = {
        ("bulk", "predict", True),
        ("engines", "models", False),
        ("engines", "checkpoint", False),
        ("serving.app", "serving.problems", True),
        ("cli", "train", False),
    }
    assert expected - found == set()


def test_imports_go_downwards_only() -> None:
    assert [str(each) for each in IMPORTS if each.goes_up] == []


def test_no_import_cycle_at_module_level() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for each in IMPORTS:
        if each.at_import_time:
            graph[each.importer].add(each.imported)
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert sorted(order) == sorted(MODULES)


def test_serving_never_imports_training() -> None:
    assert [
        str(each)
        for each in IMPORTS
        if each.importer.startswith("serving") and each.imported in ("train", "train_worker", "fitting")
    ] == []


def _libraries(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".", maxsplit=1)[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".", maxsplit=1)[0])
    return found


@pytest.mark.parametrize(("library", "expected"), [("mlflow", ["runs"]), ("transformers", ["models"])])
def test_one_module_alone_talks_to_a_library(library: str, expected: list[str]) -> None:
    assert [name for name, path in MODULES.items() if library in _libraries(path)] == expected


@pytest.mark.parametrize("module", ["serving.app", "predict", "engines", "decision", "tokenization", "checkpoint"])
def test_the_serving_path_imports_no_heavy_library(module: str, tmp_path: Path) -> None:
    heavy = ("torch", "transformers", "ray", "mlflow", "sklearn", "scipy", "pandas")
    code = f"import sys, madewithml.{module}; print([name for name in {heavy} if name in sys.modules])"
    assert _run(code, tmp_path) == "[]\n"


@pytest.mark.parametrize("module", ["serving.service", "serving.local"])
def test_a_serving_process_imports_neither_torch_nor_transformers_nor_ray(module: str, tmp_path: Path) -> None:
    heavy = ("torch", "transformers", "ray")
    code = f"import sys, madewithml.{module}; print([name for name in {heavy} if name in sys.modules])"
    assert _run(code, tmp_path) == "[]\n"


def test_importing_every_module_makes_no_folder_and_changes_nothing(tmp_path: Path) -> None:
    modules = [f"madewithml.{name}" for name in MODULES if name != "__main__"]
    assert _run(IMPORT_ALL.replace("MODULES", repr(modules)), tmp_path) == "[] []\n"
