"""What workers import before they accept work."""

import json
import subprocess
import sys

SCRIPT = """
import gc, json, sys
from madewithml.serving import preloaded
there = [name for name in preloaded.ABSENT if name in sys.modules]
import pandas, opentelemetry.sdk
print(json.dumps({
    "there": there,
    "serve": "madewithml.serving.deployment" in sys.modules,
    "collects": gc.isenabled(),
    "pandas": pandas.__name__,
}))
"""


def test_what_is_left_out_can_still_be_imported_later() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120)
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told == {"there": [], "serve": True, "collects": True, "pandas": "pandas"}
