"""Write the versions of this environment as pip constraints: `make lock`.

A package whose pinned version does not support every Python of the project gets a marker, so that the older Pythons
fall back to what pip resolves.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys

OLDEST = (3, 10)
OURS = {"madewithml", "pip", "setuptools", "wheel"}


def oldest_python(requires: str | None) -> tuple[int, ...]:
    """The lower bound of a Requires-Python field."""
    found = re.search(r">=\s*3\.(\d+)", requires or "")
    return (3, int(found.group(1))) if found else OLDEST


def main() -> None:
    """Print one line per installed package, sorted."""
    lines = ["# Written by `make lock`; used by `make install`. The project itself states only what it needs."]
    for distribution in sorted(importlib.metadata.distributions(), key=lambda d: d.metadata["Name"].lower()):
        name, version = distribution.metadata["Name"], distribution.version.split("+")[0]
        if name.lower() in OURS:
            continue
        oldest = oldest_python(distribution.metadata["Requires-Python"])
        marker = f' ; python_version >= "3.{oldest[1]}"' if oldest > OLDEST else ""
        lines.append(f"{name}=={version}{marker}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
