"""The exact family on tiny models of real architectures, through real unprotected rounds."""

from dataclasses import replace

import attacked
import pytest
import torch

from securefed.attacks import views
from securefed.attacks.base import Limits
from securefed.attacks.inversion.algebra import row_space
from securefed.attacks.inversion.capacity import predict
from securefed.attacks.inversion.exact import SpanInversion
from securefed.attacks.inversion.inputs import InputReader, observed
from securefed.attacks.inversion.span import Spans
from securefed.attacks.scoring import UnigramPrior, score

LIMITS = Limits(seconds=20.0, max_tokens=12)
SECONDS = Limits(seconds=20.0, max_tokens=16)


def captured(kind, own, **options):
    """The victim's plain update from a real round, and what is public."""
    made = attacked.bench(kind, attacked.setup(kind, batch=len(own), **options))
    session = made.session()
    _, transcript = made.run(session, attacked.updates(made, own, kind))
    return views.plain_update(session, transcript, attacked.VICTIM), made.public(session)


def attack(view, public, limits=LIMITS, **options):
    generator = torch.Generator().manual_seed(0)
    return SpanInversion(**options).run(view, public, generator=generator, limits=limits)


def recall(guess, own, public):
    return score(guess, own, public.special_tokens).token_recall


def gradients(kind, own, **options):
    made = attacked.bench(kind, attacked.setup(kind, batch=len(own), **options))
    tensors = made.layout.unflatten(made.update(own))
    public = made.public(made.session())
    return tensors, public, observed(public, tensors)


# -- algebra -------------------------------------------------------------------------------


def test_the_update_of_a_is_exactly_zero_while_b_is():
    own = attacked.texts("bert", 0)
    tensors, _, _ = gradients("bert", own, warm=0.0, sharing="fedit", turn=1)
    assert all(not t.any() for name, t in tensors.items() if ".lora_A." in name)
    assert any(bool(t.any()) for name, t in tensors.items() if ".lora_B." in name)


def _ranks(kind, own, targets):
    _, public, blocks = gradients(kind, own, targets=targets, rank=24)
    (matrix,) = blocks[0]
    reader = InputReader(public.model, {0: matrix.module})
    if reader.absolute:
        inputs = torch.cat([reader.first([t], p) for p, t in enumerate(own[0])])
    else:
        inputs = reader.first(list(own[0][:-1]), 0)
    space = row_space([matrix.rows], 1e-8)  # a step of float32 parameters
    return space, inputs.double()


def test_the_key_layer_has_rank_b_minus_1_and_holds_no_true_input_without_rotary_positions():
    own = attacked.texts("bert", 0)
    space, inputs = _ranks("bert", own, ("key",))
    assert space.rank == len(inputs) - 1
    assert space.residual(inputs).min() > 0.05
    with_first = space.with_known(inputs[:1].T)
    assert with_first.rank == len(inputs)
    assert with_first.residual(inputs).max() < 1e-3


def test_the_key_layer_of_rotary_positions_has_no_such_caveat():
    own = attacked.texts("llama", 0)
    space, inputs = _ranks("llama", own, ("k_proj",))
    assert space.rank == len(inputs)
    assert space.residual(inputs).max() < 1e-2


def test_the_query_layer_spans_all_inputs():
    own = attacked.texts("bert", 0)
    space, inputs = _ranks("bert", own, ("query",))
    assert space.rank == len(inputs)
    assert space.residual(inputs).max() < 1e-3


def test_noise_of_the_stated_size_gives_no_rank():
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((16, 384), (64, 64), (8, 8)):
        for _ in range(20):
            noise = 1e-3 * torch.randn(rows, columns, generator=generator)
            assert row_space([noise], 1e-3).rank <= (0 if min(rows, columns) > 8 else 1)


# -- the span test -------------------------------------------------------------------------

ALONE = {
    "A, query and value stacked": {},
    "A, key alone": {"targets": ("key",), "rank": 16},
    "B through a frozen A": {"sharing": "ffa", "turn": 1, "rank": 24},
    "B in the first round": {"sharing": "fedit", "turn": 1, "rank": 24, "warm": 0.0},
    "R of Fed-SB": {"sharing": "fedsb", "turn": 1, "rank": 24},
    "A and B": {"sharing": "fedit", "turn": 1},
    "whole weights": {"sharing": "full", "turn": 1},
    "twenty steps": {"local_steps": 20, "learning_rate": 0.01},
    "twenty steps of moving A and B": {
        "sharing": "fedit",
        "turn": 1,
        "local_steps": 20,
        "learning_rate": 0.01,
    },
}


@pytest.mark.parametrize("options", ALONE.values(), ids=ALONE)
def test_an_encoders_text_is_recovered_from_one_plain_update(options):
    own = attacked.texts("bert", 1)
    view, public = captured("bert", own, **options)
    guess = attack(view, public)
    assert score(guess, own, public.special_tokens).exact_match == 1.0, guess
    assert predict(public, [len(own[0])]).outcome == "all"


def test_two_texts_are_told_apart_by_block_1():
    own = attacked.texts("bert", 2, count=2, tokens=5)
    view, public = captured("bert", own, rank=24)
    guess = attack(view, public)
    assert score(guess, own, public.special_tokens).exact_match == 1.0, guess


