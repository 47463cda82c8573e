import math
from dataclasses import fields, replace

import numpy as np
import pytest

from securefed import (
    HomomorphicAggregation,
    PairwiseAggregation,
    PlaintextAggregation,
    PrivacyPolicy,
)
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import NoiseGenerator
from securefed.encoding.fixed_point import from_ring
from securefed.engines.in_process import carry
from securefed.errors import (
    BudgetExceeded,
    ConfigError,
    LocalProtocolError,
    OverflowBoundError,
    RemoteProtocolError,
    ThresholdNotMet,
)
from securefed.federation.client import ClientRound
from securefed.federation.floors import ClientFloors
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.privacy.adaptive_clip import AdaptiveClip
from securefed.privacy.mechanisms import plan_round

NAMES = ("ann", "bob", "cyd", "dee", "eve")
KEYS = {name: IdentityKey.generate() for name in (*NAMES, "fay")}
POLICY = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0)
QUIET = PrivacyPolicy(clip_norm=1.0, mechanism="none")
EXAMPLES = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0, unit="example", max_examples=5)


def session_of(**changes) -> RoundSession:
    base = {
        "session": b"0123456789abcdef",
        "round": 3,
        "cohort": NAMES,
        "roster": {name: KEYS[name].public for name in NAMES},
        "dimension": 20,
        "policy": POLICY,
        "aggregation": PairwiseAggregation(),
        "model": b"m" * 32,
    }
    return RoundSession(**(base | changes))


def digest(session: RoundSession) -> bytes:
    return session.context.digest


# What is agreed

OTHER = {
    "session": {"session": b"0123456789abcdeF"},
    "round": {"round": 4},
    "cohort": {
        "cohort": (*NAMES[:4], "fay"),
        "roster": {name: key.public for name, key in KEYS.items()},
    },
    "roster": {"roster": {name: KEYS[name].public for name in NAMES} | {"eve": KEYS["fay"].public}},
    "dimension": {"dimension": 21},
    "policy": {"policy": replace(POLICY, clip_norm=1.5)},
    "aggregation": {"aggregation": PlaintextAggregation()},
    "model": {"model": b"m" * 31 + b"n"},
}
OTHER_POLICY = {
    "clip_norm": {"clip_norm": 1.0000001},
    "noise_multiplier": {"noise_multiplier": 1.0000001},
    "delta": {"delta": 1.1e-5},
    "unit": {"unit": "client"},
    "mechanism": {"mechanism": "central"},
    "noise": {"noise": "skellam"},
    "sampling_probability": {"sampling_probability": 0.5},
    "rounding": {"rounding": "conditional"},
    "sample_is_secret": {"sample_is_secret": False},
    "remove_excess_noise": {"remove_excess_noise": True},
    "rounds": {"rounds": 2},
    "corrupt_fraction": {"corrupt_fraction": 0.11},
    "dropout_fraction": {"dropout_fraction": 0.26},
    "max_examples": {"max_examples": 6},
    "local_steps": {"local_steps": 2},
    "adaptive_clip": {"adaptive_clip": AdaptiveClip(min_clip_norm=0.1, max_clip_norm=10.0)},
}


def test_every_field_is_tried():
    # What is stated of local DP-SGD: beside a sum without noise, tried below.
    assert set(OTHER) | {"stated"} == {field.name for field in fields(RoundSession)}
    # For another mechanism, and so tried in test_correlated_rounds.py.
    elsewhere = {"separation", "bands"}
    assert set(OTHER_POLICY) | elsewhere == {field.name for field in fields(PrivacyPolicy)}


LOCAL = replace(EXAMPLES, mechanism="local", sampling_probability=0.5, local_steps=2)


def test_what_is_stated_of_noise_at_clients_is_agreed_priced_and_guaranteed():
    quiet, local = session_of(policy=QUIET), session_of(policy=QUIET, stated=LOCAL)
    noisier = session_of(policy=QUIET, stated=replace(LOCAL, noise_multiplier=2.0))
    assert len({digest(each) for each in (quiet, local, noisier)}) == 3
    assert local.codec.policy == quiet.codec.policy  # the sum itself is the same
    assert (local.priced()["mechanism"], local.priced()["local_steps"]) == ("local", 2)
    assert not quiet.guarantee().protected
    assert 0.0 < noisier.guarantee().epsilon < local.guarantee().epsilon


