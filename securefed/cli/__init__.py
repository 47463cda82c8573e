"""The command line.

``securefed demo | fetch | run | plan | pilot | attack | audit | verify | threats``
``securefed statement | schema``
"""

from securefed.cli.commands import main

__all__ = ["main"]
