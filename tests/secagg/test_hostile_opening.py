"""What a server can have opened that it should not, with each check and without it.

Each attack is run against the key holder as it is, and against the same one with the check that
stops it taken out: there it must succeed, or the test shows nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from securefed.encoding.fixed_point import from_ring
from securefed.errors import LocalProtocolError, RemoteProtocolError, ThresholdNotMet
from securefed.secagg.ciphertexts import CiphertextSum
from securefed.secagg.encryption import DECRYPTOR
from securefed.secagg.key_holder import KeyHolder
from securefed.secagg.opening import OpenRequest, decode_opened_ring
from securefed.secagg.signed import Signed
from securefed.secagg.sum_check import SumCheck, add_padded, check_bytes, rows
from tests.secagg_encrypted import EncryptedCohort, drive

VICTIM = 0


def ciphertexts_of(cohort, message):
    """What a client sent, as the server has it."""
    context = cohort.context()
    encryption = context.encryption
    body = Signed.decode(message, limit=10**8).body
    size = encryption.input_bytes
    each = size // encryption.count
    tail = body[-size:]
    return [tail[place : place + each] for place in range(0, size, each)]


def times(cohort, ciphertexts, factor):
    """A sum of one contribution with itself: its check slot is that of ``factor`` clients."""
    encryption = cohort.context().encryption
    total = CiphertextSum(encryption.parameters, encryption.count)
    for _ in range(factor):
        total.add(ciphertexts)
    return list(total.ciphertexts())


class Asked:
    """A round that stands before its opening, with the server's request in hand."""

    def __init__(self, **options):
        self.cohort = EncryptedCohort(**options)
        self.outcome = drive(self.cohort, until="unmask")
        self.context = self.cohort.context()
        self.holder = next(iter(self.outcome.answered["unmask"]))
        self.request = OpenRequest.decode(
            self.outcome.answered["unmask"][self.holder], self.context
        )

    def ask(self, **changes):
        request = dataclasses.replace(self.request, **changes)
        answer = self.outcome.parties[self.holder].handle(request.encode(self.context))
        body = Signed.decode(answer, limit=10**8).body
        return from_ring(decode_opened_ring(self.context.encryption, body), self.context.bits)

    def of_victim(self):
        sent = self.outcome.sent["masked_input"][self.cohort.names[VICTIM]]
        return ciphertexts_of(self.cohort, sent)


@pytest.fixture(params=["decryptor", "cohort"])
def key_holder(request):
    return request.param


def test_what_is_asked_for_rightly_is_opened(key_holder):
    asked = Asked(key_holder=key_holder)
    total = sum(asked.cohort.values.values())
    assert np.array_equal(asked.ask(), total)


def test_one_clients_ciphertexts_in_place_of_the_sum_are_not_opened(key_holder, monkeypatch):
    """n times the victim's ciphertexts have the check slot of n clients; divided by n they open."""
    asked = Asked(key_holder=key_holder, value_bound=20_000)
    with pytest.raises(RemoteProtocolError, match="not the sum of what the listed clients sent"):
        asked.ask(ciphertexts=times(asked.cohort, asked.of_victim(), asked.cohort.size))

    monkeypatch.setattr(SumCheck, "agrees", lambda *args: True)
    asked = Asked(key_holder=key_holder, value_bound=20_000)
    opened = asked.ask(ciphertexts=times(asked.cohort, asked.of_victim(), asked.cohort.size))
    victim = asked.cohort.values[asked.cohort.names[VICTIM]]
    assert np.array_equal(opened / asked.cohort.size, victim)


def test_the_sum_of_fewer_than_are_listed_is_not_opened(key_holder, monkeypatch):
    def attack(asked):
        names, sent = asked.cohort.names, asked.outcome.sent["masked_input"]
        encryption = asked.context.encryption
        total = CiphertextSum(encryption.parameters, encryption.count)
        for name in names:  # the last one's place is taken by the first one's second time
            total.add(ciphertexts_of(asked.cohort, sent[names[0] if name == names[-1] else name]))
        return asked.ask(ciphertexts=list(total.ciphertexts()))

    with pytest.raises(RemoteProtocolError, match="not the sum"):
        attack(Asked(key_holder=key_holder))
    monkeypatch.setattr(SumCheck, "agrees", lambda *args: True)
    asked = Asked(key_holder=key_holder)
    values = asked.cohort.values
    difference = values[asked.cohort.names[0]] - values[asked.cohort.names[-1]]
    assert np.array_equal(attack(asked), sum(values.values()) + difference)


