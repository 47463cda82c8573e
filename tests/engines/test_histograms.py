"""Held-out figures as noised counts: what they show, what they cost, and what they hide."""

from __future__ import annotations

import io
import json
import math
import shutil
from copy import copy as copy_of
from dataclasses import replace

import numpy as np
import pytest
from ledgers import rewrite
from rich.console import Console
from scipy import optimize, stats
from tiny import write_clients, write_run

from securefed import Federation, secure_round
from securefed.cli.closing import comparison, statements_of_figures, table
from securefed.config import load_config, parse_config
from securefed.crypto.prg import SeededNoiseGeneratorForTests
from securefed.engines import histograms as engine
from securefed.engines import run
from securefed.engines.figures import Figures, figures_policy
from securefed.engines.histogram_settings import HistogramSettings
from securefed.engines.histograms import placed
from securefed.engines.noised_histogram import Bins, NoisedHistogram
from securefed.engines.recorded import check_measured
from securefed.engines.settings import Settings
from securefed.engines.verify import verified_run, verify_run
from securefed.engines.without_noise import without_noise
from securefed.errors import ConfigError, LedgerTampered, ThresholdNotMet
from securefed.evidence.budget import read_charges
from securefed.evidence.ledger import read_ledger
from securefed.federation.update_codec import UpdateCodec
from securefed.privacy.accounting import epsilon_text
from securefed.privacy.mechanisms import plan_round
from securefed.secagg.aggregations import PairwiseAggregation, PlaintextAggregation

CLASSES = {"model": {"task": "sequence-classification", "labels": 2}}


def values_of(noise_multiplier=2.0, *, personal=False, every=0, rounds=3, **histogram):
    return {
        "training": {"rounds": rounds},
        "evaluation": {
            "figures": "histogram",
            "every": every,
            "histogram": {"noise_multiplier": noise_multiplier} | histogram,
        },
        "privacy": {"corrupt_fraction": 0.0},
        "personal": {"kind": "adapter"} if personal else {},
    }


def settings_of(size=6, *, classes=False, aggregation=None, **values):
    config = parse_config(values_of(**values) | (CLASSES if classes else {}))
    assert config.evaluation.histogram is not None
    return HistogramSettings(
        config.evaluation.histogram,
        config,
        cohort_size=size,
        aggregation=aggregation or PairwiseAggregation(),
    )


# -- bins ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.05, 0.1, 0.95, 1.0, -3.0, 7.0])
def test_a_client_counts_once_in_the_bin_of_its_figure(value):
    bins = Bins.of_accuracy(10)
    vector = bins.one_hot(value)
    assert np.linalg.norm(vector) == vector.sum() == 1.0
    place = int(vector.argmax())
    assert place == min(max(math.floor(value * 10 + 1e-9), 0), 9)


def test_bins_of_perplexity_are_equal_in_its_logarithm_and_hold_what_lies_beyond():
    bins = Bins.of_perplexity(6, 1.0, 1000.0)
    np.testing.assert_allclose(np.diff(np.log(bins.edges)), math.log(1000.0) / 6)
    for value, place in ((0.5, 0), (1.0, 0), (3.0, 0), (3.2, 1), (999.0, 5), (9000.0, 5)):
        assert bins.one_hot(value)[place] == 1.0


def test_figures_are_placed_as_they_are_shown_and_gains_by_the_better_way():
    language = Figures.vector(nll=math.log(50.0), accuracy=None)
    better = Figures.vector(nll=math.log(30.0), accuracy=None)
    perplexity, gain = Bins.of_perplexity(10, 1.0, 1000.0), Bins.of_gain(10, classifier=False)
    assert np.array_equal(placed(perplexity, language), perplexity.one_hot(50.0))
    assert np.array_equal(placed(gain, better, over=language), gain.one_hot(math.log(50 / 30)))
    assert placed(gain, better, over=language)[5:].sum() == 1.0  # above no change
    classes, worse = (Figures.vector(nll=0.4, accuracy=share) for share in (0.81, 0.62))
    assert np.array_equal(placed(Bins.of_accuracy(10), classes), Bins.of_accuracy(10).one_hot(0.81))
    gain = Bins.of_gain(10, classifier=True)
    assert np.array_equal(placed(gain, worse, over=classes), gain.one_hot(-0.19))
    broken = Figures.vector(nll=math.nan, accuracy=None)
    assert placed(perplexity, broken)[-1] == 1.0


