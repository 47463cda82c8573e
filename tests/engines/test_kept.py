"""``check_kept``, which every fault is held to, finds what a fault must not do."""

import shutil
from pathlib import Path

import pytest
from deployed import DirectCourier, write_deployment
from fault_matrix import check_adapter, check_kept

from securefed.engines.events import Silent
from securefed.engines.remote_federation import federate
from securefed.evidence.ledger import read_ledger


def test_it_finds_a_charge_that_is_missing_and_an_adapter_that_is_another(tmp_path):
    world = write_deployment(tmp_path, clients=3, training={"rounds": 1})
    agents = {
        100 + place: world.agent(name, floors={"exact_figures": False})
        for place, name in enumerate(sorted(world.identities))
    }
    courier = DirectCourier({node: agent.handle for node, agent in agents.items()})
    federate(world.deployment, courier, observer=Silent())
    run = Path(world.deployment.out)
    roster = tmp_path / "roster.public.json"
    roster.write_text(world.roster.to_text())
    accounts = {name: tmp_path / "accounts" / name for name in world.identities}

    def kept(sent=()):
        return check_kept(run, accounts, roster=roster, sent=sent, rounds=1)

    assert kept() == (
        "verified; survivors 3 of 3; charged at home / at the server's copy 1/1, 1/1, 1/1"
    )
    with pytest.raises(AssertionError):  # something left an agent that nobody counted
        kept(sent=[("ab" * 16, "site-1")])
    with pytest.raises(AssertionError):
        check_adapter(run, read_ledger(run / "ledger.jsonl")[0].body["adapter_sha256"])
    lost = next(path for path in accounts["site-1"].glob("*.jsonl") if len(path.stem) == 32)
    shutil.move(lost, tmp_path / "lost")
    with pytest.raises(AssertionError, match="site-1"):
        kept()
