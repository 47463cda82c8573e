"""A finished run's rounds and closing table as an SVG picture, as a terminal shows them.

python examples/finished_run.py RUN PICTURE.svg

``examples/finished_run.svg`` was made so from a run of ``securefed demo``.
"""

import argparse
import io
import re
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from securefed.cli.closing import table
from securefed.cli.watching import round_line
from securefed.config import load_config
from securefed.engines.results import recorded_result
from securefed.errors import ConfigError

COLUMNS = 112
# As rich draws it, but that nothing is loaded from elsewhere: the viewer's own fixed-width font.
FORMAT = re.sub(r"@font-face {{.*?}}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
# Dark letters on white, in a frame of their own: readable on a light page and on a dark one.
LIGHT = TerminalTheme(
    (255, 255, 255),
    (34, 34, 34),
    [(34, 34, 34)] * 7 + [(107, 107, 107)],
)


def draw(run: Path, picture: Path) -> None:
    """Write the picture.

    Raises:
        ConfigError: the run is not finished.
        LedgerTampered: it does not verify.
    """
    result = recorded_result(run)
    if result is None:
        raise ConfigError(f"{run}: the run is not finished")
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    for event in result.events:
        console.print(Text(round_line(event)))
    console.print(table(load_config(run / "config.toml"), result))
    made = console.export_svg(title="securefed demo", theme=LIGHT, code_format=FORMAT)
    picture.write_text(made, encoding="utf-8")


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("run", type=Path)
    options.add_argument("picture", type=Path)
    given = options.parse_args()
    draw(given.run, given.picture)


if __name__ == "__main__":
    main()
