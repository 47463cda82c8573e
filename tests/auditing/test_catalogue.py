"""Every kind of attack in the catalogue is measured on a run file, and seen to work first."""

import pytest
from run_audits import load, write_labelled
from tiny import write_bert

from securefed.attacks.base import Limits
from securefed.auditing.catalogue import CATALOGUE, entry
from securefed.auditing.cells import Cell
from securefed.auditing.matrix import Matrix
from securefed.crypto.identity import IdentityKey
from securefed.errors import ConfigError

KEY = IdentityKey.generate()
LIMITS = Limits(seconds=2.0, max_tokens=10)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load(tmp_path_factory.mktemp("catalogue"), lora={"rank": 8})


def measured(run, folder, name, *columns, n=2):
    cells = [Cell(name, *column, seeds=tuple(range(n))) for column in columns]
    matrix = Matrix(run, folder, KEY, LIMITS, cell_seconds=120.0)
    return [document.measurement for document in matrix.measure(cells, seconds=600.0)]


def test_each_entry_says_what_it_is(run):
    for name, each in CATALOGUE.items():
        assert name == each.name
        assert each.what
        assert set(each.quick) <= set(each.full)
        baselines = {each.baseline_of(exposure) for exposure in each.exposures}
        assert baselines <= set(each.full)
    with pytest.raises(ConfigError, match="unknown"):
        entry("nothing")


@pytest.mark.parametrize("name", ["sparse-bayes", "lamp"])
def test_attacks_on_texts_are_measured_against_the_prior(run, tmp_path, name):
    (plain,) = measured(run, tmp_path, name, ("plain", "off"), n=1)
    assert plain.n == 1
    assert plain.headline == "token_recall"
    assert plain.verdict in ("guessed", "void")


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, each in CATALOGUE.items() if each.kind == "texts"])
def test_every_attack_on_texts_is_measured(run, tmp_path, name):
    (control,) = measured(run, tmp_path, name, ("control", "off"), n=1)
    assert control.n == 1
    assert control.metrics["token_recall"].prior is not None


def test_membership_on_a_sum_falls_with_the_runs_noise(run, tmp_path):
    columns = [("sum", "off"), ("sum", "masks"), ("sum", "noise and masks")]
    off, masks, noised = measured(run, tmp_path, "alignment-on-sum", *columns, n=6)
    assert off.main.shows_lift
    # Masks alone leave the sum as it is.
    assert masks.main.value == pytest.approx(off.main.value, abs=0.05)
    assert noised.main.value < off.main.value
    assert off.curve[0][0] <= off.curve[-1][0]


@pytest.mark.slow
def test_an_audit_of_epsilon_flags_a_planted_fault_and_keeps_to_the_promise(run, tmp_path):
    fault, promise = measured(
        run, tmp_path, "canary-epsilon", ("canaries", "off"), ("canaries", "noise and masks")
    )
    assert fault.main.shows_lift
    assert fault.main.value > fault.main.prior
    assert promise.verdict == "guessed"
    # Four bounds, each wrong once in a thousand audits of a promise that is kept to the letter.
    assert promise.main.lift < 0.1 * promise.main.prior


@pytest.mark.parametrize("name", ["small-cohort", "two-lists"])
def test_a_game_is_won_with_its_check_removed_and_not_with_it(run, tmp_path, name):
    weakened, protocol = measured(run, tmp_path, name, ("game", "off"), ("game", "protocol"))
    assert weakened.main.shows_lift
    assert protocol.main.value < weakened.main.value
    assert protocol.metrics["refused"].value == 1.0
    assert "refused: " in protocol.reason


@pytest.mark.slow
def test_a_backdoor_is_tried_on_classifiers_and_works_without_a_clip(run, tmp_path):
    (causal,) = measured(run, tmp_path / "causal", "backdoor", ("training unbounded", "off"))
    assert causal.verdict == "not_applicable"
    classifier = load(
        tmp_path / "run",
        model={
            "source": str(write_bert(tmp_path / "bert", layers=1, initializer_range=0.1)),
            "task": "sequence-classification",
            "labels": 2,
        },
        data={"source": str(write_labelled(tmp_path / "labelled")), "window_tokens": 16},
        lora={"rank": 8, "target_modules": ["value"], "modules_to_save": ["classifier"]},
        training={
            "rounds": 4,
            "local_steps": 4,
            "batch_size": 12,
            "local_learning_rate": 2e-2,
        },
        privacy={
            "unit": "client",
            "mechanism": "none",
            "noise_multiplier": None,
            "expected_batch": None,
            "clip_norm": 0.5,
        },
        evaluation={"window_tokens": None},
    )
    off, clipped = measured(
        classifier,
        tmp_path / "out",
        "backdoor",
        ("training unbounded", "off"),
        ("training", "clip"),
        n=1,
    )
    assert off.main.prior < 0.1
    assert off.main.shows_lift
    assert off.metrics["accuracy"].value > 0.8
    assert clipped.main.value < 0.2


def test_released_adapters_are_not_applicable_where_clients_have_too_few_texts(tmp_path):
    few = load(tmp_path / "few", data={"window_tokens": 24})
    (found,) = measured(few, tmp_path / "out", "loss", ("released", "off"))
    assert found.verdict == "not_applicable"
    assert "per_client" in found.reason
