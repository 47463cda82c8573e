"""Whole runs with noise correlated over rounds and batches that come in turn."""

from dataclasses import replace

import numpy as np
import pytest
from ledgers import cut_run, place_of
from tiny import write_run

from securefed import Federation
from securefed.config import parse_config
from securefed.engines import workbench
from securefed.engines.attempts import read_history
from securefed.engines.settings import Settings
from securefed.engines.verify import verify_run
from securefed.errors import ConfigError, LedgerTampered, ThresholdNotMet
from securefed.evidence.ledger import read_ledger
from securefed.privacy.correlated_release import CorrelatedRelease, correlated_epsilon

SIZES = {f"site-{i}": 100 for i in range(8)}
CYCLIC = {"mechanism": "central", "sampling": "cyclic"}


def settings_of(rounds=10, **privacy) -> Settings:
    values = {"privacy": CYCLIC | privacy, "training": {"rounds": rounds}}
    return Settings(parse_config(values), sizes=SIZES, dimension=50)


def test_batches_of_the_size_asked_for_come_in_turn_and_bands_are_chosen():
    settings = settings_of(expected_batch=70)
    assert settings.stated.separation == 12
    assert settings.stated.bands == 8
    assert settings.plan.max_examples == 9
    assert settings.event()["separation"] == 12
    assert settings.event()["bands"] == settings.record()["bands"] == 8
    assert settings_of(expected_batch=70, noise_bands=3).stated.bands == 3
    total = np.full(50, 800.0)
    survivors = tuple(SIZES)
    assert settings.gradient(total, survivors) == pytest.approx(np.full(50, 12.0))


@pytest.mark.slow
def test_a_target_is_met_over_all_rounds():
    settings = settings_of(rounds=50, expected_batch=80, target_epsilon=2.0)
    assert 0.98 * 2.0 < settings.epsilon_after(50) <= 2.0
    assert settings.epsilon_after(25) < settings.epsilon_after(50)


@pytest.mark.parametrize(
    ("privacy", "named"),
    [
        ({"mechanism": "distributed"}, "there is no distributed form of it"),
        ({"unit": "client"}, "unit = 'example' only"),
        ({"unit": "user"}, "unit = 'example' only"),
        ({"sampling": "poisson", "noise_bands": 2}, "noise_bands = 2 with sampling = 'poisson'"),
        ({"noise_bands": 9, "expected_batch": 100}, r"bands = 9: must be in 1\.\.8"),
        ({"noise_bands": 0}, "noise_bands"),
        ({"sampling": "shuffled"}, "sampling"),
        ({"expected_batch": 801}, "so it must be <= 800"),
    ],
)
def test_run_files_that_it_is_not_there_for_are_refused(privacy, named):
    with pytest.raises(ConfigError, match=named):
        settings_of(**privacy)


def cyclic_run(folder, *, rounds, **sections):
    return write_run(
        folder,
        privacy=CYCLIC | {"noise_multiplier": 0.5, "expected_batch": 120},
        training={"rounds": rounds},
        **sections,
    )


def test_a_run_uses_each_example_once_a_cycle_verifies_and_writes_no_sum(tmp_path, monkeypatch):
    path = cyclic_run(tmp_path, rounds=5)
    batches, sums = [], []
    step, release = workbench.cyclic_step, CorrelatedRelease.release

    def seen_step(gradients, batch):
        batches.append(batch)
        return step(gradients, batch)

    def seen_release(self, total, *, round):
        found = release(self, total, round=round)
        sums.extend([total.tobytes(), self._sums[0].tobytes()])
        return found

    monkeypatch.setattr(workbench, "cyclic_step", seen_step)
    monkeypatch.setattr(CorrelatedRelease, "release", seen_release)
    out = tmp_path / "out"
    result = Federation.from_config(path).run(out)
    _, settings = Federation.from_config(path).prepare()
    assert settings.stated.separation == 4
    for index, size in enumerate(settings.sizes.values()):
        own = batches[index::6]
        assert sorted(np.concatenate(own[:4]).tolist()) == list(range(size))
        assert own[4].tolist() == own[0].tolist()
    stated = result.guarantees["release"]
    assert stated.epsilon == correlated_epsilon(
        settings.plan, settings.stated.strategy, rounds=5, delta=1e-5
    )
    assert not result.guarantees["server"].protected
    assert verify_run(out).finished
    assert result.after.nll < result.before.nll
    files = [file.read_bytes() for file in out.rglob("*") if file.is_file()]
    assert len(sums) == 10
    assert not any(piece[:64] in file for piece in sums for file in files)
    # A finished run is told once more; nothing is drawn for it.
    again = Federation.from_config(path).run(out, resume=True)
    assert again.guarantees["release"].epsilon == stated.epsilon
    assert len(sums) == 10


def test_a_client_that_is_absent_is_charged_since_the_schedule_moves_on(tmp_path):
    """Or rounds in which everybody was absent once would make all accounts count too few."""
    drops = [{"round": 1 + i, "client": f"site-{i}", "stage": "masked_input"} for i in range(3)]
    path = cyclic_run(tmp_path, rounds=3, cohort={"simulated_dropouts": drops})
    out = tmp_path / "out"
    result = Federation.from_config(path).run(out)
    assert result.charges == 3
    verify_run(out)
    records = read_ledger(out / "ledger.jsonl")
    summed = [record.body for record in records if record.kind == "round_summed"]
    assert [len(body["survivors"]) for body in summed] == [5, 5, 5]
    assert all(len(body["charged"]) == 6 for body in summed)
    # A record that leaves one out is none that such a run writes.
    _, settings = Federation.from_config(path).prepare()
    index = next(i for i, record in enumerate(records) if record.kind == "round_summed")
    body = records[index].body
    fewer = body | {"charged": [name for name in body["charged"] if name != "site-0"]}
    records[index] = replace(records[index], body=fewer)
    with pytest.raises(LedgerTampered, match="lacks site-0; where examples take part"):
        read_history(out / "ledger.jsonl", records, settings)


def test_a_run_that_stopped_cannot_go_on_and_keeps_what_it_spent(tmp_path):
    drops = [{"round": 2, "client": f"site-{i}", "stage": "unmask"} for i in range(4)]
    path = cyclic_run(tmp_path, rounds=3, cohort={"simulated_dropouts": drops})
    out = tmp_path / "out"
    with pytest.raises(ThresholdNotMet):
        Federation.from_config(path).run(out)
    before = (out / "ledger.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="only the stopped process held, so it cannot go on"):
        Federation.from_config(path).run(out, resume=True)
    assert (out / "ledger.jsonl").read_bytes() == before
    verdict = verify_run(out)
    assert verdict.charges == 2
    assert "not finished" in verdict.lines
    assert verdict.incomplete == ["the run is not finished"]


def test_a_run_that_was_killed_after_its_last_round_is_brought_to_its_end(tmp_path):
    """No further sum is needed: figures, adapter and closing record are."""
    path = cyclic_run(tmp_path, rounds=2)
    out = tmp_path / "out"
    whole = Federation.from_config(path).run(out)
    cut_run(out, place_of(out, "round_applied", -1) + 1)
    assert not verify_run(out).finished
    again = Federation.from_config(path).run(out, resume=True)
    assert again.charges == whole.charges == 2
    assert verify_run(out).finished
