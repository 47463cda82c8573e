"""Encrypted rounds without masks: the sum, who is asked for what, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto.identity import IdentityKey
from securefed.errors import (
    ConfigError,
    LocalProtocolError,
    RemoteProtocolError,
    ThresholdNotMet,
    WireError,
)
from securefed.secagg.decryptor import Decryptor, DecryptorState
from securefed.secagg.encrypted_client import ClientState, EncryptedClient
from securefed.secagg.encrypted_server import EncryptedServer
from securefed.secagg.encryption import DECRYPTOR
from securefed.secagg.key_messages import decode_keys, encode_keys
from securefed.secagg.key_offer import Offer, Wrap, offer_limit
from securefed.secagg.signed import Signed
from tests.secagg_encrypted import EncryptedCohort, drive

ARRANGEMENTS = [("bfv", "decryptor"), ("bfv", "cohort"), ("ckks", "decryptor"), ("ckks", "cohort")]
STAGES_OF_CLIENTS = ("advertise", "share", "masked_input", "consistency", "unmask")


# -- the sum -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "key_holder"), ARRANGEMENTS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_the_sum_is_that_of_the_survivors_whoever_falls_silent_when(scheme, key_holder, data):
    size = data.draw(st.integers(3, 7))
    cohort = EncryptedCohort(
        size=size,
        length=data.draw(st.sampled_from([1, 7, 40, 9000])),
        value_bound=(2**19 - 1) // size,
        scheme=scheme,
        key_holder=key_holder,
        dropout=0.34,
        seed=data.draw(st.integers(0, 2**32)),
    )
    most = size - cohort.context().parameters.survivor_floor
    silent = data.draw(st.lists(st.sampled_from(cohort.names), max_size=most, unique=True))
    drop = {name: data.draw(st.sampled_from(STAGES_OF_CLIENTS)) for name in silent}
    outcome = drive(cohort, drop=drop)
    assert outcome.ended is None, outcome.ended
    expected = tuple(
        name
        for name in cohort.names
        if drop.get(name) not in ("advertise", "masked_input") and (drop.get(name) != "share")
    )
    result = outcome.server.result
    assert result.survivors == expected
    assert np.array_equal(result.total, cohort.plain_sum(expected))


def test_clients_say_two_things_to_a_decryptor_and_the_last_is_their_contribution():
    cohort = EncryptedCohort()
    outcome = drive(cohort)
    told = {stage: set(sent) for stage, sent in outcome.sent.items()}
    assert told == {
        "advertise": {*cohort.names, DECRYPTOR},
        "share": {DECRYPTOR},
        "masked_input": set(cohort.names),
        "unmask": {DECRYPTOR},
    }
    assert all(outcome.parties[name].state is ClientState.DONE for name in cohort.names)
    (opening,) = cohort.opened
    assert opening.survivors == cohort.names
    assert (opening.round, opening.session) == (1, b"s" * 16)


def test_with_the_cohorts_key_another_client_makes_it_if_the_first_is_silent():
    cohort = EncryptedCohort(key_holder="cohort", size=8)
    maker = next(iter(drive(cohort).sent["share"]))
    outcome = drive(cohort, drop={maker: "share"})
    assert outcome.ended is None
    assert maker not in outcome.server.result.survivors
    assert set(outcome.sent["share"]) != {maker}


def test_without_anybody_who_makes_a_key_the_round_ends_before_a_contribution():
    cohort = EncryptedCohort()
    for stage, said in (("advertise", "decryptor did not answer"), ("share", "dealt a key")):
        outcome = drive(cohort, drop={DECRYPTOR: stage})
        assert isinstance(outcome.ended, ThresholdNotMet)
        assert said in str(outcome.ended)
        assert "masked_input" not in outcome.sent
    outcome = drive(cohort, drop={DECRYPTOR: "unmask"})
    assert "did not open" in str(outcome.ended)


def test_too_few_clients_end_the_round_in_every_stage():
    for key_holder in ("decryptor", "cohort"):
        for stage in ("advertise", "masked_input"):
            cohort = EncryptedCohort(key_holder=key_holder)
            outcome = drive(cohort, drop={"c000": stage, "c001": stage})
            assert isinstance(outcome.ended, ThresholdNotMet)
            assert not cohort.opened


def test_a_client_without_a_floor_of_its_own_or_another_identity_takes_no_part():
    cohort = EncryptedCohort()
    with pytest.raises(LocalProtocolError, match="from 6 on"):
        cohort.client("c000", min_clients=6)
    with pytest.raises(LocalProtocolError, match="sums of 6 on"):
        cohort.decryptor(min_clients=6)
    with pytest.raises(LocalProtocolError, match="another identity"):
        EncryptedClient(cohort.context(), "c000", cohort.identities["c001"], lambda: None)
    with pytest.raises(LocalProtocolError, match="another identity"):
        Decryptor(cohort.context(), IdentityKey.generate())
    with pytest.raises(LocalProtocolError, match="has none"):
        Decryptor(EncryptedCohort(key_holder="cohort").context(), IdentityKey.generate())


def test_the_context_names_the_decryptor_and_binds_its_key():
    cohort = EncryptedCohort()
    roster = {name: key.public for name, key in cohort.identities.items()}
    other = cohort.context(roster=roster | {DECRYPTOR: IdentityKey.generate().public})
    assert other.digest != cohort.context().digest
    assert EncryptedCohort(key_holder="cohort").context().digest != cohort.context().digest
    del roster[DECRYPTOR]
    with pytest.raises(ConfigError, match="decryptor"):
        cohort.context(roster=roster)
    shared = {name: key.public for name, key in cohort.identities.items()}
    with pytest.raises(ConfigError, match="same identity key"):
        cohort.context(roster=shared | {DECRYPTOR: shared["c000"]})


# -- whose key it is ---------------------------------------------------------------------------


def offer_of(cohort, message):
    encoded, wrap = decode_keys(message, offer_limit=offer_limit(cohort.context()))
    return Offer.read(cohort.context(), encoded), wrap


def test_a_key_of_the_servers_own_is_not_encrypted_under():
    """The server makes a key itself and passes it on in the decryptor's name."""
    cohort = EncryptedCohort()
    mallory = EncryptedCohort()
    mallory.identities = cohort.identities | {DECRYPTOR: IdentityKey.generate()}
    fake = mallory.decryptor(mallory.context())
    forged = fake.start()

    def swap(stage, name, reply):
        if stage != "masked_input":
            return reply
        _, wrap = decode_keys(reply, offer_limit=offer_limit(cohort.context()))
        return encode_keys(forged, wrap)

    outcome = drive(cohort, meddle_down=swap)
    assert not outcome.sent["masked_input"]
    assert set(outcome.refused) == set(cohort.names)
    assert all("does not verify" in str(error) for error in outcome.refused.values())


