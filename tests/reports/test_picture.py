import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.image import imread

from securefed.errors import ConfigError
from securefed.reports.picture import RoundPoint, draw_run

ROUNDS = [
    RoundPoint(0, 38.2, None, 10, 10),
    *[RoundPoint(r, 29.7 if r == 5 else None, 0.7 + r / 10, 10, 10) for r in range(1, 6)],
]
LOST = [RoundPoint(0, 38.2, None, 10, 10), RoundPoint(1, 40.0, 0.9, 7, 10)]
# Text is drawn as outlines; matplotlib says in a comment what each stands for.
EPSILON_LINE = "stroke: #d55e00"
RING = "fill: #ffffff; stroke: #222222"
LOST_BARS = "stroke: #6b6b6b; stroke-width: 9"


def drawn(rounds: list[RoundPoint], tmp_path: Path, **settings: object) -> str:
    path = tmp_path / "run.svg"
    draw_run(rounds, path, **({"title": "A run", "notes": ["A note."]} | settings))
    text = path.read_text(encoding="utf-8")
    ET.fromstring(text)
    return text


def test_a_protected_run_shows_both_curves_with_unit_and_delta(tmp_path):
    text = drawn(ROUNDS, tmp_path, unit="window of 32 tokens", delta=1e-5)
    for words in (
        "A run",
        "A note.",
        "Held-out perplexity, mean over clients (lower is better)",
        "start: 38.2",
        "29.7",
        "Privacy spent: ε against the server, per window of 32 tokens, at δ = 1e-05",
        "ε = 1.20",
        "Held-out perplexity: outside the guarantee.",
        "round",
    ):
        assert f"<!-- {words} -->" in text
    assert EPSILON_LINE in text
    assert "no differential privacy" not in text


def test_an_unprotected_run_says_so_in_the_place_of_the_curve(tmp_path):
    bare = [RoundPoint(p.round, p.perplexity, None, 10, 10) for p in ROUNDS]
    text = drawn(bare, tmp_path)
    assert "<!-- no differential privacy -->" in text
    assert "ε" not in text
    assert EPSILON_LINE not in text


def test_an_epsilon_without_unit_or_delta_is_not_passed_over(tmp_path):
    text = drawn(ROUNDS, tmp_path)
    assert "ε against the server, unit not given, δ not given" in text


@pytest.mark.parametrize(
    ("epsilon", "shown"),
    [
        (0.0, "0"),
        (0.9, "0.900"),
        (2.1701, "2.18"),
        (9.999, "10.0"),
        (1234.1, "1240"),
        (0.00012345, "0.000124"),
    ],
)
def test_the_final_epsilon_is_never_rounded_down(tmp_path, epsilon, shown):
    rounds = [RoundPoint(1, None, epsilon, 4, 4)]
    assert f"<!-- ε = {shown} -->" in drawn(rounds, tmp_path, unit="client", delta=1e-6)


def test_a_run_that_was_never_evaluated_says_so(tmp_path):
    rounds = [RoundPoint(r, None, r / 2, 10, 10) for r in range(1, 4)]
    text = drawn(rounds, tmp_path, unit="client", delta=1e-6)
    assert "<!-- not measured -->" in text
    assert "start:" not in text


def test_rounds_that_lost_clients_are_shown_with_their_counts(tmp_path):
    text = drawn(LOST, tmp_path)
    assert "<!-- 7 of 10 -->" in text
    assert LOST_BARS in text
    assert "rounds that lost clients (survivors of cohort)" in text
    text = drawn(ROUNDS, tmp_path)
    assert " of 10 -->" not in text
    assert LOST_BARS not in text
    assert "lost clients" not in text


def test_clients_that_fell_silent_after_sending_have_a_ring_with_their_number(tmp_path):
    rounds = [*LOST, RoundPoint(2, 39.0, 1.0, 9, 10, 2), RoundPoint(3, 38.0, 1.1, 10, 10, 1)]
    text = drawn(rounds, tmp_path)
    assert text.count(RING) == 2
    assert "Rings: how many clients fell silent after their masked input" in text
    alone = drawn([RoundPoint(1, None, 0.5, 4, 4, 1)], tmp_path)
    assert alone.count(RING) == 1
    assert "lost clients" not in alone
    assert RING not in drawn(LOST, tmp_path)


def test_many_lossy_rounds_are_labelled_by_one_of_the_worst(tmp_path):
    rounds = [RoundPoint(r, None, r / 50, 200 - r % 7, 200) for r in range(1, 121)]
    text = drawn(rounds, tmp_path)
    assert text.count("of 200 -->") == 1
    assert "<!-- 194 of 200 -->" in text


