"""examples/leakage/own_model.py on a tiny model and a folder of texts."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from run_audits import write_texts
from tiny import write_model

SCRIPTS = Path(__file__).parents[2] / "examples" / "leakage"


@pytest.mark.parametrize("rank", [2, 8])
def test_rank_decides_what_an_update_gives_away_and_masks_hide_it(
    rank, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("own_model")
    words = [
        "own_model.py",
        *("--model", str(write_model(tmp_path / "model"))),
        *("--texts", str(write_texts(tmp_path / "texts", clients=4))),
        *("--target", "q_proj", "--target", "v_proj"),
        *("--window", "8", "--rank", str(rank), "--trials", "3"),
        *("--out", str(tmp_path / "out")),
    ]
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if re.match(r"│ \d", line)]
    rows = {line.split("│")[2].strip(): line for line in lines}
    assert set(rows) == {"plain", "other", "masked", "sum"}
    if rank == 8:
        recall = float(rows["plain"].split("│")[4])
        assert recall > 0.6
        assert "all" in rows["plain"]
    else:
        assert "void" in rows["plain"]
    assert "void" in rows["masked"]
    assert oct((tmp_path / "out.pem").stat().st_mode)[-3:] == "600"
    assert len(list((tmp_path / "out" / f"rank-{rank}").glob("span*.json"))) == 4