def test_a_single_client_is_below_the_floor_and_so_are_two(key_holder, monkeypatch):
    for count in (1, 2, 3):
        asked = Asked(key_holder=key_holder)
        listed = tuple(range(count))
        with pytest.raises(ThresholdNotMet, match=f"{count} clients, at least 4"):
            asked.ask(
                survivors=listed,
                entries={i: asked.request.entries[i] for i in listed},
                ciphertexts=asked.of_victim(),
            )

    # With the floor out of the way, and with it what clients signed, one client's opens.
    def lowered(self, *args, **options):
        built(self, *args, **options)
        self._floor = 1

    built = KeyHolder.__init__
    monkeypatch.setattr(KeyHolder, "__init__", lowered)
    if key_holder == "cohort":
        monkeypatch.setattr(KeyHolder, "_check_list", lambda *args: None)
    asked = Asked(key_holder=key_holder)
    holder = asked.outcome.parties[asked.holder]
    if key_holder == "cohort":
        holder._listed = (VICTIM,)
    sent = Signed.decode(asked.outcome.sent["masked_input"]["c000"], limit=10**8).body
    size = check_bytes(asked.context.encryption.parameters)
    opened = asked.ask(
        survivors=(VICTIM,),
        signatures={},
        entries={VICTIM: asked.request.entries[VICTIM]},
        check=sent[32 : 32 + size],
        ciphertexts=asked.of_victim(),
    )
    assert np.array_equal(opened, asked.cohort.values[asked.cohort.names[VICTIM]])


def test_the_decryptors_own_floor_counts_too():
    cohort = EncryptedCohort(size=6, dropout=0.4)
    parties = cohort.parties() | {DECRYPTOR: cohort.decryptor(min_clients=6)}
    outcome = drive(cohort, drop={"c000": "masked_input"}, parties=parties)
    assert "5 clients, at least 6" in str(outcome.refused[DECRYPTOR])
    assert outcome.ended is not None


def test_a_holder_looks_at_one_request(key_holder):
    asked = Asked(key_holder=key_holder)
    holder = asked.outcome.parties[asked.holder]
    with pytest.raises(RemoteProtocolError):
        asked.ask(ciphertexts=times(asked.cohort, asked.of_victim(), asked.cohort.size))
    with pytest.raises(RemoteProtocolError, match="while failed"):
        asked.ask()
    assert holder._holder is None
    direct = Asked(key_holder=key_holder)
    kept = direct.outcome.parties[direct.holder]._holder
    listed = tuple(range(5)) if key_holder == "cohort" else None
    kept.open(direct.request.encode(direct.context), listed=listed)
    with pytest.raises(LocalProtocolError, match="is gone"):
        kept.open(direct.request.encode(direct.context), listed=listed)


def test_entries_are_signed_for_this_attempt_and_by_their_client(key_holder):
    asked = Asked(key_holder=key_holder)
    entries = dict(asked.request.entries)
    wrong = {
        "another attempt's": Asked(key_holder=key_holder).request.entries[1],
        "another client's": entries[0],
        "none": bytes(64),
    }
    for entry in wrong.values():
        asked = Asked(key_holder=key_holder)
        with pytest.raises(RemoteProtocolError, match="does not verify"):
            asked.ask(entries=dict(asked.request.entries) | {1: entry})
    asked = Asked(key_holder=key_holder)
    del entries[4]
    with pytest.raises(RemoteProtocolError, match="not those of the survivors"):
        asked.ask(entries={i: asked.request.entries[i] for i in range(4)})


