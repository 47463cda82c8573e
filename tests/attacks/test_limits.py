"""The time limit of an attack holds before its first step, however long texts may be."""

import attacked
import pytest
import torch

from securefed.attacks.adaptive.likelihood import SparseBayes
from securefed.attacks.base import Limits
from securefed.attacks.inversion.exact import SpanInversion
from securefed.attacks.inversion.inputs import InputReader
from securefed.auditing.trials import capture

_PLACES = 24


@pytest.mark.parametrize(
    "attack", [SpanInversion(), SpanInversion(forced=True), SparseBayes(), SparseBayes(head=True)]
)
def test_no_place_is_looked_at_after_the_time_is_over(attack, monkeypatch):
    bench = attacked.bench("bert", attacked.setup("bert"))
    captured = capture(bench, attacked.texts("bert", 1, count=3), exposure="plain", seed=0)
    looked = set()
    every = InputReader.every

    def counted(reader, place):
        looked.add(place)
        return every(reader, place)

    monkeypatch.setattr(InputReader, "every", counted)

    def run(seconds):
        looked.clear()
        generator = torch.Generator().manual_seed(0)
        limits = Limits(seconds=seconds, max_tokens=_PLACES)
        attack.run(captured.view, captured.public, generator=generator, limits=limits)
        return len(looked)

    assert run(1e-9) <= 4
    assert run(60.0) >= _PLACES - 1
