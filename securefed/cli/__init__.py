"""The command line.

``securefed demo | fetch | run | plan | pilot | attack | audit | verify | threats``
``securefed statement | client | keys new, show, enrol | flower init | schema``
"""

from securefed.cli.commands import main

__all__ = ["main"]
