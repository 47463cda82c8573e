"""Clients that misbehave: an honest server and honest clients refuse, name them, and never err."""

import numpy as np
import pytest
from secagg_probe import dealing
from secagg_rounds import COMPLETE_STAGES, Cohort, drive

from securefed.crypto.keys import HybridPrivateKey
from securefed.crypto.prg import system_random
from securefed.crypto.shamir import SHARE_BYTES
from securefed.errors import RemoteProtocolError, WireError
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.graph import Graph
from securefed.secagg.messages import Bundle, Reveal
from securefed.secagg.pairwise_server import PairwiseServer
from securefed.secagg.signed import Signed, signing_input


def resigned(cohort: Cohort, name: str, stage: str, body: bytes) -> bytes:
    """What a malicious client would send: another body under its own good signature."""
    index = cohort.names.index(name)
    signature = cohort.identities[name].sign(
        signing_input(cohort.context().digest, index, body), label=keys.stage_label(stage)
    )
    return Signed(index, body, signature).encode()


def body_of(message: bytes) -> bytes:
    return Signed.decode(message, limit=len(message)).body


@pytest.mark.parametrize("stage", COMPLETE_STAGES)
@pytest.mark.parametrize("corruption", ["flip", "truncate", "extend", "empty"])
def test_a_corrupted_message_is_refused_and_the_round_goes_on(stage, corruption):
    cohort = Cohort(size=6, length=9)

    def corrupt(at, name, message):
        if at != stage or name != "c004":
            return message
        middle = len(message) // 2
        return {
            "flip": message[:middle] + bytes([message[middle] ^ 1]) + message[middle + 1 :],
            "truncate": message[:-1],
            "extend": message + b"\0",
            "empty": b"",
        }[corruption]

    outcome = drive(cohort, meddle_up=corrupt)
    assert isinstance(outcome.refused["c004"], RemoteProtocolError)
    result = outcome.server.result
    np.testing.assert_array_equal(result.total, cohort.plain_sum(result.survivors))


@pytest.mark.parametrize("stage", COMPLETE_STAGES)
def test_a_second_message_in_one_stage_is_refused(stage):
    cohort = Cohort(size=5, length=9)
    outcome = drive(cohort, until=stage)
    with pytest.raises(RemoteProtocolError, match="already sent"):
        outcome.server.receive("c001", outcome.sent[stage]["c001"])


def test_a_client_cannot_speak_for_another():
    cohort = Cohort(size=5)
    server = PairwiseServer(cohort.context())
    message = cohort.client("c001").start()
    with pytest.raises(RemoteProtocolError, match="speaks as client number 1"):
        server.receive("c000", message)


def test_a_stage_message_is_not_accepted_in_another_stage():
    cohort = Cohort(size=5)
    outcome = drive(cohort, until="advertise")
    outcome.server.advance()
    with pytest.raises(RemoteProtocolError):
        outcome.server.receive("c001", outcome.sent["advertise"]["c001"])


def test_a_replay_from_another_session_is_refused():
    cohort = Cohort(size=5)
    old = drive(cohort, until="advertise").sent["advertise"]["c001"]
    server = PairwiseServer(cohort.context(session=b"n" * 16))
    with pytest.raises(RemoteProtocolError):
        server.receive("c001", old)


@pytest.mark.parametrize("kind", ["self", "root"])
def test_a_few_wrong_shares_are_spared_and_named(kind):
    cohort = Cohort(size=8)  # threshold 5, so that one liar of seven can be spared
    lie = lying(cohort, {"c001"}, kind)
    outcome = drive(cohort, meddle_up=lie, drop={"c006": "masked_input"})
    result = outcome.server.result
    np.testing.assert_array_equal(result.total, cohort.plain_sum(result.survivors))
    owner = "c000" if kind == "self" else "c006"
    assert outcome.server.wrong_shares == (("c001", owner),)


