"""Membership inference on real runs of a tiny language model: it works, and DP stops it."""

import math
import random
from dataclasses import replace

import attacked
import numpy as np
import pytest
import torch
from tiny import WORDS, write_run

from securefed.attacks import views
from securefed.attacks.exposure import exposure
from securefed.attacks.membership.alignment import GradientAlignment
from securefed.attacks.membership.canaries import CanaryFormat
from securefed.attacks.membership.lira import LikelihoodRatio
from securefed.attacks.membership.loss import LossThreshold, ReferenceLoss
from securefed.attacks.membership.rmia import RobustMembership
from securefed.attacks.membership.seen import change
from securefed.attacks.membership_results import MembershipTrial, summarise_membership
from securefed.auditing.canary_runs import canary_run
from securefed.auditing.membership import MembershipBench, attack_runs
from securefed.auditing.membership_sums import sum_trials, summed
from securefed.config import load_config
from securefed.errors import ConfigError
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import PairwiseAggregation

ATTACKS = (
    LossThreshold(),
    ReferenceLoss(),
    LikelihoodRatio(),
    RobustMembership(),
    GradientAlignment(),
    GradientAlignment(whitened=True),
)
RUNS = 6
OFF = {"unit": "client", "mechanism": "none", "clip_norm": 50.0, "noise_multiplier": None,
       "expected_batch": None}  # fmt: skip
# Noise far beyond any use, so that four runs are enough to see that nothing is left.
NOISED = {"unit": "example", "mechanism": "distributed", "clip_norm": 0.5, "expected_batch": 12,
          "noise_multiplier": 8.0}  # fmt: skip
LOCAL = {"rounds": 2, "local_steps": 10, "batch_size": 8, "local_learning_rate": 0.03,
         "server_optimizer": "sgd", "server_learning_rate": 1.0}  # fmt: skip


