"""The whole matrix: baselines first, void where nothing is shown, and gone on with after a stop."""

import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from run_audits import load

from securefed.attacks.base import Guess, Limits
from securefed.attacks.inversion.exact import SpanInversion
from securefed.auditing import catalogue, measuring_texts
from securefed.auditing import matrix as modules_matrix
from securefed.auditing.cells import MASKS, OFF, Cell
from securefed.auditing.entries import CONTROL, Entry, Finding
from securefed.auditing.matrix import Matrix, Unwatched
from securefed.auditing.profiles import cells
from securefed.auditing.summary import matrix_cells, sweep, write_summary
from securefed.auditing.trials import capture
from securefed.crypto.identity import IdentityKey
from securefed.errors import ConfigError
from securefed.evidence.results import Metric, read_result

KEY = IdentityKey.generate()
LIMITS = Limits(seconds=20.0, max_tokens=10)


class Silent:
    """An attack that never finds anything, and does not say so."""

    name = "silent"

    def run(self, view, public, *, generator, limits):
        return Guess(texts=((0,),))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load(tmp_path_factory.mktemp("matrix"), lora={"rank": 8})


@pytest.fixture
def silent(monkeypatch):
    measure = measuring_texts.on_texts(lambda run: Silent())
    made = Entry("silent", "texts", "finds nothing", "full", measure)
    monkeypatch.setitem(catalogue.CATALOGUE, "silent", made)


def matrix(run, folder, **options):
    return Matrix(run, folder, KEY, LIMITS, cell_seconds=60.0, **options)


def wanted(attack, *columns, n=2):
    return [Cell(attack, *column, seeds=tuple(range(n))) for column in columns]


PLAIN, MASKED = ("plain", OFF), ("masked", MASKS)


def test_what_leaks_in_the_clear_does_not_under_masks(run, tmp_path):
    columns = [("control", OFF), PLAIN, ("other", OFF), MASKED, ("sum", MASKS)]
    found = matrix(run, tmp_path).measure(wanted("span-inversion", *columns, n=4), seconds=600.0)
    control, plain, other, masked, summed = (document.measurement for document in found)
    assert control.main.shows_lift
    assert plain.main.value > 0.6  # a window's last token is a target only
    assert plain.main.shows_lift
    assert not other.main.shows_lift
    assert masked.verdict == "void" or not masked.main.shows_lift
    assert plain.main.value > summed.main.value
    assert plain.predicted["outcome"] == "all"
    assert [document.measurement.n for document in found] == [4] * 5


def test_nothing_is_shown_by_an_attack_that_fails_with_the_defence_off(run, tmp_path, silent):
    found = matrix(run, tmp_path).measure(wanted("silent", PLAIN, MASKED), seconds=600.0)
    assert [document.measurement.verdict for document in found] == ["guessed", "void"]
    assert "no more than the prior" in found[1].measurement.reason
    (alone,) = matrix(run, tmp_path / "alone").measure(wanted("silent", MASKED), seconds=600.0)
    assert "no measurement of this attack with the defence off" in alone.measurement.reason


def test_the_same_view_and_seed_give_the_same_measurement_byte_for_byte(run, tmp_path, monkeypatch):
    views = {}

    def kept(bench, texts, *, exposure, seed):
        key = (exposure, bench._aggregation, seed)
        if key not in views:
            views[key] = capture(bench, texts, exposure=exposure, seed=seed)
        return views[key]

    monkeypatch.setattr(measuring_texts, "capture", kept)
    pair = [
        matrix(run, tmp_path / name).measure(wanted("span-inversion", PLAIN), seconds=600.0)[0]
        for name in ("one", "other")
    ]
    assert pair[0].measurement.encoded() == pair[1].measurement.encoded()
    assert pair[0].about.seconds != pair[1].about.seconds


class Recorder(Unwatched):
    def __init__(self):
        self.kept = []

    def ended(self, cell, document, *, kept):
        self.kept.append(kept)


def test_finished_cells_are_kept_as_long_as_nothing_changed(run, tmp_path):
    columns = wanted("span-inversion", PLAIN, ("other", OFF))

    def kept(key=KEY, limits=LIMITS, of=columns, seconds=600.0):
        seen = Recorder()
        Matrix(run, tmp_path, key, limits, 60.0, seen).measure(of, seconds=seconds)
        return seen.kept

    assert kept() == [False, False]
    assert kept() == [True, True]
    assert kept(limits=replace(LIMITS, seconds=19.0)) == [False, False]
    assert kept(limits=replace(LIMITS, max_tokens=11)) == [False, False]
    assert kept(of=[replace(cell, seeds=(0, 5)) for cell in columns]) == [False, False]
    assert kept(key=IdentityKey.generate()) == [False, False]
    assert kept() == [False, False]
    # A file that was changed by hand is made again.
    path = tmp_path / f"{columns[1].name}.json"
    path.write_text(path.read_text().replace('"sig": "', '"sig": "A'))
    assert kept() == [True, False]


