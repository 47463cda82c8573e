"""The API reference as HTML pages, made from the docstrings by pdoc: a build step, not committed.

pip install -c constraints.txt -e '.[train,docs]'
python examples/api_reference.py build/api
python examples/api_reference.py build/inside securefed.privacy securefed.secagg

Without names of modules: the public names, what they give back, the run file's sections, and
the errors.
"""

import argparse
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import securefed

PUBLIC = (
    "securefed",
    "securefed.config",
    "securefed.errors",
    # What a federation, evaluate_run and merge_run give back.
    "securefed.engines.evaluating",
    "securefed.engines.figures",
    "securefed.engines.forecast",
    "securefed.engines.merging",
    "securefed.engines.results",
)


def build(out: Path, modules: tuple[str, ...] = PUBLIC) -> None:
    """Write one page a module, an index and a search.

    Raises:
        UserWarning: pdoc finds no docstring for a name, or cannot resolve it.
    """
    # pdoc shows what is in a module; the public names come into this one when they are first used.
    for name in securefed.__all__:
        setattr(securefed, name, getattr(securefed, name))
    pdoc.render.configure(
        docformat="google", show_source=False, footer_text=f"securefed {securefed.__version__}"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"pdoc(\..*)?")
        pdoc.pdoc(*modules, output_directory=out)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("out", type=Path, help="Folder of the pages; is made.")
    options.add_argument("modules", nargs="*", help="In place of the public ones.")
    given = options.parse_args()
    build(given.out, tuple(given.modules) or PUBLIC)
    print(f"{given.out / 'index.html'}")


if __name__ == "__main__":
    main()
