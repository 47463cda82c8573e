"""Pictures of attacks: drawn whole, the same for the same figures, and refused where wrong."""

import math

import pytest

from securefed.errors import ConfigError
from securefed.reports.attack_plots import (
    MatrixCell,
    SweepPoint,
    dp_bound,
    draw_cohort,
    draw_matrix,
    draw_noise,
    draw_roc,
)

CELLS = [
    MatrixCell("span", "plain\noff", "guessed", 0.9, (0.8, 1.0)),
    MatrixCell("span", "masked\nmasks", "void"),
    MatrixCell("loss", "plain\noff", "not_applicable"),
    MatrixCell("loss", "masked\nmasks", "out_of_time"),
]
POINTS = [SweepPoint(1.0, 0.9, (0.8, 1.0), 0.1), SweepPoint(4.0, 0.1, (0.1, 0.1), 0.1, void=True)]
ROC = {"loss": [(0.0, 0.0), (0.001, 0.01), (1.0, 1.0)]}
DRAWN = {
    "matrix": lambda paths: draw_matrix(CELLS, paths, title="a $title$"),
    "noise": lambda paths: draw_noise({"span": POINTS}, paths, title="t"),
    "cohort": lambda paths: draw_cohort({"span": POINTS}, paths, title="t"),
    "roc": lambda paths: draw_roc(ROC, paths, title="t", epsilon=2.0, delta=1e-5, mu=0.5),
}


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_figures_give_the_same_file(name, tmp_path):
    for copy in ("one", "other"):
        DRAWN[name]([tmp_path / f"{copy}.svg", tmp_path / f"{copy}.png"])
    for kind in (".svg", ".png"):
        written = (tmp_path / f"one{kind}").read_bytes()
        assert written == (tmp_path / f"other{kind}").read_bytes()
        assert len(written) > 5000


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda p: draw_matrix([], [p], title="t"), "none"),
        (lambda p: draw_matrix(CELLS + CELLS, [p], title="t"), "twice"),
        (lambda p: draw_noise({}, [p], title="t"), "none"),
        (lambda p: draw_cohort({"a": [SweepPoint(0.0, 1, (0, 1))]}, [p], title="t"), "> 0"),
        (lambda p: draw_roc({"a": []}, [p], title="t"), "without a point"),
        (lambda p: draw_roc({"a": [(0.0, 1.5)]}, [p], title="t"), r"in \[0, 1\]"),
        (lambda p: draw_matrix(CELLS, [p.with_suffix(".pdf")], title="t"), r"\.svg and \.png"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        draw(tmp_path / "picture.svg")


def test_the_bound_is_that_of_differential_privacy():
    assert dp_bound(0.1, 0.0, 0.0) == pytest.approx(0.1)
    assert dp_bound(0.0, 1.0, 1e-5) == pytest.approx(1e-5)
    assert dp_bound(0.5, 1.0, 0.0) == pytest.approx(1.0 - math.exp(-1.0) * 0.5)
    assert dp_bound(0.01, 1e9, 0.0) == 1.0
    # Randomised response attains it.
    truth = math.exp(1.0) / (1.0 + math.exp(1.0))
    assert dp_bound(1.0 - truth, 1.0, 0.0) == pytest.approx(truth)
