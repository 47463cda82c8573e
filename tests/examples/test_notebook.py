"""The notebook is stored without outputs, in short cells, and runs from top to bottom."""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "notebook" / "first_run.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_it_is_stored_without_outputs_and_in_short_cells():
    for cell in CELLS:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            assert len(cell["source"]) <= 25, "".join(cell["source"])
        else:
            assert cell["cell_type"] == "markdown"
    for source in CODE:
        ast.parse(source)  # nothing of a notebook's own syntax: each cell can be copied


def test_what_it_links_to_is_there():
    import re

    text = "".join("".join(cell["source"]) for cell in CELLS)
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    for link in links:
        assert (NOTEBOOK.parent / link).exists(), link


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """Needs the extra notebook, and the demo's model in the cache: the notebook fetches nothing."""
    import nbformat
    from nbclient import NotebookClient

    from securefed.engines.verify import verify_run
    from securefed.training.assets import cache_dir, fetch

    fetch("smollm2-135m-instruct", cache=cache_dir())
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(
        notebook,
        timeout=3600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    shown = [
        "".join(out.get("text", "") for out in cell["outputs"])
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    pictures = [
        out
        for cell in notebook.cells
        if cell.cell_type == "code"
        for out in cell["outputs"]
        if "image/png" in out.get("data", {})
    ]
    assert len(pictures) == 1  # one picture that grows, not one a round
    run = tmp_path / "runs" / "notebook" / "run"
    (before, after), *_ = [
        [float(word) for word in text.split() if word[0].isdigit()]
        for text in shown
        if " before, " in text
    ]
    assert after < 0.9 * before
    verified = [text for text in shown if "verdict: verified; anchored" in text]
    assert len(verified) == 2  # before the report was made, and with it
    assert "report/report.json: its run and its statements are those recomputed" in verified[1]
    assert "exit code 0" in verified[1]
    assert verify_run(run, Path(f"{run}.keys/roster.json")).anchored
    assert (run / "report" / "report.en.html").stat().st_size > 10_000
    # The last cell: plain PEFT on the base, and the merged model, give the same logits.
    apart = float(shown[-1].split("logit: ")[1].split()[0])
    assert apart < 1e-4
    assert not any("Warning" in text for text in shown)
