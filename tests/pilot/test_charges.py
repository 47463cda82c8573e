"""The pilot's own account."""

import math

import pytest

from securefed.errors import BudgetExceeded, ConfigError, LedgerTampered
from securefed.evidence.ledger import read_ledger
from securefed.pilot.charges import PilotLedger


def clock() -> str:
    return "2026-01-01T00:00:00Z"


@pytest.fixture
def ledger(tmp_path):
    found = PilotLedger(tmp_path / "pilot-ledger.jsonl", budget=5.0, clock=clock)
    yield found
    found.close()


def test_a_trial_counts_as_opened_until_it_ends(ledger):
    assert ledger.spent == (0.0, 0.0)
    ledger.open("runs/01-base", epsilon=3.0, delta=1e-5)
    assert ledger.spent == (3.0, 1e-5)
    ledger.end("runs/01-base", epsilon=2.0, delta=1e-5, charges=4)
    assert ledger.spent == (2.0, 1e-5)
    ledger.open("runs/02-rank-2", epsilon=3.0, delta=1e-5)
    assert ledger.spent == (5.0, 2e-5)


@pytest.mark.parametrize("epsilon", [2.5, math.inf, math.nan])
def test_what_would_exceed_the_budget_is_refused_and_not_written(ledger, tmp_path, epsilon):
    ledger.open("runs/01-base", epsilon=3.0, delta=1e-5)
    with pytest.raises(BudgetExceeded, match=r"budget.epsilon = 5: 3.00 is spent"):
        ledger.open("runs/02-rank-2", epsilon=epsilon, delta=1e-5)
    assert ledger.opened("runs/02-rank-2") is None
    kinds = [record.kind for record in read_ledger(tmp_path / "pilot-ledger.jsonl")]
    assert kinds == ["genesis", "trial_opened"]


def test_a_folder_is_opened_once(ledger):
    ledger.open("runs/01-base", epsilon=1.0, delta=1e-5)
    with pytest.raises(LedgerTampered, match="opened already"):
        ledger.open("runs/01-base", epsilon=1.0, delta=1e-5)


def test_a_ledger_goes_on_with_the_budget_that_it_began_with(ledger, tmp_path):
    ledger.open("runs/01-base", epsilon=1.0, delta=1e-5)
    ledger.close()
    with pytest.raises(ConfigError, match=r"budget.epsilon = 9: .* was begun with 5"):
        PilotLedger(tmp_path / "pilot-ledger.jsonl", budget=9.0, clock=clock)
    again = PilotLedger(tmp_path / "pilot-ledger.jsonl", budget=5.0, clock=clock)
    assert (again.spent, again.opened("runs/01-base")) == ((1.0, 1e-5), 1.0)
    assert not again.closed("runs/01-base")
    again.close()
