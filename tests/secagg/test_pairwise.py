import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from secagg_rounds import COMPLETE_STAGES, Cohort, drive

from securefed.config import STAGES
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import add_keystream
from securefed.encoding.wire import unpack_ring
from securefed.errors import LocalProtocolError, RemoteProtocolError, ThresholdNotMet
from securefed.secagg.client_secrets import ClientSecrets
from securefed.secagg.client_states import ClientState
from securefed.secagg.signed import Signed


def masked(message: bytes, cohort: Cohort) -> np.ndarray:
    body = Signed.decode(message, limit=len(message)).body
    return unpack_ring(body[32:], cohort.length, cohort.bits)


def test_the_sum_is_exact_when_nobody_drops():
    cohort = Cohort()
    outcome = drive(cohort)
    assert outcome.server.result.survivors == cohort.names
    np.testing.assert_array_equal(outcome.server.result.total, cohort.plain_sum(cohort.names))


@pytest.mark.parametrize("stage", COMPLETE_STAGES)
def test_one_client_may_fall_silent_from_any_stage_on(stage):
    cohort = Cohort(size=6)
    outcome = drive(cohort, drop={"c002": stage})
    inside = STAGES.index(stage) > STAGES.index("masked_input")
    survivors = tuple(name for name in cohort.names if inside or name != "c002")
    assert outcome.server.result.survivors == survivors
    np.testing.assert_array_equal(outcome.server.result.total, cohort.plain_sum(survivors))


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(3, 9),
    bits=st.sampled_from([20, 24, 27, 32]),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_any_dropout_pattern_gives_the_exact_sum_or_no_sum(size, bits, seed, data):
    cohort = Cohort(size=size, bits=bits, seed=seed, length=7)
    drop = {
        name: stage
        for name in cohort.names
        if (stage := data.draw(st.sampled_from([None, None, None, *STAGES]))) is not None
    }
    outcome = drive(cohort, drop=drop)
    if outcome.ended is None:
        result = outcome.server.result
        assert len(result.survivors) >= cohort.context().parameters.survivor_floor
        np.testing.assert_array_equal(result.total, cohort.plain_sum(result.survivors))
    else:
        assert isinstance(outcome.ended, ThresholdNotMet)
        with pytest.raises(LocalProtocolError):
            _ = outcome.server.result


def test_below_the_survivor_floor_nothing_is_revealed():
    cohort = Cohort(size=8)  # at least 6 must survive
    outcome = drive(cohort, drop=dict.fromkeys(["c000", "c001", "c002"], "masked_input"))
    assert isinstance(outcome.ended, ThresholdNotMet)
    assert "unmask" not in outcome.sent


def test_a_masked_input_is_uniform_whatever_the_input():
    cohort = Cohort(size=4, length=64_000)
    for name in cohort.names:
        cohort.inputs[name][:] = 0
    outcome = drive(cohort)
    for name in cohort.names:
        values = masked(outcome.sent["masked_input"][name], cohort)
        for shift in (0, 8, 16, 24):
            counts = np.bincount((values >> shift) & 0xFF, minlength=256)
            assert chisquare(counts).pvalue > 1e-6
    # The same test sees an unmasked input at once.
    bare = np.bincount(cohort.inputs["c000"] & 0xFF, minlength=256)
    assert chisquare(bare).pvalue < 1e-6


def test_two_rounds_with_equal_inputs_have_unrelated_masks():
    cohort = Cohort(size=4, length=20_000)
    first = masked(drive(cohort).sent["masked_input"]["c001"], cohort)
    second = masked(drive(cohort).sent["masked_input"]["c001"], cohort)
    counts = np.bincount((first - second) & 0xFF, minlength=256)
    assert chisquare(counts).pvalue > 1e-6


