"""One test for each check of an encrypted round without masks: taken out, its test fails."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from securefed.crypto.identity import IdentityKey
from securefed.crypto.keys import HybridPrivateKey
from securefed.crypto.prg import system_random
from securefed.encoding.fixed_point import to_ring
from securefed.errors import ConfigError, LocalProtocolError, RemoteProtocolError, WireError
from securefed.secagg.ciphertexts import CiphertextSum
from securefed.secagg.encrypted_client import ClientState
from securefed.secagg.encrypted_server import EncryptedServer
from securefed.secagg.encrypting import EncryptedInput, SumKey
from securefed.secagg.encryption import DECRYPTOR
from securefed.secagg.key_messages import (
    decode_dealt,
    decode_key_request,
    decode_keys,
    encode_dealt,
    encode_key_request,
    encode_keys,
)
from securefed.secagg.key_offer import WRAP_BYTES, Offer, Wrap, offer_limit
from securefed.secagg.messages import encode_survivors
from securefed.secagg.opening import OpenRequest
from securefed.secagg.signed import Signed, sign
from tests.secagg_encrypted import EncryptedCohort, drive


@pytest.fixture(params=["decryptor", "cohort"])
def cohort(request):
    return EncryptedCohort(key_holder=request.param)


# -- advertisements, as the key's maker takes them ---------------------------------------------


def asked_with(cohort, change):
    """What the maker says to advertisements that the server changed."""

    def meddle(stage, name, message):
        if stage != "share":
            return message
        adverts = decode_key_request(message, size=cohort.size)
        return encode_key_request(advert.encode() for advert in change(adverts, name))

    outcome = drive(cohort, meddle_down=meddle)
    assert "masked_input" not in outcome.sent
    return " ".join(map(str, outcome.refused.values()))


def test_a_hybrid_key_of_the_servers_own_gets_no_round_secret(cohort):
    """It would give the server W, and under the cohort's key the secret key."""
    own = HybridPrivateKey.generate(system_random).public.raw

    def planted(adverts, maker):
        place = next(i for i, a in enumerate(adverts) if cohort.names[a.sender] != maker)
        adverts[place] = Signed(adverts[place].sender, own, adverts[place].signature)
        return adverts

    assert "does not verify" in asked_with(cohort, planted)


def test_advertisements_below_the_floor_or_out_of_order_are_refused(cohort):
    assert "2 clients, at least 4 are needed" in asked_with(cohort, lambda a, _: a[:2])
    assert "rise strictly" in asked_with(cohort, lambda a, _: a[::-1])
    assert "rise strictly" in asked_with(cohort, lambda a, _: [a[0], *a[:-1]])


def test_one_hybrid_key_for_two_clients_is_refused(cohort):
    context = cohort.context()

    def doubled(adverts, maker):
        others = [i for i, a in enumerate(adverts) if cohort.names[a.sender] != maker]
        first, second = others[:2]
        number = adverts[second].sender
        name = cohort.names[number]
        copied = sign(context, number, cohort.identities[name], "advertise", adverts[first].body)
        adverts[second] = Signed.decode(copied, limit=10_000)
        return adverts

    assert "a public key appears twice" in asked_with(cohort, doubled)


def test_a_maker_that_is_not_among_the_advertisements_makes_no_key():
    cohort = EncryptedCohort(key_holder="cohort", size=8)
    refused = asked_with(
        cohort, lambda adverts, maker: [a for a in adverts if cohort.names[a.sender] != maker]
    )
    assert "another one stands for this client" in refused


# -- offers and round secrets ------------------------------------------------------------------


def test_a_wrap_is_for_one_offer_and_one_receiver():
    cohort = EncryptedCohort()
    context, identity = cohort.context(), cohort.identities[DECRYPTOR]
    first, second = (Offer.read(context, cohort.decryptor().start()) for _ in range(2))
    key = HybridPrivateKey.generate(system_random)
    wrap = Wrap.make(context, first, identity, 1, key.public, bytes(32))
    assert wrap.open(context, first, 1, key) == bytes(32)
    for offer, receiver in ((second, 1), (first, 2)):
        with pytest.raises(RemoteProtocolError, match="does not verify"):
            wrap.open(context, offer, receiver, key)
    with pytest.raises(RemoteProtocolError, match="does not verify"):
        wrap.open(context, first, 1, HybridPrivateKey.generate(system_random))