@pytest.mark.parametrize(
    "other", [{"corrupt_fraction": 0.3}, {"dropout_fraction": 0.3}, {"sample_is_secret": False}]
)
def test_no_other_cohort_is_stated_than_the_one_that_thresholds_follow_from(other):
    session_of(policy=QUIET, stated=LOCAL)
    (name,) = other
    with pytest.raises(ConfigError, match=rf"stated\.{name} = "):
        session_of(policy=QUIET, stated=replace(LOCAL, **other))


@pytest.mark.parametrize(
    ("policy", "stated"),
    [(POLICY, LOCAL), (QUIET, EXAMPLES), (QUIET, replace(EXAMPLES, mechanism="central"))],
)
def test_nothing_but_local_noise_is_stated_apart_from_the_sum(policy, stated):
    with pytest.raises(ConfigError, match="stated = "):
        session_of(policy=policy, stated=stated)


@pytest.mark.parametrize("field", OTHER)
def test_the_digest_changes_with_every_field(field):
    assert digest(session_of(**OTHER[field])) != digest(session_of())


@pytest.mark.parametrize("field", OTHER_POLICY)
def test_the_digest_changes_with_every_setting_of_the_policy(field):
    base = POLICY if field == "rounding" else EXAMPLES  # conditional rounding is for clients
    changed = replace(base, **OTHER_POLICY[field])
    assert digest(session_of(policy=changed)) != digest(session_of(policy=base))


def test_the_digest_changes_with_the_rings_width():
    wide = session_of(aggregation=PairwiseAggregation(bits=32))
    assert digest(wide) != digest(session_of())


def test_two_parties_that_were_told_the_same_have_the_same_digest_codec_and_plan():
    ours, theirs = session_of(), session_of()
    assert digest(ours) == digest(theirs)
    assert ours.plan == theirs.plan == plan_round(POLICY, cohort_size=5, dimension=20)
    update = np.linspace(-0.1, 0.1, 20)
    quiet = session_of(policy=QUIET)
    ring = quiet.codec.encode_update(update, NoiseGenerator())
    np.testing.assert_allclose(session_of(policy=QUIET).codec.decode(ring), update, atol=1e-5)


def test_another_round_rotates_otherwise():
    """The rotation's signs follow from all that was agreed, so they cannot be chosen alone."""
    update = np.random.default_rng(0).normal(size=20) / 10
    ring = session_of(policy=QUIET).codec.encode_update(update, NoiseGenerator())
    elsewhere = session_of(policy=QUIET, round=4).codec.decode(ring)
    assert np.linalg.norm(elsewhere - update) > 0.1


def test_what_the_sum_is_padded_to_is_what_the_protocol_carries():
    session = session_of(dimension=700)
    assert session.context.length == session.plan.padded == 1024
    assert session.context.bits == session.plan.bits


def test_a_name_cannot_be_passed_off_as_two():
    """Where one id ends and the next begins is part of the digest."""
    keys = [KEYS["ann"].public, KEYS["bob"].public]
    first = {"cohort": ("a", "bc"), "roster": dict(zip(("a", "bc"), keys, strict=True))}
    second = {"cohort": ("ab", "c"), "roster": dict(zip(("ab", "c"), keys, strict=True))}
    quiet = replace(QUIET, dropout_fraction=0.0)
    assert digest(session_of(policy=quiet, **first)) != digest(session_of(policy=quiet, **second))


@pytest.mark.parametrize(
    "changes",
    [
        {"session": b"short"},
        {"round": 0},
        {"round": -1},
        {"round": 2**32},
        {"model": b""},
        {"model": b"m" * 33},
        {"cohort": ("bob", "ann", "cyd", "dee", "eve")},
        {"cohort": ("ann", "ann", "bob", "cyd", "dee")},
        {"cohort": ("ann", "zoe", "zoo")},
        {"cohort": ("ann",)},
        {"cohort": ()},
        {"roster": dict.fromkeys(NAMES, KEYS["ann"].public)},
    ],
)
def test_settings_that_do_not_fit_the_cohort_are_refused(changes):
    with pytest.raises(ConfigError):
        _ = session_of(**changes).context


def test_a_ring_without_room_is_refused_before_a_digest_exists():
    crowded = replace(EXAMPLES, max_examples=10**9)
    with pytest.raises(OverflowBoundError):
        _ = session_of(policy=crowded).context


def test_the_sessions_protection_is_what_its_aggregation_gives():
    assert session_of(aggregation=PlaintextAggregation()).plaintext
    assert not session_of().plaintext


