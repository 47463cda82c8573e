"""What a hostile server plants and solves for, piece by piece."""

import dataclasses

import attacked
import numpy as np
import pytest
import torch

from securefed.attacks import views
from securefed.attacks.base import Limits
from securefed.attacks.malicious.disaggregation import disaggregated, weights
from securefed.attacks.malicious.imprint import ImprintReader, fitting
from securefed.attacks.malicious.planting import planted
from securefed.attacks.malicious.silence import silent_adapter
from securefed.attacks.scoring import score
from securefed.auditing.games.parties import holding
from securefed.errors import ConfigError
from securefed.federation.capability import Assignment, CapabilityProfile, Workload
from securefed.federation.scheduling import Rules, schedule

LIMITS = Limits(seconds=20.0, max_tokens=12)


def logits(model, text):
    with torch.no_grad():
        return model(input_ids=torch.tensor([text])).logits


# -- silence -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sharing", "turn"), [("ffa", 1), ("rolora", 2), ("fedit", 1), ("fedsa", 1)]
)
def test_a_silent_adapter_gives_no_lora_update_whatever_travels(sharing, turn):
    made = attacked.bench("llama", attacked.setup("llama", sharing=sharing, turn=turn))
    own = attacked.texts("llama", 0)
    assert made.update(own).any()
    with holding(made.model, silent_adapter(made.model)):
        assert not made.update(own).any()


def test_a_silent_adapter_computes_the_base_model():
    base, _ = attacked.llama()
    (text,) = attacked.texts("llama", 0)
    wanted = logits(base, text)
    model = attacked.bench("llama", attacked.setup("llama")).model
    assert not torch.equal(logits(model, text), wanted)  # B is not 0
    with holding(model, silent_adapter(model)):
        torch.testing.assert_close(logits(model, text), wanted)
    with pytest.raises(ConfigError, match="no LoRA adapter"):
        silent_adapter(base)


# -- disaggregation ------------------------------------------------------------------------


def test_two_sums_that_differ_by_one_client_determine_that_client_alone():
    found = weights([("a", "b", "c"), ("a", "b")])
    assert set(found) == {"c"}
    np.testing.assert_allclose(found["c"], [1.0, -1.0])


def test_clients_that_always_come_together_are_not_determined_apart():
    pairs = [("a", "b", "c", "d"), ("a", "b", "e", "f"), ("c", "d", "e", "f")]
    assert weights(pairs) == {}
    assert set(weights([*pairs, ("a", "c", "d")])) == {"a", "b"}


def test_random_cohorts_give_every_update_once_their_matrix_has_full_rank():
    rng = np.random.default_rng(0)
    updates = {name: rng.normal(size=20) for name in "abcdefgh"}
    cohorts = [tuple(sorted(rng.choice(list(updates), 5, replace=False))) for _ in range(14)]
    sums = [views.OpenedSum("server", c, sum(updates[n] for n in c)) for c in cohorts]
    solved = disaggregated(views.sums_over_rounds(sums))
    assert set(solved) == set(updates)
    for name, each in solved.items():
        np.testing.assert_allclose(each.total, updates[name], atol=1e-9)
    assert "array(" not in repr(solved)
    with pytest.raises(ConfigError, match="at least one"):
        weights([])


def test_noise_in_the_sums_stays_in_the_estimate_by_the_norm_of_its_weights():
    rng = np.random.default_rng(0)
    cohorts = [("a", "b", "c"), ("a", "b")] * 8
    sums = [views.OpenedSum("server", c, rng.normal(size=20_000)) for c in cohorts]
    estimate = disaggregated(views.sums_over_rounds(sums))["c"]
    expected = np.linalg.norm(weights(cohorts)["c"])
    assert expected == pytest.approx(0.5)  # sqrt(2 / 8)
    assert estimate.total.std() == pytest.approx(expected, rel=0.03)


def test_a_schedule_in_which_one_client_comes_rarely_determines_it():
    """Public schedules are no defence: the planner does not keep the rare ones in company."""
    strong = CapabilityProfile(memory=1 << 34, seconds_per_token=1e-3, upload=1e7, download=1e7)
    profiles = {f"strong-{i}": strong for i in range(5)}
    profiles["rare"] = dataclasses.replace(strong, availability=0.5)
    uniform = Assignment(rank=4, local_steps=1, batch=8, micro_batch=8, bits=24)
    workload = Workload(
        clients=6,
        corrupt=0.1,
        base_parameters=10**6,
        base_bytes=4 * 10**6,
        adapter_width=1000,
        travelling={4: 4000},
        rank=4,
        tokens=32,
        token_bytes=1e4,
        filled=False,
        seconds_per_token=1e-3,
    )
    rules = Rules(
        uniform=uniform,
        ranks=(4,),
        steps=(1,),
        bits=(24,),
        periods=(1, 2),
        least_work=0.25,
        least_cohort=3,
    )
    plan = schedule(profiles, workload, rules)
    cohorts = [plan.participants(number) for number in (1, 2)]
    assert [len(cohort) for cohort in cohorts] == [6, 5]
    assert set(weights(cohorts)) == {"rare"}