def test_the_offer_hash_names_holder_and_key():
    cohort = EncryptedCohort(key_holder="cohort")
    context = cohort.context()
    maker = next(iter(drive(cohort).sent["share"]))
    encoded, _ = decode_dealt(
        Signed.decode(drive(cohort).sent["share"][maker], limit=10**7).body,
        size=cohort.size,
        offer_limit=offer_limit(context),
    )
    offer = Offer.read(context, encoded)
    others = [
        Offer.make(context, number, cohort.identities[name], offer.public_key, offer.locked_secret)
        for number, name in enumerate(cohort.names)
    ]
    assert len({other.hash for other in others}) == cohort.size
    assert len({other.view() for other in others}) == cohort.size


def test_an_offer_of_another_length_is_refused(cohort):
    context = cohort.context()
    name = DECRYPTOR if context.has_decryptor else "c000"
    number = cohort.size if context.has_decryptor else 0
    with pytest.raises(RemoteProtocolError, match="bytes: must be"):
        Offer.make(context, number, cohort.identities[name], b"\0" * 100)


def test_a_maker_encrypts_under_no_key_but_its_own():
    cohort = EncryptedCohort(key_holder="cohort", size=6)
    first, second = drive(cohort), drive(cohort)
    maker = next(iter(first.sent["share"]))
    other = second.answered["masked_input"][maker]
    outcome = drive(
        cohort,
        meddle_down=lambda stage, name, reply: (
            other if (stage, name) == ("masked_input", maker) else reply
        ),
    )
    assert "not the key that this client made" in str(outcome.refused[maker])


# -- what the server refuses of a maker --------------------------------------------------------


def dealt(cohort, change):
    """What the server says to a changed answer of the maker, signed by it."""
    context = cohort.context()

    def meddle(stage, name, message):
        if stage != "share":
            return message
        signed = Signed.decode(message, limit=10**7)
        offer, wraps = decode_dealt(signed.body, size=cohort.size, offer_limit=offer_limit(context))
        body = encode_dealt(*change(offer, wraps))
        return sign(context, signed.sender, cohort.identities[name], "share", body)

    outcome = drive(cohort, meddle_up=meddle)
    assert "masked_input" not in outcome.sent
    return " ".join(map(str, outcome.refused.values()))


def test_round_secrets_for_other_clients_than_advertised_are_refused(cohort):
    fewer = dealt(cohort, lambda offer, wraps: (offer, dict(list(wraps.items())[1:])))
    assert "other clients than those that advertised" in fewer


def test_round_secrets_out_of_order_are_refused():
    cohort = EncryptedCohort()
    body = Signed.decode(drive(cohort).sent["share"][DECRYPTOR], limit=10**7).body
    each = (len(body) - 8) // cohort.size
    first, second = body[8 : 8 + each], body[8 + each : 8 + 2 * each]
    swapped = body[:8] + second + first + body[8 + 2 * each :]
    with pytest.raises(WireError, match="rise strictly"):
        decode_dealt(swapped, size=cohort.size, offer_limit=10**6)


def test_a_decryptor_offers_its_key_once():
    cohort = EncryptedCohort()
    again = cohort.decryptor().start()
    assert "offered its key before" in dealt(cohort, lambda _, wraps: (again, wraps))


def test_nobody_deals_for_another_clients_key():
    cohort = EncryptedCohort(key_holder="cohort")
    context = cohort.context()

    def others(offer, wraps):
        mine = Offer.read(context, offer)
        other = (mine.holder + 1) % cohort.size
        identity = cohort.identities[cohort.names[other]]
        made = Offer.make(context, other, identity, mine.public_key, mine.locked_secret)
        return made.encoded, wraps

    assert "dealt for a key that is not its own" in dealt(cohort, others)