# Rounds in which somebody was told something else


UPDATES = {name: np.full(20, 0.01 * (i + 1)) for i, name in enumerate(NAMES)}


def client_of(name: str, session: RoundSession, **options) -> ClientRound:
    return ClientRound(
        session, name, KEYS[name], lambda c, g: c.encode_update(UPDATES[name], g), **options
    )


def clients_of(sessions: dict[str, RoundSession]) -> dict[str, ClientRound]:
    return {name: client_of(name, session) for name, session in sessions.items()}


DIFFERENT = {
    "model": {"model": b"x" * 32},
    "policy": {"policy": replace(QUIET, clip_norm=2.0)},
    "noise": {"policy": replace(QUIET, mechanism="distributed", noise_multiplier=0.1)},
    "round": {"round": 9},
    "session": {"session": b"another session."},
    "dimension": {"dimension": 19},
    "bits": {"aggregation": "wider"},
}


@pytest.mark.parametrize("kind", [PairwiseAggregation, PlaintextAggregation])
@pytest.mark.parametrize("what", DIFFERENT)
def test_a_client_that_was_told_something_else_is_not_in_the_sum(what, kind):
    if DIFFERENT[what].get("aggregation") == "wider":
        changes = {"aggregation": kind(bits=32)}
        told = session_of(policy=QUIET, aggregation=kind(bits=28))
    else:
        changes = {"aggregation": kind()} | DIFFERENT[what]
        told = session_of(policy=QUIET, aggregation=kind())
    otherwise = session_of(**({"policy": QUIET} | changes))
    server = ServerRound(told)
    sessions = dict.fromkeys(NAMES, told) | {"cyd": otherwise}
    clients = clients_of(sessions)
    if what == "dimension":
        clients["cyd"] = ClientRound(
            otherwise, "cyd", KEYS["cyd"], lambda c, g: c.encode_update(np.zeros(19), g)
        )
    carried = carry(server, clients)
    assert list(carried.refusals) == ["cyd"]
    assert server.survivors == ("ann", "bob", "dee", "eve")
    wanted = sum(UPDATES[name] for name in server.survivors)
    np.testing.assert_allclose(server.sum, wanted, atol=1e-4)


@pytest.mark.parametrize("what", ["model", "policy", "round"])
def test_a_server_that_tells_clients_different_things_gets_no_sum(what):
    """Two camps, each consistent in itself: neither reaches the floor, whoever the server joins."""
    told = session_of(policy=QUIET)
    otherwise = session_of(**({"policy": QUIET} | DIFFERENT[what]))
    for own in (told, otherwise):
        server = ServerRound(own)
        camps = {name: told if i < 3 else otherwise for i, name in enumerate(NAMES)}
        with pytest.raises(ThresholdNotMet):
            carry(server, clients_of(camps))
        with pytest.raises(LocalProtocolError):
            _ = server.sum


def test_a_client_refuses_what_the_others_said_in_another_round():
    """Not the server but the client finds out: it was told of another model."""
    told, otherwise = session_of(policy=QUIET), session_of(policy=QUIET, model=b"x" * 32)
    server = ServerRound(told)
    for name in NAMES:
        server.receive(name, client_of(name, told).start())
    mistaken = client_of("cyd", otherwise)
    mistaken.start()
    with pytest.raises(RemoteProtocolError):
        mistaken.handle(server.advance()["cyd"])


# Adaptive clipping: every party computes the clip from the fractions that it was shown

ADAPTIVE = replace(QUIET, adaptive_clip=AdaptiveClip(min_clip_norm=0.1, max_clip_norm=10.0))


@pytest.mark.parametrize("kind", [PairwiseAggregation, PlaintextAggregation])
def test_a_client_that_was_shown_another_fraction_is_not_in_the_sum(kind):
    told = session_of(policy=ADAPTIVE.after(0.7), aggregation=kind())
    lied = session_of(policy=ADAPTIVE.after(0.700006), aggregation=kind())
    server = ServerRound(told)
    carried = carry(server, clients_of(dict.fromkeys(NAMES, told) | {"cyd": lied}))
    assert list(carried.refusals) == ["cyd"]
    assert server.survivors == ("ann", "bob", "dee", "eve")
    assert server.count == pytest.approx(2.0, abs=1e-3)


