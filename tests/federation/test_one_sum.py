"""However a sum is formed, it is the same sum of integers: masked, encrypted, or in the clear."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import SeededNoiseGeneratorForTests
from securefed.engines.in_process import carry
from securefed.federation.client import ClientRound
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.aggregations import (
    HomomorphicAggregation,
    PairwiseAggregation,
    PlaintextAggregation,
)
from securefed.secagg.decryptor import Decryptor
from securefed.secagg.encryption import DECRYPTOR

BITS = 20
WAYS = {
    "plain": PlaintextAggregation(bits=BITS),
    "masked": PairwiseAggregation(bits=BITS),
    "encrypted to a decryptor": HomomorphicAggregation(bits=BITS),
    "encrypted to the cohort": HomomorphicAggregation(bits=BITS, key_holder="cohort"),
    "masked and encrypted": HomomorphicAggregation(bits=BITS, masked=True),
    "ckks": HomomorphicAggregation(bits=BITS, scheme="ckks"),
}


def summed(way, policy, updates, seed, drop):
    """The integer sum and its decoding, from generators that are the same for every way."""
    cohort, size = tuple(sorted(updates)), len(updates)
    aggregation = WAYS[way]
    identities = {name: IdentityKey.generate() for name in (*cohort, DECRYPTOR)}
    parties = cohort + ((DECRYPTOR,) if aggregation.has_decryptor else ())
    session = RoundSession(
        session=bytes(16),
        round=1,
        cohort=cohort,
        roster={name: identities[name].public for name in parties},
        dimension=len(next(iter(updates.values()))),
        policy=policy,
        aggregation=aggregation,
        model=bytes(32),
    )
    # The rotation follows from the digest, which names the way; here one rotation serves all.
    session.__dict__["codec"] = type(session.codec)(policy, session.plan, bytes(32))
    halves: dict[str, ClientRound | Decryptor] = {
        name: ClientRound(
            session,
            name,
            identities[name],
            lambda codec, generator, name=name: codec.encode_update(updates[name], generator),
            generator=SeededNoiseGeneratorForTests(seed * size + place),
        )
        for place, name in enumerate(cohort)
    }
    if aggregation.has_decryptor:
        halves[DECRYPTOR] = Decryptor(session.context, identities[DECRYPTOR])
    server = ServerRound(session)
    carry(server, halves, drop=drop, keep_transcript=False)
    return server._half.result.total, server.survivors, server.sum


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_masked_encrypted_and_plain_paths_give_one_sum_of_integers(data):
    size = data.draw(st.integers(4, 7), label="clients")
    dimension = data.draw(st.integers(1, 300), label="dimension")
    seed = data.draw(st.integers(0, 2**32), label="seed")
    policy = PrivacyPolicy(
        clip_norm=data.draw(st.sampled_from([0.01, 1.0, 50.0]), label="clip_norm"),
        noise_multiplier=data.draw(st.floats(0.3, 4.0), label="noise_multiplier"),
        noise=data.draw(st.sampled_from(["discrete_gaussian", "skellam"]), label="noise"),
        corrupt_fraction=0.0,
        dropout_fraction=0.25,
    )
    rng = np.random.default_rng(seed)
    updates = {f"c{i}": rng.normal(size=dimension) for i in range(size)}
    most = CohortBounds.of(policy, size).most_missing
    silent = data.draw(
        st.lists(st.sampled_from(sorted(updates)), max_size=most, unique=True), label="silent"
    )
    # Who is lost before its contribution is lost in every way, and who is lost after in none.
    stages = st.sampled_from(["advertise", "masked_input", "consistency", "unmask"])
    drop = {name: data.draw(stages) for name in silent}
    found = {}
    for way in WAYS:
        # A contribution in the clear is the one message of its protocol.
        early = {n: s for n, s in drop.items() if s in ("advertise", "masked_input")}
        kept = early if way == "plain" else drop
        found[way] = summed(way, policy, updates, seed, kept)
    total, survivors, decoded = found.pop("plain")
    for way, (other, present, values) in found.items():
        assert present == survivors, way
        assert np.array_equal(other, total), way
        assert np.array_equal(values, decoded), way