@pytest.mark.parametrize("count", [1, 2])
def test_a_decoders_texts_are_recovered_but_for_their_last_tokens(count):
    own = attacked.texts("llama", 3, count=count)
    view, public = captured("llama", own, rank=24)
    guess = attack(view, public)
    assert sorted(guess.texts) == sorted(text[:-1] for text in own)


@pytest.mark.parametrize("warm", [0.0, 0.1])
def test_a_decoders_first_token_is_looked_for_without_its_query(warm):
    own = attacked.texts("llama", 3)
    mode = {"sharing": "fedit"} if warm == 0.0 else {"sharing": "ffa"}
    view, public = captured("llama", own, rank=24, turn=1, warm=warm, **mode)
    blocks = observed(public, public.layout.unflatten(view.reading(public)))
    spans = Spans.of(blocks[0], 1e-7, moving=False)
    inputs = InputReader(public.model, {0: blocks[0][0].module}).first(list(own[0][:-1]), 0)
    assert len(spans.accept(inputs)) == len(inputs) - 1
    assert len(spans.opening().accept(inputs)) == len(inputs)
    assert attack(view, public).texts == (own[0][:-1],)


def test_a_decoders_tokens_are_recovered_beyond_the_rank_without_their_order():
    own = attacked.texts("llama", 3)
    view, public = captured("llama", own, rank=3)
    guess = attack(view, public)
    assert guess.texts == ()
    assert sorted(guess.loose) == sorted(own[0][:-1])
    assert predict(public, [len(own[0])]).method == "sparse decoding"


def test_unequal_ranks_are_stacked():
    own = attacked.texts("bert", 4)
    tensors, public, blocks = gradients("bert", own, rank=8)
    query, value = blocks[0]
    fewer = [replace(query, rows=query.rows[:3]), replace(value, rows=value.rows[:8])]
    spans = Spans.of(fewer, 1e-9, moving=False)
    reader = InputReader(public.model, {0: query.module})
    inputs = torch.cat([reader.first([t], p) for p, t in enumerate(own[0])])
    assert spans.capacity == 11 >= len(inputs)
    assert len(spans.accept(inputs)) == len(inputs)
    assert len(Spans.of(fewer[:1], 1e-9, moving=False).accept(inputs)) == 0
    assert tensors


# -- where it does not apply ---------------------------------------------------------------


def test_a_frozen_a_of_too_low_a_rank_is_void_and_not_zero():
    own = attacked.texts("bert", 0)
    view, public = captured("bert", own, sharing="ffa", turn=1, rank=8)
    guess = attack(view, public)
    assert guess.verdict == "void"
    assert "saturated" in guess.reason
    assert predict(public, [len(own[0])]).outcome == "void"


def test_a_zero_update_of_a_is_no_signal():
    own = attacked.texts("bert", 0)
    view, public = captured("bert", own, warm=0.0)
    guess = attack(view, public)
    assert guess.verdict == "void"
    assert "no signal" in guess.reason
    assert predict(public, [len(own[0])]).outcome == "void"


def test_the_span_test_alone_is_void_beyond_its_capacity_and_sparse_decoding_goes_on():
    own = attacked.texts("bert", 5)
    view, public = captured("bert", own, rank=3)
    alone = attack(view, public, sparse=False)
    assert alone.verdict == "void"
    found = attack(view, public)
    assert recall(found, own, public) == 1.0
    prediction = predict(public, [len(own[0])])
    assert (prediction.method, prediction.outcome) == ("sparse decoding", "all")


def test_adamw_is_void():
    own = attacked.texts("bert", 0)
    view, public = captured("bert", own, optimizer="adamw", learning_rate=1e-3)
    assert attack(view, public).verdict == "void"
    assert predict(public, [len(own[0])]).outcome == "void"


# -- no success without the signal ---------------------------------------------------------


def _prior():
    return UnigramPrior([t for n in range(50, 90) for t in attacked.texts("bert", n)], {0, 1, 2, 3})


def test_another_clients_update_scores_no_better_than_the_prior():
    own = attacked.texts("bert", 1)
    made = attacked.bench("bert", attacked.setup("bert"))
    session = made.session()
    _, transcript = made.run(session, attacked.updates(made, own, "bert"))
    public = made.public(session)
    right = attack(views.plain_update(session, transcript, attacked.VICTIM), public)
    wrong = attack(views.plain_update(session, transcript, "site-01"), public)
    assert recall(right, own, public) == 1.0
    prior = recall(_prior().guess(own, public.special_tokens), own, public)
    assert recall(wrong, own, public) <= prior + 1 / 8


def test_a_sum_of_two_is_opened_by_a_colluder_and_not_by_masks():
    own = attacked.texts("bert", 6)
    made = attacked.bench("bert", attacked.setup("bert", rank=24), aggregation=None)
    session = made.session()
    server, _ = made.run(session, attacked.updates(made, own, "bert"))
    public = replace(made.public(session), batch_size=3)
    guess = attack(views.opened_sum(server), public, SECONDS)
    assert recall(guess, own, public) == 1.0


def test_the_same_view_and_seed_give_the_same_guess():
    own = attacked.texts("bert", 5)
    view, public = captured("bert", own, rank=3)
    assert attack(view, public) == attack(view, public)
