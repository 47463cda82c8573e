import json
import re

import pytest
from tiny import write_run

from securefed import Federation
from securefed.engines.cost_records import MEASURED, OWN_PHASES, stays_at_the_client
from securefed.engines.metering import Meter, ResidentMemory
from securefed.privacy.policy import PrivacyPolicy


def ticking(*seconds):
    """A clock that shows these times in turn."""
    times = iter(seconds)
    return lambda: next(times)


class Steps:
    """Memory whose peaks are known."""

    name = "steps"

    def __init__(self, *peaks):
        self.peaks, self.begun = iter(peaks), 0

    def begin(self):
        self.begun += 1

    def peak(self):
        return next(self.peaks)


def test_an_inner_phase_interrupts_the_outer_and_all_add_up():
    meter = Meter(cpu=ticking(0, 1, 1.5, 3.5, 10, 18), wall=ticking(0, 2, 5, 9, 20, 40))
    with meter.phase("mask"), meter.phase("train"):
        pass
    with meter.phase("mask"):
        pass
    work = meter.take()
    assert work.seconds == {"mask": (2 - 0) + (9 - 5) + (40 - 20), "train": 5 - 2}
    assert work.cpu_seconds == {"mask": 1 + 2 + 8, "train": 0.5}
    assert meter.take().seconds == {}


def test_what_raises_is_measured_all_the_same():
    meter = Meter(cpu=ticking(0, 0, 0, 0), wall=ticking(0, 1, 3, 6))
    with pytest.raises(ZeroDivisionError), meter.phase("mask"), meter.phase("train"):
        1 / 0  # noqa: B018
    assert meter.take().seconds == {"mask": 1 + 3, "train": 2}
    with meter_of_nothing().phase("mask"):
        pass


def meter_of_nothing():
    return Meter(cpu=lambda: 0.0, wall=lambda: 0.0)


def test_memory_is_watched_over_outermost_phases_and_the_largest_peak_counts():
    memory = Steps(7, 5, 3)
    meter = Meter(cpu=lambda: 0.0, wall=lambda: 0.0, memory=[memory])
    for _ in range(2):
        with meter.phase("mask"), meter.phase("train"):
            pass
    assert memory.begun == 2
    assert meter.take().peak_memory_bytes == {"steps": 7}
    with meter.phase("mask"):
        pass
    assert meter.take().peak_memory_bytes == {"steps": 3}


def test_resident_memory_sees_what_was_held_and_given_back():
    memory = ResidentMemory()
    assert memory.name == "resident"  # Linux, where the suite runs
    memory.begin()
    before = memory.peak()
    held = bytearray(64 << 20)
    held[::4096] = bytes(len(held[::4096]))
    del held
    assert memory.peak() - before > 60 << 20
    memory.begin()
    assert memory.peak() - before < 30 << 20


@pytest.mark.parametrize(
    ("policy", "secret"),
    [
        ({"unit": "example"}, True),
        ({"unit": "user"}, True),
        ({"unit": "example", "sample_is_secret": False}, False),
        ({"unit": "client"}, False),
        ({"unit": "client", "rounding": "conditional"}, True),
        ({"unit": "example", "mechanism": "central", "separation": 4}, False),
    ],
)
def test_seconds_stay_at_the_client_where_they_would_tell(policy, secret):
    policy = PrivacyPolicy(clip_norm=1, noise_multiplier=1, **policy)
    assert stays_at_the_client(policy) is secret
    assert stays_at_the_client(policy, own_trainer=True)


def test_seconds_of_a_trainer_of_ones_own_stay_at_the_client(tmp_path):
    """It may take as long as what it trains on asks for."""
    path = write_run(
        tmp_path,
        training={"rounds": 1, "trainer": "own_trainers:Quiet"},
        privacy={"unit": "client", "noise_multiplier": 0.5, "expected_batch": None},
    )
    result = Federation.from_config(path).run(tmp_path / "out")
    costs = json.loads((result.folder / "costs.json").read_text())
    assert "in clients/ID/costs.json" in costs["client_work"]
    assert "seconds_per_round" not in costs
    assert own(result, "site-0")["stays"].startswith("at this client: its seconds")


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secret")
    path = write_run(folder, cohort={
        "simulated_dropouts": [{"round": 2, "client": "site-1", "stage": "masked_input"}]
    })  # fmt: skip
    return Federation.from_config(path).run(folder / "out")


