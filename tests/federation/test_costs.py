import dataclasses

import pytest

from securefed.errors import ConfigError
from securefed.federation.costs import CohortPlan, UnitCosts, message_bytes, predict

ONES = UnitCosts(**{field.name: 1e-6 for field in dataclasses.fields(UnitCosts)})


def test_a_plan_loses_a_share_of_those_still_there_before_each_stage():
    plan = CohortPlan(clients=1000, drop=0.1)
    assert plan.present == {
        "advertise": 900,
        "graph": 810,
        "share": 729,
        "masked_input": 657,
        "consistency": 592,
        "unmask": 533,
    }
    assert plan.parameters.survivor_floor == 533
    assert "graph" not in CohortPlan(clients=199).present


@pytest.mark.parametrize(
    ("field", "value"),
    [("clients", 1), ("values", 0), ("drop", 1.0), ("drop", -0.1), ("corrupt", 1.0), ("seed", -1)],
)
def test_a_plan_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field} = {value}"):
        CohortPlan(**{"clients": 10, field: value})


def test_a_loss_that_no_threshold_allows_is_refused():
    with pytest.raises(ConfigError, match="lower corrupt_fraction or dropout_fraction"):
        predict(CohortPlan(clients=50, drop=0.3), ONES)


def test_unit_costs_are_all_in_the_prediction():
    plan = CohortPlan(clients=1000, drop=0.05, corrupt=0.01)
    base = predict(plan, ONES)
    for field in dataclasses.fields(UnitCosts):
        dearer = predict(plan, dataclasses.replace(ONES, **{field.name: 2e-6}))
        assert (
            dearer.client_seconds + dearer.server_seconds
            > base.client_seconds + base.server_seconds
        ), field.name
        assert (dearer.bytes_up, dearer.bytes_down) == (base.bytes_up, base.bytes_down)


def test_bytes_of_a_client_beside_the_lists_grow_as_the_degree():
    small, large = (
        predict(CohortPlan(clients=n, drop=0.05, corrupt=0.01), ONES) for n in (10**4, 10**6)
    )
    ratio = large.plan.parameters.degree / small.plan.parameters.degree
    assert 1.1 < ratio < 1.3
    down = [cost.bytes_down - cost.linear(ONES)[1] for cost in (small, large)]
    assert down[1] / down[0] == pytest.approx(ratio, rel=0.02)
    assert large.bytes_up / small.bytes_up == pytest.approx(ratio, rel=0.02)
    # Nonces: 16 bytes a client that revealed, a commitment and index for those that did not.
    present = large.plan.present
    lists = 16 * present["graph"] + 36 * (present["advertise"] - present["graph"]) + 2 * 125_000
    assert large.linear(ONES)[1] == lists


def test_the_input_is_packed():
    sizes = [
        message_bytes(CohortPlan(clients=10, values=1_000_000, bits=bits))["masked_input"][0]
        for bits in (20, 32)
    ]
    assert sizes == [2_500_000 + 114, 4_000_000 + 114]
