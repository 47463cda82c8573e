"""``securefed keys``, ``securefed flower init`` and the start of ``securefed client``."""

import json
import re
import stat
import tomllib
from pathlib import Path

import pytest
import tomli_w
from tiny import write_run
from typer.testing import CliRunner

from securefed.agent.example import example_policy
from securefed.agent.policy import load_policy
from securefed.cli.commands import app
from securefed.config import load_config
from securefed.crypto.identity import IdentityKey
from securefed.engines.deployed import config_digest
from securefed.engines.deployment import ENVIRONMENT, Deployment
from securefed.errors import ConfigError
from securefed.evidence.roster import read_roster
from securefed.evidence.signed_roster import read_signed_roster
from securefed.training.models import weights_fingerprint


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def said(*words):
    done = run(*words)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output.strip()


def refused(match, *words):
    with pytest.raises(ConfigError, match=match):
        raise run(*words).exception


@pytest.fixture
def server(tmp_path):
    return said("keys", "new", tmp_path / "server.pem")


@pytest.mark.parametrize("algorithm", ["ed25519", "ml-dsa-65"])
def test_a_new_key_is_for_its_owner_alone_and_shows_its_public_half(tmp_path, algorithm):
    path = tmp_path / "key.pem"
    public = said("keys", "new", path, "--algorithm", algorithm)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert said("keys", "show", path).replace("\n", "") == public.replace("\n", "")
    assert IdentityKey.load(path).algorithm == algorithm
    refused("exists|made", "keys", "new", path)


def test_an_encrypted_key_needs_its_password(tmp_path):
    secret, path = tmp_path / "password", tmp_path / "key.pem"
    secret.write_text("long and random\n")
    refused("chmod 600", "keys", "new", path, "--password-file", secret)
    secret.chmod(0o600)
    public = said("keys", "new", path, "--password-file", secret)
    assert b"ENCRYPTED" in path.read_bytes()
    assert said("keys", "show", path, "--password-file", secret) == public
    refused("identity file", "keys", "show", path)


def test_clients_are_enrolled_rotated_and_revoked(tmp_path, server):
    roster, key = tmp_path / "roster.json", ("--key", tmp_path / "server.pem")
    public = {name: said("keys", "new", tmp_path / f"{name}.pem") for name in "abc"}
    clients = [word for name in "ab" for word in ("--client", f"{name}={public[name]}")]
    said("keys", "enrol", roster, *key, *clients)
    trusted = IdentityKey.load(tmp_path / "server.pem").public
    assert sorted(read_signed_roster(roster, trusted).roster.clients) == ["a", "b"]
    refused("keys rotate", "keys", "enrol", roster, *key, "--client", f"a={public['c']}")
    said("keys", "rotate", roster, *key, "--client", f"a={public['c']}")
    said("keys", "revoke", roster, "b", *key)
    found = read_signed_roster(roster, trusted)
    assert found.serial == 3
    assert {n: k.raw.hex() for n, k in found.roster.clients.items()} == {"a": public["c"]}
    assert not found.roster.differing(read_roster(tmp_path / "roster.public.json"))
    assert "serial 3" in said("keys", "show", roster, "--server", server)


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ("nothing to change", ["enrol", "--client", "a=KEY"]),
        ("nothing to change", ["rotate", "--client", "a=KEY"]),
        ("is not enrolled", ["rotate", "--client", "b=KEY"]),
        ("is not enrolled", ["revoke", "z"]),
        ("clients is empty", ["revoke", "a"]),
        ("ID=PUBLICKEY", ["enrol", "--client", "a"]),
        ("no identity key", ["enrol", "--client", "b=12"]),
    ],
)
def test_a_roster_that_a_change_does_not_fit_stays_as_it_was(tmp_path, server, match, words):
    roster, key = tmp_path / "roster.json", ("--key", tmp_path / "server.pem")
    public = said("keys", "new", tmp_path / "a.pem")
    said("keys", "enrol", roster, *key, "--client", f"a={public}")
    before = roster.read_bytes()
    command, *rest = (word.replace("KEY", public) for word in words)
    refused(match, "keys", command, roster, *rest, *key)
    assert roster.read_bytes() == before


def test_another_servers_roster_is_not_changed(tmp_path, server):
    roster = tmp_path / "roster.json"
    public = said("keys", "new", tmp_path / "a.pem")
    said("keys", "enrol", roster, "--key", tmp_path / "server.pem", "--client", f"a={public}")
    before = roster.read_bytes()
    refused("trusted", "keys", "enrol", roster, "--key", tmp_path / "a.pem", "--client", "a=00")
    assert roster.read_bytes() == before


