"""What a client's site asks of its data on a server's behalf."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from deployed import write_deployment
from safetensors.torch import load, save

from securefed.agent.example import example_policy
from securefed.config import load_config
from securefed.crypto.prg import NoiseGenerator
from securefed.errors import LedgerTampered, RemoteProtocolError
from securefed.federation.invitations import Invitation
from securefed.lora.adapter import adapter_state, state_hash


def asked(world, site, **changed):
    values = {
        "run": bytes(16),
        "ledger": bytes(32),
        "round": 1,
        "session": b"a" * 16,
        "figures": False,
        "sizes": dict.fromkeys(sorted(world.identities), site.size),
        "noise_multiplier": 0.8,
        "fractions": (),
        "adapter": save(site._first),
    }
    return Invitation(**(values | changed))


SCAFFOLD = {
    "privacy": {"unit": "client", "noise_multiplier": 0.8},
    "training": {"control_weight": 0.5, "local_optimizer": "sgd", "local_steps": 2},
}


def test_a_control_that_does_not_fit_the_run_file_is_refused(tmp_path):
    world = write_deployment(tmp_path, **SCAFFOLD)
    site = world.site("site-0")
    length = site._bench.dimension
    good = torch.zeros(length, dtype=torch.float64)
    site.round(asked(world, site, control=save({"control": good})), world.roster.clients)
    for control in (
        b"",
        b"garbage",
        save({"control": good.float()}),
        save({"control": good[:-1].clone()}),
        save({"control": torch.full_like(good, torch.inf)}),
        save({"control": good, "more": good.clone()}),
    ):
        with pytest.raises(RemoteProtocolError, match="control"):
            site.round(asked(world, site, control=control), world.roster.clients)


def test_a_control_where_the_run_file_has_none_is_refused(tmp_path):
    world = write_deployment(tmp_path, privacy={"unit": "client"})
    site = world.site("site-0")
    control = save({"control": torch.zeros(site._bench.dimension, dtype=torch.float64)})
    with pytest.raises(RemoteProtocolError, match="the run file has none"):
        site.round(asked(world, site, control=control), world.roster.clients)


def test_a_factor_that_clients_keep_is_never_the_servers(tmp_path):
    """A server that sends a B of its choice has no one train on it or measure it."""
    world = write_deployment(tmp_path, lora={"sharing": "fedsa"}, privacy={"unit": "client"})
    site, roster = world.site("site-0"), world.roster.clients
    chosen = {
        name: torch.full_like(value, 0.5) if "lora_B" in name else value
        for name, value in site._first.items()
    }
    for figures in (False, True):
        session, _ = site.round(asked(world, site, adapter=save(chosen), figures=figures), roster)
        own = adapter_state(site._bench.model)
        assert all(not own[name].any() for name in own if "lora_B" in name)
        plain, _ = site.round(asked(world, site, figures=figures), roster)
        assert session.context.digest == plain.context.digest


def test_what_an_attempt_made_that_was_never_charged_is_not_a_later_one_s(tmp_path):
    """A server that has a client train, asks for nothing, and then sends what nobody can train."""
    world = write_deployment(tmp_path, lora={"sharing": "fedsa"}, privacy={"unit": "client"})
    site, roster = world.site("site-0"), world.roster.clients
    begun = site.kept()
    session, encode = site.round(asked(world, site), roster)
    encode(session.codec, NoiseGenerator())
    assert site.kept() != begun
    far = {name: torch.full_like(value, 3e38) for name, value in site._first.items()}
    again = asked(world, site, session=b"b" * 16, adapter=save(far))
    session, encode = site.round(again, roster)
    encode(session.codec, NoiseGenerator())
    assert site._bench.saw_non_finite
    assert site.kept() == begun


def test_a_kept_state_of_another_run_is_refused(tmp_path):
    world = write_deployment(tmp_path, **SCAFFOLD)
    site = world.site("site-0")
    whole = site.kept()
    site.take(whole)
    for wrong in (
        b"garbage",
        save({"state/control": torch.zeros(3, dtype=torch.float64)}),
        save({"control": torch.zeros(3)}),
        save({"personal/w": torch.zeros(3)}),
        save(load(whole) | {"more": torch.zeros(3)}),
    ):
        with pytest.raises(LedgerTampered):
            site.take(wrong)
    assert site.kept() == whole


def test_gradients_are_never_checked_at_an_adapter_of_the_servers(tmp_path, monkeypatch):
    world = write_deployment(tmp_path, privacy={"noise_multiplier": None, "target_epsilon": 50.0})
    site, bench = (found := world.site("site-0")), found._bench
    first = adapter_state(bench.model)
    seen = []
    real = bench.check_gradients
    monkeypatch.setattr(
        bench,
        "check_gradients",
        lambda settings: (seen.append(state_hash(adapter_state(bench.model))), real(settings)),
    )
    chosen = {name: torch.full_like(value, 0.01) for name, value in first.items()}
    invitation = Invitation(
        run=bytes(16), ledger=bytes(32), round=1, session=b"a" * 16, figures=False,
        sizes=dict.fromkeys(sorted(world.identities), site.size), noise_multiplier=2.0,
        fractions=(), adapter=save(chosen),
    )  # fmt: skip
    for noise in (2.0, 3.0):
        site.round(replace(invitation, noise_multiplier=noise), world.roster.clients)
        assert state_hash(adapter_state(bench.model)) == state_hash(chosen)
    assert seen == [state_hash(first)] * 2


LOCAL = {"mechanism": "local", "noise_multiplier": 0.8}


@pytest.mark.parametrize(
    "privacy",
    [
        {},
        LOCAL,
        {"unit": "client"},
        {"unit": "client", "mechanism": "none", "noise_multiplier": None},
    ],
    ids=["examples", "local", "clients", "none"],
)
def test_an_example_policy_takes_part_in_the_run_that_it_is_written_for(tmp_path, privacy):
    world = write_deployment(tmp_path, privacy=privacy)
    site, config = world.site("site-0"), load_config(world.run_file)
    policy = example_policy(
        config,
        client="site-0",
        server=world.server.public.raw.hex(),
        digest=site.config,
        model=site.model,
    )
    quiet = config.privacy.mechanism == "none"
    noise = 0.0 if quiet else config.privacy.noise_multiplier or 0.0
    session, _ = site.round(asked(world, site, noise_multiplier=noise), world.roster.clients)
    policy.floors.of(figures=False).check(session)


def test_two_attempts_at_a_round_share_neither_noise_nor_sample(tmp_path):
    world = write_deployment(tmp_path, privacy=LOCAL)
    site = world.site("site-0")
    sums = []
    for name in (b"a" * 16, b"b" * 16):
        session, encode = site.round(asked(world, site, session=name), world.roster.clients)
        vector = encode(session.codec, NoiseGenerator())
        sums.append(session.codec.decode(vector))
        scale = session.plan.resolution
    assert np.abs(sums[0] - sums[1]).max() > 1000 * scale  # not the rounding: it is one grid step
