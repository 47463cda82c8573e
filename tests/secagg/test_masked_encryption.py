"""Encryption beneath which contributions are masked: exact sums, and what each coalition sees.

Each coalition is given its best shot at one client's contribution, and then what it must lack as
well: there the contribution comes out, or the test shows nothing.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from secagg_encrypted import EncryptedCohort
from secagg_encrypted import drive as drive_unmasked
from secagg_probe import body_of, resigned
from secagg_rounds import COMPLETE_STAGES, Cohort, drive, left_in, seeds_of

from securefed.config import STAGES
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import system_random
from securefed.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    ThresholdNotMet,
)
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.aggregator import Outgoing
from securefed.secagg.carriers import SlotSum
from securefed.secagg.ciphertexts import CiphertextSum
from securefed.secagg.client_secrets import ClientSecrets
from securefed.secagg.client_states import ClientState
from securefed.secagg.encrypting import EncryptedInput, SumKey
from securefed.secagg.encryption import DECRYPTOR
from securefed.secagg.homomorphic import BfvSecretKey
from securefed.secagg.key_offer import OFFER
from securefed.secagg.messages import Reveal
from securefed.secagg.opening import OpenRequest
from securefed.secagg.pairwise_client import PairwiseClient
from securefed.secagg.pairwise_server import PairwiseServer
from securefed.secagg.signed import sign
from securefed.secagg.slots import mask_slots

PLAIN = {"size": 5, "length": 40, "bits": 24, "value_bound": 1000}


def masked(**changes) -> Cohort:
    return Cohort(**(PLAIN | {"encrypted": True} | changes))


def unencrypted(cohort: Cohort) -> Cohort:
    """The same inputs and identities, masked in the ring."""
    return dataclasses.replace(cohort, encrypted=False)


# -- sums --------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(3, 6),
    bits=st.integers(20, 32),
    length=st.sampled_from([1, 7, 60, 4100]),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_masked_encrypted_and_plain_sums_are_the_same_whoever_drops_out(
    size, bits, length, seed, data
):
    bound = data.draw(st.integers(1, 2 ** (bits - 1) - 1), label="value_bound")
    cohort = masked(size=size, bits=bits, length=length, seed=seed, value_bound=bound, dropout=0.34)
    drop = {
        name: stage
        for name in cohort.names
        if (stage := data.draw(st.sampled_from([*[None] * 9, *STAGES]))) is not None
    }
    ring = drive(unencrypted(cohort), drop=drop)
    slots = drive(cohort, drop=drop)
    assert type(slots.ended) is type(ring.ended)
    if slots.ended is not None:
        assert isinstance(slots.ended, ThresholdNotMet)
        with pytest.raises(LocalProtocolError):
            _ = slots.server.result
        return
    result = slots.server.result
    assert result.survivors == ring.server.result.survivors
    np.testing.assert_array_equal(result.total, ring.server.result.total)
    np.testing.assert_array_equal(result.total, cohort.plain_sum(result.survivors))


ON_A_RING = ("graph", "masked_input", "unmask")


@pytest.mark.parametrize(
    ("size", "degree", "stage"),
    [(6, None, stage) for stage in COMPLETE_STAGES] + [(10, 4, stage) for stage in ON_A_RING],
)
def test_one_client_may_fall_silent_from_any_stage_on(size, degree, stage):
    cohort = masked(size=size, degree=degree)
    outcome = drive(cohort, drop={"c002": stage})
    inside = STAGES.index(stage) > STAGES.index("masked_input")
    survivors = tuple(name for name in cohort.names if inside or name != "c002")
    assert not outcome.refused
    assert outcome.server.result.survivors == survivors
    np.testing.assert_array_equal(outcome.server.result.total, cohort.plain_sum(survivors))


def test_a_ring_in_which_clients_fall_silent_in_several_stages():
    cohort = masked(size=16, degree=8, length=9)  # threshold 6 of 9 holders
    drop = {"c001": "graph", "c009": "masked_input", "c012": "unmask"}
    outcome = drive(cohort, drop=drop)
    assert len(outcome.server.result.survivors) == 14
    np.testing.assert_array_equal(
        outcome.server.result.total, cohort.plain_sum(outcome.server.result.survivors)
    )


@pytest.mark.parametrize("missing", range(4))
def test_needless_layers_of_noise_leave_the_sum(missing):
    cohort = masked(size=10, corrupt=0.1, dropout=0.3, noise=400.0)
    parties = cohort.parties()
    seeds = seeds_of(parties)
    drop = dict.fromkeys(cohort.names[2 : 2 + missing], "masked_input")
    result = drive(cohort, clients=parties, drop=drop).server.result
    assert len(result.survivors) == 10 - missing
    np.testing.assert_array_equal(result.total, left_in(cohort, seeds, result.survivors, missing))
    if missing != 3:
        other = left_in(cohort, seeds, result.survivors, missing + 1)
        assert (result.total != other).any()


def test_without_the_decryptor_there_is_no_round_and_no_sum():
    outcome = drive(masked(), drop={DECRYPTOR: "advertise"})
    assert isinstance(outcome.ended, ThresholdNotMet)
    assert "advertise: 'decryptor' did not answer" in str(outcome.ended)
    assert set(outcome.sent) == {"advertise"}
    outcome = drive(masked(), drop={DECRYPTOR: "unmask"})
    assert "unmask: 'decryptor' did not answer" in str(outcome.ended)
    with pytest.raises(LocalProtocolError):
        _ = outcome.server.result


def test_a_client_is_told_how_many_of_its_ciphertexts_are_made():
    cohort, told = masked(length=20_000), []
    parties = cohort.parties()
    parties["c001"] = PairwiseClient(
        cohort.context(),
        "c001",
        cohort.identities["c001"],
        lambda: cohort.inputs["c001"],
        on_encrypted=lambda made, of: told.append((made, of)),
    )
    drive(cohort, clients=parties)
    count = cohort.encryption().count
    assert count > 1
    assert told == [(made, count) for made in range(1, count + 1)]


def test_the_decryptor_is_heard_in_its_two_stages_and_once_in_each():
    cohort = masked()
    context, server = cohort.context(), PairwiseServer(cohort.context())
    hello = cohort.decryptor().start()
    server.receive(DECRYPTOR, hello)
    with pytest.raises(RemoteProtocolError, match="already sent its advertise"):
        server.receive(DECRYPTOR, hello)
    for name in cohort.names:
        server.receive(name, cohort.client(name).start())
    server.advance()
    with pytest.raises(RemoteProtocolError, match="'decryptor' is not awaited in share"):
        server.receive(DECRYPTOR, hello)
    with pytest.raises(RemoteProtocolError, match="party number 2"):
        SlotSum(context).take_opened(sign(context, 2, cohort.identities["c002"], "unmask", b""))


def test_slots_that_the_decryptor_did_not_sign_or_that_are_none_are_not_taken():
    cohort = masked()
    context, decryptor, encryption = cohort.context(), cohort.size, cohort.encryption()
    good = bytes(8 * encryption.slots)
    unreduced = encryption.packing.modulus.to_bytes(8, "little") + good[8:]
    identity = cohort.identities[DECRYPTOR]
    for match, answer in (
        ("does not verify", sign(context, decryptor, IdentityKey.generate(), "unmask", good)),
        ("does not verify", sign(context, decryptor, identity, "share", good)),
        ("does not verify", sign(cohort.context(number=2), decryptor, identity, "unmask", good)),
        ("bytes found", sign(context, decryptor, identity, "unmask", good[:-8])),
        ("not below t", sign(context, decryptor, identity, "unmask", unreduced)),
    ):

        def swap(stage, name, message, answer=answer):
            return answer if (stage, name) == ("unmask", DECRYPTOR) else message

        outcome = drive(cohort, meddle_up=swap)
        assert match in str(outcome.refused[DECRYPTOR])
        assert isinstance(outcome.ended, ThresholdNotMet)


def test_the_server_waits_for_as_many_signatures_as_the_decryptor_asks_for():
    """On a ring a client asks for those of its witnesses, which may be fewer."""
    cohort = masked(size=16, degree=4, dropout=0.25)
    assert cohort.context().parameters.quorum == 6
    drop = dict.fromkeys(cohort.names[:8], "consistency")
    ring = drive(unencrypted(cohort), drop=drop)
    assert "unmask" in ring.sent
    outcome = drive(cohort, drop=drop)
    assert "consistency: 8 clients answered, at least 9" in str(outcome.ended)


def test_a_round_without_masks_is_another_protocol():
    cohort = EncryptedCohort()
    context, name = cohort.context(), "c000"
    with pytest.raises(LocalProtocolError, match="masked = False"):
        PairwiseServer(context)
    with pytest.raises(LocalProtocolError, match="masked = False"):
        PairwiseClient(context, name, cohort.identities[name], lambda: cohort.inputs[name])


# -- what is refused ---------------------------------------------------------------------------


def with_offer(reply: bytes, offer: bytes) -> bytes:
    """The message that asks for a masked input, with another offer in front of its bundles."""
    length = int.from_bytes(reply[6:10], "little")
    return reply[:6] + len(offer).to_bytes(4, "little") + offer + reply[10 + length :]


def another_key(cohort: Cohort) -> bytes:
    """A public key of the round's parameters."""
    return SumKey.generate(cohort.encryption()).parts()[0]