def test_a_record_gives_the_histogram_back():
    found = NoisedHistogram(Bins.of_accuracy(3), (1.25, -0.5, 4.0), 5, 1.5)
    assert NoisedHistogram.from_record(json.loads(json.dumps(found.to_record()))) == found


# -- what noised counts show ---------------------------------------------------------------


def drawn(settings, vectors, generator):
    """One opened sum, by the encoding and the noise that every client really sends."""
    codec = UpdateCodec(settings.policy, settings.plan, bytes(range(32)))
    total = sum(codec.encode_update(vector, generator).astype(np.uint64) for vector in vectors)
    ring = (total % 2**settings.plan.bits).astype(np.uint32)
    return settings.histogram("shared", codec.decode(ring), clients=len(vectors))


def test_estimates_are_unbiased_and_their_errors_are_those_of_the_noise():
    settings = settings_of(20, classes=True, noise_multiplier=2.0)
    bins, rng = settings.bins("shared"), np.random.default_rng(1)
    accuracies = rng.uniform(0.3, 0.9, size=20)
    vectors = [bins.one_hot(value) for value in accuracies]
    generator = SeededNoiseGeneratorForTests(3)
    found = [drawn(settings, vectors, generator) for _ in range(400)]
    counts = np.array([each.counts for each in found])
    exact = np.sum(vectors, axis=0)
    std = settings.std(20)
    assert np.abs(counts.mean(axis=0) - exact).max() < 4.5 * std / 20.0
    np.testing.assert_allclose(counts.std(axis=0), std, rtol=0.15)
    binned = float(bins.centres @ exact) / 20
    inside = [each.interval[0] <= accuracies.mean() <= each.interval[1] for each in found]
    assert np.mean(inside) > 0.95
    middle = [each.interval[0] + 0.05 <= binned <= each.interval[1] - 0.05 for each in found]
    assert 0.92 < np.mean(middle) < 0.975  # without half a bin it is 95 % of the noise alone


def test_no_interval_of_accuracy_reaches_beyond_what_shares_can_be():
    bins = Bins.of_accuracy(10)
    counts = (0.0,) * 9 + (3.0,)
    drowned = NoisedHistogram(bins, counts, clients=3, std=5.0)
    assert drowned.interval == (0.0, 1.0)
    sharp = NoisedHistogram(bins, counts, clients=3, std=0.01)
    assert sharp.interval[0] > 0.89
    assert sharp.interval[1] == 1.0


@pytest.mark.slow
def test_an_empty_bin_is_seldom_called_the_worst_and_a_full_one_is_found():
    settings = settings_of(100, classes=True, noise_multiplier=2.0)
    bins = settings.bins("shared")
    generator = SeededNoiseGeneratorForTests(4)
    good = [bins.one_hot(0.75)] * 100
    worst = [drawn(settings, good, generator).worst_bin for _ in range(300)]
    wrong = sum(found is None or found[0] < 0.7 - 1e-9 for found in worst)
    assert wrong <= stats.binom.ppf(0.999, 300, 0.05)
    split = [bins.one_hot(0.25)] * 20 + good[:80]
    worst = [drawn(settings, split, generator).worst_bin for _ in range(50)]
    assert sum(found == pytest.approx((0.2, 0.3)) for found in worst) > 40
    perplexity = NoisedHistogram(Bins.of_perplexity(3, 1.0, 1000.0), (9.0, 8.0, 0.1), 17, 1.0)
    assert perplexity.worst_bin == pytest.approx((10.0, 100.0))


# -- the attack ----------------------------------------------------------------------------


def test_two_exact_sums_that_differ_by_one_client_show_its_figure():
    """The attack on ``figures = "sum"``: one evaluation with the client, one without it."""
    rng = np.random.default_rng(5)
    own = {
        f"site-{i}": Figures.vector(nll=0.3, accuracy=float(rng.uniform(0.2, 0.9)))
        for i in range(6)
    }
    config = parse_config({"privacy": {"corrupt_fraction": 0.0}})
    policy = figures_policy(
        Settings(config, sizes=dict.fromkeys(own, 2000), dimension=64).sum_policy
    )
    whole = secure_round(own, privacy=policy)
    without = secure_round(own, privacy=policy, drop={"site-5": "masked_input"})
    assert without.survivors == whole.survivors[:-1]
    stolen = (whole.sum - without.sum)[2] / 1000.0
    assert stolen == pytest.approx(own["site-5"][2] / 1000.0, abs=1e-4)