def test_a_survivors_mask_is_not_explained_by_every_pairwise_secret():
    """The root and the self-mask seed are independent: roots of all others leave c000 masked."""
    cohort = Cohort(size=4, length=20_000)
    cohort.inputs["c000"][:] = 7
    clients = {name: cohort.client(name) for name in cohort.names}
    edges: dict[str, bytes] = {}
    original = ClientSecrets.open

    def spy(self, sender, bundle):
        secret = original(self, sender, bundle)
        if self is clients["c000"]._secrets:
            edges[str(sender)] = secret
        return secret

    ClientSecrets.open = spy
    try:
        outcome = drive(cohort, clients=clients)
    finally:
        ClientSecrets.open = original
    from securefed.secagg import round_secrets as keys

    digest = cohort.context().digest
    view = outcome.server._view
    left = masked(outcome.sent["masked_input"]["c000"], cohort)
    for other, secret in edges.items():
        key = keys.pair_keystream_key(secret, digest, view, 0, int(other))
        add_keystream(left, key, subtract=True)
    assert len(edges) == 3
    assert chisquare(np.bincount(left & 0xFF, minlength=256)).pvalue > 1e-6


def test_secrets_are_forgotten_when_the_round_is_over():
    cohort = Cohort()
    outcome = drive(cohort)
    for client in outcome.clients.values():
        assert client.state is ClientState.DONE
        assert client._secrets is None
        assert client._layers is None
        assert client._contribution is None


def test_a_client_is_not_pickled_and_shows_no_secret():
    client = Cohort().client("c000")
    client.start()
    with pytest.raises(TypeError):
        pickle.dumps(client)
    assert client._secrets.root.hex() not in repr(client)
    assert repr(client._secrets.root) not in repr(vars(client).keys())


def test_an_identity_that_is_not_the_rosters_is_refused():
    cohort = Cohort()
    context = cohort.context()
    cohort.identities["c000"] = cohort.identities["c001"]
    with pytest.raises(LocalProtocolError, match="another identity key"):
        cohort.client("c000", context)


def test_start_works_once():
    client = Cohort().client("c000")
    client.start()
    with pytest.raises(LocalProtocolError):
        client.start()


@pytest.mark.parametrize("degree", [None, 8])
def test_identities_of_both_algorithms_take_part_in_one_round(degree):
    identities = {
        f"c{i:03}": IdentityKey.generate(algorithm="ml-dsa-65" if i % 2 else "ed25519")
        for i in range(12)
    }
    cohort = Cohort(size=12, degree=degree, identities=identities)
    outcome = drive(cohort, drop={"c003": "masked_input", "c004": "masked_input"})
    assert not outcome.refused
    assert len(outcome.server.result.survivors) == 10
    np.testing.assert_array_equal(
        outcome.server.result.total, cohort.plain_sum(outcome.server.result.survivors)
    )


def test_a_contribution_of_the_wrong_shape_never_leaves():
    cohort = Cohort()
    cohort.inputs["c001"] = np.zeros(3, dtype=np.uint32)
    outcome = drive(cohort)
    assert "c001" not in outcome.server.result.survivors
    assert isinstance(outcome.refused["c001"], LocalProtocolError)


def test_what_a_contribution_raises_ends_the_round_for_that_client_only():
    cohort = Cohort(size=6)

    def fails() -> np.ndarray:
        raise RemoteProtocolError("budget says no")

    clients = {name: cohort.client(name) for name in cohort.names}
    clients["c003"]._contribution = fails
    outcome = drive(cohort, clients=clients)
    assert outcome.clients["c003"].state is ClientState.FAILED
    assert "c003" not in outcome.server.result.survivors
    np.testing.assert_array_equal(
        outcome.server.result.total, cohort.plain_sum(outcome.server.result.survivors)
    )


def test_a_client_keeps_its_own_floor_on_the_cohort():
    cohort = Cohort(size=4)
    from securefed.secagg.pairwise_client import PairwiseClient

    with pytest.raises(LocalProtocolError, match="takes part from 5 on"):
        PairwiseClient(
            cohort.context(),
            "c000",
            cohort.identities["c000"],
            lambda: cohort.inputs["c000"],
            min_clients=5,
        )
