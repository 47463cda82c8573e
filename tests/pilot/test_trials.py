"""What trials measure: a whole pilot on a tiny model; baselines against what they must equal."""

import json
import math

import numpy as np
import pytest
import torch
from pilot_tiny import CLIENTS, NOTHING_BESIDES, Told, by_name, go, write_pilot
from tiny import write_model, write_run

from securefed import Federation
from securefed.config import PilotConfig, load_config
from securefed.engines.events import Silent
from securefed.engines.run_folder import RunFolder
from securefed.engines.settings import Settings
from securefed.engines.verify import verify_run
from securefed.engines.workbench import Workbench
from securefed.evidence.kinds import closing
from securefed.evidence.ledger import read_ledger
from securefed.phases import unmeasured
from securefed.pilot import baselines
from securefed.pilot.design import NO_PROTECTION, design
from securefed.pilot.plain_rounds import PlainRounds, TrainedAdapter, TrainedModel
from securefed.pilot.records import PilotRecord
from securefed.training.data import Examples
from securefed.training.evaluate import batches, predict
from securefed.training.models import load_model

pytestmark = pytest.mark.usefixtures("units_are_measured_once")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One pilot with a trial of every kind; the search for a target is below, and slow."""
    folder = tmp_path_factory.mktemp("pilot")
    path = write_pilot(
        folder,
        {"training": {"rounds": 2}},
        sweep={"rank": [1], "aggregation": ["bfv"], "bits": [24]},
        baselines={"full_learning_rates": [1e-9, 1e-2]},
    )
    told = Told()
    return go(path, folder / "out", told), folder / "out", told


def test_a_trial_of_every_kind_is_made_and_the_record_reads_back(whole):
    record, folder, told = whole
    assert [trial.name for trial in record.trials] == told.begun
    assert [trial.status for trial in record.trials] == ["done"] * len(record.trials)
    assert {trial.group for trial in record.trials} == {"base", "baseline", "protection", "sweep"}
    assert PilotRecord.read(folder / "pilot.json") == record
    assert (record.public, record.spent) == (True, {})
    assert record.config["run"] == "run.toml"
    for trial in record.trials:
        assert (trial.clients, trial.rounds) == (4, 2)
        assert trial.quality.metric == "perplexity"
        assert trial.quality.before == pytest.approx(record.trials[0].quality.before, rel=1e-4)


def test_figures_are_those_of_the_run_folders(whole):
    record, folder, _ = whole
    for trial in record.trials:
        if not trial.folder:
            continue
        run = RunFolder(folder / trial.folder)
        assert verify_run(run.path).finished
        records = read_ledger(run.ledger)
        figures = [r.body["figures"]["perplexity"] for r in records if r.kind == "evaluated"]
        assert (trial.quality.before, trial.quality.after) == (figures[0], figures[-1])
        shown = json.loads(run.shown.read_text())["worst_client"]
        assert trial.quality.worst_after == shown["2"]
        costs = json.loads(run.costs.read_text())
        assert trial.cost.bytes_up == costs["bytes_up_per_client_and_round"]
        assert trial.cost.bytes_down == costs["bytes_down_per_client_and_round"]
        own = [json.loads(run.client_costs(name).read_text()) for name in CLIENTS]
        rows = [row for each in own for row in each["rows"] if row["what"] == "round"]
        mean = sum(sum(row["cpu_seconds"].values()) for row in rows) / len(rows)
        assert sum(trial.cost.client_seconds.values()) == pytest.approx(mean)
        assert trial.cost.memory_bytes == max(
            row["peak_memory_bytes"].get("resident", 0) for row in rows
        )
        closed = closing(records).body["guarantees"]
        (server,) = [each for each in closed if each["against"] == "server"]
        assert server["epsilon"] == ("unprotected" if trial.epsilon is None else trial.epsilon)


def test_each_clients_own_figure_is_that_of_the_adapter_that_was_kept(whole):
    record, _, _ = whole
    for trial in record.trials:
        own = trial.quality.clients
        assert sorted(own) == CLIENTS
        # The mean went through a secure sum, which rounds.
        assert np.mean(list(own.values())) == pytest.approx(trial.quality.after, rel=1e-3)
        assert trial.quality.worst_after == pytest.approx(max(own.values()), rel=1e-3)


def test_protections_alone_cost_what_they_are(whole):
    found = by_name(whole[0])
    bare, masks = found["no protection"], found["masks alone"]
    assert masks.cost.bytes_up > bare.cost.bytes_up
    assert found["encryption alone"].cost.bytes_up > bare.cost.bytes_up
    assert "mask" in masks.cost.client_seconds
    assert "mask" not in bare.cost.client_seconds
    assert any(
        phase.startswith("decryptor") for phase in found["aggregation = bfv"].cost.server_seconds
    )
    unprotected = [name for name, trial in found.items() if trial.epsilon is None]
    assert set(unprotected) == {
        "clients alone",
        "pooled training",
        "full fine-tuning",
        "no protection",
        "clip alone",
        "clip and noise",
        "masks alone",
        "encryption alone",
    }
    # In the clear noise holds against those who see the sum alone.
    release = {g["against"]: g["epsilon"] for g in found["clip and noise"].guarantees}
    assert release["server"] == "unprotected"
    assert release["release"] < 10.0
    assert found["no protection"].guarantees == ()


@pytest.mark.slow
def test_a_sweep_of_epsilon_meets_its_target(tmp_path):
    path = write_pilot(tmp_path, baselines=NOTHING_BESIDES, sweep={"epsilon": [0.5]})
    found = by_name(go(path, tmp_path / "out"))["epsilon = 0.5"]
    assert found.status == "done"
    assert found.epsilon <= 0.5
    assert math.isclose(found.epsilon, 0.5, rel_tol=0.02)


def test_full_fine_tuning_keeps_its_best_rate_and_counts_all_parameters(whole):
    full = by_name(whole[0])["full fine-tuning"]
    assert full.quality.improvement > 0.05  # at 1e-9 nothing would move
    assert full.why.startswith("learning rate 0.01, the best of 2")
    assert full.cost.values == 19_552
    assert full.cost.bytes_up == full.cost.bytes_down == 4 * 19_552
    assert "bytes_up" in full.cost.estimated
    assert full.cost.client_seconds["train"] > 0.0


# -- baselines against what they must equal ------------------------------------------------


def prepared(folder, **sections) -> tuple[Federation, Workbench, Settings]:
    sections["data"] = {"clients": CLIENTS} | sections.get("data", {})
    config = baselines.bare(load_config(write_run(folder, **sections)))
    federation = Federation(config)
    return federation, *federation.prepare()


def test_pooled_steps_are_those_of_the_federation_where_everything_is_drawn(tmp_path):
    """At q = 1 one party's gradient is the sum of the clients', but for the grid of the sum."""
    bench = prepared(tmp_path)[1]
    total = sum(bench.sizes.values())
    federation = prepared(tmp_path, privacy={"expected_batch": total}, training={"rounds": 2})[0]
    pooled = baselines.pooled(federation, Silent()).quality
    (bare,) = (
        planned.config(federation.config, show_clients=False)
        for planned in design(PilotConfig(run="run.toml", data={"public": True}), federation.config)
        if planned.name == NO_PROTECTION
    )
    result = federation.like(bare, Silent()).run(tmp_path / "out")
    assert pooled.after < 0.99 * pooled.before
    assert pooled.after == pytest.approx(result.after.perplexity, rel=1e-4)


def test_plain_local_steps_are_those_of_the_federation_without_clip(tmp_path):
    sections = {
        "privacy": {"unit": "client", "mechanism": "none", "update_clip_norm": 10.0},
        "training": {"rounds": 2, "local_steps": 3, "batch_size": 4, "server_optimizer": "sgd"}
        | {"server_learning_rate": 1.0, "local_learning_rate": 0.02},
        "aggregation": {"kind": "plaintext"},
    }
    federation, bench, settings = prepared(tmp_path, **sections)
    parties = {name: data.train for name, data in sorted(bench.clients.items())}
    training = bench.config.training
    rounds = PlainRounds(settings, parties, training, CPU, unmeasured, Silent())
    rounds.run(TrainedAdapter(bench.model, bench.parts, training))
    plain = bench.parts.served()
    result = Federation(federation.config, loaded=bench).run(tmp_path / "out")
    assert result.rounds == 2
    for name, value in bench.parts.served().items():
        assert float(value.abs().max()) > 0.0
        torch.testing.assert_close(plain[name], value, rtol=0.0, atol=5e-6)


def whole_model(folder):
    config = load_config(write_run(folder, data={"clients": CLIENTS}))
    loaded = load_model(config.model, cache=folder, offline=True, device=CPU)
    return loaded.model, config


def test_a_step_on_all_parameters_is_along_the_mean_gradient(tmp_path):
    model, _ = whole_model(tmp_path)
    bench = prepared(tmp_path)[1]
    total = sum(bench.sizes.values())
    _, bench, settings = prepared(
        tmp_path,
        privacy={"expected_batch": total},
        training={"rounds": 1, "server_optimizer": "sgd", "server_learning_rate": 0.5},
    )
    training = bench.config.training
    parties = {name: data.train for name, data in sorted(bench.clients.items())}
    model.requires_grad_(True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for examples in parties.values():
        for batch in batches(examples, 16, CPU):
            predict(model, batch, "causal-lm").example_means().sum().backward()
    mean = {name: p.grad / total for name, p in model.named_parameters()}
    model.zero_grad()
    rounds = PlainRounds(settings, parties, training, CPU, unmeasured, Silent())
    rounds.run(TrainedModel(model, training))
    for name, parameter in model.named_parameters():
        moved = before[name] - 0.5 * mean[name]
        torch.testing.assert_close(parameter.detach(), moved, rtol=1e-4, atol=1e-6)
        assert not torch.equal(parameter.detach(), before[name])


def test_a_users_gradient_is_the_mean_of_its_examples(tmp_path):
    model, _ = whole_model(tmp_path)
    model.requires_grad_(True)
    _, bench, settings = prepared(tmp_path, privacy={"unit": "user", "expected_batch": 2})
    ids = np.arange(24, dtype=np.int64).reshape(3, 8)
    users = np.array([0, 0, 1], dtype=np.int64)
    drawn = Examples(ids, np.ones_like(ids), None, users)
    rounds = PlainRounds(settings, {}, bench.config.training, CPU, unmeasured, Silent())
    rounds._add_gradients(model, drawn)
    name, found = next((n, p.grad.clone()) for n, p in model.named_parameters())
    wanted = torch.zeros_like(found)
    for user in (0, 1):
        model.zero_grad()
        (batch,) = batches(drawn.take(np.flatnonzero(users == user)), 16, CPU)
        predict(model, batch, "causal-lm").example_means().mean().backward()
        wanted += dict(model.named_parameters())[name].grad
    torch.testing.assert_close(found, wanted)


def test_full_fine_tuning_stops_trying_rates_when_it_is_told_to_and_says_which(tmp_path):
    _, bench, settings = prepared(tmp_path, training={"rounds": 1})
    asked = []
    full = baselines.FullFineTuning(
        clients=bench.clients,
        settings=settings,
        device=CPU,
        load=lambda: whole_model(tmp_path)[0],
        observer=Silent(),
        goes_on=lambda tried: bool(asked.append(tried)),
    )
    found = full.run([1e-2, 1e-3, 1e-4])
    assert asked == [1]
    assert "best of 1" in found.why
    assert found.why.endswith("no time was left for 0.001, 0.0001")


def test_pooled_data_is_all_clients_data_in_their_order(tmp_path):
    _, bench, _ = prepared(tmp_path)
    pooled = baselines.together(bench.clients)
    assert len(pooled) == sum(bench.sizes.values())
    first = bench.clients[CLIENTS[0]].train
    assert np.array_equal(pooled.input_ids[: len(first)], first.input_ids)


@pytest.mark.parametrize("sharing", ["rolora", "fedsa", "fedsvd"])
def test_one_party_trains_whatever_the_sharing_mode_trains(tmp_path, sharing):
    federation, _, _ = prepared(
        tmp_path,
        lora={"sharing": sharing},
        privacy={"unit": "client"},
        training={"rounds": 2, "local_steps": 2, "local_learning_rate": 0.02}
        | {"server_optimizer": "sgd", "server_learning_rate": 1.0},
    )
    found = baselines.pooled(federation, Silent())
    assert found.quality.improvement > 0.0
    assert found.cost.client_seconds == {}


def test_the_model_of_the_tiny_tests_is_tied(tmp_path):
    """What the count of all parameters above rests on."""
    write_model(tmp_path / "model")
    model, _ = whole_model(tmp_path)
    assert sum(p.numel() for p in model.parameters()) == 19_552