def stolen_bin(settings, accuracy, generator):
    """The same attack on two histograms: the bin that the client seems to leave."""
    bins = settings.bins("shared")
    others = [bins.one_hot(value) for value in (0.15, 0.35, 0.55, 0.75, 0.95)]
    counts = [
        np.array(drawn(settings, vectors, generator).counts)
        for vectors in ([*others, bins.one_hot(accuracy)], others)
    ]
    return counts[0] - counts[1]


def with_noise(stated, noise_multiplier):
    """The same histograms with less noise than is stated of them: the defence (nearly) off."""
    weak = copy_of(stated)
    weak.policy = replace(stated.policy, noise_multiplier=noise_multiplier)
    weak.plan = plan_round(weak.policy, cohort_size=6, dimension=stated.section.bins)
    return weak


def lower_bound(stated, drawn_with, generator, *, draws=1500):
    """A bound, at confidence 99.9 %, below the epsilon of one histogram, by one fixed event.

    The attacker knows all other clients' bins, and asks whether the client is in the one named.
    """
    bins = stated.bins("shared")
    others = [bins.one_hot(value) for value in (0.15, 0.35, 0.55, 0.95)]
    hits = []
    for present in (True, False):
        # Zero-out adjacency: a client that is in no bin sends zeros, with its noise.
        vector = bins.one_hot(0.75) if present else np.zeros(stated.section.bins)
        sums = (drawn(drawn_with, [*others, vector], generator).counts[7] for _ in range(draws))
        hits.append(sum(count > 0.5 for count in sums))
    seen = stats.beta.ppf(0.0005, hits[0], draws - hits[0] + 1)
    false = stats.beta.ppf(0.9995, hits[1] + 1, draws - hits[1])
    return math.log((seen - stated.policy.delta) / false)


def right_guesses(settings, generator, *, tries=300):
    """How often differencing tells in which of two bins a client was."""
    rng, choices, right = np.random.default_rng(6), (0.05, 0.85), 0
    for _ in range(tries):
        accuracy = choices[rng.integers(2)]
        difference = stolen_bin(settings, accuracy, generator)
        right += choices[int(difference[8] > difference[0])] == accuracy
    return right / tries


def test_two_histograms_that_differ_by_one_client_show_no_more_than_epsilon_allows():
    settings = settings_of(classes=True, noise_multiplier=2.0)
    generator = SeededNoiseGeneratorForTests(6)
    epsilon = settings.guarantee("server", 1).epsilon
    assert right_guesses(with_noise(settings, 0.02), generator) == 1.0  # it works where it may
    # The client is in one of the two histograms, and one bin in place of another is two changes of
    # "in it or not": odds of at most e^(2 epsilon).  What is measured is far below that.
    assert right_guesses(settings, generator) < 0.75 < 1.0 / (1.0 + math.exp(-2.0 * epsilon))
    assert lower_bound(settings, settings, generator) < epsilon
    assert lower_bound(settings, with_noise(settings, 0.2), generator) > epsilon


# -- what it costs -------------------------------------------------------------------------


def test_the_number_of_histograms_is_known_before_and_so_is_their_cost():
    assert settings_of().planned == 2
    assert settings_of(every=2, rounds=5).planned == 4  # 0, 2, 4, 5
    assert settings_of(every=1, rounds=3, personal=True).planned == 6
    settings = settings_of(every=1, rounds=3)
    costs = [settings.guarantee("server", charges).epsilon for charges in range(5)]
    assert costs[0] == 0.0
    assert costs == sorted(costs)
    statement = settings.guarantee("server", 4)
    assert "one client" in statement.unit
    assert statement.rounds == 4
    assert statement.delta == settings.config.privacy.delta
    assert any("add, epsilon to epsilon" in each for each in statement.assumptions)
    assert settings.policy.clip_norm == 1.0
    assert settings.plan.sensitivity * settings.plan.resolution == pytest.approx(1.0, rel=0.01)


def exact_epsilon(mu, delta):
    """Of one Gaussian mechanism with sensitivity over noise mu, in closed form."""

    def beyond(epsilon):
        near, far = stats.norm.cdf(mu / 2 - epsilon / mu), stats.norm.cdf(-mu / 2 - epsilon / mu)
        return near - math.exp(epsilon) * far - delta

    return optimize.brentq(beyond, 0.0, 100.0)


