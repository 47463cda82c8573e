"""Tests that claims cite: whether they are there, and what they came to in one session."""

from __future__ import annotations

import ast
import datetime
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from securefed.threats.stored import Outcome, Stored, TestResult, test_sha256
from securefed.threats.verdicts import Reference

_SLOW = "slow"


@dataclass
class _Case:
    outcome: Outcome = "passed"
    seconds: float = 0.0
    ended: bool = False


@dataclass
class Session:
    """Outcomes of one session, by cited node id.

    Args:
        root: of the clone; node ids are relative to it.
        cited: node ids.  One without brackets is all of its parameters.
        source_sha256: of the package as it is imported here.
    """

    root: Path
    cited: Sequence[str]
    source_sha256: str
    _cases: dict[str, dict[str, _Case]] = field(default_factory=dict)
    _slow: set[str] = field(default_factory=set)

    def cites(self, nodeid: str) -> list[str]:
        """The cited ids that a test of this node id belongs to."""
        return [name for name in (nodeid, nodeid.partition("[")[0]) if name in self._known]

    @functools.cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.cited)

    def marked(self, nodeid: str, *, slow: bool) -> None:
        """A case is going to be run."""
        for name in self.cites(nodeid):
            self._cases.setdefault(name, {})[nodeid] = _Case()
            if slow:
                self._slow.add(name)

    def reported(
        self,
        nodeid: str,
        when: Literal["setup", "call", "teardown"],
        outcome: Outcome,
        seconds: float,
    ) -> None:
        """One phase of a case is over."""
        for name in self.cites(nodeid):
            case = self._cases.setdefault(name, {}).setdefault(nodeid, _Case())
            case.seconds += seconds
            case.ended = case.ended or when == "teardown"
            if outcome != "passed" and case.outcome != "failed":
                case.outcome = outcome

    def results(self, now: datetime.datetime) -> list[TestResult]:
        """What every cited test came to whose cases are all over, by node id."""
        found = []
        for name, cases in sorted(self._cases.items()):
            digest = test_sha256(self.root, name)
            if digest is None or not all(case.ended for case in cases.values()):
                continue
            outcomes = {case.outcome for case in cases.values()}
            worst: Outcome = "failed" if "failed" in outcomes else "skipped"
            found.append(
                TestResult(
                    test=name,
                    outcome="passed" if outcomes == {"passed"} else worst,
                    cases=len(cases),
                    seconds=round(sum(case.seconds for case in cases.values()), 3),
                    slow=name in self._slow,
                    date=now.replace(microsecond=0).isoformat().replace("+00:00", "Z"),
                    source_sha256=self.source_sha256,
                    test_sha256=digest,
                )
            )
        return found

    def stored(self, now: datetime.datetime) -> list[Stored]:
        """The same as evidence: whoever looks has run it."""
        return [
            Stored(result, where(self.root, result.test), anchored=True)
            for result in self.results(now)
        ]


def where(root: Path, test: str) -> Reference:
    """File and line of a cited test; no line where the function is not there."""
    path = test.partition("::")[0]
    line = _definitions(root / path).get(_chain(test))
    return Reference(kind="file", path=path, line=line, sha256=test_sha256(root, test))


def missing(root: Path, cited: Sequence[str]) -> dict[str, str]:
    """Cited tests that are not there, and why, without importing anything."""
    found = {}
    for test in cited:
        path = root / test.partition("::")[0]
        if not path.is_file():
            found[test] = "there is no such file"
        elif _chain(test) not in _definitions(path):
            found[test] = "its file has no such test"
    return found


def is_slow(markers: Sequence[str]) -> bool:
    """Whether a test with these markers is left out of quick sessions."""
    return _SLOW in markers


def _chain(test: str) -> tuple[str, ...]:
    names = test.partition("::")[2].partition("[")[0]
    return tuple(names.split("::"))


def _definitions(path: Path) -> Mapping[tuple[str, ...], int]:
    if not path.is_file():
        return {}
    return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=512)
def _read(path: Path, changed: int) -> Mapping[tuple[str, ...], int]:
    """Line of each test function of a file, by the names of its classes and itself."""
    found: dict[tuple[str, ...], int] = {}

    def walk(body: Sequence[ast.stmt], above: tuple[str, ...]) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found[(*above, node.name)] = node.lineno
            elif isinstance(node, ast.ClassDef):
                walk(node.body, (*above, node.name))

    walk(ast.parse(path.read_text(encoding="utf-8")).body, ())
    return found
