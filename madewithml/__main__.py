"""`python -m madewithml` is the command line."""

from madewithml import cli

cli.main()
