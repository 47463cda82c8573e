import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sliced import KEYS, NOISED, QUIET, aggregation_of, play, session_of, set_up, updates_of

from securefed.config import STAGES
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.in_process import carry
from securefed.errors import (
    BudgetExceeded,
    ConfigError,
    LocalProtocolError,
    RemoteProtocolError,
    ThresholdNotMet,
    WireError,
)
from securefed.evidence.budget import read_charges
from securefed.federation.account import open_account
from securefed.federation.floors import ClientFloors
from securefed.federation.slice_plans import slice_policy, standing_slices
from securefed.federation.sliced_rounds import (
    SlicedClientRound,
    SlicedServerRound,
    decode_parts,
    encode_parts,
)
from securefed.federation.slices import SlicedSession
from securefed.privacy.accounting import ADVERSARIES
from securefed.privacy.policy import CohortBounds
from securefed.secagg.aggregations import HomomorphicAggregation, PairwiseAggregation

COMPLETE = [stage for stage in STAGES if stage != "graph"]


def digests(session: SlicedSession) -> set[bytes]:
    return {one.context.digest for one in session.sessions}


# Sums

MASKED_BY = STAGES.index("masked_input")


def opens(session, number, silent) -> tuple[bool, tuple[str, ...]]:
    """Whether a slice is opened where these clients fall silent in it, and its survivors."""
    members = session.members(number)
    parameters = session.sessions[number - 1].context.parameters
    from_stage = {
        name: STAGES.index(silent[name, number]) if (name, number) in silent else len(STAGES)
        for name in members
    }

    def present(stage):
        return sum(from_stage[name] > STAGES.index(stage) for name in members)

    survivors = tuple(name for name in members if from_stage[name] > MASKED_BY)
    opened = (
        min(present("advertise"), present("share"), present("masked_input"))
        >= parameters.survivor_floor
        and present("consistency") >= parameters.quorum
        and present("unmask") >= parameters.threshold
    )
    return opened, survivors


@st.composite
def rounds(draw):
    slices = draw(st.integers(1, 3))
    tiers = [slices] * 4 + draw(st.lists(st.integers(1, slices), min_size=0, max_size=5))
    widths = draw(st.lists(st.integers(1, 70), min_size=slices, max_size=slices))
    noised = draw(st.booleans())
    session = session_of(tiers, widths, policy=NOISED if noised else QUIET)
    silent = {}
    for name, tier in session.tiers.items():
        for number in range(1, tier + 1):
            if draw(st.integers(0, 5)) == 0:
                silent[name, number] = draw(st.sampled_from(COMPLETE))
    return session, silent, draw(st.integers(0, 1000))


@settings(max_examples=30, deadline=None)
@given(rounds())
def test_masked_sums_of_mixed_ranks_are_the_plain_sums_to_the_last_bit(drawn):
    """Whoever falls silent in which slice and stage: each slice's own survivors, or no sum."""
    session, silent, seed = drawn
    expected = {n: opens(session, n, silent) for n in range(1, len(session.widths) + 1)}
    if not any(opened for opened, _ in expected.values()):
        with pytest.raises(ThresholdNotMet, match="no slice is left"):
            play(session, silent, seed)
        return
    played = play(session, silent, seed)
    for number, (opened, survivors) in expected.items():
        assert (number in played.server.sums) == opened
        assert (number in played.server.dropped) == (not opened)
        if opened:
            assert played.server.survivors[number] == survivors
            np.testing.assert_array_equal(
                played.server.sums[number], played.plain_sum(number, survivors)
            )
    assert set(played.charges.values()) <= {1}


@pytest.mark.parametrize("kind", ["pairwise", "plaintext"])
def test_the_plain_sums_are_those_of_the_vectors_clipped_as_a_whole(kind):
    session = session_of(aggregation=aggregation_of(kind))
    played = play(session)
    updates = updates_of(session)
    start = 0
    for number, width in enumerate(session.widths, start=1):
        wanted = np.zeros(width)
        for name in session.members(number):
            update = updates[name]
            clipped = update * min(1.0, 1.0 / float(np.linalg.norm(update)))
            wanted += clipped[start : start + width]
        np.testing.assert_allclose(played.server.sums[number], wanted, atol=1e-5)
        start += width