def test_a_dealer_of_wrong_shares_does_not_get_their_holders_shut_out():
    """c000 deals c001 and c002 shares of something else; both reveal what they were dealt."""
    cohort = Cohort(size=9)  # threshold 5
    clients = {name: cohort.client(name) for name in cohort.names}

    def deal(original, other, shares, mask_key, envelope_key):
        wrong = bytes([0] * 32 + [7]) * 2
        return original(other, wrong if other in (1, 2) else shares, mask_key, envelope_key)

    dealing(clients["c000"], deal)
    outcome = drive(cohort, clients=clients)
    result = outcome.server.result
    np.testing.assert_array_equal(result.total, cohort.plain_sum(result.survivors))
    assert set(outcome.server.wrong_shares) == {("c001", "c000"), ("c002", "c000")}


def test_a_dealer_of_wrong_shares_to_everyone_ends_the_round_and_is_named():
    cohort = Cohort(size=9)
    clients = {name: cohort.client(name) for name in cohort.names}
    dealing(
        clients["c000"],
        lambda original, other, shares, *keys_: original(other, bytes(SHARE_BYTES * 2), *keys_),
    )
    outcome = drive(cohort, clients=clients)
    assert isinstance(outcome.ended, RemoteProtocolError)
    assert "'c000'" in str(outcome.ended)


def test_wrong_shares_of_several_holders_are_corrected():
    cohort = Cohort(size=15)  # threshold 8: three of fourteen can be corrected
    lie = lying(cohort, {"c001", "c004", "c009"}, "self")
    outcome = drive(cohort, meddle_up=lie, drop={"c006": "masked_input"})
    result = outcome.server.result
    np.testing.assert_array_equal(result.total, cohort.plain_sum(result.survivors))
    assert {holder for holder, _ in outcome.server.wrong_shares} == {"c001", "c004", "c009"}


def test_a_mask_key_that_does_not_follow_from_the_root_is_named():
    """c002 advertises another mask key than its root gives, shares, and falls silent."""
    cohort = Cohort(size=8)
    clients = {name: cohort.client(name) for name in cohort.names}
    original = keys.mask_key_pair

    def other(root, digest, index):
        return HybridPrivateKey.generate(system_random)

    keys.mask_key_pair = other
    try:
        hello = clients["c002"].start()
    finally:
        keys.mask_key_pair = original
    clients["c002"].start = lambda: hello
    outcome = drive(cohort, clients=clients, drop={"c002": "masked_input"})
    assert isinstance(outcome.ended, RemoteProtocolError)
    assert "'c002' advertised a mask key" in str(outcome.ended)


def test_an_edge_secret_that_does_not_open_is_named_by_receiver_and_server():
    cohort = Cohort(size=8)
    clients = {name: cohort.client(name) for name in cohort.names}
    stranger = HybridPrivateKey.generate(system_random).public

    def wrap(original, other, shares, mask_key, envelope_key):
        if other != 3:
            return original(other, shares, mask_key, envelope_key)
        good = original(other, shares, mask_key, envelope_key)
        edge = stranger.seal(bytes(32), info=b"nothing")
        unsigned = Bundle(good.envelope, edge, good.edge_commitment, b"")
        covered = unsigned.signed_part(
            sender=0, receiver=3, mask_key=mask_key.raw, envelope_key=envelope_key.raw
        )
        digest = cohort.context().digest
        signature = cohort.identities["c000"].sign(digest + covered, label=keys.SIGN_BUNDLE)
        return Bundle(good.envelope, edge, good.edge_commitment, signature)

    dealing(clients["c000"], wrap)
    outcome = drive(cohort, clients=clients)
    assert "bundle of 'c000'" in str(outcome.refused["c003"])
    assert "an edge secret of 'c000'" in str(outcome.ended)


def test_more_wrong_shares_than_can_be_spared_end_the_round_without_a_sum():
    cohort = Cohort(size=5)  # threshold 3
    outcome = drive(cohort, meddle_up=lying(cohort, {"c000", "c001", "c003"}, "self"))
    assert isinstance(outcome.ended, RemoteProtocolError)
    assert "does not match what it committed to" in str(outcome.ended)