def own(result, name):
    return json.loads((result.folder / "clients" / name / "costs.json").read_text())


def keys(value):
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


def test_each_client_keeps_what_each_round_cost_it(secret):
    costs = own(secret, "site-0")
    rounds = [row for row in costs["rows"] if row["what"] == "round"]
    assert [row["round"] for row in rounds] == [1, 2, 3]
    assert [r["round"] for r in costs["rows"] if r["what"] == "evaluation"] == [0, 3]
    for row in rounds:
        assert {*OWN_PHASES, "mask"} == set(row["cpu_seconds"]) == set(row["seconds"])
        # A clock ticks in steps; the whole cannot be nothing.
        assert sum(row["seconds"].values()) > 0
        assert all(seconds >= 0 for seconds in row["seconds"].values())
        assert row["peak_memory_bytes"]["resident"] > 1 << 20
        assert row["bytes_up"] > 0
        assert row["bytes_down"] > 0
    assert costs["disk_bytes"]["model"] > 0
    assert costs["disk_bytes"]["account"] > 0
    assert costs["stays"].startswith("at this client: its seconds")


def test_bytes_of_the_clients_add_up_to_those_of_the_run(secret):
    costs = json.loads((secret.folder / "costs.json").read_text())
    rows = [r for n in range(6) for r in own(secret, f"site-{n}")["rows"] if r["what"] == "round"]
    assert sum(row["bytes_up"] for row in rows) / 18 == costs["bytes_up_per_client_and_round"]
    assert sum(row["bytes_down"] for row in rows) / 18 == costs["bytes_down_per_client_and_round"]
    assert costs["server"]["bytes_in_per_round"] * 3 == sum(row["bytes_up"] for row in rows)
    # Silent from its masked input on, it kept that and what follows to itself.
    first, second = (r["bytes_up"] for r in rows if r in own(secret, "site-1")["rows"][1:3])
    packed = costs["trainable_parameters"] * 20 // 8
    assert second < first - packed


def test_what_the_server_may_see_holds_no_second_of_a_client_that_draws_in_secret(secret):
    costs = json.loads((secret.folder / "costs.json").read_text())
    assert "in clients/ID/costs.json" in costs["client_work"]
    assert "seconds_per_round" not in costs
    assert set(costs["server"]["cpu_seconds"]) == {"sum", "apply"}
    assert costs["server"]["peak_memory_bytes"]["resident"] > 0
    assert costs["server"]["disk_bytes"]["run"] > 0
    # Nor does any other file that is not a client's own.
    for path in secret.folder.rglob("*.json*"):
        if "clients" not in path.parts and path.name != "costs.json":
            assert not re.search(r'seconds[a-z_]*"\s*:', path.read_text())
    described = set(MEASURED)
    assert keys(costs["server"]) - {"mean", "most"} <= described | {
        "bytes_in_per_round", "bytes_out_per_round", "sum", "apply", "resident", "run",
    }  # fmt: skip


def test_a_run_that_draws_nothing_in_secret_shows_what_its_clients_worked(tmp_path):
    path = write_run(
        tmp_path,
        training={"rounds": 1, "local_steps": 2, "batch_size": 4},
        privacy={"unit": "client", "noise_multiplier": 0.5, "expected_batch": 1.0},
        aggregation={"kind": "plaintext"},
    )
    result = Federation.from_config(path).run(tmp_path / "out")
    costs = json.loads((tmp_path / "out" / "costs.json").read_text())
    worked = costs["client_work"]["cpu_seconds"]
    assert set(worked) == {*OWN_PHASES, "send"}
    assert worked["train"]["most"] >= worked["train"]["mean"] > 0
    assert costs["client_work"]["peak_memory_bytes"]["resident"] > 0
    assert costs["seconds_per_round"] > 0
    assert own(result, "site-0")["stays"] == "at this client unless it chooses to show it"
