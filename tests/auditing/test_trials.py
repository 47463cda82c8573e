"""What a trial deals, to whom, and what its guess is held against."""

import attacked
import numpy as np
import pytest

from securefed.attacks.base import Guess, Limits
from securefed.attacks.scoring import UnigramPrior
from securefed.auditing.exposures import ROUNDS
from securefed.auditing.texts import sentences
from securefed.auditing.trials import attempt, capture
from securefed.secagg.aggregations import PairwiseAggregation
from securefed.training.corpora import Corpus
from securefed.training.folder import Document

WORDS = range(4, 400)


class Everything:
    """Names every token there is, and so has every token of every text."""

    name = "everything"

    def run(self, view, public, *, generator, limits):
        return Guess(loose=tuple(WORDS))


def test_to_name_every_token_is_no_merit():
    bench = attacked.bench("bert", attacked.setup("bert"))
    captured = capture(bench, attacked.texts("bert", 1, count=3), exposure="plain", seed=0)
    prior = UnigramPrior([[word] for word in WORDS], [0, 1, 2, 3])
    trial = attempt(Everything(), captured, prior, limits=Limits())
    assert trial.score.token_recall == trial.prior.token_recall == 1.0


def test_the_prior_is_made_of_other_documents_than_those_attacked():
    _, tokenizer = attacked.bert()
    texts = [" ".join(f"w{10 * n + i}" for i in range(8)) + "." for n in range(12)]
    for flags in ([None] * 12, [n % 3 == 0 for n in range(12)]):
        documents = [
            Document(text=text, label=None, key=str(n), held_out=flag)
            for n, (text, flag) in enumerate(zip(texts, flags, strict=True))
        ]
        corpus = Corpus("c", {"a": documents}, [], ("a",), "none", False)
        own = sentences(corpus, tokenizer, 8)
        other = sentences(corpus, tokenizer, 8, held_out=True)
        assert own
        assert other
        assert not set(own) & set(other)


def test_over_several_rounds_the_victim_keeps_its_texts_and_the_others_get_new_ones(monkeypatch):
    bench = attacked.bench("bert", attacked.setup("bert"))
    dealt = []
    update = bench.update
    monkeypatch.setattr(bench, "update", lambda texts: dealt.append(texts) or update(texts))
    texts = attacked.texts("bert", 1, count=1 + 2 * ROUNDS)
    captured = capture(bench, texts, exposure="rounds", seed=0)
    rounds = [dealt[at : at + 3] for at in range(0, len(dealt), 3)]
    assert len(rounds) == ROUNDS
    assert all(tuple(each[0]) == captured.inside[0] for each in rounds)
    others = [text for each in rounds for client in each[1:] for text in client]
    assert len(set(others)) == 2 * ROUNDS
    with pytest.raises(Exception, match="texts: 8; a round needs 9"):
        capture(bench, texts[:-1], exposure="rounds", seed=0)


def test_dropout_masks_cannot_be_drawn_again_without_the_texts():
    bench = attacked.bench("bert", attacked.setup("bert", dropout=0.5, targets=("value",)))
    drawn = []
    layer = next(m for n, m in bench.model.named_modules() if n.endswith("embeddings.dropout"))
    layer.register_forward_hook(lambda _, given, made: drawn.append((made == 0.0).numpy()))
    for text in attacked.texts("bert", 1, count=2):
        bench.update([text])
    assert 0.3 < np.mean(drawn[0]) < 0.7
    assert np.mean(drawn[0] == drawn[1]) < 0.7


def test_what_all_others_tell_bares_the_victim_in_a_sum_and_not_behind_its_own_mask():
    bench = attacked.bench("bert", attacked.setup("bert"), aggregation=PairwiseAggregation())
    texts = attacked.texts("bert", 1, count=3)

    def off(exposure):
        seen = capture(bench, texts, exposure=exposure, seed=0)
        update = bench.update(seen.inside[0])
        update /= max(1.0, np.linalg.norm(update))  # the clip
        return np.linalg.norm(seen.view.reading(seen.public) - update), seen.view

    bare, view = off("sum with all others")
    assert bare < 0.01
    assert view.contributions == 1
    assert off("sum")[0] > 0.5
    masked, view = off("masked with all others")
    assert masked > 10.0  # the self-mask, which only whoever opens the sum can ask for
    assert view.adversary != off("masked")[1].adversary