def test_every_vector_ends_where_its_tier_does():
    session = session_of((1, 2, 2, 3, 3, 3), (4, 2, 1))
    assert [session.dimension(tier) for tier in (1, 2, 3)] == [4, 6, 7]
    assert [len(session.members(n)) for n in (1, 2, 3)] == [6, 5, 3]
    with pytest.raises(ConfigError, match="must be"):
        session.codec(2).encode_update(np.zeros(7), None)
    for tier in (0, 4):
        with pytest.raises(ConfigError, match=r"tier = .: must be 1\.\.3"):
            session.codec(tier)


def test_a_vector_that_is_not_finite_counts_as_zeros_in_every_slice():
    session = session_of()
    told = []
    update = np.full(8, 0.1)
    update[7] = np.nan
    encoded = session.codec(2).encode_update(update, NoiseGenerator(), on_zeroed=told.append)
    assert all(not ring.any() for ring in encoded)
    assert len(told) == 1
    examples = session_of(policy=replace(QUIET, unit="example", max_examples=3))
    for number, ring in enumerate(
        examples.codec(2).encode_clipped_sum(update, NoiseGenerator()), start=1
    ):
        assert not ring.any(), number


def test_rows_are_sampled_once_for_all_slices():
    """A unit that is drawn is drawn in every slice: one coin, as the accounting assumes."""
    policy = replace(QUIET, unit="example", max_examples=400, sampling_probability=0.5)
    session = session_of(widths=(1, 1), policy=policy)
    counts = set()
    for _ in range(3):
        rings = session.codec(2).encode_examples(np.full((400, 2), 0.5), NoiseGenerator())
        first, second = (
            float(one.codec.decode(ring)[0])
            for one, ring in zip(session.sessions, rings, strict=True)
        )
        assert first == pytest.approx(second, abs=1e-3)
        counts.add(round(first / 0.5))
    assert len(counts) > 1
    with pytest.raises(ConfigError, match="at most max_examples = 400"):
        session.codec(2).encode_examples(np.zeros((401, 2)), NoiseGenerator())


# No coordinate is in two slices


def test_each_opened_coordinate_is_a_sum_over_its_slices_floor_and_none_is_opened_twice():
    """The linear map from clients' vectors to all that one round opens, measured.

    Two clients are lost in the second slice only, so its survivors differ from the first's.  Sums
    over different survivors can be subtracted only where they hold the same coordinate.
    """
    tiers, widths = (1, 2, 2, 2, 2, 2, 2, 2), (2, 2)
    silent = {("c01", 2): "masked_input", ("c02", 2): "masked_input"}
    session = session_of(
        tiers, widths, policy=replace(QUIET, dropout_fraction=0.3), least_contributors=4
    )
    base = {name: np.zeros(session.dimension(t)) for name, t in session.tiers.items()}
    rows = []
    for name in base:
        for j in range(len(base[name])):
            given = {k: v.copy() for k, v in base.items()}
            given[name][j] = 0.5
            played = set_up(session)
            for other, vector in given.items():
                codec = session.codec(session.tiers[other])
                played.encoded[other] = codec.encode_update(vector, NoiseGenerator())
            opened = {
                number: played.plain_sum(
                    number, tuple(n for n in session.members(number) if (n, number) not in silent)
                )
                for number in (1, 2)
            }
            rows.append((name, j, np.concatenate([opened[1], opened[2]]) / 0.5))
    # The real round opens just these sums.
    real = play(session, silent)
    assert len(real.server.survivors[1]) == 8
    assert len(real.server.survivors[2]) == 5
    image = np.round(np.array([row for _, _, row in rows]), 4)  # [client coordinate, opened one]
    assert set(np.unique(image)) == {0.0, 1.0}
    for opened in range(4):
        holders = [(rows[i][0], rows[i][1]) for i in np.flatnonzero(image[:, opened])]
        assert len({name for name, _ in holders}) >= 4
        assert {j for _, j in holders} == {opened}
    assert (image.sum(axis=1) <= 1).all()  # a client's coordinate is in one opened sum, or none


# Agreement


