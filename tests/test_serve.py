"""The module that people start."""

import subprocess
import sys

import pytest

from madewithml import serve


class TestModule:
    def test_a_name_it_does_not_have_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match=r"module 'madewithml\.serve' has no attribute 'Nothing'"):
            _ = serve.Nothing

    def test_importing_it_sets_nothing_and_imports_no_ray(self):
        """Ray Serve reads its variables when it is imported, and it takes a second."""
        program = (
            "import os, sys; before = dict(os.environ); import madewithml.serve; "
            "print(before == dict(os.environ), 'ray' in sys.modules, 'torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

        assert done.stdout.split() == ["True", "False", "False"]
