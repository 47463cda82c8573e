"""Layers of noise: the excess leaves the sum to the bit, and no other layer is ever opened."""

import copy
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from secagg_probe import body_of, dealing, resigned
from secagg_rounds import Cohort, drive, left_in, seeds_of

from securefed.config import Stage
from securefed.crypto.prg import SeededNoiseGeneratorForTests, system_random
from securefed.crypto.shamir import SHARE_BYTES
from securefed.errors import (
    ConfigError,
    LocalProtocolError,
    RemoteProtocolError,
    ThresholdNotMet,
    WireError,
)
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets
from securefed.secagg.aggregator import Outgoing
from securefed.secagg.messages import Advertisement, Reveal
from securefed.secagg.noise_layers import NoiseLayers, chain, layers_commitment
from securefed.secagg.pairwise_client import PairwiseClient
from securefed.secagg.pairwise_server import PairwiseServer
from securefed.secagg.recovery import Holders

SIZE, MOST = 10, 3  # at most three of ten may be missing; one is corrupt; threshold 6


def layered(**changes) -> Cohort:
    base = {"size": SIZE, "corrupt": 0.1, "dropout": 0.3, "noise": 400.0, "length": 30}
    return Cohort(**(base | changes))


@pytest.mark.parametrize("missing", range(MOST + 1))
@pytest.mark.parametrize("stage", ["advertise", "share", "masked_input"])
def test_what_is_left_is_the_inputs_and_the_layers_that_are_needed_to_the_bit(missing, stage):
    cohort = layered(bits=27)
    clients = {name: cohort.client(name) for name in cohort.names}
    seeds = seeds_of(clients)
    drop = dict.fromkeys(cohort.names[2 : 2 + missing], stage)
    result = drive(cohort, clients=clients, drop=drop).server.result
    assert len(result.survivors) == SIZE - missing
    np.testing.assert_array_equal(result.total, left_in(cohort, seeds, result.survivors, missing))
    if missing != MOST:  # the check can fail: one layer more or less is another sum
        wrong = left_in(cohort, seeds, result.survivors, missing + 1)
        assert (result.total != wrong).any()


@pytest.mark.parametrize("stage", ["consistency", "unmask"])
def test_the_excess_of_a_survivor_that_falls_silent_is_removed_through_its_shares(stage):
    cohort = layered()
    clients = {name: cohort.client(name) for name in cohort.names}
    seeds = seeds_of(clients)
    drop: dict[str, Stage] = {"c001": "masked_input", "c004": stage, "c008": stage}
    result = drive(cohort, clients=clients, drop=drop).server.result
    assert {"c004", "c008"} < set(result.survivors)
    np.testing.assert_array_equal(result.total, left_in(cohort, seeds, result.survivors, 1))


def revealed(outcome) -> dict[str, Reveal]:
    size = outcome.server._context.parameters.size
    excess = outcome.server._missing < len(outcome.server._context.noise_layers)
    return {
        name: Reveal.decode(body_of(message), size=size, limit=size, excess=excess)
        for name, message in outcome.sent["unmask"].items()
    }


@pytest.mark.parametrize("missing", range(MOST + 1))
def test_only_the_first_needless_seed_of_survivors_is_revealed(missing):
    cohort = layered()
    clients = {name: cohort.client(name) for name in cohort.names}
    seeds = seeds_of(clients)
    dealt: dict[str, dict[int, tuple[bytes, ...]]] = {}

    def note(stage, name, reply):
        if stage == "unmask":  # shares are forgotten once they are revealed
            dealt[name] = dict(clients[name]._secrets.shares)
        return reply

    drop = dict.fromkeys(cohort.names[:missing], "masked_input")
    outcome = drive(cohort, clients=clients, drop=drop, meddle_down=note)
    context = cohort.context()
    survivors = {context.index(name) for name in outcome.server.result.survivors}
    for name, reveal in revealed(outcome).items():
        if missing == MOST:
            assert reveal.layer_shares == {}
            continue
        assert reveal.layer_shares.keys() == survivors
        for owner, share in reveal.layer_shares.items():
            assert share == dealt[name][owner][2 + missing]
            assert share not in dealt[name][owner][2 : 2 + missing]
    if missing < MOST:
        owner = min(survivors)
        links = chain(seeds[cohort.names[owner]], context.digest, owner, MOST)
        holders = Holders(context.parameters.threshold)
        opened = holders.secret(
            {context.index(n): r.layer_shares[owner] for n, r in revealed(outcome).items()},
            partial(layers_commitment, digest=context.digest, index=owner, count=MOST - missing),
            Advertisement.decode(
                body_of(outcome.sent["advertise"][cohort.names[owner]]), noise_layers=MOST
            ).layers_commitment,
            owner,
            "its owner",
        )
        assert opened == links[missing]