def test_one_hybrid_key_is_advertised_once():
    cohort = EncryptedCohort()
    context, server = cohort.context(), EncryptedServer(cohort.context())
    key = HybridPrivateKey.generate(system_random).public.raw
    for number in (0, 1):
        name = cohort.names[number]
        message = sign(context, number, cohort.identities[name], "advertise", key)
        if number == 0:
            server.receive(name, message)
        else:
            with pytest.raises(RemoteProtocolError, match="a public key appears twice"):
                server.receive(name, message)


def test_an_opened_sum_of_another_length_is_refused(cohort):
    context = cohort.context()

    def shorter(stage, name, message):
        if stage != "unmask":
            return message
        signed = Signed.decode(message, limit=10**7)
        return sign(context, signed.sender, cohort.identities[name], "unmask", signed.body[:-1])

    outcome = drive(cohort, meddle_up=shorter)
    assert all("expected" in str(error) for error in outcome.refused.values())
    assert outcome.ended is not None


def test_every_message_carries_its_senders_signature_for_its_stage(cohort):
    """The same body, signed for another stage or by another client."""
    context = cohort.context()
    for stage in drive(cohort).sent:
        for wrong in ("stage", "signer"):

            def forge(at, name, message, stage=stage, wrong=wrong):
                if at != stage or (at == "advertise" and name == DECRYPTOR):
                    return message
                signed = Signed.decode(message, limit=10**8)
                other = DECRYPTOR if name != DECRYPTOR else "c000"
                signer = cohort.identities[name if wrong == "stage" else other]
                return sign(
                    context,
                    signed.sender,
                    signer,
                    "graph" if wrong == "stage" else stage,
                    signed.body,
                )

            outcome = drive(cohort, meddle_up=forge)
            assert outcome.ended is not None
            assert any("does not verify" in str(e) for e in outcome.refused.values())


# -- survivor lists, as clients that hold the key take them ------------------------------------


def confirmed(cohort, listed):
    outcome = drive(cohort, until="consistency")
    client = outcome.parties["c000"]
    with pytest.raises(Exception) as found:  # noqa: PT011  # the caller looks at what it says
        client.handle(encode_survivors(listed, size=cohort.size))
    assert client.state is ClientState.FAILED
    return str(found.value)


def test_a_client_signs_no_list_below_the_floor_or_without_itself():
    cohort = EncryptedCohort(key_holder="cohort", size=8, dropout=0.25)
    assert "not listed" in confirmed(cohort, list(range(1, 8)))
    assert "3 clients, at least 6 are needed" in confirmed(cohort, [0, 1, 2])


def opening_with(cohort, **changes):
    outcome = drive(cohort, until="unmask")
    name, encoded = next(iter(outcome.answered["unmask"].items()))
    context = cohort.context()
    request = dataclasses.replace(OpenRequest.decode(encoded, context), **changes)
    with pytest.raises(RemoteProtocolError) as found:
        outcome.parties[name].handle(request.encode(context))
    return str(found.value)


def test_signatures_on_the_list_are_checked_and_those_of_survivors():
    cohort = EncryptedCohort(key_holder="cohort", size=8, dropout=0.25)
    for change, said in (
        (lambda first: {7: first}, "'c007' signed and is no survivor"),
        (lambda first: {1: first}, "does not verify"),
    ):
        outcome = drive(cohort, drop={"c007": "masked_input"}, until="unmask")
        name, encoded = next(iter(outcome.answered["unmask"].items()))
        request = OpenRequest.decode(encoded, cohort.context())
        signatures = dict(request.signatures) | change(request.signatures[0])
        wrong = dataclasses.replace(request, signatures=signatures)
        with pytest.raises(RemoteProtocolError, match=said):
            outcome.parties[name].handle(wrong.encode(cohort.context()))


def test_a_request_with_a_view_of_masks_or_without_a_check_is_refused(cohort):
    assert "inner_view: 32 bytes found" in opening_with(cohort, inner_view=bytes(32))
    assert "check of the sum: 0 bytes found" in opening_with(cohort, check=b"")
    assert "not those of the survivors" in opening_with(cohort, entries={})


# -- floors, context and keys ------------------------------------------------------------------