def false_offer(cohort: Cohort, kind: str) -> bytes:
    context, key, decryptor = cohort.context(), another_key(cohort), cohort.size
    if kind == "a client's":
        return sign(context, 2, cohort.identities["c002"], OFFER, key)
    if kind == "another identity's":
        return sign(context, decryptor, IdentityKey.generate(), OFFER, key)
    if kind == "another round's":
        return cohort.decryptor(cohort.context(session=b"t" * 16)).start()
    if kind == "for another stage":
        return sign(context, decryptor, cohort.identities[DECRYPTOR], "unmask", key)
    if kind == "of another length":
        return sign(context, decryptor, cohort.identities[DECRYPTOR], OFFER, key[:-1])
    if kind == "no key of these parameters":
        return sign(context, decryptor, cohort.identities[DECRYPTOR], OFFER, b"\xff" * len(key))
    return b""


FALSE = (
    "a client's",
    "another identity's",
    "another round's",
    "for another stage",
    "of another length",
    "none",
)


@pytest.mark.parametrize("kind", FALSE)
def test_an_offer_that_the_decryptor_did_not_sign_for_the_round_is_refused_by_the_server(kind):
    cohort = masked()
    false = false_offer(cohort, kind)

    def swap(stage, name, message):
        return false if (stage, name) == ("advertise", DECRYPTOR) else message

    outcome = drive(cohort, meddle_up=swap)
    assert isinstance(outcome.refused[DECRYPTOR], RemoteProtocolError)
    assert "advertise: 'decryptor' did not answer" in str(outcome.ended)


