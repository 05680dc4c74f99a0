"""The parts of the Python client; `madewithml.client` is its face."""
