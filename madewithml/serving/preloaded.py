"""What each worker of Ray's imports before it accepts work: Ray Serve, without pandas.

Ray Serve imports pandas for nothing but to turn data frames that a handle returns into JSON, and it does without where
there is none. That is a third of a second and 40 MB in each of its processes.
"""

import sys

ABSENT = "pandas"

known = ABSENT in sys.modules
sys.modules.setdefault(ABSENT, None)  # type: ignore[arg-type]
try:
    import ray.serve._private.replica  # noqa: F401
finally:
    if not known:
        del sys.modules[ABSENT]