@pytest.mark.parametrize("kind", [*FALSE, "no key of these parameters"])
def test_a_client_encrypts_under_no_such_offer_and_has_made_no_contribution(kind):
    cohort = masked()
    false = false_offer(cohort, kind)
    parties = cohort.parties()
    made = []
    parties["c000"]._contribution = lambda: made.append(1)

    def swap(stage, name, reply):
        return with_offer(reply, false) if (stage, name) == ("masked_input", "c000") else reply

    outcome = drive(cohort, clients=parties, meddle_down=swap)
    assert isinstance(outcome.refused["c000"], RemoteProtocolError)
    assert parties["c000"].state is ClientState.FAILED
    assert made == []
    assert outcome.server.result.survivors == cohort.names[1:]


def test_a_client_of_an_encrypted_round_masks_nothing_without_an_offer():
    """And one of a round without encryption takes no message that brings one."""
    for cohort, kind in ((masked(), 17), (unencrypted(masked()), 12)):
        client = cohort.parties()["c000"]

        def wrong(stage, name, reply, cohort=cohort):
            if (stage, name) != ("masked_input", "c000"):
                return reply
            plain = wire_messages.encode_delivery({})
            return wire_messages.encode_keyed_delivery(b"", {}) if not cohort.encrypted else plain

        outcome = drive(cohort, clients=cohort.parties() | {"c000": client}, meddle_down=wrong)
        assert f"only type {kind}" in str(outcome.refused["c000"])
        assert client.state is ClientState.SHARED


