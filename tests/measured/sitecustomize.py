"""Coverage in the processes that tests start, all but Ray's own.

Ray ends its workers before they could save what was measured, and measuring costs them a third of their time. Python
imports this module as it starts; `tests/conftest.py` puts the folder on its path.
"""

import contextlib
import os
import sys

# Where coverage's own variable is kept: under that name it would start in every process.
KEPT = "TESTS_COVERAGE_CONFIG"
COVERAGES = "COVERAGE_PROCESS_CONFIG"
# Where Ray's own scripts are; a project may well be in a folder of that name.
RAYS = f"{os.sep}site-packages{os.sep}ray{os.sep}"


def start() -> None:
    """Start measuring as coverage's own start-up does, and leave the environment as it was."""
    import coverage

    os.environ[COVERAGES] = os.environ[KEPT]
    try:
        coverage.process_startup()
    finally:
        del os.environ[COVERAGES]


if KEPT in os.environ and not any(RAYS in argument for argument in sys.orig_argv[1:4]):
    with contextlib.suppress(ImportError):  # in a client's own environment
        start()
