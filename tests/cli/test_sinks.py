"""Sinks get public figures of rounds, nothing individual, and no bare epsilon."""

import doctest
import importlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import write_run

from securefed.engines import sinks
from securefed.engines.events import RoundEvent
from securefed.errors import ConfigError

EVENT = RoundEvent(
    round=2,
    rounds=3,
    survivors=5,
    cohort=6,
    epsilon=2.5,
    against="server",
    delta=1e-5,
    perplexity=40.0,
    accuracy=None,
    bytes_up=100.0,
    bytes_down=200.0,
    client_seconds=3.0,
    seconds=9.0,
    note="6 invited, 5 in time (late: site-3 in share)",
)
ABOUT = "epsilon is of one window"


def test_figures_are_numbers_under_names_that_say_what_epsilon_is_against():
    found = sinks.figures_of(EVENT)
    assert found["epsilon_against_server_delta_1e-05"] == 2.5
    assert found["held_out_perplexity"] == 40.0
    assert all(isinstance(value, float) for value in found.values())
    assert not any("seconds" in name for name in found)
    assert not any(name == "epsilon" for name in found)
    assert doctest.testmod(sinks).failed == 0


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    module = "tensorboard.backend.event_processing.event_accumulator"
    found = importlib.import_module(module).EventAccumulator(str(folder / "my-run"))
    found.Reload()
    return {
        name: [(each.step, each.value) for each in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def read_mlflow(folder: Path) -> dict[str, list[tuple[int, float]]]:
    client = importlib.import_module("mlflow.tracking").MlflowClient(
        tracking_uri=folder.absolute().as_uri()
    )
    (run,) = client.search_runs([client.get_experiment_by_name("securefed").experiment_id])
    assert run.data.tags["about"] == ABOUT
    assert run.info.status == "FINISHED"
    return {
        name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Records of an offline file: after a head of 7 bytes, blocks of 32 KiB as LevelDB's log has.

    A piece is a checksum of 4 bytes, a length of 2, a kind (whole, first, middle, last) and data.
    """
    assert data[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def read_wandb(folder: Path) -> dict[str, list[tuple[int, float]]]:
    records = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (path,) = folder.rglob("run-*.wandb")
    found: dict[str, list[tuple[int, float]]] = {}
    for data in wandb_records(path.read_bytes()):
        record = records.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            name = item.key or item.nested_key[0]
            if not name.startswith("_"):
                step = record.history.step.num
                found.setdefault(name, []).append((step, json.loads(item.value_json)))
    return found


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("tensorboard", read_tensorboard),
        pytest.param("mlflow", read_mlflow, marks=pytest.mark.slow),
        pytest.param("wandb", read_wandb, marks=pytest.mark.slow),
    ],
)
def test_each_library_reads_back_what_was_written_and_no_name_of_client_or_machine(
    kind, read, tmp_path, monkeypatch
):
    def refused(*arguments, **options):
        raise AssertionError("a sink reaches for the network")

    folder = tmp_path / kind
    if kind != "wandb":  # which speaks to its own process on this machine by a socket
        monkeypatch.setattr(socket.socket, "connect", refused)
    with sinks.open_sink(kind, folder, run="my-run", about=ABOUT) as sink:
        sink(EVENT)
    assert {name: values[0][1] for name, values in read(folder).items()} == pytest.approx(
        sinks.figures_of(EVENT)
    )
    assert all(step == 2 for values in read(folder).values() for step, _ in values)
    for path in folder.rglob("*"):
        if path.is_file() and "log" not in path.name:
            content = path.read_bytes()
            assert b"site-3" not in content, path
            if kind == "wandb":
                assert socket.gethostname().encode() not in content, path
    assert kind != "mlflow" or os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_run_writes_to_its_sink_and_says_where(cli, tmp_path):
    path = write_run(tmp_path, training={"rounds": 1})
    code, out, err = cli("run", path, "--out", "out", "--sink", "tensorboard:watched")
    assert code == 0, err
    assert "sink: tensorboard in watched" in out
    assert "--sink tensorboard:watched --out out --resume" in out
    found = importlib.import_module(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator("watched/out")
    found.Reload()
    spent = json.loads(Path("out/metrics.jsonl").read_text().splitlines()[-1])
    (epsilon,) = found.Scalars("epsilon_against_server_delta_1e-05")
    assert epsilon.value == pytest.approx(spent["epsilon"])


def test_an_unknown_sink_and_one_without_its_library_are_refused(cli, tmp_path, monkeypatch):
    code, _, err = cli("run", write_run(tmp_path), "--sink", "graphite")
    assert code == 2
    assert "sink 'graphite': must be one of tensorboard, mlflow, wandb" in err

    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(sinks.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"needs wandb, which is not installed.*\[watch\]"):
        sinks.open_sink("wandb", tmp_path / "w", run="r", about="a")
