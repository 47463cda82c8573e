"""Turning off any single defence in a run file turns the claims that rest on it to refuted or void.

The shipped threat models, on run files with everything on: all their tests passed, their attacks
failed with working baselines, and people answered.  From there one thing is turned off at a time.
"""

import copy
import functools

import pytest
from threat_files import CODE, NOW, TODAY, WEIGHTS, ledger, passed, stored_tests

from securefed.config import parse_config
from securefed.evidence.results import About, AttackDocument, Measurement, Metric, Subject
from securefed.threats.conditions import unmet
from securefed.threats.facts import MeasuredAttack, RunFacts
from securefed.threats.files import shipped
from securefed.threats.judging import judge
from securefed.threats.ledger_values import Beside
from securefed.threats.loading import load_threat_models
from securefed.threats.statements import SignedStatement, Statement
from securefed.threats.verdicts import Reference

GREEN = {"verified", "not_refuted", "manual", "not_applicable"}
RED = {"refuted", "void"}

PAIRWISE = {
    "model": {"source": "some/model", "fingerprint": WEIGHTS},
    "data": {"source": "some/data"},
    "lora": {"sharing": "ffa"},
    "privacy": {
        "unit": "user",
        "mechanism": "distributed",
        "noise_multiplier": 0.6,
        "corrupt_fraction": 0.25,
        "sample_is_secret": True,
    },
    "aggregation": {"kind": "pairwise"},
    "cohort": {"min_clients": 3},
    "evaluation": {"figures": "histogram", "histogram": {"noise_multiplier": 2.0}},
    "budget": {"epsilon": 4.0},
}
ENCRYPTED = PAIRWISE | {
    "aggregation": {"kind": "bfv", "key_holder": "decryptor", "masked": True},
}
WITNESS = Reference(kind="file", path="a.json")


@functools.cache
def models():
    return tuple(load_threat_models(shipped()))


def evidence(kind):
    return [
        (model, claim, item)
        for model in models()
        for claim in model.claims
        for item in claim.evidence
        if item.type == kind
    ]


def metric_within(bound):
    """A metric that a bound holds of, wherever it looks."""
    far = -1e3 if bound.op in ("<", "<=") else 1e3
    value = bound.value + far
    return Metric(
        value=value,
        interval=(value, value),
        lift=value,
        lift_interval=(value, value),
    )


def results(config):
    found = []
    for _, _, item in evidence("attack"):
        for exposure, defence, bound in (
            (item.exposure, item.defence, item.accept),
            (item.baseline.exposure, item.baseline.defence, item.baseline.expect),
        ):
            measurement = Measurement(
                attack=item.attack,
                attacks="texts",
                exposure=exposure,
                defence=defence,
                model=Subject(source="model", fingerprint=WEIGHTS),
                settings={
                    "batch": item.batch,
                    "clients": None,
                    "config": config.model_dump(mode="json", exclude_none=True),
                    "code": ["0.1.0", CODE, "2.13.0"],
                },
                seeds=[0],
                n=item.min_trials,
                metrics={item.metric: metric_within(bound)},
                verdict="guessed",
            )
            about = About(time="2026-11-29T09:00:00Z", seconds=1.0, version="0.1.0")
            document = AttackDocument(measurement=measurement, about=about)
            found.append(MeasuredAttack(document, WITNESS, anchored=True))
    return found


def records(epsilon=2.0, survivors=3, histograms=True):
    found = ledger(epsilon, survivors)
    closed = found[-1].body
    closed["guarantees"].append({"against": "fellow_client", "epsilon": epsilon})
    if histograms:
        closed["histograms"] = {"guarantees": [{"against": "server", "epsilon": epsilon}]}
        found = [record for record in found if record.kind != "evaluation_opened"]
    return found


def judged(values, **of_ledger):
    config = parse_config(copy.deepcopy(values))
    beside = Beside(openings_beyond_sums=of_ledger.pop("beyond", 0), unsigned_rounds=0)
    histograms = config.evaluation.figures == "histogram"
    run = records(**({"histograms": histograms} | of_ledger))
    statements = [
        SignedStatement(
            Statement(
                run=run[0].hash,
                model=model.id,
                claim=claim.id,
                manual=item.manual,
                statement="Yes.",
                by=item.who.en,
                signed_off=TODAY,
            ),
            WITNESS,
            anchored=True,
        )
        for model, claim, item in evidence("manual")
    ]
    facts = RunFacts(
        config=config,
        records=run,
        beside=beside,
        source_sha256=CODE,
        model_fingerprint=WEIGHTS,
        attacks=results(config),
        statements=statements,
    )
    tests = stored_tests(*(passed(item.test) for _, _, item in evidence("test")))
    found = judge(models(), facts, tests, now=NOW, software="x", source_sha256=CODE)
    return {each.claim: each for each in found.findings}, facts


def without(values, **changes):
    """Values with settings replaced (``section__key=value``); None takes one out."""
    found = copy.deepcopy(values)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if value is None:
            found[section].pop(key)
        else:
            found[section][key] = value
    return found


@pytest.mark.parametrize("values", [PAIRWISE, ENCRYPTED], ids=["pairwise", "encrypted"])
def test_with_everything_on_nothing_is_red(values):
    found, _ = judged(values)
    open_ones = {name: each.reason for name, each in found.items() if each.verdict not in GREEN}
    assert open_ones == {}
    assert sum(each.verdict == "verified" for each in found.values()) >= 30


