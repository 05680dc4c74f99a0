"""What each worker of Ray's imports before it accepts work: Ray Serve, without pandas.

Ray Serve imports pandas for nothing but to turn data frames that a handle returns into JSON, and it does without where
there is none. That is a third of a second and 40 MB in each of its processes.
"""

import sys

ABSENT = "pandas"

if ABSENT in sys.modules:
    import ray.serve._private.replica
else:
    sys.modules[ABSENT] = None  # type: ignore[assignment]
    try:
        import ray.serve._private.replica  # noqa: F401
    finally:
        del sys.modules[ABSENT]
