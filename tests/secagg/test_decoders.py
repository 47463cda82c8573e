"""Every decoder of a round, given arbitrary and nearly valid bytes.

The longer, coverage-guided run of the same property is ``tests/fuzz/fuzz_decoders.py``.
"""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_probe import Codec, allocation_bound, check_decoder, codecs

CODECS = codecs()
EXTREMES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]

Change = tuple[str, int, int]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "byte", "u32", "cut", "drop", "repeat", "extend"]),
        st.integers(0, 1 << 16),
        st.one_of(st.sampled_from(EXTREMES), st.integers(0, 255)),
    ),
    min_size=1,
    max_size=4,
)


def mutated(message: bytes, changes: list[Change]) -> bytes:
    """``message`` after bit flips, new bytes and counts, cuts, gaps, repeats and additions."""
    for kind, where, what in changes:
        # Half of the positions are near the front, where headers and counts are.
        at = (where >> 1) % (min(len(message), 64) if where & 1 else len(message) or 1) or 0
        if kind == "flip" and message:
            message = message[:at] + bytes([message[at] ^ (1 << what % 8)]) + message[at + 1 :]
        elif kind == "byte":
            message = message[:at] + bytes([what & 0xFF]) + message[at + 1 :]
        elif kind == "u32":
            message = message[:at] + what.to_bytes(4, "little") + message[at + 4 :]
        elif kind == "cut":
            message = message[:at]
        elif kind == "drop":
            message = message[:at] + message[at + what % 40 + 1 :]
        elif kind == "repeat":
            message = message[:at] + message[at : at + what % 2000] + message[at:]
        else:
            message = message + bytes([what & 0xFF]) * (what % 9 + 1)
        if not message:
            break
    return message


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_message_of_an_honest_round_is_accepted_and_encodes_as_it_was(codec: Codec):
    assert all(check_decoder(codec, sample) for sample in codec.samples)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_accepted_has_no_other_encoding(codec: Codec, data):
    """Anything but a RemoteProtocolError, or a second encoding of one value, fails in here."""
    sample = data.draw(st.sampled_from(codec.samples))
    check_decoder(codec, mutated(sample, data.draw(CHANGES)))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 40))
def test_arbitrary_bytes_are_refused_by_name(codec: Codec, tail, kept):
    check_decoder(codec, tail)
    check_decoder(codec, codec.samples[0][:kept] + tail)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_every_truncation_and_any_extension_is_refused(codec: Codec):
    sample = min(codec.samples, key=len)
    lengths = {*range(min(len(sample), 200)), *range(0, len(sample), 97), len(sample) - 1}
    assert not any(check_decoder(codec, sample[:length]) for length in sorted(lengths))
    assert not any(check_decoder(codec, sample + extra) for extra in (b"\0", b"\xff" * 5, sample))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_count_that_lies_does_not_make_a_decoder_allocate(codec: Codec):
    """Each aligned or unaligned u32 near the front becomes 2^32 - 1, 2^31 and 2^24."""
    tracemalloc.start()
    try:
        for sample in codec.samples:
            for at in range(min(len(sample), 48)):
                for lie in (2**32 - 1, 2**31, 2**24):
                    message = sample[:at] + lie.to_bytes(4, "little") + sample[at + 4 :]
                    tracemalloc.reset_peak()
                    before = tracemalloc.get_traced_memory()[0]
                    check_decoder(codec, message)
                    peak = tracemalloc.get_traced_memory()[1] - before
                    assert peak <= allocation_bound(message)
    finally:
        tracemalloc.stop()