SUM = {"evaluation__figures": "sum", "evaluation__histogram": None}
SWITCHES = {
    "nothing is masked": (
        PAIRWISE,
        {"aggregation__kind": "plaintext"},
        "C-sum-only C-coalition-sum-only C-signed-keys C-one-list C-one-model C-survivor-floor "
        "C-dp-server C-wire-masked C-wire-authentic C-recorded-rounds C-inversion-tried",
    ),
    "no noise": (
        PAIRWISE,
        {"privacy__mechanism": "none", "privacy__noise_multiplier": None, "budget__epsilon": None},
        "C-dp-server C-dp-release C-coalition-noise C-fellow-client C-noise-for-survivors "
        "C-account C-membership-tried C-release-attacked C-run-budget",
    ),
    "noise by a server that sees the sum": (
        PAIRWISE,
        {"privacy__mechanism": "central"},
        "C-dp-server C-coalition-noise",
    ),
    "nobody is taken for corrupt": (
        PAIRWISE,
        {"privacy__corrupt_fraction": 0.0},
        "C-coalition-sum-only C-coalition-noise C-sybil-noise",
    ),
    "cohorts of two": (PAIRWISE, {"cohort__min_clients": 2}, "C-small-cohort"),
    "no pinned weights": (PAIRWISE, {"model__fingerprint": None}, "C-pinned-model"),
    "no budget": (PAIRWISE, {"budget__epsilon": None}, "C-run-budget"),
    "exact sums of figures": (PAIRWISE, SUM, "C-figures-noised"),
    "clients' figures are shown": (
        PAIRWISE,
        SUM | {"evaluation__show_clients": True},
        "C-no-single-figures C-figures-noised",
    ),
    "times and sizes are shown": (
        PAIRWISE,
        {"privacy__sample_is_secret": False},
        "C-sample-hidden",
    ),
    "one example is the unit": (PAIRWISE, {"privacy__unit": "example"}, "C-whole-person"),
    "nothing is encrypted": (
        ENCRYPTED,
        {
            "aggregation__kind": "plaintext",
            "aggregation__key_holder": None,
            "aggregation__masked": None,
        },
        "C-sums-only C-key-of-its-holder C-one-colluder C-decryptor-sees-sums C-masks-beneath "
        "C-sum-only C-survivor-floor",
    ),
    "no masks beneath the encryption": (
        ENCRYPTED,
        {"aggregation__masked": False},
        "C-masks-beneath",
    ),
    "every client can decrypt": (
        ENCRYPTED,
        {
            "aggregation__key_holder": "cohort",
            "aggregation__masked": False,
            "privacy__corrupt_fraction": 0.0,
        },
        "C-one-colluder C-masks-beneath C-coalition-noise",
    ),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_each_defence_that_is_turned_off_is_seen(name):
    base, changes, expected = SWITCHES[name]
    before, _ = judged(base)
    after, facts = judged(without(base, **changes))
    turned = {claim for claim, found in after.items() if found.verdict in RED}
    assert set(expected.split()) <= turned
    # Nothing is excused by it either, but for what histograms alone promise where there are none.
    excused = {
        claim
        for claim, found in after.items()
        if found.verdict == "not_applicable" != before[claim].verdict
    }
    assert excused <= {"C-histograms-counted"}
    # No claim is green, or out of scope, that has a control which is not in force.
    for model in models():
        for claim in model.claims:
            if unmet(claim.applies_when, facts):
                continue
            off = [c for c in claim.controls if unmet(c.config, facts)]
            off += [
                c for c in claim.controls if c.any_of and all(unmet(x, facts) for x in c.any_of)
            ]
            if off:
                assert after[claim.id].verdict in RED, claim.id


@pytest.mark.parametrize(
    ("values", "of_ledger", "expected"),
    [
        (PAIRWISE, {"epsilon": "unprotected"}, "C-dp-server C-dp-release C-fellow-client"),
        (PAIRWISE, {"survivors": 2}, "C-survivor-floor C-dp-server"),
        (PAIRWISE, {"histograms": False}, "C-figures-noised"),
        (ENCRYPTED, {"beyond": 1}, "C-decryptor-sees-sums"),
    ],
)
def test_a_ledger_that_says_otherwise_refutes(values, of_ledger, expected):
    found, _ = judged(values, **of_ledger)
    for claim in expected.split():
        assert found[claim].verdict == "refuted"


def test_exact_sums_that_nobody_asked_to_be_histograms_are_void_and_break_no_promise():
    after, _ = judged(without(PAIRWISE, **SUM), histograms=False)
    assert after["C-figures-noised"].verdict == "void"
    assert "evaluation.figures = 'sum'" in after["C-figures-noised"].reason


def test_before_a_run_nothing_that_needs_its_ledger_is_green():
    facts = RunFacts(config=parse_config(PAIRWISE), source_sha256=CODE)
    tests = stored_tests(*(passed(item.test) for _, _, item in evidence("test")))
    found = judge(models(), facts, tests, now=NOW, software="x", source_sha256=CODE).findings
    by_claim = {each.claim: each.verdict for each in found}
    for _, claim, _ in [*evidence("ledger"), *evidence("attack"), *evidence("manual")]:
        assert by_claim[claim.id] in {"not_run", "void", "not_applicable"}, claim.id
