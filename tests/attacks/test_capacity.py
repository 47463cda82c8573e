"""What is predicted is what is measured."""

import attacked
import pytest
import torch

from securefed.attacks import views
from securefed.attacks.base import Limits
from securefed.attacks.inversion.capacity import predict
from securefed.attacks.inversion.exact import SpanInversion
from securefed.attacks.scoring import score

GRID = [
    # sharing, turn, warm, rank, tokens, texts
    ("rolora", 2, 0.1, 8, 8, 1),
    ("rolora", 2, 0.1, 8, 13, 1),
    ("rolora", 2, 0.1, 4, 6, 1),
    ("rolora", 2, 0.1, 1, 12, 1),
    ("rolora", 2, 0.1, 2, 6, 2),
    ("ffa", 1, 0.1, 16, 10, 1),
    ("ffa", 1, 0.1, 12, 10, 1),
    ("fedit", 1, 0.0, 16, 8, 1),
]


@pytest.mark.parametrize(("sharing", "turn", "warm", "rank", "tokens", "count"), GRID)
def test_measured_recall_is_as_predicted(sharing, turn, warm, rank, tokens, count):
    own = attacked.texts("bert", 7, count=count, tokens=tokens)
    made = attacked.bench(
        "bert",
        attacked.setup("bert", sharing=sharing, turn=turn, warm=warm, rank=rank, batch=count),
    )
    session = made.session()
    _, transcript = made.run(session, attacked.updates(made, own, "bert"))
    public = made.public(session)
    prediction = predict(public, [len(text) for text in own])
    guess = SpanInversion().run(
        views.plain_update(session, transcript, attacked.VICTIM),
        public,
        generator=torch.Generator().manual_seed(0),
        limits=Limits(seconds=3.0, max_tokens=tokens + 3),
    )
    recall = score(guess, own, public.special_tokens).token_recall
    if prediction.outcome == "all":
        assert recall == 1.0
    elif prediction.outcome == "void":
        assert guess.verdict == "void"
    elif prediction.outcome == "none":
        assert recall <= 0.2
    else:
        assert recall < 1.0


def test_predictions_follow_the_table():
    public = attacked.bench("bert", attacked.setup("bert", rank=4))
    knowledge = public.public(public.session())
    one = predict(knowledge, [8])
    assert (one.inputs, one.dimensions, one.known, one.outcome) == (8, 8, 2, "all")
    assert predict(knowledge, [9]).method == "sparse decoding"
    two = predict(knowledge, [8, 8])
    assert (two.inputs, two.outcome) == (15, "none")  # [CLS] is common to both
    made = attacked.bench("llama", attacked.setup("llama", rank=4))
    lm = predict(made.public(made.session()), [8])
    assert (lm.inputs, lm.known, lm.outcome) == (7, 0, "all")
