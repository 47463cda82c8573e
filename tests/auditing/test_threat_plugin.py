"""``pytest --threat-models``, run inside pytest on a small project of its own."""

import datetime
import importlib
import json
import os
import textwrap

import pytest
from threat_files import ATTACK_EVIDENCE, LEDGER_EVIDENCE, MANUAL_EVIDENCE, text, values

from securefed.auditing.cited_tests import Session, missing, where
from securefed.crypto.identity import IdentityKey
from securefed.evidence.anchoring import read_public_key
from securefed.evidence.software import source_sha256
from securefed.threats.stored import TestResults, read_stored, to_text

pytest_plugins = ["pytester"]

# A session inside this one forgets what it has loaded: what is loaded here is not loaded again.
for module in ("claim_items", "threat_plugin"):
    importlib.import_module(f"securefed.auditing.{module}")

TESTS = """
    import pathlib
    import pytest

    def test_good():
        with pathlib.Path("counted").open("a") as file:
            file.write("x")

    @pytest.mark.parametrize("case", [1, 2])
    def test_cases(case):
        assert case

    @pytest.mark.parametrize("case", [1, 2])
    def test_one_of_two_fails(case):
        assert case == 1

    def test_skipped():
        pytest.skip("not here")

    @pytest.mark.slow
    def test_slow():
        pass

    @pytest.mark.parametrize("case", [1, pytest.param(2, marks=pytest.mark.slow)])
    def test_slow_in_part(case):
        assert case

    @pytest.mark.parametrize("case", [0, pytest.param(2, marks=pytest.mark.slow)])
    def test_fails_where_it_is_quick(case):
        assert case or pathlib.Path("fixed").exists()

    @pytest.mark.xfail
    def test_expected_to_fail():
        assert False

    @pytest.mark.xfail(strict=False)
    def test_expected_to_fail_and_does_not():
        pass

    def test_uncited():
        assert False

    class TestGroup:
        def test_inside(self):
            pass
"""
INI = """
    [pytest]
    addopts = --strict-markers -p securefed.auditing.threat_plugin -m "not slow"
        -p no:hypothesispytest -p no:cacheprovider --assert=plain
    markers = slow: takes minutes
    testpaths = tests
"""


def claim(name, *evidence):
    return values()["claims"][0] | {"id": f"C-{name}", "evidence": list(evidence)}


def cites(*names):
    return [{"type": "test", "test": f"tests/test_it.py::{name}"} for name in names]


