"""``securefed pilot`` from end to end."""

import json
import shlex
from pathlib import Path

import pytest
from pilot_tiny import NOTHING_BESIDES, write_pilot

from securefed.engines.run import Run
from securefed.pilot.records import PilotRecord

pytestmark = pytest.mark.usefixtures("units_are_measured_once")

SECTIONS = {
    "baselines": NOTHING_BESIDES | {"local": True},
    "sweep": {"rank": [64]},
    "projection": {"clients": 50, "rounds": 5},
}


def test_a_pilot_runs_says_a_line_a_trial_and_writes_record_and_page(cli, tmp_path, monkeypatch):
    path = write_pilot(tmp_path, **SECTIONS)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_round", interrupted)
        code, out, err = cli("pilot", path, "--out", "my pilot", "--offline")
    command = f"securefed pilot {path} --out 'my pilot' --resume --offline"
    assert (code, err) == (130, f"stopped; go on with: {command}\n")
    code, out, err = cli(*shlex.split(command)[1:])
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"pilot folder: my pilot (to go on after a crash: {command})"
    for name, words in {
        "base": ["held-out perplexity", "(no guarantee)", "epsilon "],
        "clients alone": ["UNPROTECTED", "up 0 kB"],
        "rank = 64": ["SKIPPED", "lora.rank = 64"],
    }.items():
        (line,) = [each for each in lines if each.startswith(f"{name}: ")]
        assert all(word in line for word in words), line
    assert not any(each.startswith("round ") for each in lines)
    assert "outside every guarantee" in out
    record = PilotRecord.read(Path("my pilot") / "pilot.json")
    assert [trial.status for trial in record.trials] == ["done", "done", "skipped"]
    # It names no folder of this machine but those that the run file does.
    values = json.loads((Path("my pilot") / "pilot.json").read_text())
    for section in ("model", "data"):
        values["run"][section].pop("source")
    assert str(tmp_path) not in json.dumps(values)
    pages = [line.removeprefix("page: ") for line in lines if line.startswith("page: ")]
    assert pages
    assert all(Path(page).is_file() for page in pages)
    # Compared with itself: nothing left to run, and it is found by its folder.
    code, out, err = cli("pilot", path, "--out", "my pilot", "--resume", "--compare", "my pilot")
    assert code == 0, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no.toml"], ["pilot file", "no.toml", "No such file"]),
        (["PILOT", "--resume"], ["--resume needs --out"]),
        (["PILOT", "--out", "new", "--resume"], ["no pilot to go on with"]),
        (["PILOT", "--compare", "nowhere"], ["nowhere", "No such file"]),
    ],
    ids=["file", "out", "folder", "compare"],
)
def test_wrong_arguments_end_in_one_line_and_begin_nothing(cli, tmp_path, arguments, words):
    path = tmp_path / "pilot.toml"
    path.write_text('run = "run.toml"\n[data]\npublic = true\n')
    (tmp_path / "run.toml").write_text("")
    code, _, err = cli("pilot", *[path if word == "PILOT" else word for word in arguments])
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err
    assert not any(Path().iterdir())
