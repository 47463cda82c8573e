"""A run whose clients are elsewhere: agents of real tiny models, and bytes handed over."""

import json

import pytest
from deployed import DirectCourier, write_deployment

from securefed.encoding.wire import message_type
from securefed.engines.events import Silent
from securefed.engines.remote_federation import federate
from securefed.engines.verify import verified_run, verify_run
from securefed.errors import ConfigError, ThresholdNotMet
from securefed.evidence.budget import read_charges
from securefed.evidence.chain import line_of
from securefed.evidence.ledger import read_ledger
from securefed.federation.invitations import HEAD, encode_refusal


class Told(Silent):
    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


def started(world, **sections):
    names = sorted(world.identities)
    agents = {100 + i: world.agent(name, **sections) for i, name in enumerate(names)}
    return {node: agent.handle for node, agent in agents.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of two rounds; site-3 falls silent in the masked input's stage of the first."""
    world = write_deployment(tmp_path_factory.mktemp("remote"))
    rounds = []

    def lost(node, what):
        if what == "advertise":
            rounds.append(what) if node == 100 else None
        return node == 103 and what in ("masked_input", "consistency") and len(rounds) == 2

    # the first sum is of held-out figures; the second is round 1
    courier, told = DirectCourier(started(world), lost), Told()
    result = federate(
        world.deployment, courier, observer=told, clock=lambda: "2026-01-01T00:00:00Z"
    )
    return world, courier, told, result


def test_a_run_between_machines_trains_and_ends(finished):
    _, _, _, result = finished
    assert result.rounds == 2
    assert [event.survivors for event in result.events] == [4, 3, 4]
    assert result.after.perplexity < result.before.perplexity


def test_a_round_takes_one_message_stage_a_stage_of_the_protocol(finished):
    _, courier, _, _ = finished
    round_stages = ["advertise", "share", "masked_input", "consistency", "unmask"]
    # greeting, figures before, two rounds and their heads, figures after, the closing head
    expected = ["hello", *round_stages, *[*round_stages, "head"] * 2, *round_stages, "head"]
    assert courier.stages == expected


def test_its_folder_verifies_and_counts_one_that_never_answered(finished):
    _, _, _, result = finished
    verdict = verify_run(result.folder)
    assert verdict.finished
    summed = [
        r.body for r in read_ledger(result.folder / "ledger.jsonl") if r.kind == "round_summed"
    ]
    assert "site-3" in summed[0]["charged"]
    assert "site-3" not in summed[0]["survivors"]


def test_each_head_is_signed_by_the_clients_that_were_in_the_round(finished):
    _, _, told, result = finished
    heads = [head.signers for head in verified_run(result.folder).heads]
    everybody = ("site-0", "site-1", "site-2", "site-3")
    assert heads == [everybody[:3], everybody, everybody]
    assert not any("does not sign" in line for line in told.lines)


def test_each_owners_own_account_holds_every_round_that_it_sent(finished):
    world, _, _, result = finished
    sessions = {
        r.body["session"]: r.body
        for r in read_ledger(result.folder / "ledger.jsonl")
        if r.kind == "round_summed"
    }
    for name in world.identities:
        folder = world.folder / "accounts" / name
        own = {
            record.body["session"]
            for path in folder.glob("*.jsonl")
            if path.name != "total.jsonl" and not path.name.endswith(".head.json")
            for record in read_charges(path)
        }
        # site-3's agent was never reached in that stage: it spent nothing, the server counts it
        expected = {s for s, body in sessions.items() if name in body["survivors"]}
        assert own == expected, name


def test_a_run_file_that_only_a_simulation_carries_out_is_refused(tmp_path):
    world = write_deployment(
        tmp_path,
        cohort={"simulated_dropouts": [{"round": 1, "client": "site-0", "stage": "share"}]},
    )
    with pytest.raises(ConfigError, match=r"cohort\.simulated_dropouts"):
        federate(world.deployment, DirectCourier({}))


def test_owners_who_refuse_figures_without_noise_still_train(tmp_path):
    world, told = write_deployment(tmp_path, clients=3, training={"rounds": 1}), Told()
    agents = started(world, floors={"exact_figures": False})
    result = federate(world.deployment, DirectCourier(agents), observer=told)
    assert result.rounds == 1
    assert result.after.perplexity is None
    assert any("held-out figures after round 1: none" in line for line in told.lines)
    assert verify_run(result.folder).finished
    assert "floors.exact_figures" in world.logs["site-0"].getvalue()


def test_a_run_ends_without_spending_where_owners_ask_for_more_noise(tmp_path):
    world = write_deployment(tmp_path, clients=3)
    agents = started(world, floors={"min_noise_multiplier": 5.0})
    with pytest.raises(ThresholdNotMet):
        federate(world.deployment, DirectCourier(agents), observer=Silent())
    refusals = [json.loads(line) for line in world.logs["site-1"].getvalue().splitlines()]
    assert any("min_noise_multiplier" in each.get("why", "") for each in refusals)
    folder = world.folder / "accounts" / "site-1"
    assert [r.kind for r in read_ledger(folder / "total.jsonl")] == ["genesis"]


def test_a_run_whose_server_was_killed_goes_on(tmp_path):
    world = write_deployment(tmp_path, clients=3)
    agents = started(world)
    courier = DirectCourier(agents)
    seen = []

    def killed(node, what):
        if what == "advertise" and node == 100:
            seen.append(what)
        if len(seen) == 3 and what == "unmask":  # of round 2
            raise KeyboardInterrupt
        return False

    courier.lost = killed
    with pytest.raises(KeyboardInterrupt):
        federate(world.deployment, courier, observer=Silent())
    courier.lost = lambda node, what: False
    resumed = world.deployment.model_copy(update={"resume": True})
    told = Told()
    result = federate(resumed, courier, observer=told)
    assert not any("does not sign" in line for line in told.lines)
    assert (result.rounds, result.charges) == (2, 3)
    verdict = verify_run(result.folder)
    assert verdict.finished
    assert verdict.incomplete == []
    again = federate(resumed, courier, observer=Silent())
    assert again.rounds == 2


def test_a_ledger_that_was_rewritten_is_signed_by_no_client(tmp_path, monkeypatch):
    """The server shows other lines than those that stand; no agent puts its name to them."""
    world, told = write_deployment(tmp_path, clients=3, training={"rounds": 1}), Told()
    agents = started(world, floors={"exact_figures": False})
    monkeypatch.setattr(
        "securefed.engines.remote_witnesses.line_of",
        lambda record: line_of(record).replace(b'"survivors":["site-0"', b'"survivors":["site-9"'),
    )
    result = federate(world.deployment, DirectCourier(agents), observer=told)
    assert sum("does not sign" in line for line in told.lines) == 6
    assert (
        "hash" in world.logs["site-0"].getvalue() or "does not" in world.logs["site-0"].getvalue()
    )
    assert any("quorum missing" in why for why in verify_run(result.folder).incomplete)


def test_an_answer_that_was_lost_does_not_keep_a_client_from_signing_later(tmp_path):
    world, told = write_deployment(tmp_path, clients=3), Told()
    agents, lost = started(world, floors={"exact_figures": False}), []
    signs = agents[101]

    def forgets_to_send(request):
        reply = signs(request)
        if message_type(request) == HEAD and not lost:
            lost.append(reply)
            return encode_refusal("Lost")
        return reply

    agents[101] = forgets_to_send
    result = federate(world.deployment, DirectCourier(agents), observer=told)
    heads = [head.signers for head in verified_run(result.folder).heads]
    assert [len(each) for each in heads] == [2, 3, 3]


def test_a_kill_before_the_closing_record_was_signed_is_made_good(tmp_path):
    world = write_deployment(tmp_path, clients=3, training={"rounds": 1})
    courier, heads = DirectCourier(started(world, floors={"exact_figures": False})), []

    def killed(node, what):
        heads.append(what) if what == "head" and node == 100 else None
        if len(heads) == 2:
            raise KeyboardInterrupt
        return False

    courier.lost = killed
    with pytest.raises(KeyboardInterrupt):
        federate(world.deployment, courier, observer=Silent())
    folder = world.folder / "run"
    assert any("quorum missing" in why for why in verify_run(folder).incomplete)
    courier.lost = lambda node, what: False
    resumed = world.deployment.model_copy(update={"resume": True})
    assert federate(resumed, courier, observer=Silent()).rounds == 1
    assert verify_run(folder).incomplete == []
    stages = len(courier.stages)
    federate(resumed, courier, observer=Silent())
    assert len(courier.stages) == stages  # nothing is left to ask