@pytest.fixture
def project(pytester, monkeypatch):
    """Writes a project with these claims; gives a function that runs pytest in it."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini(textwrap.dedent(INI))
    folder = pytester.mkdir("tests")
    (folder / "test_it.py").write_text(textwrap.dedent(TESTS))
    models = pytester.mkdir("threat_models")

    def run(claims, *arguments):
        content = values() | {"claims": claims}
        (models / "small.yaml").write_bytes(text(content))
        return pytester.runpytest_inprocess(*arguments)

    run.folder = pytester.path
    return run


def test_without_the_option_nothing_changes(project):
    done = project([claim("one", *cites("test_good"))])
    done.assert_outcomes(passed=6, failed=3, skipped=1, deselected=3, xfailed=1, xpassed=1)
    assert "threat models" not in done.stdout.str()


def test_each_claim_is_an_item_that_passes_by_the_tests_that_it_cites(project):
    done = project(
        [claim("one", *cites("test_good")), claim("two", *cites("test_cases", "test_good"))],
        "--threat-models",
        "-v",
    )
    assert done.ret == 0
    done.stdout.fnmatch_lines(
        [
            "*threat models: 1, with 2 claims and 2 cited tests; in one process*",
            "tests/test_it.py::test_good PASSED*",
            "threat_models/small.yaml::C-one VERIFIED*",
            "threat_models/small.yaml::C-two VERIFIED*",
            "*3 passed, 2 verified*",
        ]
    )
    assert (project.folder / "counted").read_text() == "x"
    assert "test_uncited" not in done.stdout.str()


def test_one_claim_can_be_asked_for_and_runs_its_own_tests_only(project):
    claims = [claim("one", *cites("test_cases")), claim("two", *cites("test_good"))]
    done = project(claims, "--threat-models", "threat_models/small.yaml::C-two", "-v")
    done.stdout.fnmatch_lines(["*C-two VERIFIED*", "*1 passed, 1 verified*"])
    done = project(claims, "--threat-models", "-k", "C-two", "-v")
    done.stdout.fnmatch_lines(["*C-two VERIFIED*", "*1 passed, * 1 verified*"])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["test_one_of_two_fails"], "is refuted: *test_one_of_two_fails: failed on"),
        (["test_good", "test_one_of_two_fails"], "is refuted: *"),
        (["test_skipped"], "is not_run: *test_skipped: was skipped"),
        (["test_slow"], "is not_run: *test_slow: there is no result of it"),
        (["test_slow_in_part"], "is not_run: *test_slow_in_part: there is no result of it"),
        (["test_fails_where_it_is_quick"], "is refuted: *test_fails_where_it_is_quick: failed on"),
        (["test_expected_to_fail"], "is not_run: *test_expected_to_fail: was skipped"),
        (["test_expected_to_fail_and_does_not"], "is not_run: *_does_not: was skipped"),
        (["test_gone"], "is not_run: *test_gone: its file has no such test"),
        (["TestGroup::test_gone"], "is not_run: *its file has no such test"),
    ],
)
def test_a_claim_fails_and_says_what_it_is_and_why(project, names, words):
    done = project([claim("one", *cites(*names))], "--threat-models")
    assert done.ret == 1
    done.stdout.fnmatch_lines([f"C-one (TM-small) {words}*", "FAILED *small.yaml::C-one*"])


def test_a_test_in_a_class_can_be_cited(project):
    done = project([claim("one", *cites("TestGroup::test_inside"))], "--threat-models", "-v")
    done.stdout.fnmatch_lines(["*C-one VERIFIED*"])


def test_slow_tests_are_run_where_they_are_asked_for_with_the_quick_ones(project):
    done = project(
        [claim("one", *cites("test_slow", "test_good"))], "--threat-models", "-m", "slow", "-v"
    )
    assert done.ret == 0
    done.stdout.fnmatch_lines(["*C-one VERIFIED*", "*2 passed, 1 verified*"])


def stored(project, claims, *more):
    """A session that stores what its tests came to."""
    folder = project.folder / "threat_models" / "evidence"
    options = ["--threat-evidence", str(folder / "slow.json"), "--threat-key", "key.pem"]
    return folder, project(claims, "--threat-models", *options, *more)


def test_stored_results_count_for_slow_tests_until_the_test_changes(project):
    claims = [claim("one", *cites("test_slow", "test_good"))]
    folder, done = stored(project, claims, "-m", "slow")
    assert done.ret == 0
    found = {each.result.test: each for each in read_stored(folder)}
    assert set(found) == {test["test"] for test in claims[0]["evidence"]}
    slow = found["tests/test_it.py::test_slow"]
    assert (slow.result.outcome, slow.result.slow, slow.result.cases) == ("passed", True, 1)
    assert slow.result.source_sha256 == source_sha256()
    assert not slow.anchored
    key = read_public_key(folder / "signer.json")
    assert key == IdentityKey.load(project.folder / "key.pem").public
    assert (project.folder / "key.pem").stat().st_mode & 0o777 == 0o600

    done = project(claims, "--threat-models", "-v")
    done.stdout.fnmatch_lines(["*C-one VERIFIED*", "*1 passed, * 1 verified*"])
    path = project.folder / "tests" / "test_it.py"
    path.write_text(path.read_text() + "\n# another version\n")
    done = project(claims, "--threat-models")
    assert done.ret == 1
    done.stdout.fnmatch_lines(["*C-one*is stale: *test_slow: *another version of the test's file*"])


def test_stored_results_of_other_code_are_stale(project):
    claims = [claim("one", *cites("test_slow"))]
    folder, _ = stored(project, claims, "-m", "slow")
    path = folder / "slow.json"
    key = IdentityKey.load(project.folder / "key.pem")
    (result,) = (each.result for each in read_stored(folder))
    old = result.model_copy(update={"source_sha256": "a" * 64})
    path.write_text(to_text(TestResults(software="x", results=[old]).signed(key)))
    done = project(claims, "--threat-models")
    done.stdout.fnmatch_lines(["*C-one*is stale: *of other code*"])


def test_stored_results_that_were_edited_or_whose_signer_is_gone_stop_the_session(project):
    claims = [claim("one", *cites("test_slow"))]
    folder, _ = stored(project, claims, "-m", "slow")
    envelope = json.loads((folder / "slow.json").read_text())
    changed = envelope | {"payload": envelope["payload"][:-4] + "AAAA"}
    (folder / "slow.json").write_text(json.dumps(changed))
    done = project(claims, "--threat-models")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*slow.json: envelope: no trusted key has signed it*"])
    (folder / "slow.json").write_text(json.dumps(envelope))
    (folder / "signer.json").unlink()
    done = project(claims, "--threat-models")
    done.stderr.fnmatch_lines(["*slow.json: no key is known that could have signed it*"])


def test_failures_are_stored_too(project):
    folder, done = stored(project, [claim("one", *cites("test_one_of_two_fails"))])
    assert done.ret == 1
    (found,) = read_stored(folder)
    assert (found.result.outcome, found.result.cases) == ("failed", 2)


def test_a_test_with_slow_cases_has_a_result_where_all_of_them_ran(project):
    claims = [claim("one", *cites("test_slow_in_part"))]
    folder, _ = stored(project, claims)
    assert list(read_stored(folder)) == []
    folder, done = stored(project, claims, "-m", "slow")
    (found,) = read_stored(folder)
    assert (done.ret, found.result.outcome, found.result.cases) == (0, "passed", 2)


@pytest.mark.parametrize("name", ["test_one_of_two_fails", "test_fails_where_it_is_quick"])
def test_no_stored_result_of_any_date_stands_against_one_of_this_session(project, name):
    claims = [claim("one", *cites(name))]
    folder, _ = stored(project, claims, "-m", "slow")
    (found,) = read_stored(folder)
    better = {"outcome": "passed", "date": "2999-01-01T00:00:00Z"}
    document = TestResults(software="x", results=[found.result.model_copy(update=better)])
    key = IdentityKey.load(project.folder / "key.pem")
    (folder / "slow.json").write_text(to_text(document.signed(key)))
    done = project(claims, "--threat-models", f"--threat-signer={folder / 'signer.json'}")
    done.stdout.fnmatch_lines(["C-one (TM-small) is refuted: *failed on*"])


def test_claims_about_a_run_alone_are_named_and_not_passed(project):
    manual = claim("two", MANUAL_EVIDENCE, LEDGER_EVIDENCE)
    both = claim("one", *cites("test_good"), ATTACK_EVIDENCE)
    done = project([both, manual], "--threat-models", "-v")
    done.stdout.fnmatch_lines(
        [
            "*C-one VERIFIED*",
            "judged by tests alone*--threat-run=RUN",
            "about a run alone, not judged here: C-two",
        ]
    )
    assert "C-two VERIFIED" not in done.stdout.str()


def test_workers_are_not_started_for_claims(project):
    pytest.importorskip("xdist")
    done = project(
        [claim("one", *cites("test_good"))], "--threat-models", "-n", "2", "--dist", "loadscope"
    )
    assert done.ret == 0
    done.stdout.fnmatch_lines(["*1 passed, 1 verified*"])
    assert "created: 2/2 workers" not in done.stdout.str()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threat-evidence", "x.json"], "--threat-evidence goes with --threat-models"),
        (["--threat-models", "--threat-key", "x"], "go together"),
        (["--threat-models", "--threat-signer", "none"], "none: cannot be read"),
        (
            ["--threat-models", "--threat-evidence=/dev/null/x.json", "--threat-key=k.pem"],
            "--threat-evidence /dev/null/x.json: ",
        ),
        (["--threat-models", "--threat-run", "none"], "not a run folder"),
    ],
)
def test_options_that_mean_nothing_are_refused(project, arguments, words):
    done = project([claim("one", *cites("test_good"))], *arguments)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([f"*{words}*"])


def test_a_threat_model_with_a_fault_stops_the_session_at_its_line(project):
    done = project([claim("one", *cites("test_good")) | {"kind": "magic"}], "--threat-models")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*small.yaml:*: claims.0.kind: *"])


def test_a_cited_test_is_found_without_importing_it(tmp_path):
    (tmp_path / "tests").mkdir()
    path = tmp_path / "tests" / "test_it.py"
    path.write_text("import no_such_module\n\n\nclass TestA:\n    def test_b(self): ...\n")
    name = "tests/test_it.py::TestA::test_b"
    assert missing(
        tmp_path, [name, f"{name}[1-x]", "tests/test_it.py::test_b", "tests/a.py::b"]
    ) == {
        "tests/test_it.py::test_b": "its file has no such test",
        "tests/a.py::b": "there is no such file",
    }
    found = where(tmp_path, name)
    assert (found.path, found.line) == ("tests/test_it.py", 5)


def test_a_test_that_was_stopped_in_the_middle_has_no_result(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text("")
    name = "tests/test_it.py::test_it"
    times = (datetime.datetime(2026, 11, 29, hour, tzinfo=datetime.UTC) for hour in (8, 9))
    session = Session(tmp_path, [name], "a" * 64, clock=lambda: next(times))
    session.marked(f"{name}[1]", slow=False)
    session.marked(f"{name}[2]", slow=False)
    for when in ("setup", "call", "teardown"):
        session.reported(f"{name}[1]", when, "passed", 0.1)
    assert session.results() == []
    for when in ("setup", "call", "teardown"):
        session.reported(f"{name}[2]", when, "passed", 0.1)
    (result,) = session.results()
    assert (result.outcome, result.cases, result.seconds) == ("passed", 2, 0.6)
    assert result.date == "2026-11-29T09:00:00Z"
