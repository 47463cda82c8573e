import json
import os
from importlib import resources

import jsonschema
import pytest
import tomli_w
from deployed import policy_values

from securefed.agent.policy import AgentPolicy, dump_policy, load_policy, policy_schema
from securefed.crypto.identity import IdentityKey
from securefed.errors import ConfigError, LocalProtocolError

SERVER = IdentityKey.generate().public.raw.hex()


def written(path, **sections):
    path.write_text(tomli_w.dumps(policy_values("site-0", SERVER, **sections)))
    return path


def test_a_policy_comes_back_as_it_was_written(tmp_path):
    policy = load_policy(written(tmp_path / "p.toml"))
    (tmp_path / "again.toml").write_text(dump_policy(policy))
    assert load_policy(tmp_path / "again.toml") == policy


def test_the_published_schema_is_the_present_one_and_takes_an_example():
    stored = (resources.files("securefed") / "schemas" / "agent-policy.json").read_text()
    assert stored == policy_schema()
    jsonschema.validate(policy_values("site-0", SERVER), json.loads(stored))


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"floors": {"min_clients": 1}}, r"floors\.min_clients"),
        ({"floors": {"min_noise_multiplier": -1.0}}, r"floors\.min_noise_multiplier"),
        ({"floors": {"mechanisms": ["hope"]}}, r"floors\.mechanisms"),
        ({"floors": {"units": ["example", "user"]}}, r"budget\.unit"),
        ({"floors": {"max_delta": 0.5}}, r"floors\.max_delta"),
        ({"budget": {"adjacency": "replace-one"}}, r"budget\.adjacency"),
        ({"budget": {"epsilon": 0.0}}, r"budget\.epsilon"),
        ({"runs": {"models": []}}, r"runs\.models"),
        ({"runs": {"configurations": ["abc"]}}, r"runs\.configurations"),
        ({"server": "abcd"}, "server"),
        ({"client": "../up"}, "client"),
        ({"trust": True}, "trust"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, sections, named):
    with pytest.raises(ConfigError, match=named):
        load_policy(written(tmp_path / "p.toml", **sections))


@pytest.mark.parametrize("missing", ["budget", "floors", "runs", "server", "client"])
def test_what_protects_an_owner_has_no_default(tmp_path, missing):
    values = policy_values("site-0", SERVER)
    del values[missing]
    (tmp_path / "p.toml").write_text(tomli_w.dumps(values))
    with pytest.raises(ConfigError, match=missing):
        load_policy(tmp_path / "p.toml")


def test_figures_without_noise_need_the_owners_word():
    values = policy_values("site-0", SERVER, floors={"exact_figures": False})
    floors = AgentPolicy.model_validate(values).floors
    with pytest.raises(LocalProtocolError, match="exact_figures"):
        floors.of(figures=True)
    assert floors.of(figures=False).mechanisms == ("distributed",)


def test_the_cohort_floors_hold_for_figures_too():
    floors = AgentPolicy.model_validate(policy_values("site-0", SERVER)).floors.of(figures=True)
    assert (floors.min_clients, floors.min_threshold, floors.mechanisms) == (3, 2, ("none",))
    assert not floors.allow_plaintext


def test_only_listed_run_files_and_models_are_taken():
    policy = AgentPolicy.model_validate(policy_values("site-0", SERVER))
    policy.check_run("0" * 64, "0" * 64)
    with pytest.raises(LocalProtocolError, match=r"runs\.configurations"):
        policy.check_run("1" * 64, "0" * 64)
    with pytest.raises(LocalProtocolError, match=r"runs\.models"):
        policy.check_run("0" * 64, "1" * 64)


@pytest.mark.parametrize("mode", [0o664, 0o606, 0o622])
def test_a_policy_that_others_can_write_is_refused(tmp_path, mode):
    path = written(tmp_path / "p.toml")
    path.chmod(0o644)
    load_policy(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod go-w"):
        load_policy(path)


def test_a_policy_of_another_user_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path / "p.toml")
    path.chmod(0o644)
    here = path.stat().st_uid
    monkeypatch.setattr("securefed.operations.private_folder.os.getuid", lambda: here + 1)
    if here == 0:  # root may have written it for the agent's user
        load_policy(path)
        os.chown(path, here + 2, -1)
    with pytest.raises(ConfigError, match="nobody but this user and root"):
        load_policy(path)
