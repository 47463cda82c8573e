import pytest
from pilot_records import cost, record, skipped, trial

from securefed.config.pilot import PriceSection
from securefed.pilot.protections import protections
from securefed.pilot.summaries import summaries

PRICES = PriceSection(per_gb=1000.0)


def one(name, after, up=100.0, train=1.0, seed=1):
    costs = cost(up=up, down=0.0, seconds={"train": train})
    return trial(name, "protection", after=after, epsilon=None, costs=costs, seed=seed)


def priced(*trials):
    found = protections(summaries(record(*trials)), PRICES)
    return {protection.name: protection for protection in found}


def test_each_protection_is_the_difference_to_the_trial_that_lacks_just_that_one():
    found = priced(
        one("no protection", 25.0),
        one("clip alone", 30.0, train=1.25),
        one("clip and noise", 40.0, train=1.5),
        one("masks alone", 25.0, up=500.0, train=2.0),
        one("encryption alone", 26.0, up=1100.0),
    )
    # Of 50 before: 0.5, 0.4, 0.2, 0.5 and 0.48 gained.
    assert {name: p.improvement for name, p in found.items()} == pytest.approx(
        {"clip": -0.1, "noise": -0.2, "masks": 0.0, "encryption": -0.02}
    )
    assert {name: p.bytes for name, p in found.items()} == {
        "clip": 0.0,
        "noise": 0.0,
        "masks": 400.0,
        "encryption": 1000.0,
    }
    assert {name: p.seconds for name, p in found.items()} == pytest.approx(
        {"clip": 0.25, "noise": 0.25, "masks": 1.0, "encryption": 0.0}
    )
    assert found["encryption"].money == pytest.approx(1000e-9 * 1000)


def test_a_difference_of_quality_may_be_chance_with_one_seed_or_where_seeds_overlap():
    bare = [one("no protection", after, seed=seed) for seed, after in ((1, 25.0), (2, 26.0))]
    single = priced(bare[0], one("clip alone", 40.0))
    assert single["clip"].maybe_chance
    half = priced(*bare, one("clip alone", 40.0))
    assert half["clip"].maybe_chance
    overlap = priced(*bare, one("clip alone", 25.5), one("clip alone", 40.0, seed=2))
    assert overlap["clip"].maybe_chance
    apart = priced(*bare, one("clip alone", 38.0), one("clip alone", 40.0, seed=2))
    assert not apart["clip"].maybe_chance


def test_a_protection_of_which_a_side_was_not_measured_has_no_price():
    assert priced(one("clip alone", 30.0)) == {}
    assert priced(one("clip alone", 30.0), skipped("no protection", "protection")) == {}
    # A sweep of that name is another thing.
    assert priced(one("clip alone", 30.0), trial("no protection", "sweep")) == {}
