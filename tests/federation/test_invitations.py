"""What a server and an agent say to each other: round trips, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.crypto.identity import IdentityKey
from securefed.errors import RemoteProtocolError, WireError
from securefed.federation import invitations
from securefed.federation.invitations import (
    Ending,
    HeadRequest,
    Hello,
    Introduction,
    Invitation,
    Step,
    answered,
    encode_answer,
    encode_refusal,
)

SERVER, CLIENT = IdentityKey.generate(), IdentityKey.generate()
ROSTER = {"site-0": CLIENT.public}
HELLO = Hello(run=b"r" * 16, node=2**63 + 5, config=b"c" * 32)
INVITATION = Invitation(
    run=b"r" * 16,
    ledger=b"l" * 32,
    round=3,
    session=b"s" * 16,
    figures=False,
    sizes={"site-0": 5, "sité-1": 7},
    noise_multiplier=0.8,
    fractions=(0.5, 0.25),
    adapter=b"tensors",
    summed={"sité-1": "0f" * 16},
    control=b"more tensors",
)
ENDING = Ending(ledger=b"l" * 32, round=3, summed={"sité-1": "0f" * 16}, adapter=b"tensors")


def decoded(message):
    """With every decoder, so that each refuses the others' messages."""
    return [
        lambda: Hello.decode(message, SERVER.public),
        lambda: Introduction.decode(message, HELLO, ROSTER),
        lambda: Invitation.decode(message, SERVER.public),
        lambda: Step.decode(message),
        lambda: HeadRequest.decode(message),
        lambda: Ending.decode(message, SERVER.public),
    ]


MESSAGES = [
    HELLO.encode(SERVER),
    Introduction(client="site-0", size=9).encode(HELLO, CLIENT),
    INVITATION.encode(SERVER),
    Step(b"s" * 16, b"message").encode(),
    HeadRequest(b"l" * 32, b"{}", 3, (b"one", b"two")).encode(),
    ENDING.encode(SERVER),
]
VALUES = [
    HELLO,
    Introduction(client="site-0", size=9),
    INVITATION,
    Step(b"s" * 16, b"message"),
    HeadRequest(b"l" * 32, b"{}", 3, (b"one", b"two")),
    ENDING,
]


@pytest.mark.parametrize("kind", range(6))
def test_each_comes_back_as_it_went_and_no_other_decoder_takes_it(kind):
    for place, decode in enumerate(decoded(MESSAGES[kind])):
        if place == kind:
            assert decode() == VALUES[kind]
        else:
            with pytest.raises(WireError):
                decode()


@pytest.mark.parametrize("kind", range(6))
def test_a_cut_message_and_one_with_bytes_to_spare_are_refused(kind):
    message = MESSAGES[kind]
    for wrong in [*(message[:end] for end in range(len(message))), message + b"\0"]:
        with pytest.raises(WireError):
            decoded(wrong)[kind]()


@pytest.mark.parametrize("kind", [0, 1, 2, 5])
@given(data=st.data())
def test_a_signed_message_with_any_bit_changed_is_refused(kind, data):
    message = bytearray(MESSAGES[kind])
    place = data.draw(st.integers(0, len(message) * 8 - 1))
    message[place // 8] ^= 1 << place % 8
    with pytest.raises(RemoteProtocolError):
        decoded(bytes(message))[kind]()


def test_another_servers_word_counts_for_nothing():
    other = IdentityKey.generate()
    for message in (HELLO.encode(other), INVITATION.encode(other)):
        with pytest.raises(RemoteProtocolError, match="does not verify"):
            (Hello if message == HELLO.encode(other) else Invitation).decode(message, SERVER.public)


@pytest.mark.parametrize(
    "changed",
    [
        {"sizes": {"site-0": 0}},
        {"sizes": {"site-0": 2.5}},
        {"sizes": {"site-0": True}},
        {"noise_multiplier": -1.0},
        {"fractions": ("a",)},
        {"summed": {"site-0": "0F" * 16}},
        {"summed": {"site-0": "0f" * 15}},
        {"summed": {"site-0": 5}},
        {"round": 0},
    ],
)
def test_values_out_of_range_are_refused_even_when_signed(changed):
    from dataclasses import replace

    with pytest.raises(WireError):
        Invitation.decode(replace(INVITATION, **changed).encode(SERVER), SERVER.public)


@pytest.mark.parametrize("summed", [{"site-0": "0F" * 16}, {"site-0": "0f" * 15}, {"site-0": 5}])
def test_an_ending_that_names_no_sessions_is_refused_even_when_signed(summed):
    from dataclasses import replace

    with pytest.raises(WireError, match="summed"):
        Ending.decode(replace(ENDING, summed=summed).encode(SERVER), SERVER.public)


@pytest.mark.parametrize("message", [INVITATION, ENDING])
def test_another_spelling_of_the_same_values_is_refused_even_when_signed(monkeypatch, message):
    with monkeypatch.context() as spelt:
        spelt.setattr(invitations.rfc8785, "dumps", lambda values: json.dumps(values).encode())
        sent = message.encode(SERVER)
    with pytest.raises(WireError, match="is not in canonical form"):
        type(message).decode(sent, SERVER.public)


def test_a_client_that_is_not_in_the_roster_is_refused():
    message = Introduction(client="ghost", size=1).encode(HELLO, CLIENT)
    with pytest.raises(RemoteProtocolError, match="'ghost' is not in the roster"):
        Introduction.decode(message, HELLO, ROSTER)


def test_a_client_that_signs_for_another_is_refused():
    other = IdentityKey.generate()
    message = Introduction(client="site-0", size=1).encode(HELLO, other)
    with pytest.raises(RemoteProtocolError, match="does not verify"):
        Introduction.decode(message, HELLO, ROSTER)


def test_answers_and_refusals_are_told_apart():
    assert answered(encode_answer(b"abc")) == b"abc"
    with pytest.raises(RemoteProtocolError, match="refused: ThresholdNotMet"):
        answered(encode_refusal("ThresholdNotMet"))
    with pytest.raises(RemoteProtocolError, match="refused: no kind"):
        answered(encode_refusal("\x1b[31m red"))
    for garbage in (b"", b"abc", MESSAGES[0], encode_answer(b"abc") + b"x"):
        with pytest.raises(WireError):
            answered(garbage)


def test_no_more_fractions_than_rounds_before():
    from owners import SERVER, invitation

    Invitation.decode(invitation(round=3, fractions=(0.5, 0.5)), SERVER.public)
    with pytest.raises(WireError, match="fractions: 3 given for round 3"):
        Invitation.decode(invitation(round=3, fractions=(0.5,) * 3), SERVER.public)