def test_a_server_that_shows_clients_different_fractions_gets_no_sum():
    told, lied = (session_of(policy=ADAPTIVE.after(shown)) for shown in (0.7, 0.4))
    for own in (told, lied):
        server = ServerRound(own)
        with pytest.raises(ThresholdNotMet):
            carry(server, clients_of({n: told if i < 3 else lied for i, n in enumerate(NAMES)}))
        with pytest.raises(LocalProtocolError):
            _ = server.count


def test_a_clients_largest_clip_bounds_what_the_rule_can_lead_to():
    """Refused in the first round, before anything was paid for rounds that end in a refusal."""
    told = session_of(policy=ADAPTIVE)
    with pytest.raises(LocalProtocolError, match=r"clip_norm = 10\.0: .* up to 9\.9"):
        client_of("ann", told, floors=floors_of(max_clip_norm=9.9))
    client_of("ann", told, floors=floors_of(max_clip_norm=10.0))


# The client's own half


def floors_of(**changes) -> ClientFloors:
    """Floors that ask for nothing, but for what is changed."""
    base = {
        "mechanisms": ("distributed", "none"),
        "key_holders": ("cohort", "decryptor"),
        "allow_plaintext": True,
        "allow_conditional_rounding": True,
    }
    return ClientFloors(**(base | changes))


BELOW = {
    "min_clients": (6, {}, r"cohort of 5 clients.* 6 on \(min_clients\)"),
    "min_threshold": (5, {}, r"threshold = 3: .* 5 on \(min_threshold\)"),
    "min_noise_multiplier": (1.1, {}, r"noise_multiplier = 1\.0: .* 1\.1 on"),
    "min_corrupt_fraction": (0.2, {}, r"corrupt_fraction = 0\.1: .* 0\.2 on"),
    "max_clip_norm": (0.9, {}, r"clip_norm = 1\.0: .* up to 0\.9"),
    "max_dropout_fraction": (0.2, {}, r"dropout_fraction = 0\.25: .* up to 0\.2"),
    "min_bits": (32, {"aggregation": PairwiseAggregation(bits=24)}, r"bits = 24: .* 32 on"),
    "max_delta": (1e-6, {}, r"delta = 1e-05: .* up to 1e-06"),
    "mechanisms": (("central",), {}, r"mechanism = 'distributed': .* \('central',\)"),
    "allow_conditional_rounding": (
        False,
        {"policy": replace(POLICY, rounding="conditional")},
        r"rounding = 'conditional': .*\(allow_conditional_rounding\)",
    ),
    "units": (("user", "example"), {}, r"unit = 'client': .* \('user', 'example'\) \(units\)"),
    "allow_plaintext": (False, {"aggregation": PlaintextAggregation()}, r"plaintext"),
    "key_holders": (
        ("decryptor",),
        {"aggregation": HomomorphicAggregation(key_holder="cohort")},
        r"key_holder = 'cohort' with masked = False: .* \('decryptor',\) \(key_holders\)",
    ),
}


def test_every_floor_is_tried():
    assert {*BELOW, "allow_ring"} == {field.name for field in fields(ClientFloors)}


@pytest.mark.parametrize("choice", [{}, {"scheme": "ckks"}, {"key_holder": "cohort"}], ids=str)
def test_encryption_alone_is_taken_with_a_listed_key_holder_and_masks_beneath_it_as_masks(choice):
    roster = {name: KEYS[name].public for name in NAMES} | {"decryptor": KEYS["fay"].public}
    told = session_of(aggregation=HomomorphicAggregation(**choice), roster=roster)
    holder = choice.get("key_holder", "decryptor")
    (other,) = {"cohort", "decryptor"} - {holder}
    for floors in (ClientFloors(), ClientFloors(key_holders=(other,))):
        with pytest.raises(LocalProtocolError, match=f"key_holder = '{holder}' with masked"):
            client_of("ann", told, floors=floors)
    client_of("ann", told, floors=ClientFloors(key_holders=(holder,)))
    masked = session_of(aggregation=HomomorphicAggregation(masked=True), roster=roster)
    ClientFloors().check(masked)