def test_a_diverged_run_is_drawn_on_a_logarithmic_scale_and_says_so(tmp_path):
    text = drawn([RoundPoint(0, 30.0, None, 4, 4), RoundPoint(1, 8000.0, 0.5, 4, 4)], tmp_path)
    assert "lower is better), log scale" in text
    assert "<!-- 1000 -->" in text
    assert "log scale" not in drawn(ROUNDS, tmp_path)


@pytest.mark.parametrize("suffix", [".svg", pytest.param(".png", marks=pytest.mark.slow)])
def test_the_same_run_gives_the_same_file_in_another_process(tmp_path, suffix):
    program = (
        "import sys; from pathlib import Path\n"
        "from securefed.reports.picture import RoundPoint, draw_run\n"
        "rounds = [RoundPoint(0, 38.2, None, 10, 10), RoundPoint(1, 40.0, 0.9, 7, 10)]\n"
        "draw_run(rounds, Path(sys.argv[1]), title='A run', notes=['A note.'])\n"
    )
    here, there = tmp_path / f"here{suffix}", tmp_path / f"there{suffix}"
    draw_run(LOST, here, title="A run", notes=["A note."])
    subprocess.run([sys.executable, "-c", program, str(there)], check=True)
    assert here.read_bytes() == there.read_bytes()
    assert b"<dc:date>" not in here.read_bytes()


def test_the_users_own_matplotlib_settings_neither_show_nor_change(tmp_path):
    plain = drawn(ROUNDS, tmp_path)
    with mpl.rc_context({"lines.linewidth": 9, "axes.facecolor": "black", "font.size": 30}):
        before = dict(mpl.rcParams)
        assert drawn(ROUNDS, tmp_path) == plain
        assert dict(mpl.rcParams) == before


def test_a_png_is_drawn_for_print(tmp_path):
    path = tmp_path / "run.png"
    draw_run(ROUNDS, path, title="A run", notes=[])
    pixels = imread(path)
    assert pixels.shape[1] == 1440
    assert pixels[0, 0, :3].tolist() == [1.0, 1.0, 1.0]
    assert (pixels[:, :, :3] < 0.9).any(axis=2).mean() > 0.01


def test_dollar_signs_and_long_texts_are_taken_as_they_are(tmp_path):
    text = drawn(ROUNDS, tmp_path, title="$x_{ & <b> " + "long " * 30, notes=["$y^{ " * 60])
    assert "<!-- $x_{ &amp; &lt;b&gt; long" in text or "<!-- $x_{ & <b> long" in text
    root = ET.fromstring(text)
    short = ET.fromstring(drawn(ROUNDS, tmp_path))
    assert float(root.attrib["height"][:-2]) > float(short.attrib["height"][:-2])
    assert root.attrib["width"] == short.attrib["width"]


@pytest.mark.parametrize(
    ("rounds", "complaint"),
    [
        ([], "rounds: none given"),
        ([RoundPoint(2, 1.0, None, 1, 1), RoundPoint(2, 1.0, None, 1, 1)], "round 2 follows"),
        ([RoundPoint(1, 0.0, None, 1, 1)], "round 1: perplexity 0.0 given"),
        ([RoundPoint(1, float("inf"), None, 1, 1)], "round 1: perplexity inf given"),
        ([RoundPoint(1, float("nan"), None, 1, 1)], "round 1: perplexity nan given"),
        ([RoundPoint(1, 2.0, -0.1, 1, 1)], "round 1: epsilon -0.1 given"),
        ([RoundPoint(1, 2.0, float("nan"), 1, 1)], "round 1: epsilon nan given"),
        ([RoundPoint(1, 2.0, 0.1, 5, 4)], r"round 1: 5 survivors given, 0\.\.4 allowed"),
        ([RoundPoint(1, 2.0, 0.1, 3, 4, 4)], r"round 1: 4 silent, 0\.\.3 allowed"),
    ],
)
def test_values_out_of_range_are_refused_by_round(tmp_path, rounds, complaint):
    path = tmp_path / "run.svg"
    with pytest.raises(ConfigError, match=complaint):
        draw_run(rounds, path, title="x", notes=[])
    assert not path.exists()


@pytest.mark.parametrize("name", ["run.pdf", "run", "run.SVGZ"])
def test_another_suffix_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"\.svg or \.png allowed"):
        draw_run(ROUNDS, tmp_path / name, title="x", notes=[])


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        draw_run(ROUNDS, tmp_path / "missing" / "run.svg", title="x", notes=[])


def test_without_matplotlib_the_error_says_what_to_install(tmp_path):
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\n"
        "from securefed.errors import ConfigError\n"
        "from securefed.reports.picture import RoundPoint, draw_run\n"
        "try:\n"
        "    draw_run([RoundPoint(1, 2.0, 0.1, 4, 4)], Path('x.svg'), title='x', notes=[])\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "pip install -c constraints.txt -e '.[reports]'" in result.stdout
