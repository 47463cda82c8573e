"""``python -m securefed``."""

from securefed.cli import main

main()