def test_a_client_does_not_pass_for_the_decryptor():
    cohort = EncryptedCohort()
    context = cohort.context()
    signed = Signed.decode(cohort.decryptor().start(), limit=10**6)
    forged = Offer.make
    with pytest.raises(RemoteProtocolError, match="the key is held by the decryptor"):
        forged(context, 2, cohort.identities["c002"], signed.body)


def test_an_offer_of_another_round_is_refused():
    cohort = EncryptedCohort()
    with pytest.raises(RemoteProtocolError, match="does not verify"):
        Offer.read(cohort.context(session=b"t" * 16), cohort.decryptor().start())


def test_a_round_secret_for_another_client_or_key_or_unsigned_is_refused():
    cohort = EncryptedCohort()
    outcome = drive(cohort, until="masked_input")
    replies = outcome.answered["masked_input"]
    offer, own = offer_of(cohort, replies["c000"])
    _, others = offer_of(cohort, replies["c001"])
    wrong = {
        "another client's": others,
        "not signed": Wrap(own.sealed, bytes(64)),
        "altered": Wrap(own.sealed[:-1] + bytes([own.sealed[-1] ^ 1]), own.signature),
    }
    for wrap in wrong.values():
        parties = cohort.parties()
        tried = drive(
            cohort,
            parties=parties,
            meddle_down=lambda stage, name, reply, wrap=wrap: (
                encode_keys(offer_of(cohort, reply)[0].encoded, wrap)
                if (stage, name) == ("masked_input", "c000")
                else reply
            ),
        )
        assert "c000" in tried.refused
        assert parties["c000"].state is ClientState.FAILED
    assert offer.holder == cohort.size