def test_one_example_can_move_its_client_from_bin_to_bin_which_costs_more_than_leaving_it_out():
    """Two bins change where zero-out changes one: what adds to training's epsilon is this."""
    settings = settings_of(8, noise_multiplier=2.0, every=1, rounds=3)
    assert settings.config.privacy.unit == "example"
    bins = settings.bins("shared")
    step = bins.one_hot(2.0) - bins.one_hot(500.0)
    for charges in (1, 4):
        mu = math.sqrt(charges) / 2.0
        statement = settings.guarantee("server", charges)
        assert statement.epsilon == pytest.approx(exact_epsilon(mu, statement.delta), rel=0.01)
        moved = settings.moved("server", charges)
        exact = exact_epsilon(float(np.linalg.norm(step)) * mu, statement.delta)
        assert exact <= moved < 1.01 * exact
        assert moved > 1.4 * statement.epsilon
        assert f"cost epsilon {epsilon_text(moved)};" in statement.assumptions[-1]
    whole = parse_config(
        values_of(noise_multiplier=2.0) | {"privacy": {"unit": "client", "corrupt_fraction": 0.0}}
    )
    assert whole.evaluation.histogram is not None
    found = HistogramSettings(
        whole.evaluation.histogram, whole, cohort_size=8, aggregation=PairwiseAggregation()
    )
    assert "for the data of one client the two" in found.guarantee("server", 2).assumptions[-1]


def test_sums_in_the_clear_are_no_protection_and_say_so():
    settings = settings_of(aggregation=PlaintextAggregation())
    assert not settings.guarantee("server", 2).protected
    assert not settings.protects


def test_noise_or_a_limit_that_leaves_nothing_to_state_is_refused():
    with pytest.raises(ConfigError, match="nothing can be stated of the 2"):
        settings_of(noise_multiplier=0.2)
    with pytest.raises(ConfigError, match="histograms before the first and after the last"):
        settings_of(epsilon=0.5)
    shown = values_of()
    shown["evaluation"]["show_clients"] = True
    with pytest.raises(ConfigError, match="show_clients"):
        parse_config(shown)
    for evaluation in ({"figures": "histogram"}, {"histogram": {"noise_multiplier": 1.0}}):
        with pytest.raises(ConfigError, match="histogram"):
            parse_config({"evaluation": evaluation})


# -- whole runs ----------------------------------------------------------------------------


def written(folder, *, epsilon=None, personal=None, rounds=2, every=1):
    folder.mkdir(exist_ok=True)
    histogram = {"noise_multiplier": 2.0} | ({} if epsilon is None else {"epsilon": epsilon})
    return write_run(
        folder,
        data={"source": str(write_clients(folder / "four", 4, words=320)), "window_tokens": 8},
        training={"rounds": rounds},
        privacy={"expected_batch": 40},
        evaluation={
            "max_windows": 4, "window_tokens": 8, "figures": "histogram", "every": every,
            "histogram": histogram,
        },
        personal=personal or {},
    )  # fmt: skip


def charged(out):
    accounts = sorted((out / "clients").glob("*/histograms.jsonl"))
    return [[r.body["session"] for r in read_charges(path)] for path in accounts]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with an adapter of each client's own, after distributed DP-SGD."""
    base = tmp_path_factory.mktemp("histograms")
    own = {"kind": "adapter", "steps": 10, "learning_rate": 0.05}
    federation = Federation.from_config(written(base, personal=own))
    return base, federation.run(base / "out"), federation


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole[1].folder, tmp_path / "copy")


def test_a_run_opens_noised_counts_and_no_exact_figure(whole):
    _, result, federation = whole
    records = read_ledger(result.folder / "ledger.jsonl")
    kinds = [r.kind for r in records]
    assert "evaluated" not in kinds
    assert "evaluation_opened" not in kinds
    summed = [r.body for r in records if r.kind == "histogram_summed"]
    assert [(body["round"], body["of"]) for body in summed] == [
        (0, "shared"), (1, "shared"), (2, "shared"), (2, "personal"), (2, "gain"),
    ]  # fmt: skip
    for body in summed:
        assert all(abs(count - round(count)) > 1e-9 for count in body["histogram"]["counts"])
    vectors = [federation._used.figures(name) for name in sorted(federation._used.clients)]
    exact = Figures.from_sum(np.sum(vectors, axis=0), len(vectors), None)
    assert result.after.perplexity != pytest.approx(exact.perplexity, rel=1e-6)
    low, high = np.log(result.after.histogram.interval)
    # The interval holds the figure in 95 runs of 100; one of twice its width in all but 1 of 10^4.
    assert abs(np.log(exact.perplexity) - (low + high) / 2) < high - low
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["held_out_guaranteed"] for line in lines] == [True] * 3
    assert json.loads(lines[-1])["perplexity"] == result.after.perplexity
    assert not (result.folder / "shown.json").exists()


