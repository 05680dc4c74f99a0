"""What each worker of Ray's imports before it accepts work: Ray Serve and the deployment, but for what neither needs.

Ray Serve imports pandas for nothing but to turn data frames that a handle returns into JSON, and OpenTelemetry's SDK
for traces that nothing here asks for. It does without where there is none: a third of a second and 40 MB in each of its
processes. Nor does anything that is imported become garbage; the collector would look at all of it again and again.
"""

import gc
import sys

ABSENT = ("pandas", "opentelemetry.sdk")

hidden = [name for name in ABSENT if name not in sys.modules]
sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
gc.disable()
try:
    import ray.serve._private.replica  # noqa: F401

    import madewithml.serving.deployment  # noqa: F401
finally:
    gc.enable()
    for name in hidden:
        del sys.modules[name]
