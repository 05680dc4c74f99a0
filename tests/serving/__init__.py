"""Tests of the machinery behind the window."""
