"""Claims as items of a pytest session; :mod:`securefed.auditing.threat_plugin` says what it is."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from securefed.auditing.cited_tests import Session, missing
from securefed.crypto.identity import IdentityKey
from securefed.engines.software import software
from securefed.errors import ConfigError
from securefed.evidence.anchoring import read_public_key, signer_record
from securefed.evidence.signing import signing_key
from securefed.evidence.software import source_sha256
from securefed.threats.facts import RunFacts
from securefed.threats.files import read_file
from securefed.threats.judging import combine, finding_of, judge_claim, judge_test
from securefed.threats.loading import load_threat_models
from securefed.threats.model import Claim, TestEvidence, ThreatModel
from securefed.threats.stored import StoredTests, TestResults, read_stored, to_text
from securefed.threats.verdicts import ClaimFinding, EvidenceFinding, Verdict

FAILING: frozenset[Verdict] = frozenset({"refuted", "void", "stale", "not_run"})
"""Verdicts that fail a claim."""

_FOLDER = "threat_models"
_PROPERTY = "threat_verdict"


class ClaimFailed(Exception):
    """A claim's verdict is among ``FAILING``; the message says which, and what decided."""


class ClaimItem(pytest.Item):
    """One claim."""

    def __init__(self, *, claims: Claims, model: ThreatModel, number: int, **of_pytest: Any):
        super().__init__(**of_pytest)
        self._claims, self._model, self._number = claims, model, number

    @property
    def claim(self) -> Claim:
        """What is claimed."""
        return self._model.claims[self._number]

    def runtest(self) -> None:
        """Judge it."""
        found = self._claims.judged(self._model, self.claim)
        self.user_properties.append((_PROPERTY, found.verdict))
        if found.verdict in FAILING:
            raise ClaimFailed(_told(found))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The verdict and its reasons, without a traceback."""
        if isinstance(excinfo.value, ClaimFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """File and line of the claim."""
        line = self._model.line("claims", self._number)
        return self.path, None if line is None else line - 1, self.claim.id


class ThreatModelFile(pytest.File):
    """One threat model."""

    def __init__(self, *, claims: Claims, model: ThreatModel, **of_pytest: Any) -> None:
        super().__init__(**of_pytest)
        self._claims, self._model = claims, model

    def collect(self) -> Iterator[ClaimItem]:
        """Its claims, but for those that are about a run where there is none."""
        for number, claim in enumerate(self._model.claims):
            if self._claims.decides(claim):
                yield ClaimItem.from_parent(
                    self, name=claim.id, claims=self._claims, model=self._model, number=number
                )


class Claims:
    """The plugin of a session with ``--threat-models``.

    Args:
        config: of the session.

    Raises:
        ConfigError, RemoteProtocolError: a threat model, a key, stored evidence or a run is not as
            it must be.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._root = config.rootpath.resolve()
        self._source = source_sha256()
        folder = self._root / _FOLDER
        files = {path.name: read_file(path) for path in sorted(folder.glob("*.yaml"))}
        models = load_threat_models(files)
        self._models = {folder / model.name: model for model in models}
        cited = dict.fromkeys(test for model in models for test in cited_tests(model))
        self._missing = missing(self._root, list(cited))
        self._session = Session(self._root, list(cited), self._source)
        trusted = [read_public_key(Path(name)) for name in config.getoption("--threat-signer")]
        self._stored = read_stored(
            folder / "evidence", trusted, shown=f"{_FOLDER}/evidence", root=self._root
        )
        self._facts = self._of_run(config.getoption("--threat-run"), trusted)
        self._target = _target(config)
        self._findings: list[ClaimFinding] = []
        self._of_runs: list[str] = []

    def collector(self, path: Path, parent: pytest.Collector) -> ThreatModelFile | None:
        """The collector of a threat model's file; None of any other."""
        model = self._models.get(path)
        if model is None:
            return None
        return ThreatModelFile.from_parent(parent, path=path, claims=self, model=model)

    def decides(self, claim: Claim) -> bool:
        """Whether anything in this session can say what a claim comes to."""
        if self._facts is not None or any(isinstance(i, TestEvidence) for i in claim.evidence):
            return True
        self._of_runs.append(claim.id)
        return False

    def judged(self, model: ThreatModel, claim: Claim) -> ClaimFinding:
        """One claim, by the outcomes so far and what is stored."""
        now = datetime.datetime.now(datetime.UTC)
        tests = self._tests()
        if self._facts is not None:
            found = judge_claim(model, claim, self._facts, tests, today=now.date())
        else:
            evidence = [
                self._of_test(item, tests)
                for item in claim.evidence
                if isinstance(item, TestEvidence)
            ]
            verdict, reason = combine(evidence)
            found = finding_of(model, claim, verdict, reason, evidence)
        self._findings.append(found)
        return found

    def _tests(self) -> StoredTests:
        """What is stored, but for tests that have run here: no date makes up for an outcome."""
        here = self._session.stored()
        run = {each.result.test for each in here}
        stored = [each for each in self._stored if each.result.test not in run]
        return StoredTests([*stored, *here], root=self._root)

    def _of_test(self, item: TestEvidence, tests: StoredTests) -> EvidenceFinding:
        if item.test in self._missing:
            why = self._missing[item.test]
            return EvidenceFinding(type="test", cites=item.test, verdict="not_run", reason=why)
        return judge_test(item, tests, self._source)

    def _of_run(self, folder: str | None, trusted: list[Any]) -> RunFacts | None:
        if folder is None:
            return None
        from securefed.engines.run_facts import run_facts
        from securefed.engines.verify import verified_run

        path = Path(folder)
        return run_facts(path, verified_run(path), trusted)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> None:
        """Ask for the cited tests too, and for all claims where nothing is named."""
        config = session.config
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args = [str(path) for path in self._models]
        asked = [name for argument in config.args for name in self._cited_by(argument)]
        there = [test for test in dict.fromkeys(asked) if test not in self._missing]
        # Before the claims, which need their outcomes.
        config.args = [*(str(self._root / test) for test in there), *config.args]

    def _cited_by(self, argument: str) -> list[str]:
        """The tests that the claims of ``FILE.yaml`` or ``FILE.yaml::CLAIM`` cite."""
        name, _, claim = argument.partition("::")
        model = self._models.get((self._config.invocation_params.dir / name).resolve())
        return [] if model is None else cited_tests(model, claim)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
    ) -> Generator[None]:
        """Cited tests first, slow ones only where they are asked for; then claims.

        ``-m`` and ``-k`` choose among claims and other tests, not among those that the claims cite;
        but ``-m slow`` would leave no claim.
        """
        slow = _wants_slow(config.option.markexpr)
        claims = [item for item in items if isinstance(item, ClaimItem)]
        others = [item for item in items if not isinstance(item, ClaimItem)]
        cited = [item for item in others if self._session.cites(item.nodeid)]
        items[:] = [item for item in others if item not in set(cited)]
        items.extend([] if slow else claims)
        yield
        left = claims if slow else [item for item in items if isinstance(item, ClaimItem)]
        wanted = {
            evidence.test
            for item in left
            for evidence in item.claim.evidence
            if isinstance(evidence, TestEvidence)
        }
        run = [item for item in cited if self._runs(item, wanted, slow)]
        for item in run:
            self._session.marked(item.nodeid, slow=_is_slow(item))
        left_out = [item for item in cited if item not in set(run)]
        for item in left_out:
            self._session.left_out(item.nodeid)
        config.hook.pytest_deselected(items=left_out)
        rest = [item for item in items if not isinstance(item, ClaimItem)]
        items[:] = [*run, *rest, *left]

    def _runs(self, item: pytest.Item, wanted: set[str], slow: bool) -> bool:
        return bool(wanted & set(self._session.cites(item.nodeid))) and (slow or not _is_slow(item))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a cited test came to; one that is expected to fail shows nothing either way."""
        expected = hasattr(report, "wasxfail") and report.outcome == "passed"
        outcome = "skipped" if expected else report.outcome
        self._session.reported(report.nodeid, report.when, outcome, report.duration)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(
        self, report: pytest.CollectReport | pytest.TestReport
    ) -> tuple[str, str, str] | None:
        """A claim's verdict in place of "passed": what was not shown must not look as if it was."""
        if not isinstance(report, pytest.TestReport) or report.when != "call":
            return None
        verdict = dict(report.user_properties).get(_PROPERTY)
        if verdict is None or report.failed:
            return None
        word = str(verdict)
        return word.replace("_", " "), word[0].upper(), word.upper()

    def pytest_report_header(self) -> str:
        """What this session is about."""
        claims = sum(len(model.claims) for model in self._models.values())
        return (
            f"threat models: {len(self._models)}, with {claims} claims and "
            f"{len(self._session.cited)} cited tests; in one process (as -n 0)"
        )

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """How many claims came to what, and what was left out."""
        if not self._findings:
            return
        terminalreporter.section("threat models")
        for verdict, count in Counter(found.verdict for found in self._findings).most_common():
            terminalreporter.line(f"{verdict}: {count}")
        if self._facts is None:
            terminalreporter.line(
                "judged by tests alone; attacks, ledger values and statements are about a run: "
                "--threat-run=RUN"
            )
        if self._of_runs:
            names = ", ".join(sorted(self._of_runs))
            terminalreporter.line(f"about a run alone, not judged here: {names}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Store what cited tests came to."""
        if self._target is None or session.config.option.collectonly:
            return
        path, key = self._target
        source_sha256.cache_clear()
        if source_sha256() != self._source:
            raise pytest.UsageError("--threat-evidence: the code has changed during the session")
        results = self._session.results()
        document = TestResults(software=software(), results=results)
        path.write_text(to_text(document.signed(key)), encoding="utf-8")
        (path.parent / "signer.json").write_text(signer_record(key.public), encoding="utf-8")


def _target(config: pytest.Config) -> tuple[Path, IdentityKey] | None:
    """Where results are to be stored, and the key that signs them; found out before any test runs.

    Raises:
        ConfigError: the folder cannot be made, or the key is none.
    """
    name = config.getoption("--threat-evidence")
    if name is None:
        return None
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--threat-evidence {path}: {error.strerror}") from None
    return path, signing_key(Path(config.getoption("--threat-key")), make=True)


def cited_tests(model: ThreatModel, claim: str = "") -> list[str]:
    """Node ids that one claim of a model cites, or all of them."""
    return [
        item.test
        for each in model.claims
        if claim in ("", each.id)
        for item in each.evidence
        if isinstance(item, TestEvidence)
    ]


def _wants_slow(expression: str) -> bool:
    return "slow" in expression and "not slow" not in expression


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def _told(found: ClaimFinding) -> str:
    lines = [f"{found.claim} ({found.model}) is {found.verdict}: {found.reason}"]
    lines += [f"  {each.verdict}: {each.cites}: {each.reason}" for each in found.evidence]
    return "\n".join(lines)
