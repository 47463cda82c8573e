"""The command line.

``securefed demo | fetch | run | plan | pilot | attack | audit | verify | schema``
"""

from securefed.cli.commands import main

__all__ = ["main"]