def test_what_a_run_is_compared_with_is_exact_and_its_own_figure_is_said_to_be_estimated(whole):
    base, result, _ = whole
    config = load_config(base / "run.toml")
    other = parse_config(without_noise(config))
    assert (other.evaluation.figures, other.evaluation.histogram) == ("sum", None)
    assert other.personal.kind == "none"
    shown = io.StringIO()
    found = {"each client alone": result.before}
    Console(width=200, file=shown).print(comparison(config, result, found))
    assert "this run (estimated from noised counts)" in shown.getvalue()


def test_its_statement_stands_beside_the_runs_and_is_recomputed(whole):
    base, result, _ = whole
    assert [len(each) for each in charged(result.folder)] == [5] * 4
    assert result.histogram_charges == 5
    assert result.charges == 2  # of rounds, in the other account
    found = verify_run(result.folder)
    assert sum("5 histograms), recomputed" in line for line in found.lines) == 3
    assert any("no exact figure was summed" in line for line in found.lines)
    statement = result.histogram_guarantees["server"]
    assert statement.rounds == 5
    assert statement.unit.startswith("one client")
    again = Federation.from_config(base / "run.toml").run(result.folder, resume=True)
    assert again.histogram_guarantees == result.histogram_guarantees
    assert (again.after, again.personal, again.gain) == (
        result.after, result.personal, result.gain,
    )  # fmt: skip


def test_what_the_command_shows_at_the_end_says_what_is_estimated(whole):
    base, result, _ = whole
    shown = io.StringIO()
    Console(width=250, file=shown).print(table(load_config(base / "run.toml"), result))
    text = shown.getvalue()
    for words in ("estimated from noised counts", "worst bin seen", "gain of the personal"):
        assert words in text
    assert "outside the guarantee" not in text
    assert "5 histograms; beside the above" in text
    assert "spend privacy of their own" in statements_of_figures(result)


def of_kind(kind, change):
    """Change the first record of a kind."""

    def changed(records):
        place = next(i for i, (found, _) in enumerate(records) if found == kind)
        records[place] = (kind, change(records[place][1]))
        return records

    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of_kind("histogram_summed", lambda b: b | {"charges": 2}), "charges = 2"),
        (
            of_kind(
                "histogram_summed",
                lambda b: b | {"histogram": b["histogram"] | {"std": 0.1}},
            ),
            "not those of the run file",
        ),
        (of_kind("histogram_opened", lambda b: b | {"noise_multiplier": 9.0}), "priced at"),
        (of_kind("histogram_opened", lambda b: b | {"of": "other"}), "of = 'other'"),
        (
            of_kind("closed", lambda b: b | {"histograms": b["histograms"] | {"charges": 1}}),
            "closes with 1 charged histograms",
        ),
        (
            lambda records: [
                *records[:-2],
                (
                    "evaluation_opened",
                    {"round": 2, "session": "00" * 16, "guaranteed": False},
                ),
                *records[-2:],
            ],
            "opens a sum without noise",
        ),
        (
            lambda records: [r for r in records if r[0] != "histogram_summed"],
            "while the one before it has no end",
        ),
    ],
)
def test_a_ledger_that_says_otherwise_than_was_spent_does_not_verify(copy, change, words):
    rewrite(copy / "ledger.jsonl", change)
    with pytest.raises(LedgerTampered, match=words):
        verify_run(copy)


