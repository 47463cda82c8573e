import functools
import json
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Helpers shared by test folders lie beside this file.
sys.path.insert(0, str(Path(__file__).parent))

# How long an example takes to draw is the machine's doing: no test fails for a busy one.
settings.register_profile("securefed", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("securefed")


def pytest_addoption(parser):
    parser.addoption("--fault-results", type=Path, help="write the table of faults as JSON lines")


def pytest_terminal_summary(terminalreporter, config):
    """The table of the faults that were tried, if any were."""
    from fault_matrix import rows_of, table

    rows = rows_of(report for found in terminalreporter.stats.values() for report in found)
    if not rows:
        return
    terminalreporter.section("faults")
    for line in table(rows):
        terminalreporter.write_line(line)
    if (path := config.getoption("fault_results")) is not None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def fault(request):
    """Makes a row of the table of faults; its test writes into it what was seen."""
    from fault_matrix import PROPERTY, Row

    def made(what, *, where, expected):
        row = Row(what, where, expected)
        request.node.user_properties.append((PROPERTY, vars(row)))
        return row

    return made


@pytest.fixture(scope="session")
def units_are_measured_once():
    """Two seconds a time; no test that asks for this is about what the steps of a round cost."""
    from securefed.engines import planning, unit_costs
    from securefed.pilot import running

    once = functools.cache(unit_costs.measure_units)
    with pytest.MonkeyPatch.context() as patch:
        for module in (planning, running):
            patch.setattr(module, "measure_units", once)
        yield


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Runs a command line in an empty folder; gives exit code, stdout and stderr."""
    # Here: most tests that this file serves need neither.
    from securefed.cli import main, watching

    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for console in (watching.console, watching.errors):
        # Not by COLUMNS: a console that was made under another value keeps that one.
        monkeypatch.setattr(console, "width", 200)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["securefed", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        out, err = capsys.readouterr()
        return (0 if code is None else code), out, err

    return run
