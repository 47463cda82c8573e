"""The command line: ``securefed demo | fetch | run | verify | schema``."""

from securefed.cli.commands import main

__all__ = ["main"]
