"""The API reference: every public name has an entry, and pdoc finds nothing to warn of."""

import html
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import securefed

ROOT = Path(__file__).parents[2]
# Roles of reStructuredtext that pdoc prints as they stand.
_RAW = re.compile(r":(?:class|meth|func|data|mod|attr|exc):`|`~|^::$", re.MULTILINE)


def shown(page: Path) -> str:
    """A page's text as a reader sees it."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", securefed.__all__)
def test_a_public_name_says_what_it_is(name):
    found = inspect.getdoc(getattr(securefed, name))
    assert found
    # A dataclass without a docstring is given its signature as one.
    assert not found.startswith(f"{name}(")
    assert "`~" not in found


@pytest.mark.slow
def test_the_reference_holds_every_public_name_and_no_raw_markup(tmp_path):
    out = tmp_path / "api"
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "api_reference.py"), str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    whole = (out / "securefed.html").read_text(encoding="utf-8")
    for name in securefed.__all__:
        section = re.search(
            rf'<section id="{name}">(.*?)(?=<section id="[A-Za-z_]+">|\Z)', whole, re.DOTALL
        )
        assert section is not None, name
        said = inspect.getdoc(getattr(securefed, name)).splitlines()[0]
        first = re.split(r":\w+:`|`", said)[0].strip()
        assert first in html.unescape(re.sub(r"<[^>]+>", "", section[1])), name
    pages = sorted(page.relative_to(out) for page in out.rglob("*.html"))
    assert Path("securefed/config.html") in pages
    assert Path("securefed/engines/results.html") in pages
    for page in pages:
        assert not _RAW.search(shown(out / page)), (page, _RAW.search(shown(out / page)))
    errors = importlib.import_module("securefed.errors")
    for name, value in vars(errors).items():
        if inspect.isclass(value):
            assert name in shown(out / "securefed" / "errors.html")


@pytest.mark.slow
def test_a_name_that_does_not_resolve_ends_the_build(tmp_path):
    paths = [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    (tmp_path / "gone.py").write_text('"""A page."""\n\n__all__ = ["nowhere"]\n', encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "api_reference.py"), str(tmp_path / "o"), "gone"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode != 0
    assert "nowhere" in done.stderr
