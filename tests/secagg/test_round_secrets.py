"""Each key of a round depends on everything it is said to depend on."""

import pytest

from securefed.secagg import round_secrets as keys

SECRET, DIGEST, VIEW = b"s" * 32, b"d" * 32, b"v" * 32

DERIVATIONS = {
    "mask key": lambda **x: keys.mask_key_pair(x["secret"], x["digest"], x["low"]).public.raw,
    "edge secret": lambda **x: keys.edge_secret(
        x["secret"], x["digest"], x["low"], x["high"], x["key"]
    ),
    "edge commitment": lambda **x: keys.edge_commitment(
        x["secret"], x["digest"], x["low"], x["high"]
    ),
    "root commitment": lambda **x: keys.root_commitment(x["secret"], x["digest"], x["low"]),
    "self commitment": lambda **x: keys.self_commitment(x["secret"], x["digest"], x["low"]),
    "pair keystream": lambda **x: keys.pair_keystream_key(
        x["secret"], x["digest"], x["view"], x["low"], x["high"]
    ),
    "self keystream": lambda **x: keys.self_keystream_key(
        x["secret"], x["digest"], x["view"], x["low"]
    ),
    "edge info": lambda **x: keys.edge_info(x["digest"], x["low"], x["high"]),
    "envelope info": lambda **x: keys.envelope_info(
        x["digest"], x["low"], x["high"], x["key"], x["view"]
    ),
    "survivors": lambda **x: keys.survivors_statement(x["digest"], x["view"], [x["low"]]),
}
BASE = {"secret": SECRET, "digest": DIGEST, "view": VIEW, "low": 1, "high": 2, "key": b"k" * 32}
CHANGED = {
    "secret": b"S" * 32,
    "digest": b"D" * 32,
    "view": b"V" * 32,
    "low": 0,
    "high": 3,
    "key": b"K" * 32,
}
DEPENDS = {
    "mask key": {"secret", "digest", "low"},
    "edge secret": {"secret", "digest", "low", "high", "key"},
    "edge commitment": {"secret", "digest", "low", "high"},
    "root commitment": {"secret", "digest", "low"},
    "self commitment": {"secret", "digest", "low"},
    "pair keystream": {"secret", "digest", "view", "low", "high"},
    "self keystream": {"secret", "digest", "view", "low"},
    "edge info": {"digest", "low", "high"},
    "envelope info": {"digest", "low", "high", "key", "view"},
    "survivors": {"digest", "view", "low"},
}


@pytest.mark.parametrize("name", DERIVATIONS)
def test_every_derivation_depends_on_all_that_it_is_given(name):
    derive = DERIVATIONS[name]
    changed = {
        argument
        for argument in BASE
        if derive(**BASE) != derive(**BASE | {argument: CHANGED[argument]})
    }
    assert changed == DEPENDS[name]


def test_no_two_derivations_give_the_same_key():
    found = [derive(**BASE) for derive in DERIVATIONS.values()]
    assert len(set(found)) == len(found)


def test_giver_and_taker_are_not_interchangeable():
    swapped = BASE | {"low": BASE["high"], "high": BASE["low"]}
    for name in ("edge secret", "edge commitment", "edge info", "envelope info"):
        assert DERIVATIONS[name](**BASE) != DERIVATIONS[name](**swapped)