def test_an_app_is_written_from_a_run_file_with_a_policy_that_its_run_keeps(tmp_path, server):
    run_file = write_run(tmp_path, privacy={"noise_multiplier": 0.8})
    folder = tmp_path / "app"
    out = said("flower", "init", run_file, folder, "--server", server, "--client", "site-0")
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["dependencies"] == []
    values = project["tool"]["flwr"]["app"]
    assert values["components"]["serverapp"] == "securefed_app.server_app:app"
    assert values["fab-exclude"] == ["policies/**", "deployment.toml"]
    common = load_config(folder / "run.toml")
    assert (common.model.source, common.data.source) == ("model", "data")
    assert config_digest(common) in out
    policy = load_policy(folder / "policies" / "site-0.toml")
    assert policy.runs.configurations == [config_digest(common)]
    assert policy.floors.min_noise_multiplier == 0.8
    assert policy.answers.hold_seconds is not None  # the sample of this run is secret
    assert not policy.floors.exact_figures
    assert policy.runs.models == [weights_fingerprint(tmp_path / "model")]
    # What travels to the nodes names no place on this machine; what stays here does.
    for file in ("pyproject.toml", "run.toml"):
        text = (folder / file).read_text()
        assert not re.search(r"tmp|\.pem|roster|\.\./", text), text
    found = Deployment.of(values["config"], {ENVIRONMENT: str(folder / "deployment.toml")})
    assert found.run_file_sha256 == config_digest(common)
    assert Path(found.key).resolve() == tmp_path / "server.pem"
    assert Path(found.run_file) == folder / "run.toml"
    assert Path(found.model).resolve() == tmp_path / "model"
    assert Path(found.out).resolve() == tmp_path / "runs" / "tiny"
    refused("is there already", "flower", "init", run_file, folder, "--server", server)


@pytest.mark.parametrize(
    ("trainer", "held"), [({}, False), ({"trainer": "own_trainers:Quiet"}, True)]
)
def test_answers_are_held_back_where_own_code_trains(tmp_path, trainer, held):
    path = write_run(tmp_path, privacy={"unit": "client", "expected_batch": None}, training=trainer)
    policy = example_policy(
        load_config(path), client="site-0", server="0" * 64, digest="0" * 64, model="0" * 64
    )
    assert (policy.answers.hold_seconds is not None) == held
    assert policy.runs.trainers == list(trainer.values())


def test_a_run_file_for_simulations_alone_makes_no_app(tmp_path, server):
    run_file = write_run(tmp_path, aggregation={"kind": "bfv"})
    refused(r"aggregation\.kind", "flower", "init", run_file, tmp_path / "a", "--server", server)
    assert not (tmp_path / "a").exists()


def test_an_agent_says_which_model_it_found_before_it_listens(tmp_path, server):
    run_file = write_run(tmp_path, privacy={"sample_is_secret": False, "noise_multiplier": 0.8})
    folder, public = tmp_path / "app", said("keys", "new", tmp_path / "site-0.pem")
    said("keys", "enrol", tmp_path / "roster.json", "--key", tmp_path / "server.pem",
         "--client", f"site-0={public}")  # fmt: skip
    said("flower", "init", run_file, folder, "--server", server, "--client", "site-0")
    words = [
        "client", "--policy", folder / "policies" / "site-0.toml", "--config", folder / "run.toml",
        "--roster", tmp_path / "roster.json", "--key", tmp_path / "site-0.pem",
        "--socket", tmp_path / "s" / "agent.sock", "--accounts", tmp_path / "accounts",
        "--model", tmp_path / "model", "--data", tmp_path / "data", "--log", tmp_path / "log",
        "--offline",
    ]  # fmt: skip
    policy = tomllib.loads((folder / "policies" / "site-0.toml").read_text())
    policy["runs"]["models"] = ["0" * 64]
    (folder / "policies" / "site-0.toml").write_text(tomli_w.dumps(policy))
    done = run(*words)
    assert "runs.models" in str(done.exception)
    assert not (tmp_path / "s").exists()
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert set(events) == {"roster", "spent", "warning", "loading"}
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600
    policy["server"] = public
    (folder / "policies" / "site-0.toml").write_text(tomli_w.dumps(policy))
    assert "no trusted key has signed it" in str(run(*words).exception)