def run_file(folder, privacy, training, **sections):
    """Three clients of random words: nothing is to be learnt but the records themselves."""
    texts = folder / "texts"
    texts.mkdir(parents=True)
    for client in range(3):
        rng = random.Random(client)
        kept, held = ([rng.choice(WORDS) for _ in range(n)] for n in (400, 64))
        (texts / f"site-{client}.txt").write_text(" ".join(kept) + "\n\n" + " ".join(held) + "\n")
    path = write_run(
        folder,
        data={"source": str(texts), "window_tokens": 8},
        lora={"rank": 8, "alpha": 16.0, "sharing": "fedit",
              "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]},
        training=training,
        privacy=privacy | {"corrupt_fraction": 0.0, "dropout_fraction": 0.0},
        cohort={"min_clients": 3},
        **sections,
    )  # fmt: skip
    return load_config(path)


def made(folder, privacy, training, *, per_client=16):
    config = run_file(folder, privacy, training)
    return MembershipBench(
        config, per_client=per_client, population=30, seed=0, cache=folder / "cache", offline=True
    )


def results(bench, targets, shadows, attacks=ATTACKS):
    trials = attack_runs(attacks, bench, targets, shadows, seed=0)
    return {name: summarise_membership(name, "adapter", each) for name, each in trials.items()}


@pytest.fixture(scope="module")
def off(tmp_path_factory):
    """Runs without protection, and what they say of the candidates."""
    bench = made(tmp_path_factory.mktemp("off"), OFF, LOCAL)
    generator = torch.Generator().manual_seed(0)
    targets = [bench.trained(inside, generator) for inside in bench.halves(RUNS, generator)]
    return bench, targets, bench.shadows(targets)


@pytest.fixture(scope="module")
def tried(off):
    """Each of these runs attacked with all others as shadow runs."""
    return attack_runs(ATTACKS, *off, seed=0)


def test_halves_are_of_each_client_and_hold_each_record_equally_often(off):
    _, targets, _ = off
    inside = np.stack([target.inside for target in targets])
    assert (inside.sum(axis=0) == RUNS // 2).all()
    assert (inside.reshape(RUNS, 3, 16).sum(axis=2) == 8).all()
    assert len({tuple(row) for row in inside.tolist()}) == RUNS


def test_a_run_without_protection_gives_its_members_away(tried):
    found = {name: summarise_membership(name, "adapter", each) for name, each in tried.items()}
    for name, result in found.items():
        assert result.above_chance, name
        assert result.verdict == "guessed"
    for name in ("loss", "reference-loss", "lira-online", "rmia-online"):
        assert found[name].auc > 0.9, name
        assert found[name].rates[1].interval[0] > 0.05, name  # TPR at FPR 1 %
        assert found[name].epsilon_lower > 1.0, name


def test_against_other_runs_than_it_saw_an_attack_is_at_chance(off, tried):
    _, targets, _ = off
    others = [*targets[2:], *targets[:2]]  # opposites stay together: no half is its own
    for name, each in tried.items():
        wrong = [
            MembershipTrial(t.scores, other.inside, t.verdict, t.seed, t.seconds)
            for t, other in zip(each, others, strict=True)
        ]
        low, high = summarise_membership(name, "another run", wrong).auc_interval
        assert low < 0.56, name
        assert high > 0.44, name


def test_a_real_run_is_the_run_of_an_attacker_at_home_and_gives_its_members_away(off, tmp_path):
    bench, targets, shadows = off
    real, result = bench.federated(targets[0].inside, tmp_path / "run")
    assert result.rounds == 2
    moved, at_home = (run.view.reading(bench.public) for run in (real, targets[0]))
    assert np.linalg.norm(moved - at_home) < 0.05 * np.linalg.norm(moved)  # rounding of the sums
    found = results(bench, [real], shadows)
    for name in ("loss", "reference-loss", "lira-online", "rmia-online"):
        assert found[name].auc_interval[0] > 0.8, name


def test_runs_on_other_records_are_shadows_for_offline_attacks(off):
    bench, targets, _ = off
    generator = torch.Generator().manual_seed(9)
    apart = bench.shadows([bench.offline(generator) for _ in range(2)])
    assert not apart.inside.any()
    attacks = (LikelihoodRatio(online=False), RobustMembership(online=False), LikelihoodRatio())
    found = results(bench, targets[:1], apart, attacks)
    assert found["lira-offline"].auc > 0.9
    assert found["rmia-offline"].auc > 0.9
    assert (found["lira-online"].verdict, found["lira-online"].void) == ("void", 1)


def test_an_adapter_that_was_not_trained_makes_every_attack_void(off):
    bench, targets, shadows = off
    state = {name: tensor.clone() for name, tensor in targets[0].view.state.items()}
    named = dict(bench.public.model.named_parameters())
    state |= {name: named[name].detach() for name in bench.public.layout.names}
    question = bench.question(views.released_adapter(state, clients=3), shadows)
    for attack in ATTACKS:
        guess = attack.run(question, generator=torch.Generator())
        assert guess.verdict == "void"


def test_the_same_question_and_seed_give_the_same_scores_and_leave_the_model_as_it_was(off):
    bench, targets, shadows = off
    before = {n: p.detach().clone() for n, p in bench.public.model.named_parameters()}
    for attack in (LikelihoodRatio(), RobustMembership(), GradientAlignment(whitened=True)):
        first, again = (
            attack.run(bench.question(targets[0].view, shadows), generator=torch.Generator())
            for _ in range(2)
        )
        assert np.array_equal(first.scores, again.scores), attack.name
    for name, parameter in bench.public.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_noise_leaves_every_attack_at_chance(tmp_path):
    bench = made(tmp_path, NOISED, {"rounds": 2, "server_learning_rate": 0.02})
    generator = torch.Generator().manual_seed(0)
    targets = [bench.trained(inside, generator) for inside in bench.halves(RUNS, generator)]
    promise = bench.settings.guarantee("release", 2)
    assert promise.epsilon < 1.0
    trials = attack_runs(ATTACKS, bench, targets, bench.shadows(targets), seed=0)
    for name, each in trials.items():
        result = summarise_membership(
            name, "adapter", each, epsilon=promise.epsilon, delta=promise.delta
        )
        assert result.verdict == "guessed"
        assert result.auc_interval[0] < 0.55, name
        assert not result.violates, name
        assert result.rates[1].value < 0.15, name


# -- sums ------------------------------------------------------------------------------------

SUMS = {"rank": 8, "sharing": "fedit", "turn": 1, "batch": 4, "clients": 4}


def sum_results(*, seeds=4, rounds=1, policy=None, aggregation=None):
    bench = attacked.bench(
        "bert", attacked.setup("bert", **SUMS), policy=policy, aggregation=aggregation
    )
    texts = attacked.texts("bert", 0, count=32)
    others = attacked.texts("bert", 1, count=40)
    attacks = (ReferenceLoss(), GradientAlignment(), GradientAlignment(whitened=True))
    found = sum_trials(attacks, bench, texts, others, seeds=range(seeds), rounds=rounds)
    return {name: summarise_membership(name, "sum", each) for name, each in found.items()}


def test_a_masked_sum_tells_whose_records_are_inside_by_their_gradients():
    found = sum_results(aggregation=PairwiseAggregation(), seeds=3)
    assert found["alignment"].auc_interval[0] > 0.6
    assert found["alignment-whitened"].auc_interval[0] > 0.75
    assert found["alignment-whitened"].auc > found["alignment"].auc


def test_noise_in_the_sum_takes_that_away():
    policy = PrivacyPolicy(
        clip_norm=1.0, noise_multiplier=20.0, corrupt_fraction=0.0, dropout_fraction=0.0
    )
    for name, result in sum_results(policy=policy, rounds=2).items():
        assert result.auc_interval[0] < 0.55, name


def test_a_sum_of_gradients_is_taken_for_the_opposite_of_a_move():
    bench = attacked.bench("bert", attacked.setup("bert", **SUMS))
    public = bench.public(bench.session())
    steps = PrivacyPolicy(clip_norm=1.0, unit="example", mechanism="none", max_examples=4)
    of_gradients = replace(public, session=replace(public.session, policy=steps))
    total = np.arange(float(bench.layout.size))
    view = views.OpenedSum("server", bench.names, total)
    assert np.array_equal(change(view, public), total)
    assert np.array_equal(change(view, of_gradients), -total)
    state = {name: p.detach() + 1.0 for name, p in bench.model.named_parameters()}
    moved = views.released_adapter(state, clients=4)
    assert np.allclose(change(moved, of_gradients), 1.0)


def test_a_sum_needs_as_many_members_as_its_clients_train_on():
    bench = attacked.bench("bert", attacked.setup("bert", **SUMS))
    texts = attacked.texts("bert", 0, count=32)
    with pytest.raises(ConfigError, match="members"):
        summed(bench, texts, np.zeros(32, dtype=bool), rounds=1, generator=torch.Generator())
    with pytest.raises(ConfigError, match="texts"):
        sum_trials((ReferenceLoss(),), bench, texts[:8], texts, seeds=[0])


# -- canaries --------------------------------------------------------------------------------


def test_a_canary_that_is_trained_on_is_exposed_and_one_that_is_not_is_not(off, tmp_path):
    bench, _, _ = off
    found, _ = canary_run(
        bench,
        copies=[0, 0, 7],
        prefix=3,
        reference=400,
        generator=torch.Generator().manual_seed(1),
        folder=tmp_path / "run",
    )
    assert [each.copies for each in found] == [0, 0, 7]
    absent, planted = found[:2], found[2]
    assert planted.sampled == pytest.approx(math.log2(401))
    assert planted.extrapolated is not None
    assert planted.extrapolated > 15.0
    assert planted.extracted
    assert planted.interval[0] > 6.0
    for each in absent:
        assert each.sampled < 8.0
        assert not each.extracted


def test_an_exposure_is_the_rank_among_drawn_secrets():
    rng = np.random.default_rng(0)
    reference = rng.normal(20.0, 2.0, 1000)
    middle = exposure(19.95, reference, copies=0, bits=30.0, extracted=False)
    assert middle.sampled == pytest.approx(1.0, abs=0.15)
    assert middle.interval[0] < middle.sampled < middle.interval[1]
    far = exposure(10.0, reference, copies=9, bits=30.0, extracted=True)
    assert far.sampled == pytest.approx(math.log2(1001))
    assert far.extrapolated == pytest.approx(21.7, abs=4.0)  # -log2 Phi(-5)
    assert far.interval == (pytest.approx(8.1, abs=0.1), 30.0)
    few = exposure(10.0, reference[:10], copies=1, bits=30.0, extracted=False)
    assert few.extrapolated is None


def test_formats_and_figures_that_make_no_sense_are_refused(off, tmp_path):
    bench, _, _ = off
    for given in (((), (1, 2), 3), ((1,), (1,), 3), ((1,), (1, 1), 3), ((1,), (1, 2), 0)):
        with pytest.raises(ConfigError):
            CanaryFormat(*given)
    for loss, reference in ((math.nan, np.ones(9)), (1.0, np.empty(0))):
        with pytest.raises(ConfigError):
            exposure(loss, reference, copies=1, bits=3.0, extracted=False)
    generator = torch.Generator()
    options = {"reference": 100, "generator": generator, "folder": tmp_path / "run"}
    with pytest.raises(ConfigError, match="prefix"):
        canary_run(bench, copies=[1], prefix=8, **options)
    with pytest.raises(ConfigError, match="copies"):
        canary_run(bench, copies=[9], prefix=3, **options)
    with pytest.raises(ConfigError, match="per_client"):
        made(tmp_path / "odd", OFF, LOCAL, per_client=7)
    with pytest.raises(ConfigError, match="per_client"):
        made(tmp_path / "many", OFF, LOCAL, per_client=400)
    with pytest.raises(ConfigError, match=r"privacy\.unit"):
        made(tmp_path / "user", NOISED | {"unit": "user"}, {"rounds": 2})
