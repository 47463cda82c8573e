"""What a client's site asks of its data on a server's behalf."""

from dataclasses import replace

import pytest
import torch
from deployed import write_deployment
from safetensors.torch import save

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