def lying(cohort: Cohort, liars: set[str], kind: str):
    """Corrupt holders reveal altered shares of one kind, well signed."""

    def lie(stage, name, message):
        if stage != "unmask" or name not in liars:
            return message
        reveal = Reveal.decode(body_of(message), size=cohort.size, limit=cohort.size)
        wrong = cohort.names.index(name) + 12345
        bad = wrong.to_bytes(SHARE_BYTES, "big")
        if kind == "self":
            changed = Reveal(dict.fromkeys(reveal.self_shares, bad), reveal.root_shares)
        else:
            changed = Reveal(reveal.self_shares, dict.fromkeys(reveal.root_shares, bad))
        return resigned(cohort, name, stage, changed.encode())

    return lie


def test_shares_of_the_wrong_clients_are_refused():
    cohort = Cohort(size=5)

    def lie(stage, name, message):
        if stage != "unmask" or name != "c000":
            return message
        reveal = Reveal.decode(body_of(message), size=5, limit=5)
        moved = {4: reveal.self_shares.pop(4)}
        return resigned(cohort, name, stage, Reveal(reveal.self_shares, moved).encode())

    outcome = drive(cohort, meddle_up=lie)
    assert isinstance(outcome.refused["c000"], RemoteProtocolError)
    np.testing.assert_array_equal(
        outcome.server.result.total, cohort.plain_sum(outcome.server.result.survivors)
    )


def test_both_kinds_of_share_of_one_client_do_not_decode():
    share = bytes(SHARE_BYTES)
    with pytest.raises(WireError, match="both kinds"):
        Reveal.decode(Reveal({1: share}, {1: share}).encode(), size=5, limit=5)


def test_an_edge_secret_that_breaks_its_commitment_is_named():
    """c000 wraps one secret and commits to another: c003 refuses and names it."""
    cohort = Cohort(size=5)
    digest = cohort.context().digest

    def cheat(stage, name, message):
        if stage != "share" or name != "c000":
            return message
        graph = Graph.complete(5)
        with_edge = {other: graph.gives(0, other) for other in range(1, 5)}
        bundles = wire_messages.decode_shares(body_of(message), with_edge=with_edge)
        good = bundles[3]
        advert = adverts[3]
        unsigned = Bundle(good.envelope, good.edge, bytes(32), b"")
        covered = unsigned.signed_part(
            sender=0, receiver=3, mask_key=advert.mask_key, envelope_key=advert.envelope_key
        )
        signature = cohort.identities[name].sign(digest + covered, label=keys.SIGN_BUNDLE)
        bundles[3] = Bundle(good.envelope, good.edge, bytes(32), signature)
        return resigned(cohort, name, stage, wire_messages.encode_shares(bundles))

    adverts: dict[int, wire_messages.Advertisement] = {}

    def watch(stage, name, reply):
        if stage == "share":
            for signed in wire_messages.decode_advertised(reply, size=5):
                adverts[signed.sender] = wire_messages.Advertisement.decode(signed.body)
        return reply

    outcome = drive(cohort, meddle_up=cheat, meddle_down=watch)
    assert "'c000'" in str(outcome.refused["c003"])
    # c003 is gone, and what others masked towards it cannot be explained: no sum, c000 is named.
    assert isinstance(outcome.ended, RemoteProtocolError)
    assert "'c000'" in str(outcome.ended)


def test_an_input_of_the_wrong_length_is_refused():
    cohort = Cohort(size=5)

    def stretch(stage, name, message):
        if stage != "masked_input" or name != "c000":
            return message
        return resigned(cohort, name, stage, body_of(message)[:-4])

    outcome = drive(cohort, meddle_up=stretch)
    assert isinstance(outcome.refused["c000"], RemoteProtocolError)