# -- planted layers ------------------------------------------------------------------------


def plant(made, seed=0):
    special, generator = made.tokenizer.all_special_ids, torch.Generator().manual_seed(seed)
    return planted(made.model, special=special, generator=generator)


def imprinted(kind, targets, seed=0):
    """Three clients share 64 bins, or two share 36."""
    clients, rank = (3, 4) if kind == "llama" else (2, 8)
    options = {"targets": targets, "clients": clients, "rank": rank, "warm": 0.0}
    made = attacked.bench(kind, attacked.setup(kind, sharing="ffa", turn=1, **options))
    return made, *plant(made, seed)


KINDS = [("llama", ("v_proj",)), ("bert", ("query", "value"))]


@pytest.mark.parametrize(("kind", "targets"), KINDS)
def test_a_row_of_b_moves_for_tokens_of_its_bin_alone(kind, targets):
    made, values, imprint = imprinted(kind, targets)
    (text,) = attacked.texts(kind, 0)
    with holding(made.model, values):
        tensors = made.layout.unflatten(made.update([text]).astype(np.float64))
    hot = set()
    for block, module in enumerate(imprint.modules):
        (name,) = (name for name in tensors if f"{module}.lora_B." in name)
        energy = tensors[name][: imprint.rows].norm(dim=1)
        others = energy[energy < 1e-3 * energy.max()]
        assert len(others) > 0.6 * len(energy)
        hot |= {block * imprint.rows + int(row) for row in torch.nonzero(energy > 0.1)[:, 0]}
    # A language model's last token is a target only.
    seen = text[:-1] if kind == "llama" else text[1:-1]
    assert hot == {int(imprint.bins[token]) for token in seen}


@pytest.mark.parametrize(("kind", "targets"), KINDS)
def test_single_tokens_are_read_from_a_sum_and_not_with_another_planting(kind, targets):
    made, values, imprint = imprinted(kind, targets)
    own = attacked.texts(kind, 1)
    with holding(made.model, values):
        sent = attacked.updates(made, own, kind)
        session = made.session()
        server, _ = made.run(session, sent)
        view, public = views.opened_sum(server), made.public(session)
        generator = torch.Generator()
        guess = ImprintReader(imprint).run(view, public, generator=generator, limits=LIMITS)
        _, _, other = imprinted(kind, targets, seed=1)
        wrong = ImprintReader(other).run(view, public, generator=generator, limits=LIMITS)
    special = public.special_tokens
    assert score(guess, own, special).token_recall >= 0.85
    assert score(wrong, own, special).token_recall <= 0.3


def test_where_b_does_not_travel_the_reading_is_void():
    made = attacked.bench("llama", attacked.setup("llama", targets=("v_proj",)))
    _, imprint = plant(made)
    session = made.session()
    server, _ = made.run(session, attacked.updates(made, attacked.texts("llama", 0), "llama"))
    guess = ImprintReader(imprint).run(
        views.opened_sum(server), made.public(session), generator=torch.Generator(), limits=LIMITS
    )
    assert guess.verdict == "void"


def test_a_row_is_explained_by_as_few_directions_as_do():
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(300, 6))
    assert fitting(-2.0 * seen[7], seen, 0.0) == (7,)
    assert fitting(seen[7] + 0.5 * seen[250], seen, 0.0) == (7, 250)
    assert fitting(seen[7] + 0.01 * rng.normal(size=6), seen, 0.01) == (7,)
    # Three are too many to tell: the best one is guessed.
    assert len(fitting(seen[7] + seen[8] + 3.0 * seen[250], seen[[7, 8, 250]], 0.0)) == 1


@pytest.mark.parametrize(("kind", "target"), [("bert", "query"), ("llama", "q_proj")])
def test_a_model_without_lora_on_its_values_is_not_planted(kind, target):
    made = attacked.bench(kind, attacked.setup(kind, targets=(target,)))
    with pytest.raises(ConfigError, match="target_modules"):
        plant(made)
