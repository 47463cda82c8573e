"""The README's deployment section, pasted as printed: real model and texts, TLS, known nodes."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from deployment import BIN, logged, until

from securefed.engines.verify import verify_run
from securefed.evidence.ledger import read_ledger

pytestmark = pytest.mark.deployment

ROOT = Path(__file__).parents[2]
KILLED = "john-adams"
STAYED = {"george-washington", "thomas-jefferson"}


def pasted() -> list[str]:
    """The blocks of commands between the section's heading and the next one."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n### Between machines\n")[1].split("\n## ")[0]
    return re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)


def agent_of(shell: int, client: str) -> psutil.Process:
    """The agent that the pasted commands started for a client."""
    found = []
    for each in psutil.Process(shell).children():
        try:
            words = each.cmdline()
        except psutil.Error:  # it has just ended
            continue
        if "client" in words and f"{client}/agent.sock" in words:
            found.append(each)
    assert len(found) == 1
    return found[0]


def test_three_agents_train_the_demos_model_while_one_is_killed(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    *setting_up, running = pasted()
    script = tmp_path / "pasted.sh"
    # A shell that people paste into goes on after an error; here the first one is to be seen.
    script.write_text("\n".join(["set -e", *setting_up, "set +e", running]))
    place = tmp_path / "federation"
    run = place / "runs" / "deployment"
    with (tmp_path / "out").open("w") as out:
        shell = subprocess.Popen(
            ["bash", script],
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
            start_new_session=True,
        )
    try:

        def reached(number: int) -> bool:
            assert shell.poll() is None, (tmp_path / "out").read_text()[-4000:]
            return logged(place / f"{KILLED}.log", event="invited", round=number, of="updates")

        until(lambda: reached(2), "round 2", 2400)
        agent_of(shell.pid, KILLED).kill()
        status = subprocess.run(
            [BIN / "securefed", "status", run], capture_output=True, text=True, check=True
        ).stdout
        shell.wait(timeout=2400)
    finally:
        try:
            os.killpg(shell.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    said = (tmp_path / "out").read_text()
    verdict = verify_run(run, place / "roster.public.json")
    assert verdict.finished, said[-4000:]
    assert verdict.anchored
    assert verdict.incomplete == []
    kinds = [record.kind for record in read_ledger(run / "ledger.jsonl")]
    assert kinds.count("round_applied") == 2
    summed = [r.body for r in read_ledger(run / "ledger.jsonl") if r.kind == "round_summed"]
    assert [set(each["survivors"]) for each in summed] == [{*STAYED, KILLED}, STAYED]
    for words in ("running", "1 of 2", "round 2: clients train", "epsilon so far", "time left"):
        assert words in status
    assert re.search(r"state\W+finished", said)
    assert "verified" in said
    lines = [json.loads(line) for line in (place / "server.log").read_text().splitlines()]
    assert lines[-1]["event"] == "finished"
    assert any(line["event"] == "stage" and line["silent"] == [KILLED] for line in lines)
