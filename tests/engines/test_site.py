"""What a client's site asks of its data on a server's behalf."""

from dataclasses import replace

import torch
from deployed import write_deployment
from safetensors.torch import save

from securefed.federation.invitations import Invitation
from securefed.lora.adapter import adapter_state, state_hash


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