def test_a_ring_is_refused_unless_its_owner_allows_it_and_priced_as_what_it_is():
    identity = IdentityKey.generate()
    names = tuple(f"c{i:03}" for i in range(210))
    roster = {name: IdentityKey.generate().public for name in names} | {"c000": identity.public}

    def told(aggregation):
        return RoundSession(
            session=bytes(16),
            round=1,
            cohort=names,
            roster=roster,
            dimension=8,
            policy=PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0),
            aggregation=aggregation,
            model=bytes(32),
        )

    ring, complete = told(PairwiseAggregation()), told(PairwiseAggregation(degree=209))

    def take_part(session, floors):
        ClientRound(session, "c000", identity, lambda c, g: None, floors=floors)

    with pytest.raises(LocalProtocolError, match=r"degree = \d+ of 210 clients.*\(allow_ring\)"):
        take_part(ring, ClientFloors())
    take_part(ring, ClientFloors(allow_ring=True))
    take_part(complete, ClientFloors())
    assert ring.priced() != complete.priced()


@pytest.mark.parametrize("field", BELOW)
def test_a_round_below_a_clients_floor_is_refused_by_name_before_anything_is_made(field):
    value, changes, message = BELOW[field]
    told, made = session_of(**changes), []

    def take_part(floors):
        return ClientRound(told, "ann", KEYS["ann"], lambda c, g: made.append(1), floors=floors)

    with pytest.raises(LocalProtocolError, match=message):
        take_part(floors_of(**{field: value}))
    assert made == []
    take_part(floors_of())


@pytest.mark.parametrize(
    "changes", [{}, {"policy": QUIET}, {"aggregation": PlaintextAggregation()}]
)
def test_floors_that_are_not_loosened_refuse_rounds_without_noise_or_masks(changes):
    told = session_of(**changes)
    if not changes:
        client_of("ann", told, floors=ClientFloors())
        return
    with pytest.raises(LocalProtocolError):
        client_of("ann", told, floors=ClientFloors())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_clients", 1),
        ("min_threshold", 0),
        ("min_noise_multiplier", -0.1),
        ("min_noise_multiplier", math.nan),
        ("max_clip_norm", 0.0),
        ("max_clip_norm", math.nan),
        ("max_delta", 0.0),
        ("max_delta", math.nan),
        ("min_corrupt_fraction", 1.0),
        ("min_corrupt_fraction", math.nan),
        ("max_dropout_fraction", -0.1),
        ("max_dropout_fraction", math.nan),
        ("min_bits", 19),
        ("min_bits", 33),
        ("mechanisms", ()),
        ("mechanisms", ("laplace",)),
        ("units", ()),
        ("units", ("person",)),
        ("key_holders", ("server",)),
    ],
)
def test_a_floor_out_of_its_range_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"^{field} = "):
        ClientFloors(**{field: value})


def test_a_client_below_whose_own_floor_the_cohort_lies_takes_no_part():
    with pytest.raises(LocalProtocolError, match="cohort of 5 clients"):
        client_of("ann", session_of(policy=QUIET), floors=floors_of(min_clients=6))


def test_a_client_whose_own_floor_is_not_met_sends_no_masked_input():
    told = session_of(policy=replace(QUIET, dropout_fraction=0.4))
    made = []

    def contribution(codec, generator):
        made.append(True)
        return codec.encode_update(UPDATES["ann"], generator)

    careful = ClientRound(told, "ann", KEYS["ann"], contribution, floors=floors_of(min_clients=5))
    clients = clients_of(dict.fromkeys(NAMES, told)) | {"ann": careful}
    server = ServerRound(told)
    carried = carry(server, clients, drop={"eve": "share"})
    assert "at least 5 are needed" in carried.refusals["ann"]
    assert made == []
    assert "ann" not in carried.transcript["masked_input"]
    assert server.survivors == ("bob", "cyd", "dee")


def test_a_client_without_its_rosters_key_takes_no_part():
    with pytest.raises(LocalProtocolError, match="another identity key"):
        ClientRound(
            session_of(), "ann", KEYS["bob"], lambda c, g: c.encode_update(UPDATES["ann"], g)
        )


def test_a_client_that_was_not_invited_takes_no_part():
    with pytest.raises(ConfigError, match="not in the cohort"):
        ClientRound(
            session_of(), "fay", KEYS["fay"], lambda c, g: c.encode_update(UPDATES["ann"], g)
        )