def test_a_check_that_is_off_in_one_place_is_refused(key_holder):
    for place in (0, check_bytes(EncryptedCohort().context().encryption.parameters) - 8):
        asked = Asked(key_holder=key_holder)
        check = asked.request.check
        value = int.from_bytes(check[place : place + 8], "little")
        other = (value + 1) % asked.context.encryption.parameters.primes[place // 8 % 2]
        wrong = check[:place] + other.to_bytes(8, "little") + check[place + 8 :]
        with pytest.raises(RemoteProtocolError, match="not the sum"):
            asked.ask(check=wrong)


def test_a_holder_is_shown_no_check_of_a_single_client(key_holder):
    """With a key made for it, a single client's check would confirm a guess at its contribution."""
    asked = Asked(key_holder=key_holder)
    request = asked.outcome.answered["unmask"][asked.holder]
    size = check_bytes(asked.context.encryption.parameters)
    for message in asked.outcome.sent["masked_input"].values():
        body = Signed.decode(message, limit=10**8).body
        assert body[32 : 32 + size] not in request
    assert asked.request.check in request


# -- the cohort's key --------------------------------------------------------------------------


def test_openers_open_the_list_that_they_signed_and_no_other():
    asked = Asked(key_holder="cohort", size=8, dropout=0.25)
    entries = {i: asked.request.entries[i] for i in range(7)}
    with pytest.raises(RemoteProtocolError, match="not the survivors that this client signed"):
        asked.ask(survivors=tuple(range(7)), entries=entries)


def test_one_client_alone_does_not_say_what_the_sum_is():
    cohort = EncryptedCohort(key_holder="cohort", size=5, dropout=0.0)
    asked = drive(cohort, until="unmask").answered["unmask"]
    assert len(asked) == 2
    outcome = drive(cohort, drop={next(iter(asked)): "unmask"})
    # Whose turn it is follows from the round alone, so the same two are asked.
    assert "1 clients opened the sum, at least 2 must" in str(outcome.ended)


def test_two_lists_in_one_round_open_at_most_one_of_them():
    """A server tells half of the clients that the last of them is missing."""
    cohort = EncryptedCohort(key_holder="cohort", size=8, dropout=0.25)
    from securefed.secagg.messages import encode_survivors

    short = encode_survivors(list(range(7)), size=8)

    def lie(stage, name, reply):
        return short if stage == "consistency" and name in cohort.names[:4] else reply

    outcome = drive(cohort, meddle_down=lie)
    assert outcome.ended is not None
    assert "unmask" not in outcome.sent


def test_too_few_signatures_open_nothing(monkeypatch):
    asked = Asked(key_holder="cohort", size=8, dropout=0.25)
    few = dict(list(asked.request.signatures.items())[:4])
    with pytest.raises(ThresholdNotMet, match="4 signatures on the list of survivors, at least 5"):
        asked.ask(signatures=few)


def test_openers_who_do_not_agree_give_no_sum():
    cohort = EncryptedCohort(key_holder="cohort", size=8, dropout=0.25)
    context = cohort.context()

    def lie(stage, name, message):
        signed = Signed.decode(message, limit=10**8)
        if stage != "unmask" or lied:
            return message
        lied.append(name)
        from securefed.secagg.signed import sign

        body = bytes([signed.body[0] ^ 1]) + signed.body[1:]
        return sign(context, signed.sender, cohort.identities[name], "unmask", body)

    lied: list[str] = []
    outcome = drive(cohort, meddle_up=lie)
    assert "opened one sum to different values" in str(outcome.ended)


# -- who can read a contribution ---------------------------------------------------------------


def recovered(cohort, outcome, key):
    """The victim's contribution, by whoever has a secret key and what the server received."""
    sent = outcome.sent["masked_input"][cohort.names[VICTIM]]
    ring = key.open_ring(ciphertexts_of(cohort, sent), 1)
    return from_ring(ring, cohort.bits)


def test_with_the_cohorts_key_a_server_and_one_client_read_every_contribution():
    """Arrangement (a): one colluding client is enough."""
    cohort = EncryptedCohort(key_holder="cohort")
    outcome = drive(cohort, until="consistency")
    colluder = outcome.parties["c003"]
    found = recovered(cohort, outcome, colluder._holder._key)
    assert np.array_equal(found, cohort.values["c000"])


def test_with_a_decryptor_a_server_and_all_other_clients_have_no_key_that_opens_one():
    """Arrangement (b): what clients hold is the round secret, which decrypts nothing."""
    cohort = EncryptedCohort()
    outcome = drive(cohort, until="unmask")
    assert all(outcome.parties[name]._holder is None for name in cohort.names)
    # The decryptor with the server reads every contribution.
    found = recovered(cohort, outcome, outcome.parties[DECRYPTOR]._holder._key)
    assert np.array_equal(found, cohort.values["c000"])


def test_with_a_decryptor_one_client_that_gives_the_round_secret_away_lets_a_server_choose():
    """Arrangement (b) says so: against a server that departs from the protocol with one client's
    help, masks are needed."""
    cohort = EncryptedCohort(value_bound=20_000)
    secret: list[bytes] = []
    client = cohort.client("c004")
    opened = Asked.__new__(Asked)
    parties = cohort.parties() | {"c004": client}
    original = SumCheck.__init__

    def tell(self, parameters, round_secret, view):
        secret.append(round_secret)
        original(self, parameters, round_secret, view)

    SumCheck.__init__ = tell
    try:
        outcome = drive(cohort, parties=parties, until="unmask")
    finally:
        SumCheck.__init__ = original
    opened.cohort, opened.outcome, opened.context = cohort, outcome, cohort.context()
    opened.holder = DECRYPTOR
    opened.request = OpenRequest.decode(outcome.answered["unmask"][DECRYPTOR], opened.context)
    wanted = times(cohort, opened.of_victim(), cohort.size)
    view = client._view
    check = SumCheck(opened.context.encryption.parameters, secret[0], view)
    parameters = opened.context.encryption.parameters
    zero = np.zeros((rows(parameters), len(parameters.primes)), dtype=np.uint64)
    padded = check.padded(check.of(wanted), 0)
    for index in range(1, cohort.size):
        padded = add_padded(parameters, padded, check.padded(zero, index))
    found = opened.ask(ciphertexts=wanted, check=padded)
    assert np.array_equal(found / cohort.size, cohort.values["c000"])