class Gathering(PairwiseServer):
    """Adds inputs for any view, takes any signature, and passes on what helps most.

    Args:
        context: the round's.
        groups: clients shown the same offer, by index; each is given its own group's signatures.
            None: everyone is given everyone's.
    """

    def __init__(self, context, groups: list[set[int]] | None = None) -> None:
        super().__init__(context)
        self.groups = groups

    def _add_input(self, body: bytes) -> None:
        self._sum.add(body[32:])

    def _add_confirmation(self, sender: int, client_id: str, body: bytes) -> None:
        self._confirmations[sender] = body

    def _confirm(self, present):
        groups = self.groups or [set(range(self._context.parameters.size))]

        def encode(name: str) -> bytes:
            if name == DECRYPTOR:
                largest = {i: self._confirmations[i] for i in max(groups, key=len)}
                return self._slots.request(self._relay.view, tuple(present), largest)
            own = next(group for group in groups if self._context.index(name) in group)
            return wire_messages.encode_confirmations({i: self._confirmations[i] for i in own})

        return Outgoing([*self._names(present), DECRYPTOR], encode)

    def _add_reveal(self, sender: int, client_id: str, body: bytes) -> None:
        size = self._context.parameters.size
        self._reveals[sender] = Reveal.decode(body, size=size, limit=size)


def two_offers(cohort: Cohort, told: int, second: bytes, **options):
    """A decryptor that signs a second key, which the first ``told`` clients are shown."""
    identity = cohort.identities[DECRYPTOR]
    offer = sign(cohort.context(), cohort.size, identity, OFFER, second)

    def show(stage, name, reply):
        shown = stage == "masked_input" and name in cohort.names[:told]
        return with_offer(reply, offer) if shown else reply

    return drive(cohort, meddle_down=show, **options)


def test_an_input_made_under_another_key_is_refused():
    cohort = masked()
    outcome = two_offers(cohort, 1, another_key(cohort))
    assert "made for other sharers or another key" in str(outcome.refused["c000"])
    assert outcome.server.result.survivors == cohort.names[1:]
    np.testing.assert_array_equal(outcome.server.result.total, cohort.plain_sum(cohort.names[1:]))


@pytest.mark.parametrize("told", [1, 2, 4])
def test_clients_that_were_shown_two_offers_do_not_confirm_each_others_lists(told):
    cohort = masked(size=6)
    server = Gathering(cohort.context())
    outcome = two_offers(cohort, told, another_key(cohort), server=server)
    assert outcome.sent["unmask"] == {}
    assert set(outcome.refused) == {*cohort.names, DECRYPTOR}
    assert all("does not verify" in str(error) for error in outcome.refused.values())
    # Shown one offer, the same careless server does get the sum.
    whole = drive(cohort, server=Gathering(cohort.context()))
    np.testing.assert_array_equal(whole.server.result.total, cohort.plain_sum(cohort.names))


def test_a_group_that_confirms_alone_opens_nothing_even_with_both_keys():
    """Four of six agree on offer and list, which is enough; two inputs in the sum are not theirs.

    The ciphertexts under the second key spoil the sum.  A decryptor that gives both keys away does
    not help: masks between the groups follow from two views, and do not cancel.
    """
    cohort = wide(size=6)
    second, parties, first = SumKey.generate(cohort.encryption()), cohort.parties(), []

    class Together(Gathering):
        def _list_survivors(self, present):
            first.append(secret_key(cohort, parties))
            return super()._list_survivors(present)

    server = Together(cohort.context(), [{0, 1}, {2, 3, 4, 5}])
    outcome = two_offers(cohort, 2, second.parts()[0], server=server, clients=parties)
    assert set(outcome.sent["unmask"]) == set(cohort.names[2:])
    assert "the check slot is not that of 6 summands" in str(outcome.refused[DECRYPTOR])
    modulus = np.uint64(cohort.encryption().packing.modulus)
    slots = []
    for index, name in enumerate(cohort.names):
        key = second if index < 2 else first[0]
        slots.append(opened(cohort, key, outcome.sent["masked_input"][name]))
    theirs = sum(slots[2:]) % modulus
    own = list(server._unmasking().masks())  # of the self-masks, the group's
    assert looks_uniform(cohort, mask_slots(theirs, own[2:], int(modulus)))
    every = mask_slots((theirs + slots[0] + slots[1]) % modulus, own, int(modulus))
    assert looks_uniform(cohort, every)


def test_ciphertexts_under_another_key_spoil_the_sum_and_nothing_is_opened():
    """A corrupt client says the right view, and encrypts under a key that nobody uses."""
    cohort = masked()
    other = EncryptedInput(cohort.encryption(), another_key(cohort))

    def swap(stage, name, message):
        if (stage, name) != ("masked_input", "c003"):
            return message
        body = body_of(message)[:32] + b"".join(other.protect(cohort.inputs["c003"]))
        return resigned(cohort, cohort.context(), name, stage, body)

    outcome = drive(cohort, meddle_up=swap)
    assert "the check slot is not that of 5 summands" in str(outcome.refused[DECRYPTOR])
    assert "unmask: 'decryptor' did not answer" in str(outcome.ended)