OTHER = {
    "session": {"session": b"0123456789abcdeF"},
    "round": {"round": 4},
    "roster": {
        "roster": {name: key.public for name, key in KEYS.items()} | {"c07": KEYS["c23"].public}
    },
    "tiers": {"tiers": (1, 1, 1, 2, 2, 2, 2, 2)},
    "widths": {"widths": (5, 4)},
    "policy": {"policy": replace(QUIET, clip_norm=1.5)},
    "aggregation": {"aggregation": PairwiseAggregation(bits=31)},
    "model": {"model": b"m" * 31 + b"n"},
    "least_contributors": {"least_contributors": 2},
}


def test_every_field_is_tried():
    assert set(OTHER) == {field.name for field in fields(SlicedSession)}


@pytest.mark.parametrize("field", OTHER)
def test_clients_that_were_told_otherwise_of_any_field_share_no_slices_digest(field):
    assert not digests(session_of(**OTHER[field])) & digests(session_of())
    assert digests(session_of()) == digests(session_of())


def test_slices_share_nothing():
    session = session_of((1, 2, 2, 2, 2), (3, 3))
    assert len(digests(session)) == 2
    assert len({one.session for one in session.sessions}) == 2


def test_one_who_was_told_of_other_tiers_is_in_no_sum():
    """Client c03 thinks that c07 has no second slice; it is in neither sum."""
    session = session_of()
    other = session_of(tiers=(1, 1, 1, 1, 2, 2, 2, 1), least_contributors=2)
    played = set_up(session)
    played.clients["c03"] = SlicedClientRound(
        other, "c03", KEYS["c03"], lambda codec, g: codec.encode_update(np.ones(5), g)
    )
    carry(played.server, played.clients)
    assert "c03" not in played.server.survivors[1]
    assert len(played.server.survivors[1]) == 7


# Floors, from public sizes


def test_all_corrupt_clients_of_the_cohort_may_sit_in_the_top_tier():
    """10 % of 20 is 2, not 10 % of the 8 in the upper tier."""
    policy = replace(NOISED, corrupt_fraction=0.1)
    session = session_of((1,) * 12 + (2,) * 8, policy=policy)
    bounds = [CohortBounds.of(one.policy, len(one.cohort)) for one in session.sessions]
    assert [b.corrupt for b in bounds] == [2, 2]
    # Rounding down to whole clients does not put a slice below a client's floor on the fraction.
    uneven = session_of((1,) * 9 + (2,) * 6, policy=policy)
    for one in uneven.sessions:
        assert CohortBounds.of(one.policy, len(one.cohort)).corrupt == 1
        ClientFloors(min_corrupt_fraction=0.1, max_dropout_fraction=0.25).check(one)
    assert [b.honest_floor for b in bounds] == [13, 4]
    # Noise of each slice's own honest survivors has the whole clip's multiplier.
    for one, bound in zip(session.sessions, bounds, strict=True):
        std = one.plan.local_std * one.plan.resolution * math.sqrt(bound.honest_floor)
        assert std == pytest.approx(policy.noise_multiplier * policy.clip_norm, rel=1e-9)


def test_a_slice_with_too_few_members_is_refused_by_its_number():
    with pytest.raises(ConfigError, match=r"^slice 2: 2 clients hold this slice.* 3 are needed"):
        session_of((1, 1, 1, 1, 2, 2))
    with pytest.raises(ConfigError, match=r"^slice 2: 4 clients"):
        session_of((1,) * 16 + (2,) * 4, policy=replace(QUIET, corrupt_fraction=0.2))


def test_tiers_too_small_are_merged_downwards_from_public_sizes_alone():
    how = {"policy": QUIET, "aggregation": PairwiseAggregation()}
    assert standing_slices([10, 6, 2], **how) == 2
    assert standing_slices([10, 6, 3], **how) == 3
    assert standing_slices([10, 6, 6, 6], least_contributors=6, **how) == 4
    assert standing_slices([10, 6, 6, 6], least_contributors=7, **how) == 1
    # A middle tier without clients of its own stands: the tier above contributes to it.
    assert standing_slices([10, 4, 4], **how) == 3
    # Where corrupt clients could be most of a slice it does not stand, whatever the floor.
    corrupt = how | {"policy": replace(QUIET, corrupt_fraction=0.2)}
    assert standing_slices([20, 8, 5], **corrupt) < 3
    with pytest.raises(ConfigError, match="2 clients hold this slice"):
        standing_slices([2], **how)
    for wrong in ([], [3, 4]):
        with pytest.raises(ConfigError, match="never rising"):
            standing_slices(wrong, **how)


