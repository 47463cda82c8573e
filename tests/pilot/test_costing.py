import pytest
from pilot_records import cost, record, skipped, trial

from securefed.config.pilot import PriceSection
from securefed.federation.costs import CohortPlan, UnitCosts, message_bytes, predict
from securefed.pilot.costing import cost_price, mean_price, price_per_point
from securefed.pilot.projecting import project
from securefed.pilot.summaries import summaries

PRICES = PriceSection(per_gb=50.0, per_device_hour=3600.0, per_server_hour=3600.0)


def only(*trials, **given):
    made = record(*trials, **given)
    return made, summaries(made)[0]


def test_a_client_and_round_is_priced_by_traffic_its_own_time_and_its_share_of_the_server():
    # 10^6 bytes at 50 a 10^9; 2 s and 1 s at 1 a second, the latter shared by 10.
    price = cost_price(cost(), PRICES, clients=10)
    assert price is not None
    assert (price.traffic, price.device, price.server) == pytest.approx((0.05, 2.0, 0.1))
    assert price.total == pytest.approx(2.15)


def test_money_per_point_is_of_the_whole_trial():
    # 50 to 40 is 20 points; 10 clients, 5 rounds, 2.15 each.
    _, base = only(trial())
    assert price_per_point(base, PRICES) == pytest.approx(10 * 5 * 2.15 / 20)
    _, worse = only(trial(after=51.0))
    assert price_per_point(worse, PRICES) is None


@pytest.mark.parametrize(
    ("prices", "costs"),
    [(PriceSection(), cost()), (PRICES, cost(seconds={}))],
    ids=["no price", "time not seen"],
)
def test_what_is_not_known_has_no_price(prices, costs):
    assert cost_price(costs, prices, clients=10) is None
    made, base = only(trial(costs=costs))
    assert mean_price(base, prices) is None
    whole = project(made, base, clients=1000, rounds=100, prices=prices)
    assert whole is not None
    assert whole.money is None


def test_bytes_alone_can_be_priced_without_seconds():
    price = cost_price(cost(seconds={}), PriceSection(per_gb=50.0), clients=10)
    assert price is not None
    assert price.total == pytest.approx(0.05)


def test_an_estimate_of_seconds_without_training_is_no_estimate():
    seconds = {"mask": 0.5}
    _, whole = only(
        trial(costs=cost(seconds={"train": 1.0} | seconds, estimated=("client_seconds",)))
    )
    _, part = only(trial(costs=cost(seconds=seconds, estimated=("client_seconds",))))
    assert whole.client_seconds is not None
    assert whole.client_seconds.mean == 1.5
    assert part.client_seconds is None


def test_seeds_are_averaged_with_their_ends_and_a_gap_is_not_averaged_over():
    _, base = only(trial(after=40.0), trial(after=30.0, seed=2))
    assert base.improvement is not None
    assert (base.improvement.mean, base.improvement.least, base.improvement.most) == pytest.approx(
        (0.3, 0.2, 0.4)
    )
    _, gap = only(trial(), trial(seed=2, costs=cost(seconds={})))
    assert gap.client_seconds is None
    assert gap.bytes is not None
    _, half = only(trial(), trial(seed=2, epsilon=None))
    assert half.epsilon is None
    _, larger = only(trial(epsilon=2.0), trial(seed=2, epsilon=3.0))
    assert larger.epsilon == 3.0


def test_rounds_scale_and_a_cohort_of_the_same_size_adds_nothing():
    made, base = only(trial())
    whole = project(made, base, clients=10, rounds=100, prices=PRICES)
    assert whole is not None
    assert whole.bytes_each == 1_000_000
    assert whole.bytes == 10 * 100 * 1_000_000
    assert whole.device_seconds == pytest.approx(200.0)
    assert whole.money == pytest.approx(10 * 100 * 2.15)
    assert [said.key for said in whole.basis] == [
        "basis.measured",
        "basis.rounds",
        "basis.not_projected",
    ]


def test_encrypted_bytes_stay_and_the_servers_time_grows_with_the_clients():
    made, base = only(trial(varied={"aggregation.kind": "bfv"}))
    whole = project(made, base, clients=1000, rounds=5, prices=PRICES)
    assert whole is not None
    assert (whole.bytes_each, whole.seconds_each) == (1_000_000, pytest.approx(2.0))
    assert whole.server_seconds == pytest.approx(100.0)
    assert "basis.no_masks" in [said.key for said in whole.basis]


def test_masked_bytes_grow_as_the_cost_model_says_and_seconds_as_the_neighbours():
    made, base = only(trial(varied={"aggregation.bits": 24}))
    whole = project(made, base, clients=100, rounds=5, prices=PRICES)
    assert whole is not None

    def moved(clients):
        plan = CohortPlan(clients=clients, values=1024, bits=24, drop=0.0, corrupt=0.1)
        return sum(up + down for up, down in message_bytes(plan).values())

    assert whole.bytes_each == pytest.approx(1_000_000 + moved(100) - moved(10))
    # From 9 neighbours to 99, and the margin; only masking grows.
    assert whole.seconds_each == pytest.approx(1.5 + 0.5 * 2 * 11)
    assert whole.server_seconds == pytest.approx(1.0 * 11 * 10)
    assert {"basis.masks", "basis.untimed"} <= {said.key for said in whole.basis}
    assert "basis.ring" not in {said.key for said in whole.basis}


def test_timed_steps_take_the_place_of_the_margin():
    units = dict.fromkeys(UnitCosts.__dataclass_fields__, 1e-6)
    made, base = only(trial(varied={"aggregation.bits": 24}), units=units)
    whole = project(made, base, clients=100, rounds=5, prices=PRICES)
    assert whole is not None
    small, large = (
        predict(
            CohortPlan(clients=n, values=1024, bits=20, drop=0.0, corrupt=0.1), UnitCosts(**units)
        )
        for n in (10, 100)
    )
    ratio = large.client_seconds / small.client_seconds
    assert whole.seconds_each == pytest.approx(1.5 + 0.5 * ratio)
    assert "basis.timed" in {said.key for said in whole.basis}


def test_a_ring_that_is_chosen_by_itself_is_taken_at_its_widest():
    plan = CohortPlan(clients=10, values=1024, bits=26, drop=0.0, corrupt=0.1)
    up = sum(sent for sent, _ in message_bytes(plan).values())
    given, found = (
        only(trial(varied=varied, costs=cost(up=up)))
        for varied in ({"aggregation.bits": 26}, {"aggregation.bits": None})
    )
    fixed, free = (
        project(made, base, clients=100, rounds=5, prices=PRICES) for made, base in (given, found)
    )
    assert fixed is not None
    assert free is not None
    # Six bits more for each of the 1024 values.
    assert free.bytes_each - fixed.bytes_each == pytest.approx(1024 * 6 / 8)
    assert "basis.ring" in {said.key for said in free.basis}


def test_nothing_is_projected_from_a_trial_without_costs():
    made, none = only(skipped("rank = 2"))
    assert project(made, none, clients=100, rounds=5, prices=PRICES) is None
