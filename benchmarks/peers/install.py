"""Install the optional peers, each into a virtual environment of its own, so that none decides another's versions.

    python benchmarks/peers/install.py [litserve] [bentoml] [mosec]

They go to `.venvs/NAME` in the checkout, with the versions of `requirements/NAME.txt`: the server, `tokenizers`, numpy,
onnxruntime and openvino, but no torch. A peer without its environment is left out of the benchmark, which says so.
"""

from __future__ import annotations

import argparse
import subprocess
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
ENVIRONMENTS = Path(__file__).parents[2] / ".venvs"
NAMES = sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))


def python(name: str) -> Path:
    """The interpreter of a peer's environment, there or not."""
    return ENVIRONMENTS / name / "bin" / "python"


def install(name: str) -> None:
    """Make the environment and fill it."""
    venv.create(ENVIRONMENTS / name, with_pip=True)
    pip = [str(python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(REQUIREMENTS / f"{name}.txt")], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(NAMES)}")
    names = parser.parse_args().names or NAMES
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        parser.error(f"no peer {unknown[0]!r}: choose from {', '.join(NAMES)}")
    for name in names:
        print(f"installing {name}", flush=True)
        install(name)


if __name__ == "__main__":
    main()
