"""The command line.

``securefed demo | fetch | init | plan | run | status | evaluate | merge | pilot | attack | audit``
``securefed verify | threats | statement | report | keys | client | flower | schema``
"""

from securefed.cli.commands import main

__all__ = ["main"]