@settings(max_examples=150, deadline=None)
@given(
    cohort=st.integers(2, 60),
    below=st.lists(st.integers(0, 20), max_size=3),
    corrupt=st.sampled_from([0.0, 0.05, 0.1, 0.3]),
    dropout=st.sampled_from([0.0, 0.1, 0.25]),
    least=st.integers(2, 8),
)
def test_what_stands_makes_a_session_and_one_slice_more_does_not(
    cohort, below, corrupt, dropout, least
):
    members = [cohort]
    for fewer in below:
        members.append(max(0, members[-1] - fewer))
    policy = replace(QUIET, corrupt_fraction=corrupt, dropout_fraction=dropout)
    how = {"policy": policy, "aggregation": PairwiseAggregation(), "least_contributors": least}

    def sound(count):
        try:
            own = slice_policy(policy, cohort=cohort, members=count, least_contributors=least)
            bounds = CohortBounds.of(own, count)
            parameters = PairwiseAggregation().parameters(bounds)
        except ConfigError:
            return False
        assert bounds.corrupt == math.floor(corrupt * cohort + 1e-9)
        assert bounds.survivor_floor >= max(least, bounds.corrupt + 2)
        assert bounds.survivor_floor >= parameters.threshold
        return True

    standing = [sound(count) for count in members]
    if not standing[0]:
        with pytest.raises(ConfigError):
            standing_slices(members, **how)
    else:
        found = standing_slices(members, **how)
        assert all(standing[:found])
        assert found == len(members) or not standing[found]


def test_a_degree_that_was_asked_for_is_that_of_each_slices_own_members():
    whole = session_of(aggregation=PairwiseAggregation(degree=7))
    assert [one.context.parameters.degree for one in whole.sessions] == [7, 3]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"aggregation": HomomorphicAggregation()}, "homomorphic"),
        ({"policy": replace(NOISED, mechanism="central")}, "mechanism = 'central'"),
        ({"session": b"short"}, "session of 5 bytes"),
        ({"model": b"m"}, "model of 1 bytes"),
        ({"round": 0}, "round = 0"),
        ({"widths": (5, 0)}, "slice 2: dimension = 0"),
        ({"widths": ()}, "0 slices"),
        ({"widths": (1,)}, r"tiers\['c04'\] = 2: must be 1..1"),
        ({"tiers": (0, 1, 1, 1, 2, 2, 2, 2)}, r"tiers\['c00'\] = 0"),
        ({"least_contributors": 1}, "least_contributors = 1"),
        ({"roster": {}}, "roster"),
    ],
)
def test_what_does_not_fit_is_refused(changes, match):
    with pytest.raises(ConfigError, match=match):
        session_of(**changes)


# What a client asks for


def test_a_clients_own_floors_hold_for_each_slice():
    session = session_of(policy=NOISED)

    def client(floors):
        return SlicedClientRound(
            session,
            "c07",
            KEYS["c07"],
            lambda codec, g: codec.encode_update(np.zeros(8), g),
            floors=floors,
        )

    client(ClientFloors(min_clients=4))
    with pytest.raises(LocalProtocolError, match=r"cohort of 4 clients.*from 5 on") as refusal:
        client(ClientFloors(min_clients=5))
    assert refusal.value.__notes__ == ["slice 2 of 2"]
    # A client of the lower tier is in the larger cohort only.
    SlicedClientRound(
        session,
        "c00",
        KEYS["c00"],
        lambda codec, g: codec.encode_update(np.zeros(5), g),
        floors=ClientFloors(min_clients=5),
    )


# Charges