def test_two_keys_in_one_round_do_not_come_together():
    """A server shows one client the key of another maker than the rest."""
    cohort = EncryptedCohort(key_holder="cohort", size=6)
    first, second = drive(cohort), drive(cohort)
    lone = next(n for n in cohort.names if n not in first.sent["share"])
    other = second.answered["masked_input"]

    def swap(stage, name, reply):
        return other[name] if (stage, name) == ("masked_input", lone) else reply

    outcome = drive(cohort, meddle_down=swap)
    assert lone in outcome.refused
    assert lone not in outcome.server.result.survivors


# -- malformed, out of order, twice ------------------------------------------------------------


@pytest.mark.parametrize("key_holder", ["decryptor", "cohort"])
def test_every_message_is_refused_when_truncated_or_altered(key_holder):
    cohort = EncryptedCohort(key_holder=key_holder, length=3)
    for stage, sent in drive(cohort).sent.items():
        for change in (lambda m: m[:-1], lambda m: m + b"\0", lambda m: m[:40], lambda m: b""):
            outcome = drive(
                cohort,
                meddle_up=lambda s, _, m, stage=stage, change=change: (
                    change(m) if s == stage else m
                ),
            )
            assert sent
            assert set(outcome.refused) >= set(outcome.sent[stage])
            assert isinstance(outcome.ended, ThresholdNotMet)
            assert all(isinstance(e, RemoteProtocolError) for e in outcome.refused.values())


def test_a_client_accepts_each_message_once_and_in_order():
    cohort = EncryptedCohort()
    outcome = drive(cohort)
    keys = outcome.answered["masked_input"]["c000"]
    client = cohort.client("c000")
    with pytest.raises(RemoteProtocolError, match="while new"):
        client.handle(keys)
    assert client.state is ClientState.NEW
    done = outcome.parties["c000"]
    with pytest.raises(RemoteProtocolError, match="while done"):
        done.handle(keys)
    with pytest.raises(LocalProtocolError, match="not new"):
        done.start()


def test_a_second_message_and_one_for_another_party_are_refused():
    cohort = EncryptedCohort()
    server, parties = EncryptedServer(cohort.context()), cohort.parties()
    first = parties["c000"].start()
    server.receive("c000", first)
    with pytest.raises(RemoteProtocolError, match="already"):
        server.receive("c000", first)
    with pytest.raises(RemoteProtocolError, match="speaks as"):
        server.receive("c001", first)


def test_ciphertexts_under_another_key_or_for_another_round_are_refused():
    cohort = EncryptedCohort()
    stale = drive(cohort).sent["masked_input"]["c000"]
    outcome = drive(
        cohort,
        meddle_up=lambda stage, name, message: (
            stale if (stage, name) == ("masked_input", "c000") else message
        ),
    )
    assert "another key" in str(outcome.refused["c000"])
    assert "c000" not in outcome.server.result.survivors


# -- the decryptor -----------------------------------------------------------------------------


def test_the_decryptor_opens_once_and_forgets_its_key():
    cohort = EncryptedCohort()
    outcome = drive(cohort)
    request = outcome.answered["unmask"][DECRYPTOR]
    decryptor = outcome.parties[DECRYPTOR]
    assert decryptor.state is DecryptorState.DONE
    with pytest.raises(RemoteProtocolError, match="while done"):
        decryptor.handle(request)
    assert decryptor._holder is None
    assert decryptor._round_secret == b""
    assert len(cohort.opened) == 1


def test_a_request_before_the_round_secret_was_dealt_is_refused():
    cohort = EncryptedCohort()
    request = drive(cohort).answered["unmask"][DECRYPTOR]
    decryptor = cohort.decryptor()
    decryptor.start()
    with pytest.raises(RemoteProtocolError, match="while offered"):
        decryptor.handle(request)


def test_a_record_that_cannot_be_kept_ends_the_round_unopened():
    cohort = EncryptedCohort()

    def full(opening):
        raise OSError("no space left")

    parties = cohort.parties() | {DECRYPTOR: cohort.decryptor(on_open=full)}
    with pytest.raises(OSError, match="no space"):
        drive(cohort, parties=parties)
    assert parties[DECRYPTOR].state is DecryptorState.FAILED


def test_a_wire_error_is_what_a_garbled_request_gives():
    cohort = EncryptedCohort()
    with pytest.raises(WireError):
        decode_keys(b"SFED\x01\x14", offer_limit=10)
    decryptor = cohort.decryptor()
    decryptor.start()
    with pytest.raises(RemoteProtocolError):
        decryptor.handle(b"SFED\x01\x13" + bytes(100))
    assert decryptor.state is DecryptorState.FAILED
