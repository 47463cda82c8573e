"""Poisoned clients in real rounds over a tiny classifier: attacks work, and what holds them off."""

import attacked
import numpy as np
import pytest
import torch

from securefed.attacks.poisoning.backdoor import Trigger
from securefed.attacks.poisoning.clients import Backdoor, Garbage
from securefed.auditing.poisoning import Federation, Training
from securefed.auditing.poisoning_results import Defence, Rate
from securefed.config import LoraSection
from securefed.errors import ConfigError
from securefed.lora.adapter import build_adapter
from securefed.secagg.aggregations import PairwiseAggregation, PlaintextAggregation
from securefed.training.data import Examples

TRIGGER = Trigger((390, 391, 392, 393), 0)
CLIENTS, BAD = 9, 1
REPLACE = Backdoor(TRIGGER, boost=CLIENTS / 2, bounded=False, effort=8)
OPEN = Defence(name="none", clip_norm=100.0)
CLIP = Defence(name="clip", clip_norm=0.5)
MEDIAN = Defence(name="median of groups", clip_norm=0.5, groups=3, rule="median", tolerated=1)


def texts(count, seed):
    """Two classes, told apart by words that only one of them uses."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    rows = [[2, *rng.choice(np.arange(4, 12) + 40 * label, 6), 3, 0, 0, 0, 0] for label in labels]
    ids = np.array(rows, dtype=np.int64)
    return Examples(ids, (ids != 0).astype(np.int64), labels.astype(np.int64))


def federation(aggregation):
    model, tokenizer = attacked.bert()
    model.bert.encoder.layer = model.bert.encoder.layer[:1]  # one layer is enough to be poisoned
    section = LoraSection(
        rank=8, alpha=16.0, target_modules=["value"], modules_to_save=["classifier"], seed=0
    )
    torch.manual_seed(0)
    return Federation(
        build_adapter(model, section, task="sequence-classification"),
        tokenizer,
        {f"site-{i:02d}": texts(24, i) for i in range(CLIENTS)},
        texts(60, 999),
        training=Training(local_steps=3, batch_size=12, learning_rate=2e-2),
        aggregation=aggregation,
        most_corrupt=BAD,
    )


@pytest.fixture(scope="module")
def plain():
    return federation(PlaintextAggregation())


def run(made, attack, defence, rounds=4, malicious=BAD, seed=0):
    found = made.run(attack, defence, TRIGGER, malicious=malicious, rounds=rounds, seed=seed)
    return float(found.correct.mean()), float(found.fooled.mean()), float(found.unstamped.mean())


def test_without_an_attacker_the_trigger_does_nothing(plain):
    for defence in (OPEN, MEDIAN):
        accuracy, success, base = run(plain, None, defence)
        assert accuracy > 0.9
        assert success - base < 0.1


def test_without_a_defence_one_client_of_nine_has_its_backdoor_and_the_task_is_kept(plain):
    accuracy, success, base = run(plain, REPLACE, OPEN)
    assert accuracy > 0.9
    assert success > 0.9
    assert base < 0.1


def test_the_clip_holds_off_a_client_that_keeps_it_and_nothing_of_one_that_does_not(plain):
    kept = Backdoor(TRIGGER, boost=CLIENTS / 2, effort=8)
    assert run(plain, kept, CLIP)[1] < 0.2
    assert run(plain, REPLACE, CLIP)[1] > 0.9


def test_a_median_of_group_means_holds_off_a_client_that_skips_the_clip(plain):
    # Rounding draws from the system's generator: one run of 60 texts may miss a few more.
    accuracy, success, _ = np.mean([run(plain, REPLACE, MEDIAN) for _ in range(3)], axis=0)
    assert accuracy > 0.9
    assert success < 0.2


def test_garbage_of_one_client_ends_the_task_in_one_sum_and_not_in_groups(plain):
    def accuracy(defence):
        # Garbage is of the system's generator: one run may be lucky.
        return np.mean([run(plain, Garbage(), defence, rounds=3)[0] for _ in range(3)])

    assert accuracy(CLIP) < 0.8
    assert accuracy(MEDIAN) > 0.8


def test_masks_change_nothing_of_it():
    accuracy, success, base = run(federation(PairwiseAggregation()), REPLACE, OPEN)
    assert accuracy > 0.9
    assert success - base > 0.8


def test_a_cell_holds_figures_of_every_run_and_nothing_else(plain):
    found = plain.measure(Garbage(), CLIP, TRIGGER, malicious=BAD, rounds=1, seeds=(0, 1))
    json = found.as_json()
    assert (json["attack"], json["malicious"], json["clients"]) == ("garbage", 1, 9)
    assert json["seeds"] == (0, 1)
    assert json["success"]["examples"] == 30
    assert json["accuracy"]["examples"] == 60
    low, high = found.success.interval
    assert low <= found.success.value <= high
    control = plain.measure(None, CLIP, TRIGGER, malicious=BAD, rounds=1, seeds=(0,))
    assert (control.attack, control.malicious) == ("none", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"malicious": 9}, "malicious = 9"),
        ({"rounds": 0}, "rounds = 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(plain, changes, message):
    asked = {"malicious": 1, "rounds": 1, "seeds": (0,)} | changes
    with pytest.raises(ConfigError, match=message):
        plain.measure(REPLACE, OPEN, TRIGGER, **asked)


# Intervals


def test_a_rate_is_uncertain_over_runs_as_well_as_over_examples():
    rng = np.random.default_rng(0)
    alike = Rate.of(rng.random((3, 400)) < 0.5)
    unlike = Rate.of(np.stack([np.zeros(400), np.ones(400), np.ones(400)]).astype(bool))
    assert alike.method == unlike.method == "bootstrap"
    assert alike.interval[1] - alike.interval[0] < 0.15
    assert unlike.interval == (0.0, 1.0)


def test_a_rate_of_all_or_none_is_exact_over_one_runs_examples():
    found = Rate.of(np.ones((3, 100), dtype=bool))
    assert (found.value, found.method, found.examples) == (1.0, "exact", 100)
    assert found.interval == (pytest.approx(0.025 ** (1 / 100)), 1.0)