def test_a_round_is_charged_once_durably_before_any_slices_input_leaves(tmp_path):
    session = session_of(policy=NOISED)
    accounts = {
        name: open_account(tmp_path / f"{name}.jsonl", session, name) for name in session.tiers
    }
    server, held = SlicedServerRound(session), {}

    class Watched:
        def __init__(self, name, client):
            self.name, self.client = name, client

        def start(self):
            return self.client.start()

        def handle(self, message):
            before = len(read_charges(tmp_path / f"{self.name}.jsonl"))
            answer = self.client.handle(message)
            after = len(read_charges(tmp_path / f"{self.name}.jsonl"))
            held.setdefault(server.stage, set()).add((before, after))
            return answer

    clients = {
        name: Watched(
            name,
            SlicedClientRound(
                session,
                name,
                KEYS[name],
                lambda codec, g: codec.encode_update(np.zeros(codec.dimension), g),
                charge=lambda name=name: accounts[name].charge(session.event()),
            ),
        )
        for name in session.tiers
    }
    carry(server, clients)
    for account in accounts.values():
        account.close()
    assert held["share"] == {(0, 0)}
    assert held["masked_input"] == {(0, 1)}
    assert held["unmask"] == {(1, 1)}
    for name in session.tiers:
        (record,) = read_charges(tmp_path / f"{name}.jsonl")
        assert record.body == session.event()


def test_an_account_refuses_a_round_of_other_slices_and_counts_one_release_a_round(tmp_path):
    session = session_of(policy=NOISED)
    epsilon = session.guarantee(rounds=1).epsilon
    account = open_account(tmp_path / "a.jsonl", session, "c07", limit=1.01 * epsilon)
    with pytest.raises(LocalProtocolError, match=r"^slices = "):
        account.charge(session_of(widths=(5, 4), policy=NOISED).event())
    account.charge(session.event())
    with pytest.raises(BudgetExceeded):
        account.charge(session_of(policy=NOISED, session=b"fedcba9876543210").event())
    account.close()


@pytest.mark.parametrize("when", ["first", "later"])
def test_if_the_charge_fails_no_slice_leaves(when):
    """Also where the server delivers the slices' shares one after the other."""
    session = session_of()
    played = set_up(session)

    def refuse():
        raise BudgetExceeded("nothing is left")

    client = SlicedClientRound(
        session,
        "c07",
        KEYS["c07"],
        lambda codec, g: codec.encode_update(np.zeros(8), g),
        charge=refuse,
    )
    played.clients["c07"] = client
    for name, half in played.clients.items():
        played.server.receive(name, half.start())
    for name, reply in played.server.advance().items():
        played.server.receive(name, played.clients[name].handle(reply))
    inbox = dict(played.server.advance())
    assert played.server.stage == "masked_input"
    if when == "first":
        with pytest.raises(BudgetExceeded):
            client.handle(inbox["c07"])
        with pytest.raises((LocalProtocolError, RemoteProtocolError)):
            client.handle(inbox["c07"])
    else:
        parts = decode_parts(inbox["c07"], slices=2)
        with pytest.raises(BudgetExceeded):
            client.handle(encode_parts({2: parts[2]}))
        with pytest.raises(LocalProtocolError, match="it failed for another slice"):
            client.handle(encode_parts({1: parts[1]}))


def test_slices_that_are_delivered_one_after_the_other_are_charged_once_and_made_once():
    session = session_of()
    played = set_up(session)
    made = []

    def encode(codec, generator):
        made.append(1)
        return played.encoded["c07"]

    charged = []
    client = SlicedClientRound(
        session, "c07", KEYS["c07"], encode, charge=lambda: charged.append(1)
    )
    client.prepare()
    played.clients["c07"] = client
    for name, half in played.clients.items():
        played.server.receive(name, half.start())
    for name, reply in played.server.advance().items():
        played.server.receive(name, played.clients[name].handle(reply))
    parts = decode_parts(played.server.advance()["c07"], slices=2)
    for number in (2, 1):
        played.server.receive("c07", client.handle(encode_parts({number: parts[number]})))
    assert made == [1]
    assert charged == [1]
    with pytest.raises(LocalProtocolError, match="has started"):
        client.prepare()


def test_an_encoder_that_makes_another_number_of_slices_is_refused():
    session = session_of()
    client = SlicedClientRound(
        session, "c07", KEYS["c07"], lambda codec, g: codec.encode_update(np.zeros(8), g)[:1]
    )
    with pytest.raises(LocalProtocolError, match="1 slices made, the client holds 2"):
        client.prepare()