@pytest.mark.parametrize("kind", [PairwiseAggregation, PlaintextAggregation])
def test_a_budget_is_charged_once_and_before_the_input_leaves(kind):
    told = session_of(policy=QUIET, aggregation=kind())
    server, events = ServerRound(told), []

    class Watched:
        def __init__(self, client):
            self.client = client

        def start(self):
            return self._sent(self.client.start())

        def handle(self, message):
            return self._sent(self.client.handle(message))

        def _sent(self, message):
            events.append(server.stage)
            return message

    clients = clients_of(dict.fromkeys(NAMES, told))
    clients["bob"] = Watched(client_of("bob", told, charge=lambda: events.append("charged")))
    carry(server, clients)
    assert events.count("charged") == 1
    assert events.index("charged") == events.index("masked_input") - 1


@pytest.mark.parametrize("kind", [PairwiseAggregation, PlaintextAggregation])
def test_nothing_of_the_update_leaves_a_client_whose_budget_is_spent(kind):
    told = session_of(policy=QUIET, aggregation=kind())

    def spent():
        raise BudgetExceeded("epsilon = 3.1: at most 3 are left")

    server = ServerRound(told)
    client = client_of("ann", told, charge=spent)
    if kind is PlaintextAggregation:
        with pytest.raises(BudgetExceeded):
            client.start()
        return
    others = {name: client_of(name, told) for name in NAMES if name != "ann"}
    everyone = others | {"ann": client}
    messages = {name: one.start() for name, one in everyone.items()}
    for _ in range(2):
        for name, message in messages.items():
            server.receive(name, message)
        replies = server.advance()
        if server.stage == "masked_input":
            break
        messages = {name: everyone[name].handle(reply) for name, reply in replies.items()}
    with pytest.raises(BudgetExceeded):
        client.handle(replies["ann"])
    # The round is over for it: a second try is not a second charge.
    with pytest.raises(RemoteProtocolError):
        client.handle(replies["ann"])
    for name in others:
        server.receive(name, others[name].handle(replies[name]))
    assert set(server.advance()) == set(others)


@pytest.mark.parametrize("kind", [PairwiseAggregation, PlaintextAggregation])
def test_a_prepared_contribution_is_made_before_the_round_and_charged_when_it_leaves(kind):
    """So that no answer waits for the sample: its size would show in the time."""
    told = session_of(policy=QUIET, aggregation=kind())
    server, events = ServerRound(told), []

    def encode(name):
        def run(codec, generator):
            events.append("made")
            return codec.encode_update(UPDATES[name], generator)

        return run

    clients = {
        name: ClientRound(
            told, name, KEYS[name], encode(name), charge=lambda: events.append(server.stage)
        )
        for name in NAMES
    }
    for client in clients.values():
        client.prepare()
    assert events == ["made"] * 5
    carry(server, clients)
    assert events == ["made"] * 5 + ["masked_input"] * 5
    np.testing.assert_allclose(server.sum, sum(UPDATES.values()), atol=1e-4)


def test_a_contribution_is_prepared_once_and_not_after_the_start():
    told = session_of(policy=QUIET)
    client = client_of("ann", told)
    client.prepare()
    with pytest.raises(LocalProtocolError, match="prepare"):
        client.prepare()
    client.start()
    late = client_of("bob", told)
    late.start()
    with pytest.raises(LocalProtocolError, match="has started"):
        late.prepare()


def test_a_preparation_that_failed_is_not_tried_again_and_nothing_leaves():
    told = session_of(policy=QUIET, aggregation=PlaintextAggregation())
    tries, charged = [], []

    def encode(codec, generator):
        tries.append(1)
        raise ConfigError("no data")

    client = ClientRound(told, "ann", KEYS["ann"], encode, charge=lambda: charged.append(1))
    with pytest.raises(ConfigError, match="no data"):
        client.prepare()
    with pytest.raises(LocalProtocolError):
        client.start()
    assert (tries, charged) == ([1], [])


def test_a_contribution_that_fails_sends_nothing():
    told = session_of(policy=QUIET)
    bad = ClientRound(told, "ann", KEYS["ann"], lambda c, g: c.encode_update(np.zeros(19), g))
    clients = clients_of(dict.fromkeys(NAMES, told)) | {"ann": bad}
    with pytest.raises(ConfigError, match="shape"):
        carry(ServerRound(told), clients)