class TakesTheServersWord(PairwiseClient):
    """A client whose count of the missing is the server's: the check that is to be shown."""

    told = 0

    def _excess_shares(self) -> dict[int, bytes]:
        self._missing = self.told
        return super()._excess_shares()


class Greedy(PairwiseServer):
    """Asks for the seeds of a full cohort whoever is missing."""

    @property
    def _missing(self) -> int:
        return 0


@pytest.mark.parametrize("careless", [False, True])
def test_a_server_cannot_have_an_earlier_seed_than_the_list_opens(careless):
    """With clients that take its word the honest noise falls below what is stated."""
    cohort = layered(length=4_000)
    cohort.inputs = dict.fromkeys(cohort.names, np.zeros(4_000, dtype=np.uint32))
    clients = {name: cohort.client(name) for name in cohort.names}
    if careless:
        for client in clients.values():
            client.__class__ = TakesTheServersWord
    drop = dict.fromkeys(cohort.names[:MOST], "masked_input")
    outcome = drive(cohort, clients=clients, drop=drop, server=Greedy(cohort.context()))
    if careless:
        assert (outcome.server.result.total == 0).all()  # every layer is gone
    else:
        assert outcome.server._reveals == {}
        assert isinstance(outcome.ended, ThresholdNotMet)
        assert all(isinstance(error, WireError) for error in outcome.refused.values())


class Gathering(PairwiseServer):
    """Passes on signatures on any list, and keeps every answer."""

    def _add_confirmation(self, sender: int, client_id: str, body: bytes) -> None:
        self._confirmations[sender] = body

    def _confirm(self, present):
        everyone = wire_messages.encode_confirmations(
            {i: self._confirmations[i] for i in range(SIZE - 1)}
        )
        return Outgoing(self._names(present), lambda name: everyone)

    def _add_reveal(self, sender: int, client_id: str, body: bytes) -> None:
        self._reveals[sender] = Reveal.decode(body, size=SIZE, limit=SIZE, excess=True)

    def _unmask(self) -> None:
        """Only the answers are of interest."""


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("told_short", [1, 4, 8])
def test_two_lists_do_not_open_seeds_of_two_numbers(told_short, checked, monkeypatch):
    """Some are told that the last client dropped; unchecked signatures would open both seeds."""
    if not checked:
        monkeypatch.setattr(
            round_secrets, "survivors_statement", lambda digest, view, survivors: digest + view
        )
    cohort = layered()
    short = wire_messages.encode_survivors(list(range(SIZE - 1)), size=SIZE)
    held = {}

    def split(stage, name, reply):
        if stage == "unmask":
            held[name] = dict(clients[name]._secrets.shares)
        lied_to = stage == "consistency" and name in cohort.names[:told_short]
        return short if lied_to else reply

    clients = {name: cohort.client(name) for name in cohort.names}
    outcome = drive(cohort, clients=clients, meddle_down=split, server=Gathering(cohort.context()))
    numbers = set()
    for sender, reveal in outcome.server._reveals.items():
        own = held[cohort.names[sender]]
        numbers |= {own[i].index(s) - 1 for i, s in reveal.layer_shares.items()}
    assert numbers == (set() if checked else {1, 2})
    if checked:
        assert all("does not verify" in str(error) for error in outcome.refused.values())


def test_a_client_answers_one_list_and_then_nothing():
    cohort = layered()
    outcome = drive(cohort)
    client = outcome.clients["c000"]
    again = wire_messages.encode_survivors(list(range(SIZE - 1)), size=SIZE)
    with pytest.raises(RemoteProtocolError, match="no message is accepted"):
        client.handle(again)
    assert client._layers is None
    assert client._secrets is None


