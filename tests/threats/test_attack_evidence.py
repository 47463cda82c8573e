"""What a measured attack says about a claim."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from threat_files import (
    ATTACK_EVIDENCE,
    OTHER_CODE,
    OTHER_WEIGHTS,
    config,
    facts,
    measured,
    model,
    working_baseline,
)

from securefed.evidence.results import Metric, Subject
from securefed.threats.attack_evidence import judge_attack
from securefed.threats.bounds import kept
from securefed.threats.model import MeasuredBound


def judged(*attacks, evidence=ATTACK_EVIDENCE, **of_facts):
    item = model(evidence=[evidence]).claims[0].evidence[0]
    return judge_attack(item, facts(attacks=attacks, **of_facts))


@pytest.mark.parametrize(
    ("attacks", "verdict", "words"),
    [
        ([], "not_run", "there is no result of span-inversion on masked, masks"),
        ([measured(), working_baseline()], "not_refuted", "with the defence off it works"),
        # the bound
        ([measured(low=0.2, value=0.3, high=0.4), working_baseline()], "refuted", "broken"),
        ([measured(low=0.2, value=0.3, high=0.4)], "refuted", "broken"),
        ([measured(low=0.0, value=0.05, high=0.3), working_baseline()], "inconclusive", "both"),
        ([measured(n=3, seeds=[0, 1, 2]), working_baseline()], "inconclusive", "3 trials"),
        ([measured(confidence=0.8), working_baseline()], "inconclusive", "intervals at 0.8"),
        (
            [measured(metrics={"token_recall": Metric(value=0.0)}), working_baseline()],
            "inconclusive",
            "or there is none",
        ),
        ([measured(metrics={"other": Metric(value=0.0)}), working_baseline()], "not_run", "other"),
        # the baseline
        ([measured()], "void", "there is no result of span-inversion on plain, off"),
        ([measured(), working_baseline(low=0.3)], "void", "does not work: token_recall is 0.3"),
        ([measured(), working_baseline(metrics={})], "void", "token_recall is none"),
        (
            [measured(), working_baseline(verdict="void", reason="says so itself")],
            "void",
            "void (says so itself)",
        ),
        (
            [measured(), working_baseline(verdict="out_of_time", n=0, seeds=[])],
            "void",
            "out of time",
        ),
        # the result itself
        ([measured(verdict="void", reason="no prior")], "void", "no prior"),
        ([measured(verdict="out_of_time", reason="no time")], "not_run", "out of time: no time"),
        ([measured(verdict="not_applicable", reason="no masks")], "not_run", "not applicable"),
        # other cells
        ([measured("sum"), working_baseline()], "not_run", "no result"),
        ([measured(defence="noise and masks"), working_baseline()], "not_run", "no result"),
        ([measured(attack="dlg"), working_baseline()], "not_run", "no result"),
    ],
)
def test_every_way_that_an_attack_can_end_has_its_verdict(attacks, verdict, words):
    found = judged(*attacks)
    assert found.verdict == verdict
    assert words in found.reason


def of_other(what):
    settings = dict(measured().document.measurement.settings)
    if what == "code":
        return {"settings": settings | {"code": ["0.1.0", OTHER_CODE, "2.13.0"]}}
    if what == "weights":
        return {"model": Subject(source="model", fingerprint=OTHER_WEIGHTS)}
    if what == "nothing":
        return {"settings": {"batch": 1, "clients": None, "code": settings["code"]}}
    changed = config(privacy={"noise_multiplier": 9.0}).model_dump(mode="json", exclude_none=True)
    return {"settings": settings | {"config": changed}}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("code", "other code"),
        ("weights", "other base weights"),
        ("run file", "another run file: privacy.noise_multiplier differs"),
        ("nothing", "does not say of which run file"),
    ],
)
def test_a_result_of_another_run_is_stale_and_so_is_such_a_baseline(what, words):
    found = judged(measured(**of_other(what)), working_baseline())
    assert (found.verdict, words in found.reason) == ("stale", True)
    found = judged(measured(), working_baseline(**of_other(what)))
    assert (found.verdict, words in found.reason) == ("stale", True)
    # Another one of this run is there: it counts, though it is older.
    old = measured(time="2026-11-01T00:00:00Z")
    assert judged(old, measured(**of_other(what)), working_baseline()).verdict == "not_refuted"


def test_a_stale_success_does_not_refute_this_run_and_does_not_pass():
    broken = measured(low=0.6, value=0.7, high=0.8, **of_other("code"))
    assert judged(broken, working_baseline()).verdict == "stale"


def test_what_the_run_does_not_say_makes_results_stale():
    assert judged(measured(), working_baseline(), source_sha256=None).verdict == "stale"
    assert judged(measured(), working_baseline(), model_fingerprint=None).verdict == "stale"


def test_the_name_of_a_run_and_where_its_files_lie_do_not_make_results_stale():
    moved = config(
        model={"source": "elsewhere/model"},
        data={"source": "elsewhere/data"},
        output={"name": "again"},
    )
    assert judged(measured(), working_baseline(), config=moved).verdict == "not_refuted"


def test_the_last_result_counts():
    first = measured(low=0.6, value=0.7, high=0.8, time="2026-11-28T09:00:00Z")
    assert judged(first, measured(), working_baseline()).verdict == "not_refuted"
    assert judged(measured(), first, working_baseline()).verdict == "not_refuted"


def test_other_batches_and_cohorts_are_other_cells():
    settings = dict(measured().document.measurement.settings)
    for changed in ({"batch": 4}, {"clients": 2}):
        other = measured(settings=settings | changed)
        assert judged(other, working_baseline()).verdict == "not_run"
    four = ATTACK_EVIDENCE | {"batch": 4}
    both = [each(settings=settings | {"batch": 4}) for each in (measured, working_baseline)]
    assert judged(*both, evidence=four).verdict == "not_refuted"


def test_figures_say_where_they_stand():
    found = judged(measured(), working_baseline())
    assert (found.value, found.interval) == (0.05, (0.0, 0.05))
    assert found.allowed == "token_recall <= 0.1 (ci_upper)"
    assert [(each.path, each.pointer) for each in found.references] == [
        ("attacks/masked.json", "/measurement/metrics/token_recall/interval/1"),
        ("attacks/plain.json", "/measurement/metrics/token_recall/interval/0"),
    ]


def test_a_bound_on_the_lift_is_about_the_lift():
    promise = {
        "attack": "canary-epsilon",
        "metric": "token_recall",
        "accept": {"op": "<=", "value": 0.0, "of": "lift"},
        "baseline": {
            "exposure": "plain",
            "defence": "off",
            "expect": {"op": ">", "value": 0.0, "of": "lift"},
        },
    }
    metric = Metric(value=3.0, prior=4.0, lift=-1.0, lift_interval=(-1.0, 1e6))
    worse = Metric(value=5.0, prior=4.0, lift=0.5, lift_interval=(0.5, 1e6))
    common = {"attack": "canary-epsilon", "evidence": ATTACK_EVIDENCE | promise}
    evidence = common.pop("evidence")
    good = measured(metrics={"token_recall": metric}, **common)
    bad = measured(metrics={"token_recall": worse}, **common)
    base = working_baseline(metrics={"token_recall": worse}, **common)
    assert judged(good, base, evidence=evidence).verdict == "not_refuted"
    assert judged(bad, base, evidence=evidence).verdict == "refuted"


finite = st.floats(-10, 10)


@given(finite, finite, finite, finite, st.sampled_from(["<", "<=", ">", ">="]), st.booleans())
def test_a_bound_is_kept_broken_or_unclear_and_never_two_of_them(a, b, c, limit, op, interval):
    low, value, high = sorted((a, b, c))
    metric = Metric(value=value, interval=(low, high) if interval else None)
    verdicts = {
        of: kept(MeasuredBound(op=op, value=limit, of=of), metric)
        for of in ("point", "ci_lower", "ci_upper")
    }
    # The strictest end decides least often.
    strict = "ci_upper" if op in ("<", "<=") else "ci_lower"
    lax = "ci_lower" if op in ("<", "<=") else "ci_upper"
    if interval:
        if verdicts[strict] == "kept":
            assert set(verdicts.values()) == {"kept"}
        if verdicts[lax] != "kept":
            assert set(verdicts.values()) == {"broken"}
    else:
        assert verdicts[strict] == verdicts[lax] == "unclear"
        assert verdicts["point"] in ("kept", "broken")
