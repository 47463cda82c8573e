"""The command line.

``securefed demo | fetch | run | plan | pilot | attack | audit | verify | threats``
``securefed statement | report | schema``
"""

from securefed.cli.commands import main

__all__ = ["main"]