def test_other_texts_another_model_or_other_code_are_never_taken_for_these(
    run, tmp_path, monkeypatch
):
    columns = wanted("span-inversion", PLAIN, n=1)

    def kept(of):
        seen = Recorder()
        (found,) = matrix(of, tmp_path, watcher=seen).measure(columns, seconds=600.0)
        return seen.kept, found.measurement.settings["inputs"]

    _, inputs = kept(run)
    assert kept(run) == ([True], inputs)
    # As many texts, from a folder of the same name.
    other = replace(run, background=[*run.background[:-1], run.background[-1][::-1]])
    assert kept(other)[0] == [False]
    kept(run)
    labels = {text: replace(row, labels=np.array([1])) for text, row in run._rows.items()}
    assert kept(replace(run, _rows=labels))[0] == [False]
    kept(run)
    monkeypatch.setattr(run.workbench, "fingerprint", "0" * 64)
    assert kept(run)[0] == [False]
    monkeypatch.setattr(modules_matrix, "source_sha256", lambda: "of other code")
    assert kept(run)[0] == [False]
    # Nobody else can make the digest that says so, and with it test guesses of a text.
    assert inputs != run.digest().hex()
    assert Matrix(run, tmp_path, IdentityKey.generate(), LIMITS, 60.0).settings(columns[0])[
        "inputs"
    ] not in (inputs, run.digest().hex())


def test_a_baseline_that_is_made_anew_decides_anew_about_what_was_kept(
    run, tmp_path, monkeypatch, silent
):
    columns = wanted("silent", PLAIN, ("sum", MASKS), n=3)
    baseline = tmp_path / f"{columns[0].name}.json"

    def measured():
        baseline.unlink(missing_ok=True)
        return matrix(run, tmp_path).measure(columns, seconds=600.0)[1].measurement

    assert (measured().verdict, measured().n) == ("void", 0)
    works = measuring_texts.on_texts(lambda run: SpanInversion(forced=True))
    monkeypatch.setitem(
        catalogue.CATALOGUE, "silent", Entry("silent", "texts", "works", "full", works)
    )
    assert (measured().verdict, measured().n) == ("guessed", 3)
    monkeypatch.setattr(modules_matrix, "why_void", lambda baseline: "it failed this time")
    assert (measured().verdict, measured().reason) == ("void", "it failed this time")


def test_a_trial_that_the_cells_time_cuts_off_does_not_count_as_a_failure(run):
    class Slow(Silent):
        def run(self, view, public, *, generator, limits):
            time.sleep(limits.seconds)
            return super().run(view, public, generator=generator, limits=limits)

    class Clock:
        over, left = False, 0.5

        def trial(self, done, total):
            Clock.over = True

    measure = measuring_texts.on_texts(lambda run: Slow())
    (cell,) = wanted("slow", PLAIN, n=1)
    found = measure(run, cell, Limits(seconds=20.0, max_tokens=10), Clock())
    assert (found.verdict, found.n) == ("out_of_time", 0)
    found = measure(run, cell, Limits(seconds=1.0, max_tokens=10), Clock())
    assert (found.verdict, found.n, found.ended_by_time) == ("guessed", 1, 1)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (Cell("span-inversion", "plain", "protocol"), "defence = 'protocol'"),
        (Cell("span-inversion", "sum", "clip"), "defence = 'clip'"),
        (Cell("span-inversion", "game", OFF), "exposure = 'game'"),
        (Cell("retry", "game", "noise"), "knows 'off', 'protocol'"),
        (Cell("retry", "game", "protocol", batch=4), "batch = 4"),
        (Cell("canary-epsilon", "canaries", OFF, clients=8), "clients = 8"),
    ],
)
def test_a_defence_that_an_attack_does_not_know_is_refused_before_anything_is_written(
    run, tmp_path, cell, words
):
    with pytest.raises(ConfigError, match=words):
        matrix(run, tmp_path / "out").measure([replace(cell, seeds=(0,))], seconds=60.0)
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_measurement_of_more_records_than_trials_is_kept(run, tmp_path, monkeypatch):
    records = Entry(
        "records", "texts", "of many", "full",
        lambda *_: Finding(seeds=(0,), n=1000, headline="m", metrics={"m": Metric(value=1.0)}),
    )  # fmt: skip
    monkeypatch.setitem(catalogue.CATALOGUE, "records", records)
    seen = Recorder()
    for _ in range(2):
        matrix(run, tmp_path, watcher=seen).measure(wanted("records", PLAIN), seconds=60.0)
    assert seen.kept == [False, True]


