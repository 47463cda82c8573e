"""examples/separate_processes.py: a server and three clients as processes, over TCP."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from securefed.evidence.budget import read_charges

EXAMPLE = Path(__file__).parents[2] / "examples" / "separate_processes.py"


def run(folder: Path, noise: str = "1.0", lost: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), noise, lost, str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def figures(done: subprocess.CompletedProcess[str]) -> tuple[float, float, float]:
    assert done.returncode == 0, done.stderr
    means = re.search(r"decoded (\S+), plain (\S+)", done.stdout)
    largest = re.search(r"largest difference of a coordinate: (\S+)", done.stdout)
    return float(means[1]), float(means[2]), float(largest[1])


@pytest.mark.slow
def test_the_decoded_mean_is_the_plain_one_where_there_is_no_noise_and_one_client_is_lost(
    tmp_path,
):
    done = run(tmp_path, "0", "site-2")
    decoded, plain, largest = figures(done)
    assert "site-2 has dropped out at masked_input" in done.stdout
    assert "in the sum: site-1, site-3;" in done.stdout
    assert plain != 0.0
    assert decoded == pytest.approx(plain, abs=1e-6)
    assert largest < 1e-6
    assert "NO differential privacy" in done.stdout


def test_a_noised_round_says_what_it_guarantees_and_is_off_by_the_noise(tmp_path):
    done = run(tmp_path)
    _, _, largest = figures(done)
    assert "in the sum: site-1, site-2, site-3;" in done.stdout
    assert re.search(r"\(4\.\d+, 1e-05\)-differential privacy", done.stdout)
    sent = [int(count) for count in re.findall(r"'site-\d': (\d+)", done.stdout)]
    assert len(sent) == 3
    for site in ("site-1", "site-2", "site-3"):
        (charge,) = read_charges(tmp_path / f"{site}.jsonl")
        assert charge.body["noise_multiplier"] == 1.0
    # 1024 elements of 20 to 32 bits, and some signatures, shares and sealed secrets.
    assert all(1024 * 20 // 8 < count < 1024 * 4 + 20_000 for count in sent)
    # The mean of three carries noise of std sqrt(3 / 2) / 3 = 0.41 a coordinate: of 1000, the
    # largest is near 3.3 times that, below 2 and above 7 times with probability under 1e-9.
    assert 2 * 0.408 < largest < 7 * 0.408


@pytest.mark.slow
def test_clients_refuse_a_round_below_their_floors_before_anything_is_sent_or_charged(tmp_path):
    done = run(tmp_path, "0.4")
    assert done.returncode == 1
    assert all(f"site-{i} has dropped out at advertise" in done.stdout for i in (1, 2, 3))
    assert "no result: " in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("noise", "lost", "words"),
    [
        ("much", "", "invalid float value: 'much'"),
        ("-1", "", "noise_multiplier = -1.0: must be finite, >= 0"),
        ("nan", "", "noise_multiplier = nan"),
        ("1", "site-1,site-9", "lost: site-9: not among site-1, site-2, site-3"),
    ],
)
def test_wrong_arguments_end_in_one_sentence_and_make_no_folder(tmp_path, noise, lost, words):
    done = run(tmp_path / "accounts", noise, lost)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "accounts").exists()


@pytest.mark.slow
def test_nothing_is_opened_where_two_of_three_are_lost(tmp_path):
    done = run(tmp_path, "0", "site-1,site-3")
    assert done.returncode == 1
    assert "no result: " in done.stderr
    assert "decoded" not in done.stdout
