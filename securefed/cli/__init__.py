"""The command line: ``securefed demo | fetch | run | plan | pilot | verify | schema``."""

from securefed.cli.commands import main

__all__ = ["main"]