def test_below_the_floor_nothing_is_opened():
    cohort = layered()
    drop = dict.fromkeys(cohort.names[: MOST + 1], "masked_input")
    outcome = drive(cohort, drop=drop)
    assert isinstance(outcome.ended, ThresholdNotMet)
    assert "unmask" not in outcome.sent
    outcome = drive(cohort, until="masked_input")
    few = wire_messages.encode_survivors(list(range(SIZE - MOST - 1)), size=SIZE)
    with pytest.raises(ThresholdNotMet):
        outcome.clients["c000"].handle(few)


def test_fewer_shares_than_the_threshold_open_no_seed():
    cohort = layered()
    kept = {}

    def keep(stage, name, reply):
        if stage == "unmask":
            kept[name] = dict(clients[name]._secrets.shares)
        return reply

    clients = {name: cohort.client(name) for name in cohort.names}
    seeds = seeds_of(clients)
    drive(cohort, clients=clients, meddle_down=keep)
    context = cohort.context()
    threshold = context.parameters.threshold
    promised = layers_commitment(seeds["c000"], context.digest, 0, MOST)
    commitment = partial(layers_commitment, digest=context.digest, index=0, count=MOST)
    shares = {context.index(name): held[0][2] for name, held in kept.items()}
    few = dict(list(shares.items())[: threshold - 1])
    with pytest.raises(ThresholdNotMet):
        Holders(threshold).secret(few, commitment, promised, 0, "c000")
    # Nor do they tell anything: with one share less the secret may be any.
    with pytest.raises(RemoteProtocolError):
        Holders(threshold - 1).secret(few, commitment, promised, 0, "c000")
    found = Holders(threshold).secret(shares, commitment, promised, 0, "c000")
    assert found == seeds["c000"]


def lying_about_layers(cohort: Cohort, liars: set[str]):
    def meddle(stage, name, message):
        if stage != "unmask" or name not in liars:
            return message
        honest = Reveal.decode(body_of(message), size=SIZE, limit=SIZE, excess=True)
        wrong = dict.fromkeys(honest.layer_shares, bytes(SHARE_BYTES - 1) + b"\7")
        changed = replace(honest, layer_shares=wrong)
        return resigned(cohort, cohort.context(), name, "unmask", changed.encode())

    return meddle


def test_wrong_shares_of_a_layer_are_corrected_and_named():
    cohort = layered()
    clients = {name: cohort.client(name) for name in cohort.names}
    seeds = seeds_of(clients)
    meddle = lying_about_layers(cohort, {"c003"})
    outcome = drive(cohort, clients=clients, meddle_up=meddle)
    result = outcome.server.result
    np.testing.assert_array_equal(result.total, left_in(cohort, seeds, result.survivors, 0))
    assert {holder for holder, _ in outcome.server.wrong_shares} == {"c003"}


@pytest.mark.parametrize("to", ["some", "all"])
def test_a_dealer_of_wrong_layer_shares_is_spared_or_named(to):
    cohort = layered()
    clients = {name: cohort.client(name) for name in cohort.names}
    seeds = seeds_of(clients)

    def deal(original, other, shares, *keys_):
        wrong = shares[: 2 * SHARE_BYTES] + (bytes(SHARE_BYTES - 1) + b"\7") * MOST
        return original(other, wrong if to == "all" or other in (4, 6) else shares, *keys_)

    dealing(clients["c002"], deal)
    outcome = drive(cohort, clients=clients)
    if to == "some":
        result = outcome.server.result
        np.testing.assert_array_equal(result.total, left_in(cohort, seeds, result.survivors, 0))
        assert set(outcome.server.wrong_shares) == {("c004", "c002"), ("c006", "c002")}
    else:
        assert isinstance(outcome.ended, RemoteProtocolError)
        assert "'c002'" in str(outcome.ended)


def test_a_seed_from_another_chain_is_refused_though_its_shares_agree():
    """c002 shares, consistently, seeds that its commitment does not hold for."""
    cohort = layered()
    clients = {name: cohort.client(name) for name in cohort.names}
    promised = clients["c002"]._layers.commitment()
    clients["c002"]._layers._seed = system_random(32)
    layers = clients["c002"]._layers
    assert promised != layers.commitment()
    starts = clients["c002"].start

    def start():
        clients["c002"]._layers = type("Old", (), {"commitment": lambda self: promised})()
        message = starts()
        clients["c002"]._layers = layers
        return message

    clients["c002"].start = start
    outcome = drive(cohort, clients=clients)
    assert isinstance(outcome.ended, RemoteProtocolError)
    assert "'c002'" in str(outcome.ended)