@pytest.mark.parametrize("kind", [PairwiseAggregation, PlaintextAggregation])
@pytest.mark.parametrize("unit", ["client", "example", "clipped sum"])
def test_an_update_that_is_not_finite_counts_as_zeros_and_nothing_else_in_the_round_shows_it(
    unit, kind
):
    policy = replace(QUIET, unit="client" if unit == "client" else "example")
    told = session_of(policy=policy, aggregation=kind())

    def encode_as(update):
        if unit == "client":
            return lambda c, g: c.encode_update(update, g)
        if unit == "example":
            return lambda c, g: c.encode_examples(update[None], g)
        return lambda c, g: c.encode_clipped_sum(update, g)

    def carried(anns):
        server = ServerRound(told)
        clients = {
            name: ClientRound(
                told, name, KEYS[name], encode_as(anns if name == "ann" else UPDATES[name])
            )
            for name in NAMES
        }
        return server, carry(server, clients)

    server, found = carried(np.full(20, np.nan))
    plain, wanted = carried(np.zeros(20))
    assert server.survivors == plain.survivors == NAMES
    assert found.refusals == {}
    assert found.bytes_up == wanted.bytes_up
    assert found.bytes_down == wanted.bytes_down
    np.testing.assert_allclose(server.sum, plain.sum, atol=1e-4)


# The server's half


def test_the_sum_is_there_only_when_the_round_is_over():
    told = session_of(policy=QUIET)
    server, clients = ServerRound(told), clients_of(dict.fromkeys(NAMES, told))
    for name, client in clients.items():
        server.receive(name, client.start())
    for read in (lambda: server.sum, lambda: server.survivors):
        with pytest.raises(LocalProtocolError):
            read()


def test_the_sum_has_the_updates_length_and_the_survivors_are_sorted():
    told = session_of(policy=QUIET)
    server = ServerRound(told)
    carry(server, clients_of(dict.fromkeys(reversed(NAMES), told)), drop={"bob": "masked_input"})
    assert server.stage is None
    assert server.survivors == ("ann", "cyd", "dee", "eve")
    assert server.sum.shape == (20,)
    assert server.sum.dtype == np.float64


def test_the_noise_in_the_sum_is_that_of_all_survivors():
    told = session_of(dimension=6000, policy=replace(POLICY, noise_multiplier=0.5))
    server = ServerRound(told)
    clients = {
        name: ClientRound(told, name, KEYS[name], lambda c, g: c.encode_update(np.zeros(6000), g))
        for name in NAMES
    }
    carry(server, clients)
    expected = told.plan.local_std * told.plan.resolution * math.sqrt(5)
    assert np.std(server.sum) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(
    ("size", "degree", "said"), [(60, None, False), (240, None, True), (240, 239, False)]
)
def test_a_guarantee_says_where_it_rests_on_a_server_that_is_honest_at_set_up(size, degree, said):
    names = tuple(f"c{i:03}" for i in range(size))
    roster = {name: IdentityKey.generate().public for name in names}
    session = RoundSession(
        session=bytes(16),
        round=1,
        cohort=names,
        roster=roster,
        dimension=8,
        policy=PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0),
        aggregation=PairwiseAggregation(degree=degree),
        model=bytes(32),
    )
    assert session.context.parameters.sparse == said
    assert ("honest until the order of the ring is known" in str(session.guarantee())) == said
    assert "ring" not in str(session.guarantee("release"))


@pytest.mark.parametrize("unit", ["example", "user"])
def test_a_round_that_would_be_stated_as_local_noise_and_send_none_cannot_be_agreed(unit):
    """Such a session has no noise of its own, and its statement would be that of DP-SGD."""
    local = replace(EXAMPLES, mechanism="local", unit=unit)
    with pytest.raises(ConfigError, match=r"mechanism = 'local': .* would send without any"):
        session_of(policy=local)
    assert "local" not in ClientFloors().mechanisms


@pytest.mark.parametrize(
    "policy",
    [
        POLICY,
        EXAMPLES,
        replace(EXAMPLES, unit="user"),
        replace(POLICY, noise="skellam"),
        replace(POLICY, rounding="conditional"),
    ],
    ids=["client", "example", "user", "skellam", "conditional"],
)
def test_what_is_encoded_for_a_server_that_is_not_trusted_carries_noise(policy):
    codec = session_of(policy=policy).codec
    zeros = np.zeros(20 if policy.unit == "client" else (3, 20))
    encode = codec.encode_update if policy.unit == "client" else codec.encode_examples
    found = [encode(zeros, NoiseGenerator()) for _ in range(2)]
    assert not np.array_equal(*found)
    noise = from_ring(found[0], codec.plan.bits) / codec.plan.local_std
    assert 0.5 < np.sqrt((noise**2).mean()) < 2.0