def test_a_client_with_a_higher_floor_than_the_decryptor_keeps_takes_no_part():
    """It could not refuse once its contribution is sent."""
    cohort = EncryptedCohort(size=6, dropout=0.34)
    assert cohort.context().parameters.survivor_floor == 4
    with pytest.raises(LocalProtocolError, match="min_clients = 5: the decryptor opens sums of 4"):
        cohort.client("c000", min_clients=5)
    cohort.client("c000", min_clients=4)


def test_a_client_with_a_higher_floor_opens_no_smaller_sum_of_the_cohorts_key():
    cohort = EncryptedCohort(key_holder="cohort", size=6, dropout=0.34)
    parties = {name: cohort.client(name, min_clients=6) for name in cohort.names}
    outcome = drive(cohort, parties=parties, drop={"c001": "masked_input"})
    assert all("at least 6" in str(outcome.refused[n]) for n in cohort.names if n != "c001")


def test_the_digest_covers_who_holds_the_key_bounds_and_noise():
    cohort = EncryptedCohort()
    base = cohort.context()
    shared = EncryptedCohort(key_holder="cohort")
    shared.identities = cohort.identities
    changed = [
        dataclasses.replace(base.encryption, **change)
        for change in (
            {"sum_bound": 1000},
            {"value_bound": 1000},
            {"noise_std": 3.0},
            {"masked": True},
        )
    ]
    digests = {cohort.context(encryption=encryption).digest for encryption in changed}
    digests |= {base.digest, shared.context().digest}
    assert len(digests) == len(changed) + 2
    # The roster of the cohort's key names no decryptor, so the holder itself must be covered.
    roster = {name: cohort.identities[name].public for name in (*cohort.names, DECRYPTOR)}
    encryption = dataclasses.replace(base.encryption, key_holder="cohort")
    alone = cohort.context(encryption=encryption, roster=roster)
    assert alone.digest != cohort.context(encryption=None, roster=roster).digest


def test_encryption_that_does_not_fit_the_round_is_refused():
    cohort = EncryptedCohort()
    encryption = cohort.context().encryption
    for change in ({"clients": 6}, {"length": 41}, {"bits": 21}):
        with pytest.raises(ConfigError, match=f"encryption: {next(iter(change))} ="):
            cohort.context(encryption=dataclasses.replace(encryption, **change))
    floor = cohort.context().parameters.survivor_floor
    with pytest.raises(ConfigError, match="layers of noise are removed in masked rounds only"):
        cohort.context(noise_layers=(1.0,) * (cohort.size - floor))


def test_no_client_is_called_as_the_decryptor_is():
    cohort = EncryptedCohort()
    names = (*cohort.names[:4], DECRYPTOR)
    roster = {name: IdentityKey.generate().public for name in names}
    with pytest.raises(ConfigError, match="no client may be called 'decryptor'"):
        cohort.context(cohort=names, roster=roster)


@pytest.mark.parametrize("scheme", ["bfv", "ckks"])
def test_values_beyond_the_bound_are_cut_and_a_key_opens_once(scheme):
    cohort = EncryptedCohort(scheme=scheme, length=4, value_bound=1000)
    encryption = cohort.context().encryption
    key = SumKey.generate(encryption)
    public, _ = key.parts()
    values = np.array([1001, -1001, 400_000, -400_000])
    ring = to_ring(values) & np.uint32((1 << cohort.bits) - 1)
    total = CiphertextSum(encryption.parameters, encryption.count)
    total.add(list(EncryptedInput(encryption, public).protect(ring, ())))
    opened = key.open_ring(total.ciphertexts(), 1)
    cut = to_ring(np.clip(values, -1000, 1000)) & np.uint32((1 << cohort.bits) - 1)
    assert np.array_equal(opened, cut)
    with pytest.raises(ConfigError, match="has opened a sum already"):
        key.open_ring(total.ciphertexts(), 1)


def test_keys_for_a_client_name_an_offer():
    empty = encode_keys(b"", Wrap(bytes(WRAP_BYTES), bytes(64)))
    with pytest.raises(WireError, match="offer: it is empty"):
        decode_keys(empty, offer_limit=100)
