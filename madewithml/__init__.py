"""Made With ML: turn a trained text classifier into a service that says "other" instead of guessing."""

from madewithml import telemetry

__version__ = "0.1.0"

telemetry.disable()