def test_a_chain_runs_one_way_and_is_each_clients_own():
    seed, digest = b"s" * 32, b"d" * 32
    links = chain(seed, digest, 1, 5)
    assert links == chain(seed, digest, 1, 9)[:5]
    assert chain(links[2], digest, 1, 3) == links[2:]
    others = [chain(b"S" * 32, digest, 1, 5), chain(seed, b"D" * 32, 1, 5)]
    others.append(chain(seed, digest, 2, 5))
    assert len({*links, *(link for other in others for link in other[1:])}) == 5 + 12
    commitments = {layers_commitment(link, digest, 1, 5 - k) for k, link in enumerate(links)}
    assert len(commitments) == 1
    assert layers_commitment(links[1], digest, 1, 5) not in commitments
    assert layers_commitment(seed, digest, 2, 5) not in commitments
    assert layers_commitment(seed, b"D" * 32, 1, 5) not in commitments


def test_layers_are_neither_pickled_nor_copied_nor_shown_nor_added_twice():
    cohort = layered()
    layers = NoiseLayers(cohort.context(), "c001", system_random)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds a secret"):
            attempt(layers)
    assert repr(layers) == "<NoiseLayers>"
    assert not layers.added
    layers.noise()
    assert layers.added
    with pytest.raises(LocalProtocolError, match="added to a vector already"):
        layers.noise()
    layers.seeds()
    with pytest.raises(LocalProtocolError, match="shared in a round already"):
        layers.seeds()


def test_a_contribution_without_the_layers_noise_does_not_leave():
    """Else noise that was never added would be subtracted."""
    cohort = layered()
    context = cohort.context()
    layers = NoiseLayers(context, "c001", system_random)
    clients = {name: cohort.client(name) for name in cohort.names}
    clients["c001"] = PairwiseClient(
        context, "c001", cohort.identities["c001"], lambda: cohort.inputs["c001"], layers=layers
    )
    outcome = drive(cohort, clients=clients)
    assert isinstance(outcome.refused["c001"], LocalProtocolError)
    assert "c001" not in outcome.server.result.survivors


def test_a_client_needs_its_own_layers_where_there_are_some_and_nowhere_else():
    cohort, bare = layered(), layered(noise=0.0)
    context = cohort.context()
    make = partial(PairwiseClient, contribution=lambda: cohort.inputs["c001"])
    identity = cohort.identities["c001"]
    with pytest.raises(LocalProtocolError, match=r"layers: none given.*3 layers"):
        make(context, "c001", identity)
    mine = NoiseLayers(context, "c001", system_random)
    with pytest.raises(LocalProtocolError, match="layers: some given"):
        make(bare.context(), "c001", bare.identities["c001"], layers=mine)
    for other in (
        NoiseLayers(context, "c002", system_random),
        NoiseLayers(cohort.context(session=b"o" * 16), "c001", system_random),
    ):
        with pytest.raises(LocalProtocolError, match="another"):
            make(context, "c001", identity, layers=other)


def test_a_context_refuses_layers_that_do_not_fit_and_binds_those_that_do():
    cohort = layered()
    context = cohort.context()
    stds = context.noise_layers
    with pytest.raises(ConfigError, match="must be one for each of the 3"):
        replace(context, noise_layers=stds[:2])
    with pytest.raises(ConfigError, match="sparse"):
        Cohort(size=13, degree=6, dropout=0.25, noise=400.0).context()
    digests = {
        replace(context, noise_layers=layers).digest
        for layers in ((), stds, (stds[0] * 1.001, *stds[1:]))
    }
    assert len(digests) == 3


def test_randomness_is_an_argument():
    context = layered().context()
    made = [
        NoiseLayers(context, "c001", SeededNoiseGeneratorForTests(seed).bytes) for seed in (1, 1, 2)
    ]
    noises = [layers.noise() for layers in made]
    np.testing.assert_array_equal(noises[0], noises[1])
    assert (noises[0] != noises[2]).any()