@pytest.mark.parametrize("change", ["short", "long", "coefficient", "nothing"])
def test_malformed_ciphertexts_are_refused_and_leave_no_trace(change):
    cohort = masked(length=20_000)
    assert cohort.encryption().count > 1

    def spoil(stage, name, message):
        if (stage, name) != ("masked_input", "c003"):
            return message
        body = body_of(message)
        changed = {
            "short": body[:-1],
            "long": body + b"\0",
            "coefficient": body[:-8] + b"\xff" * 8,
            "nothing": body[:32],
        }[change]
        return resigned(cohort, cohort.context(), name, stage, changed)

    outcome = drive(cohort, meddle_up=spoil)
    assert isinstance(outcome.refused["c003"], RemoteProtocolError)
    survivors = tuple(name for name in cohort.names if name != "c003")
    assert outcome.server.result.survivors == survivors
    np.testing.assert_array_equal(outcome.server.result.total, cohort.plain_sum(survivors))


# -- what the decryptor asks for ---------------------------------------------------------------


def asked(cohort: Cohort, change, **options):
    """A round in which the server's request to the decryptor is changed."""
    context = cohort.context()
    parties = cohort.parties()
    parties[DECRYPTOR] = cohort.decryptor(**options)

    def meddle(stage, name, reply):
        if (stage, name) != ("unmask", DECRYPTOR):
            return reply
        request = OpenRequest.decode(reply, context)
        return dataclasses.replace(request, **change(request)).encode(context)

    outcome = drive(cohort, clients=parties, meddle_down=meddle)
    return outcome.refused.get(DECRYPTOR), outcome


def test_the_request_that_the_server_makes_is_opened_and_no_more_signatures_are_shown():
    cohort = masked(size=8)
    seen = []
    refused, outcome = asked(cohort, lambda request: seen.append(request) or {})
    assert refused is None
    assert len(seen[0].signatures) == 5  # more than half of eight
    np.testing.assert_array_equal(outcome.server.result.total, cohort.plain_sum(cohort.names))


def test_too_few_signatures_a_strangers_and_those_on_another_list_open_nothing():
    cohort = masked(size=8)

    def first(count):
        return lambda request: {"signatures": dict(list(request.signatures.items())[:count])}

    refused, outcome = asked(cohort, first(4))
    assert "4 signatures on the list of survivors, at least 5 are needed" in str(refused)
    assert isinstance(outcome.ended, ThresholdNotMet)
    with pytest.raises(LocalProtocolError):
        _ = outcome.server.result
    refused, _ = asked(cohort, lambda request: {"survivors": request.survivors[:7]})
    assert "does not verify" in str(refused)
    refused, _ = asked(cohort, lambda request: {"survivors": request.survivors[1:]})
    assert "'c000' signed and is no survivor" in str(refused)
    refused, _ = asked(cohort, lambda request: {"inner_view": bytes(32)})
    assert "does not verify" in str(refused)
    refused, _ = asked(cohort, lambda request: {"inner_view": b""})
    assert "inner_view: 0 bytes found, 32 expected" in str(refused)
    refused, _ = asked(cohort, lambda request: {"survivors": request.survivors[:5]})
    assert "5 clients, at least 6 are needed" in str(refused)


def test_the_decryptors_own_floor_and_its_record_end_a_round():
    cohort = masked(size=8)
    outcome = drive(
        cohort,
        clients=cohort.parties() | {DECRYPTOR: cohort.decryptor(min_clients=8)},
        drop={"c003": "masked_input"},
    )
    assert "7 clients, at least 8 are needed" in str(outcome.refused[DECRYPTOR])

    def full(opening):
        raise LocalProtocolError("the disk is full")

    refused, outcome = asked(cohort, lambda request: {}, on_open=full)
    assert "the disk is full" in str(refused)
    assert isinstance(outcome.ended, ThresholdNotMet)


def test_the_decryptor_opens_once():
    cohort = masked()
    kept = []
    _, outcome = asked(cohort, lambda request: kept.append(request) or {})
    decryptor = outcome.clients[DECRYPTOR]
    with pytest.raises(RemoteProtocolError, match="not accepted"):
        decryptor.handle(kept[0].encode(cohort.context()))


