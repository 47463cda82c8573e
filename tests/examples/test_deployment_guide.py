"""What the deployment guide says to type: each option is there, and the commands for keys run."""

import os
import re
import subprocess
from pathlib import Path

import click
import pytest
import typer
from deployment import BIN

from securefed.cli.commands import app
from securefed.crypto.identity import IdentityKey
from securefed.evidence.signed_roster import read_signed_roster
from securefed.operations.metrics import AgentMetrics, ServerMetrics

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "examples" / "guides" / "deployment.md").read_text(encoding="utf-8")
SECTION = (
    (ROOT / "README.md")
    .read_text(encoding="utf-8")
    .split("\n### Between machines\n")[1]
    .split("\n## ")[0]
)


def blocks(text):
    return re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)


def commands(text):
    """Each `securefed ...` of a text: its words, to the end of the line, the quote or the cell."""
    joined = text.replace("\\\n", " ")
    return [found.split() for found in re.findall(r"securefed ([a-z][^`|;&\n]*)", joined)]


@pytest.mark.parametrize("text", [GUIDE, SECTION], ids=["guide", "readme"])
def test_each_command_and_option_is_there(text):
    found = [words for words in commands(text) if words[0] not in {"keeps", "over"}]
    assert len(found) > 5
    for words in found:
        command = typer.main.get_command(app)
        while isinstance(command, click.Group) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts}
        options = {re.split("[=)]", word)[0] for word in words if re.match("--[a-z]", word)}
        assert options <= known | {"--version"}, words
        assert not isinstance(command, click.Group) or "--version" in options, words


def test_each_series_that_it_names_is_exported():
    exported = {
        sample
        for metrics in (AgentMetrics(), ServerMetrics())
        for sample in metrics.registry._names_to_collectors
    }
    named = set(re.findall(r"`(securefed_\w*[a-z])`", GUIDE))
    assert len(named) == 5
    assert named <= exported


@pytest.mark.deployment
def test_its_commands_for_keys_run_after_the_readmes(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = tmp_path / "pasted.sh"
    script.write_text("\n".join(["set -e", *blocks(SECTION)[:2], *blocks(GUIDE)]))
    done = subprocess.run(
        ["bash", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    place = tmp_path / "federation"
    server, other = (IdentityKey.load(place / f"{n}.pem").public for n in ("server", "server-2"))
    now = read_signed_roster(place / "roster.json", server)
    assert (now.serial, sorted(now.roster.clients)) == (
        3,
        ["george-washington", "thomas-jefferson"],
    )
    renewed = read_signed_roster(place / "roster-2.json", other).roster
    assert renewed.clients == now.roster.clients
    assert "john-adams" in done.stdout  # as the roster showed it before it was revoked