# The message


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.integers(1, 5), st.binary(max_size=40), min_size=1))
def test_parts_come_back_and_have_one_encoding(parts):
    encoded = encode_parts(parts)
    assert decode_parts(encoded, slices=5) == parts
    for cut in range(len(encoded)):
        with pytest.raises(WireError):
            decode_parts(encoded[:cut], slices=5)
    with pytest.raises(WireError):
        decode_parts(encoded + b"\0", slices=5)
    if max(parts) > 1:
        with pytest.raises(WireError):
            decode_parts(encoded, slices=max(parts) - 1)


def test_parts_that_repeat_fall_or_are_none_are_refused():
    head = encode_parts({1: b""})[:6]
    part = {n: bytes([n]) + bytes(4) for n in (0, 1, 2)}
    for count, body in ((0, b""), (2, part[1] * 2), (2, part[2] + part[1]), (1, part[0])):
        with pytest.raises(WireError):
            decode_parts(head + bytes([count]) + body, slices=2)


def test_a_part_for_a_slice_that_a_client_does_not_hold_is_refused_whole():
    session = session_of()
    played = set_up(session)
    first = {name: half.start() for name, half in played.clients.items()}
    stolen = decode_parts(first["c07"], slices=2)[2]
    own = decode_parts(first["c00"], slices=2)[1]
    with pytest.raises(WireError):
        played.server.receive("c00", encode_parts({1: own, 2: stolen}))
    played.server.receive("c00", first["c00"])  # nothing of it was taken
    with pytest.raises(WireError):
        played.clients["c00"].handle(encode_parts({2: b"x"}))
    with pytest.raises(ConfigError, match="not in the cohort"):
        played.server.receive("nobody", first["c00"])
    # A bad part is refused, by its slice; the other is taken.
    parts = decode_parts(first["c07"], slices=2)
    with pytest.raises(RemoteProtocolError, match=r"^slice 2: "):
        played.server.receive("c07", encode_parts({1: parts[1], 2: own}))
    with pytest.raises(RemoteProtocolError, match=r"^slice 1: .*already sent"):
        played.server.receive("c07", first["c07"])


# Large and small slices keep step


@pytest.mark.slow
def test_a_ring_of_masks_below_and_a_complete_graph_above_keep_step():
    """The first slice has a stage more; the second's messages wait for it."""
    names = [f"n{i:03}" for i in range(204)]
    keys = {name: IdentityKey.generate() for name in names}
    session = SlicedSession(
        session=bytes(16),
        round=1,
        roster={name: key.public for name, key in keys.items()},
        tiers={name: 2 if i < 5 else 1 for i, name in enumerate(names)},
        widths=(3, 2),
        policy=replace(QUIET, dropout_fraction=0.05),
        aggregation=PairwiseAggregation(),
        model=bytes(32),
    )
    assert [one.context.parameters.sparse for one in session.sessions] == [True, False]
    server = SlicedServerRound(session)
    clients = {
        name: SlicedClientRound(
            session,
            name,
            keys[name],
            lambda codec, g: codec.encode_update(np.full(codec.dimension, 0.1), g),
        )
        for name in names
    }
    carried = carry(server, clients)
    assert list(carried.transcript) == list(STAGES)
    assert not server.dropped
    np.testing.assert_allclose(server.sums[1], 20.4, atol=1e-3)
    np.testing.assert_allclose(server.sums[2], 0.5, atol=1e-4)


# What is stated


def test_the_statement_names_every_slices_floor_and_is_unprotected_where_that_holds():
    session = session_of(policy=NOISED)
    for against in ADVERSARIES:
        said = session.guarantee(against)
        assert math.isfinite(said.epsilon)
        assert "slice 1: at least 6 of 8 clients" in str(said)
        assert "slice 2: at least 3 of 4 clients" in str(said)
        assert "2 slices of one vector" in said.mechanism
    assert "from its own honest survivors (6, 3)" in session.guarantee().mechanism
    assert session.guarantee(rounds=5).epsilon > session.guarantee(rounds=1).epsilon
    assert session_of().guarantee().epsilon == math.inf
    plain = session_of(policy=NOISED, aggregation=aggregation_of("plaintext"))
    assert plain.guarantee().epsilon == math.inf
    assert math.isfinite(plain.guarantee("release").epsilon)