# -- what each coalition sees ------------------------------------------------------------------

VICTIM = 0
FALSE_ALARM = 1e-6


def wide(**changes) -> Cohort:
    """Every input is the same constant, long enough to tell its slots from uniform ones."""
    cohort = masked(**({"length": 24_000} | changes))
    for name in cohort.names:
        cohort.inputs[name][:] = 777
    return cohort


def looks_uniform(cohort: Cohort, slots: np.ndarray) -> bool:
    """Whether high and low bits of slots are spread as those of values uniform modulo t."""
    modulus = cohort.encryption().packing.modulus
    assert slots.size > 5000
    shares = [
        np.bincount((slots * (256.0 / modulus)).astype(np.int64), minlength=256),
        np.bincount((slots & np.uint64(255)).astype(np.int64), minlength=256),
    ]
    return all(chisquare(counts).pvalue > FALSE_ALARM for counts in shares)


def ciphertexts_of(cohort: Cohort, message: bytes) -> list[bytes]:
    encryption, body = cohort.encryption(), body_of(message)[32:]
    each = encryption.input_bytes // encryption.count
    return [body[at : at + each] for at in range(0, len(body), each)]


def secret_key(cohort: Cohort, parties) -> SumKey:
    """The decryptor's secret key, before the round is over."""
    key = parties[DECRYPTOR]._holder._key
    return SumKey.from_parts(cohort.encryption(), *key.parts())


def opened(cohort: Cohort, key: SumKey, message: bytes) -> np.ndarray:
    """A client's own slots, by whoever has the secret key."""
    parts = key.parts()
    once = SumKey.from_parts(cohort.encryption(), *parts)  # a key opens one sum
    return once.open_slots(ciphertexts_of(cohort, message), 1)


@pytest.fixture
def masks(monkeypatch) -> dict[int, dict[int, tuple[bytes, bool]]]:
    """Every client's masks as they are made: towards each neighbour, its own under its index."""
    found: dict[int, dict[int, tuple[bytes, bool]]] = {}
    original = ClientSecrets.masks

    def note(self, edges, view):
        made = original(self, edges, view)
        found[self._index] = dict(zip([self._index, *edges], made, strict=True))
        return made

    monkeypatch.setattr(ClientSecrets, "masks", note)
    return found


def stripped(cohort: Cohort, slots: np.ndarray, masks) -> np.ndarray:
    """Slots without masks that somebody knows."""
    modulus = cohort.encryption().packing.modulus
    return mask_slots(slots, [(key, not subtract) for key, subtract in masks], modulus)


def secrets_of(party: object, kinds: tuple[type, ...]) -> list[object]:
    """Every object of some kinds that a party holds, however deep."""
    found, seen, left = [], set(), [party]
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, (str, bytes, int, float, np.ndarray, type)):
            continue
        seen.add(id(one))
        if isinstance(one, kinds):
            found.append(one)
        if isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set, frozenset)):
            left += list(one)
        else:
            names = [*getattr(one, "__dict__", {})]
            names += [n for kind in type(one).__mro__ for n in getattr(kind, "__slots__", ())]
            left += [getattr(one, name) for name in names if hasattr(one, name)]
    return found


def test_a_server_with_one_client_reads_a_contribution_under_the_cohorts_key_and_not_here():
    """The same search for a key, in the same coalition, in arrangements (a) and (c)."""
    kinds = (SumKey, BfvSecretKey)
    shared = EncryptedCohort(key_holder="cohort")
    outcome = drive_unmasked(shared, until="consistency")
    found = secrets_of([outcome.server, outcome.parties["c003"]], kinds)
    key = next(key for key in found if isinstance(key, SumKey))
    encryption, sent = shared.context().encryption, outcome.sent["masked_input"]["c000"]
    each = encryption.input_bytes // encryption.count
    tail = body_of(sent)[-encryption.input_bytes :]
    parts = [tail[at : at + each] for at in range(0, len(tail), each)]
    np.testing.assert_array_equal(key.open_ring(parts, 1), shared.inputs["c000"])

    cohort = masked()
    for stage in COMPLETE_STAGES:
        outcome = drive(cohort, until=stage)
        assert secrets_of([outcome.server, outcome.clients["c003"]], kinds) == []
    assert secrets_of(outcome.clients[DECRYPTOR], kinds) == []  # the round is over for it
    parties, seen = cohort.parties(), []

    def keep(stage, name, message):
        seen.append(message)
        return message

    outcome = drive(cohort, clients=parties, until="consistency", meddle_up=keep, meddle_down=keep)
    (key,) = secrets_of(parties[DECRYPTOR], (SumKey,))  # where it is, it is found
    public, secret = key.parts()
    assert any(public in message for message in seen)
    assert not any(secret[:32] in message for message in seen)