@pytest.mark.parametrize(
    ("of", "words"), [("shared", "of round 1$"), ("personal", "of round 2 .personal"),
                      ("gain", "of round 2 .gain")],
)  # fmt: skip
def test_a_histogram_that_the_run_file_asks_for_is_missed(whole, of, words):
    """Whoever takes one from the ledger and from every account states fewer charges."""
    found = verified_run(whole[1].folder)
    ledger, settings = whole[1].folder / "ledger.jsonl", copy_of(found.settings)
    kept = [
        record
        for record in found.records
        if not (record.kind.startswith("histogram_") and record.body["of"] == of
                and record.body["round"] in (1, 2)[of != "shared" :][:1])
    ]  # fmt: skip
    assert len(kept) == len(found.records) - 2
    check_measured(ledger, found.records, 2, settings, 5)
    with pytest.raises(LedgerTampered, match=words):
        check_measured(ledger, kept, 2, settings, 4)
    assert settings.histograms is not None
    after = settings.histograms.epsilon_after
    settings.histograms = copy_of(settings.histograms)
    section = settings.histograms.section
    for spare, excused in ((0, True), (4, False)):  # a budget that leaves none, and one that does
        settings.histograms.section = section.model_copy(update={"epsilon": after(4 + spare)})
        if excused:
            check_measured(ledger, kept, 2, settings, 4)
        else:
            with pytest.raises(LedgerTampered, match=words):
                check_measured(ledger, kept, 2, settings, 4)


def test_a_histogram_is_of_the_round_that_was_applied_last(copy):
    rewrite(copy / "ledger.jsonl", of_kind("histogram_opened", lambda body: body | {"round": 2}))
    with pytest.raises(LedgerTampered, match="after round 2, 0 having been applied"):
        verify_run(copy)


def test_an_account_without_one_of_its_histograms_does_not_verify(copy):
    rewrite(copy / "clients" / "site-2" / "histograms.jsonl", lambda records: records[:-1])
    with pytest.raises(LedgerTampered, match="site-2: no charge"):
        verify_run(copy)
    shutil.rmtree(copy / "clients" / "site-2")
    with pytest.raises(LedgerTampered, match="no account of site-2"):
        verify_run(copy)


def test_each_client_has_charged_before_its_masked_vector_leaves_and_a_retry_counts_again(
    tmp_path, monkeypatch
):
    path, out, real = written(tmp_path, every=0, rounds=1), tmp_path / "out", engine.ServerRound

    class Watching(real):
        arrived = 0

        def receive(self, name, message):
            if self.stage == "masked_input":
                own = read_charges(out / "clients" / name / "histograms.jsonl")
                last = read_ledger(out / "ledger.jsonl")[-1]
                assert last.kind == "histogram_opened"
                assert own[-1].body == last.body  # on disk, before it is received
                Watching.arrived += 1
                if Watching.arrived == 3:
                    raise KeyboardInterrupt
            super().receive(name, message)

    monkeypatch.setattr(engine, "ServerRound", Watching)
    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(path).run(out)
    assert [len(each) for each in charged(out)] == [1, 1, 1, 0]
    assert any("1 charged by a client" in line for line in verify_run(out).lines)
    result = Federation.from_config(path).run(out, resume=True)
    assert [len(each) for each in charged(out)] == [3] * 4  # begun twice before, once after
    assert Watching.arrived == 3 + 8
    assert result.histogram_charges == 3
    assert result.histogram_guarantees["server"].rounds == 3
    kinds = [r.kind for r in read_ledger(out / "ledger.jsonl")]
    assert kinds.count("histogram_abandoned") == 1
    assert verify_run(out).finished


def test_a_histogram_that_fails_is_on_record_and_stays_charged(tmp_path, monkeypatch):
    path, out, carry = written(tmp_path, every=0, rounds=1), tmp_path / "out", run.carry

    def lossy(server, clients, **options):
        return carry(
            server, clients, drop=dict.fromkeys(("site-0", "site-1"), "masked_input"), **options
        )

    monkeypatch.setattr(run, "carry", lossy)
    with pytest.raises(ThresholdNotMet):
        Federation.from_config(path).run(out)
    failed = read_ledger(out / "ledger.jsonl")[-1]
    assert failed.kind == "histogram_failed"
    assert failed.body["charged"] == ["site-2", "site-3"]
    monkeypatch.undo()
    result = Federation.from_config(path).run(out, resume=True)
    assert result.histogram_charges == 3
    assert verify_run(out).finished


def test_a_limit_leaves_out_what_lies_between_and_keeps_the_end(tmp_path):
    limit = settings_of(4).epsilon_after(3) + 1e-6
    result = Federation.from_config(written(tmp_path, rounds=3, epsilon=limit)).run(
        tmp_path / "out"
    )
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    measured = [json.loads(line)["perplexity"] is not None for line in lines]
    assert measured == [True, True, False, True]
    assert result.after.perplexity is not None
    assert result.histogram_guarantees["server"].epsilon <= limit
    assert verify_run(result.folder).finished
