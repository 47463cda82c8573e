"""examples/mixed_ranks.py, with a tiny model and twelve tiny clients."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_clients, write_model

from securefed.evidence.budget import read_charges

pytestmark = pytest.mark.slow  # three whole arms; engines/test_mixed_rank_runs.py has quick ones

EXAMPLE = Path(__file__).parents[2] / "examples" / "mixed_ranks.py"


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    write_model(folder / "model")
    write_clients(folder / "data", count=12, words=320)
    return subprocess.run(
        [
            *(sys.executable, str(EXAMPLE), str(folder / "accounts")),
            *("--model", str(folder / "model"), "--data", str(folder / "data")),
            *("--window", "8", "--held-out", "4", "--batch", "120", *options),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    return folder, run(folder, "--rounds", "2", "--learning-rate", "0.15", "--noise", "0.5")


def arms(text: str) -> dict[str, list[float]]:
    """By arm: mean perplexity before and after, the worst client's, and epsilon."""
    line = r"^(\S+): perplexity (\S+) -> (\S+), worst client (\S+) -> (\S+); epsilon (\S+) at"
    found = re.findall(line, text, re.MULTILINE)
    return {name: [float(value) for value in values] for name, *values in found}


def test_every_arm_learns_and_mixed_ranks_cost_the_epsilon_of_one_rank(done):
    _, result = done
    assert result.returncode == 0, result.stderr
    found = arms(result.stdout)
    assert list(found) == ["weakest-for-all", "mixed", "strongest-for-all"]
    for before, after, _, _, _ in found.values():
        assert after < 0.95 * before
    epsilons = [values[-1] for values in found.values()]
    assert max(epsilons) <= 1.01 * min(epsilons)
    assert "3 slices of one vector" in result.stdout


def test_each_client_charges_a_round_once_whatever_its_rank(done):
    folder, _ = done
    accounts = sorted((folder / "accounts").glob("mixed-*.jsonl"))
    assert len(accounts) == 12
    for path in accounts:
        assert [record.body["round"] for record in read_charges(path)] == [1, 2]


def test_a_client_sends_more_the_higher_its_rank(done):
    _, result = done
    line = next(x for x in result.stdout.splitlines() if x.startswith("mixed: "))
    sizes = [float(size) for size in re.findall(r"rank \d: (\d+)", line)]
    assert len(sizes) == 3
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]