def test_the_decryptor_opens_one_clients_ciphertexts_and_they_are_masked_still(masks):
    """A server shows the victim's ciphertexts n times over: the decryptor cannot tell.

    It is told the shares of the victim's self-mask too, and a colluder's edge with the victim.
    What is left are masks towards clients that did not collude.
    """
    cohort = wide(size=5)
    modulus = cohort.encryption().packing.modulus
    times = pow(cohort.size, -1, modulus)

    class Choosing(Gathering):
        def receive(self, client_id: str, message: bytes) -> None:
            if (self.stage, client_id) == ("masked_input", cohort.names[VICTIM]):
                self.chosen = ciphertexts_of(cohort, message)
            super().receive(client_id, message)

        def _unmask(self) -> None:
            left = list(self._unmasking().masks())  # survivors' self-masks, by index
            self.own = left[VICTIM]

    server = Choosing(cohort.context())
    context = cohort.context()

    def choose(stage, name, reply):
        if (stage, name) != ("unmask", DECRYPTOR):
            return reply
        encryption = cohort.encryption()
        total = CiphertextSum(encryption.parameters, encryption.count)
        for _ in cohort.names:
            total.add(server.chosen)
        request = OpenRequest.decode(reply, context)
        return dataclasses.replace(request, ciphertexts=tuple(total.ciphertexts())).encode(context)

    outcome = drive(cohort, server=server, meddle_down=choose)
    assert not outcome.refused
    slots = np.array([int(s) * times % modulus for s in server._slots._slots], dtype=np.uint64)
    known = stripped(cohort, slots, [(server.own[0], False), masks[VICTIM][3]])
    assert looks_uniform(cohort, known)
    bare = stripped(cohort, known, [masks[VICTIM][i] for i in (1, 2, 4)])
    packing = cohort.encryption().packing
    assert not looks_uniform(cohort, bare)
    np.testing.assert_array_equal(packing.unpack(bare), cohort.inputs[cohort.names[VICTIM]])


@pytest.mark.parametrize("defended", [True, False], ids=["as built", "masks off"])
def test_a_server_with_the_decryptors_key_sees_uniform_slots(defended, monkeypatch):
    cohort = wide()
    if not defended:
        monkeypatch.setattr(ClientSecrets, "masks", lambda self, edges, view: [])
    parties = cohort.parties()
    outcome = drive(cohort, clients=parties, until="masked_input")
    key = secret_key(cohort, parties)
    slots = {n: opened(cohort, key, outcome.sent["masked_input"][n]) for n in cohort.names}
    packing = cohort.encryption().packing
    for name in cohort.names:
        assert looks_uniform(cohort, slots[name]) == defended
        agreeing = np.mean(packing.unpack(slots[name]) == cohort.inputs[name])
        assert agreeing < 0.01 if defended else agreeing == 1.0
    if defended:  # nor do two clients' slots, or one client's in two rounds, go together
        again = cohort.parties()
        later = drive(cohort, clients=again, until="masked_input")
        second = opened(cohort, secret_key(cohort, again), later.sent["masked_input"]["c000"])
        t = packing.modulus
        for other in (slots["c001"], second):
            assert looks_uniform(cohort, (slots["c000"] + (np.uint64(t) - other)) % np.uint64(t))