def test_an_interrupt_leaves_whole_files_that_are_gone_on_with(run, tmp_path):
    columns = wanted("span-inversion", PLAIN, ("other", OFF))

    class Stop(Recorder):
        def begins(self, cell, done, total):
            if done == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        matrix(run, tmp_path, watcher=Stop()).measure(columns, seconds=600.0)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{columns[0].name}.json", "signer.json"}
    read_result(tmp_path / f"{columns[0].name}.json", [KEY.public])
    seen = Recorder()
    matrix(run, tmp_path, watcher=seen).measure(columns, seconds=600.0)
    assert seen.kept == [True, False]


def test_cells_that_no_time_is_left_for_say_so_and_are_made_the_next_time(run, tmp_path):
    columns = wanted("span-inversion", PLAIN)
    (found,) = matrix(run, tmp_path).measure(columns, seconds=1e-9)
    assert found.measurement.verdict == "out_of_time"
    seen = Recorder()
    (found,) = matrix(run, tmp_path, watcher=seen).measure(columns, seconds=600.0)
    assert (found.measurement.verdict, seen.kept) == ("guessed", [False])
    with pytest.raises(ConfigError, match="must be > 0"):
        matrix(run, tmp_path).measure(columns, seconds=0.0)


def test_a_cell_that_cannot_be_is_not_applicable(tmp_path):
    plaintext = load(
        tmp_path / "run",
        lora={"rank": 8},
        aggregation={"kind": "plaintext"},
        privacy={"mechanism": "none", "noise_multiplier": None},
    )
    found = matrix(plaintext, tmp_path / "out").measure(
        wanted("span-inversion", PLAIN, MASKED, ("plain", "noise")), seconds=600.0
    )
    assert [document.measurement.verdict for document in found] == [
        "guessed",
        "not_applicable",
        "not_applicable",
    ]
    assert "masks nothing" in found[1].measurement.reason


def test_no_text_and_no_token_is_in_what_is_written(run, tmp_path):
    columns = wanted("span-inversion", PLAIN, MASKED)
    documents = matrix(run, tmp_path).measure(columns, seconds=600.0)
    write_summary(tmp_path, columns, documents, title="tiny")
    written = json.loads((tmp_path / "summary.json").read_text())
    assert [row["measurement_sha256"] for row in written["cells"]] == [
        document.measurement.digest() for document in documents
    ]
    for document in documents:
        figures = document.measurement.model_dump_json()
        assert not re.search(r"\bw\d", figures)  # the texts' words
        assert str(tmp_path) not in figures
    shown = matrix_cells(columns, documents)
    assert [cell.row for cell in shown] == ["span-inversion"] * 2


def test_profiles_have_each_baseline_before_what_needs_it(run):
    quick, full = cells(run, "quick"), cells(run, "full")
    assert {cell.batch for cell in quick} == {1}
    assert {cell.batch for cell in full} == {1, run.share}
    for chosen in (quick, full):
        for place, cell in enumerate(chosen):
            column = catalogue.entry(cell.attack).baseline_of(cell.exposure)
            before = {(c.attack, (c.exposure, c.defence), c.batch) for c in chosen[:place]}
            first = (cell.exposure, cell.defence) in (column, CONTROL)
            assert first or (cell.attack, column, cell.batch) in before
            cell.check()
    assert {cell.attack for cell in full} == set(catalogue.CATALOGUE)
    assert {"texts", "membership", "epsilon"} <= {
        catalogue.entry(cell.attack).kind for cell in quick
    }
    assert len({cell.name for cell in full}) == len(full)
    with pytest.raises(ConfigError, match="profile"):
        cells(run, "slow")
    with pytest.raises(ConfigError, match="trials"):
        cells(run, "quick", trials=0)
    with pytest.raises(ConfigError, match="unknown"):
        cells(run, "quick", attacks=["nothing"])


def test_sweeps_are_curves_over_noise_and_over_clients(run, tmp_path):
    columns = wanted("span-inversion", PLAIN, ("plain", "noise-1e-05"), ("plain", "noise-1"))
    columns += [replace(cell, clients=n) for n in (2, 4)
                for cell in wanted("span-inversion", ("sum", MASKS))]  # fmt: skip
    documents = matrix(run, tmp_path).measure(columns, seconds=600.0)
    noise = sweep(columns, documents, over="noise")["span-inversion"]
    assert [point.at for point in noise] == [1e-05, 1.0]
    assert noise[0].value > noise[1].value
    # Where the attack says that it does not apply, the adversary is left with the prior.
    assert (noise[1].void, noise[1].value) == (True, noise[1].prior)
    clients = sweep(columns, documents, over="clients")["span-inversion"]
    assert [point.at for point in clients] == [2.0, 4.0]
    assert len(matrix_cells(columns, documents)) == 1


@pytest.mark.parametrize(
    ("exposure", "defence", "words"),
    [
        ("plain", "masks", "no plain update"),
        ("masked", "off", "nothing is masked"),
        ("control", "noise", "'control'"),
    ],
)
def test_a_cell_that_contradicts_itself_is_refused(exposure, defence, words):
    with pytest.raises(ConfigError, match=words):
        Cell("a", exposure, defence).check()