def test_a_coalition_with_key_and_fewer_clients_than_the_threshold_learns_a_sum_only(masks):
    """After a whole round self-masks of survivors are known, and every edge of a corrupt client.

    Five clients, threshold three: two of them collude.  Between the three others masks remain, and
    come off the sum of these three alone, as without encryption.
    """
    cohort = wide(size=5)
    assert cohort.context().parameters.threshold == 3
    corrupt, honest = {3, 4}, [0, 1, 2]
    parties, held = cohort.parties(), []

    def keep(stage, name, reply):
        if (stage, name) == ("unmask", "c000"):
            held.append(secret_key(cohort, parties))
        return reply

    outcome = drive(cohort, clients=parties, meddle_down=keep)
    (key,) = held
    packing, t = cohort.encryption().packing, cohort.encryption().packing.modulus
    left = {}
    for index in honest:
        slots = opened(cohort, key, outcome.sent["masked_input"][cohort.names[index]])
        known = [masks[index][i] for i in (index, *corrupt)]
        left[index] = stripped(cohort, slots, known)
        assert looks_uniform(cohort, left[index])
    pair = (left[0] + left[1]) % np.uint64(t)
    assert looks_uniform(cohort, pair)
    total = (pair + left[2]) % np.uint64(t)
    wanted = cohort.plain_sum(cohort.names[:3])
    np.testing.assert_array_equal(packing.unpack(total), wanted)
    # One more client's edges, and the contributions of the last two come out one by one.
    bare = stripped(cohort, left[0], [masks[0][1], masks[0][2]])
    np.testing.assert_array_equal(packing.unpack(bare), cohort.inputs["c000"])


def test_fewer_shares_than_the_threshold_leave_a_self_mask_closed():
    """Of a victim that is in no list, a coalition below the threshold has too few shares."""
    cohort = wide(size=5, length=40_000)
    shares: dict[int, tuple[bytes, ...]] = {}
    parties = cohort.parties()

    def keep(stage, name, reply):
        if stage == "consistency" and name in ("c003", "c004"):
            shares[cohort.names.index(name)] = parties[name]._secrets.shares[VICTIM]
        return reply

    outcome = drive(cohort, clients=parties, meddle_down=keep, until="consistency")
    server = outcome.server
    server._reveals = {i: Reveal({VICTIM: held[0]}, {}) for i, held in shares.items()}
    server._survivors = frozenset([VICTIM])
    with pytest.raises(ThresholdNotMet, match="2 holders revealed a share of 'c000'"):
        list(server._unmasking().masks())
    third = parties["c001"]._secrets.shares[VICTIM]
    server._reveals[1] = Reveal({VICTIM: third[0]}, {})
    mask = next(server._unmasking().masks())
    digest, own = cohort.context().digest, parties["c000"]._secrets.self_seed
    assert mask == (keys.self_keystream_key(own, digest, server._view, VICTIM), True)


@pytest.mark.parametrize("seed", ["independent", "equal to the root"])
def test_a_self_mask_protects_an_input_that_came_late(seed):
    """The server declares the last client dropped, recovers its root, and has the secret key."""
    cohort = wide(size=8)
    context, held = cohort.context(), {}
    parties, drawn = cohort.parties(), iter([b"r" * 32, b"r" * 32])
    if seed == "equal to the root":
        parties["c007"] = PairwiseClient(
            context,
            "c007",
            cohort.identities["c007"],
            lambda: cohort.inputs["c007"],
            random=lambda count: next(drawn, None) or system_random(count),
        )

    class Keeping(PairwiseServer):
        def receive(self, client_id: str, message: bytes) -> None:
            if (self.stage, client_id) == ("masked_input", "c007"):
                held["late"], held["key"] = message, secret_key(cohort, parties)
                return  # kept, and not added
            super().receive(client_id, message)

        def _unmasking(self):
            left = super()._unmasking()
            pair_masks = left.pair_masks

            def note(dropped, root):
                held["root"], held["pair"] = root, list(pair_masks(dropped, root))
                return iter(held["pair"])

            object.__setattr__(left, "pair_masks", note)
            return left

    server = Keeping(context)
    drive(cohort, clients=parties, server=server)
    assert server.result.survivors == cohort.names[:7]
    slots = opened(cohort, held["key"], held["late"])
    # Of the late client's own input the same keystreams come off with the other sign.
    left = mask_slots(
        slots,
        [(key, not subtract) for key, subtract in held["pair"]],
        cohort.encryption().packing.modulus,
    )
    own = keys.self_keystream_key(held["root"], context.digest, server._view, 7)
    left = stripped(cohort, left, [(own, False)])
    found = cohort.encryption().packing.unpack(left)
    if seed == "independent":
        assert looks_uniform(cohort, left)
        assert np.mean(found == cohort.inputs["c007"]) < 0.01
    else:
        np.testing.assert_array_equal(found, cohort.inputs["c007"])
