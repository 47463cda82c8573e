"""Whole runs in each sharing mode, on a tiny model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import write_clients, write_run
from transformers import AutoModelForCausalLM

from securefed import Federation
from securefed.config import SHARING_MODES
from securefed.engines.compare import clients_alone, unprotected
from securefed.engines.events import Silent
from securefed.engines.run import Run
from securefed.engines.verify import verify_run
from securefed.engines.workbench import Workbench
from securefed.errors import ConfigError, GradientCheckError, LedgerTampered
from securefed.evidence.ledger import read_ledger
from securefed.federation.server_step import ServerStep
from securefed.lora.adapter import adapter_state
from securefed.lora.inserted_files import load_inserted
from securefed.lora.sharing import factor_of, sharing_mode
from securefed.training.dp_sgd import PerExampleGradients

# up_proj has 32 inputs and 48 outputs, so that A and B have different lengths.
CLIENTS = tuple(f"site-{index}" for index in range(4))
LORA = {"rank": 2, "target_modules": ["up_proj"]}
LOCAL = {"unit": "client", "mechanism": "none", "clip_norm": 100.0, "update_clip_norm": 100.0}
FEDAVG = {
    "rounds": 3, "local_steps": 3, "local_learning_rate": 0.05,
    "server_optimizer": "sgd", "server_learning_rate": 1.0,
}  # fmt: skip


def written(folder, sharing, **sections):
    folder.mkdir(exist_ok=True)
    own = {"lora": LORA | {"sharing": sharing}, "data": {"clients": list(CLIENTS)}}
    return write_run(folder, **own | sections)


def averaged(folder, sharing, **sections):
    """Plain federated averaging of local steps, without noise."""
    return written(folder, sharing, **{"privacy": LOCAL, "training": FEDAVG} | sections)


def products(state):
    return {
        name: value.double() @ state[name.replace("lora_B", "lora_A")].double()
        for name, value in state.items()
        if factor_of(name) == "B"
    }


@pytest.mark.parametrize(
    "sharing",
    [
        "rolora",
        "fedit",
        "fedsb",
        "fedsvd",
    ],
)
def test_distributed_dp_sgd_runs_and_verifies_in_every_mode(tmp_path, sharing):
    path = written(tmp_path, sharing, training={"rounds": 2}, privacy={"noise_multiplier": 4.0})
    federation = Federation.from_config(path)
    result = federation.run(tmp_path / "out")
    assert verify_run(result.folder).finished
    first = load_file(result.folder / "checkpoints" / "initial.safetensors")
    last = adapter_state(federation._used.model)
    moved = {factor_of(name) for name in first if not torch.equal(first[name], last[name])}
    served = {factor for turn in sharing_mode(sharing).turns for factor in turn} - {"whole"}
    assert moved == served | ({"A"} if sharing == "fedsvd" else set())
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    loaded = PeftModel.from_pretrained(base, str(result.folder / "adapter"))
    ids = torch.arange(8).unsqueeze(0)
    expected = federation._used.model(input_ids=ids).logits
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
    records = read_ledger(result.folder / "ledger.jsonl")
    down = [r.body.get("values_down") for r in records if r.kind == "round_applied"]
    assert down == {"rolora": [None, 128], "fedsvd": [320, 320]}.get(sharing, [None, None])


@pytest.mark.parametrize("sharing", SHARING_MODES)
def test_what_the_server_makes_of_the_secure_sum_is_the_formula_in_the_clear(
    tmp_path, monkeypatch, sharing
):
    """Three rounds of masked sums against the same clients' changes added up in float64."""
    sent, states = [], []
    delta, step = Workbench._delta, ServerStep.step

    def kept_delta(self, *arguments):
        found = delta(self, *arguments)
        sent[-1].append(found.astype(np.float64))
        return found

    def kept_step(self, number, gradient, **options):
        states.append(adapter_state(bench.model))
        return step(self, number, gradient, **options)

    def begun(self, number):
        sent.append([])
        begin(self, number)

    begin = Workbench.begin_round
    monkeypatch.setattr(Workbench, "_delta", kept_delta)
    monkeypatch.setattr(Workbench, "begin_round", begun)
    monkeypatch.setattr(ServerStep, "step", kept_step)
    federation = Federation.from_config(averaged(tmp_path, sharing))
    bench, settings = federation.prepare()
    monkeypatch.setattr(Federation, "prepare", lambda self, noise=None: (bench, settings))
    result = federation.run(tmp_path / "out")
    states.append(adapter_state(bench.model))
    assert [len(each) for each in sent] == [4] * 3
    grid = 4 * settings.plan.resolution
    for number in range(1, 4):
        before, after = states[number - 1], states[number]
        bench.parts.begin(number)
        change = bench.parts.layout.unflatten(np.mean(sent[number - 1], axis=0))
        expected = before | {name: before[name] + value for name, value in change.items()}
        if sharing == "fedsvd":
            wanted, found = products(expected), products(after)
            for name, product in wanted.items():
                torch.testing.assert_close(found[name], product, atol=grid + 1e-5, rtol=1e-4)
        for name in after:
            if sharing != "fedsvd" or factor_of(name) == "whole":
                exactly = {} if name in change else {"atol": 0.0, "rtol": 0.0}
                torch.testing.assert_close(
                    after[name], expected[name], **{"atol": grid + 1e-6, "rtol": 0.0} | exactly
                )
        if number > 1 or sharing != "fedsa":  # A has no gradient in the first of B = 0's steps
            assert max(float(value.abs().max()) for value in change.values()) > 100 * grid
    assert verify_run(result.folder).finished


def killed_in(monkeypatch, owner, method, number):
    whole = getattr(owner, method)

    def killed(self, *arguments, **options):
        if number in [value for value in arguments if isinstance(value, int)]:
            raise KeyboardInterrupt
        return whole(self, *arguments, **options)

    monkeypatch.setattr(owner, method, killed)


@pytest.mark.parametrize(
    ("sharing", "moment"),
    [
        ("rolora", (Run, "_report")),
        pytest.param("fedsvd", (Run, "_report"), marks=pytest.mark.slow),
        pytest.param("fedsa", (Run, "_report"), marks=pytest.mark.slow),
        ("fedsa", (ServerStep, "step")),  # trained, and the sum not yet applied
    ],
)
def test_a_stopped_run_ends_where_an_unbroken_one_does(tmp_path, monkeypatch, sharing, moment):
    path = averaged(tmp_path, sharing)
    unbroken = Federation.from_config(path)
    unbroken.run(tmp_path / "whole")
    expected = adapter_state(unbroken._used.model)
    killed_in(monkeypatch, *moment, 2)
    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(path).run(tmp_path / "out")
    monkeypatch.undo()
    resumed = Federation.from_config(path)
    result = resumed.run(tmp_path / "out", resume=True)
    assert result.rounds == 3
    assert verify_run(result.folder).finished
    found = adapter_state(resumed._used.model)
    # The rounding of a secure sum is drawn afresh, so that runs agree to some grid steps.
    if sharing == "fedsvd":
        found, expected = products(found), products(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=2e-3, rtol=0.0)
    if sharing == "fedsa":
        for client in CLIENTS:
            own = [
                load_file(tmp_path / out / "personal" / client / "round-3.safetensors")
                for out in ("whole", "out")
            ]
            for name in own[0]:
                torch.testing.assert_close(own[1][name], own[0][name], atol=2e-3, rtol=0.0)


# -- what a client keeps -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fedsa")
    federation = Federation.from_config(averaged(folder, "fedsa"))
    return folder, federation, federation.run(folder / "out")


def test_every_client_ends_with_a_b_of_its_own_and_the_shared_adapter_has_none(kept):
    folder, federation, result = kept
    shared = load_file(result.folder / "adapter" / "adapter_model.safetensors")
    assert all(not value.any() for name, value in shared.items() if "lora_B" in name)
    own = {}
    for client in federation._used.clients:
        adapter = result.folder / "personal" / client / "adapter"
        own[client] = load_file(adapter / "adapter_model.safetensors")
        assert all(torch.equal(own[client][n], shared[n]) for n in shared if "lora_A" in n)
        base = AutoModelForCausalLM.from_pretrained(folder / "model")
        loaded = PeftModel.from_pretrained(base, str(adapter))
        assert torch.isfinite(loaded(input_ids=torch.arange(8).unsqueeze(0)).logits).all()
    name = next(name for name in shared if "lora_B" in name)
    flat = torch.stack([own[client][name].flatten() for client in sorted(own)])
    assert torch.pdist(flat).min() > 0.01


def test_every_client_is_measured_with_its_own_b(kept):
    _, federation, result = kept
    bench = federation._used
    figures = {client: bench.figures(client)[0] for client in bench.clients}
    assert np.mean(list(figures.values())) == pytest.approx(result.after.perplexity, rel=1e-3)
    assert result.after.perplexity < result.before.perplexity
    with bench.personal.of("site-0"):
        bench.personal.trained("site-1")
        bench.personal.take_over(["site-1"])  # one client's B in another's place
    assert bench.figures("site-1")[0] > figures["site-1"]


def test_what_one_client_keeps_does_not_depend_on_anothers_data(tmp_path):
    own = []
    for turn in (0, 1):
        folder = tmp_path / str(turn)
        path = averaged(folder, "fedsa", training=FEDAVG | {"rounds": 1})
        if turn:
            other = write_clients(tmp_path / "other", count=7) / "site-6.txt"
            (folder / "data" / "site-0.txt").write_text(other.read_text())
        Federation.from_config(path).run(folder / "out")
        file = "round-1.safetensors"
        personal = folder / "out" / "personal"
        own.append({client: load_file(personal / client / file) for client in CLIENTS})
    for client in CLIENTS:
        same = all(torch.equal(own[0][client][n], own[1][client][n]) for n in own[0][client])
        assert same == (client != "site-0")


def test_a_personal_part_that_is_gone_or_of_another_adapter_stops_the_resume(tmp_path, monkeypatch):
    path = averaged(tmp_path, "fedsa")
    killed_in(monkeypatch, Run, "_report", 2)
    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(path).run(tmp_path / "out")
    monkeypatch.undo()
    file = tmp_path / "out" / "personal" / "site-3" / "round-2.safetensors"
    kept_bytes = file.read_bytes()
    file.unlink()
    with pytest.raises(LedgerTampered, match="site-3"):
        Federation.from_config(path).run(tmp_path / "out", resume=True)
    file.write_bytes(kept_bytes[: len(kept_bytes) // 2])
    with pytest.raises(LedgerTampered, match="site-3"):
        Federation.from_config(path).run(tmp_path / "out", resume=True)
    file.write_bytes(kept_bytes)
    assert Federation.from_config(path).run(tmp_path / "out", resume=True).rounds == 3


def test_verify_says_that_no_check_covers_what_clients_keep(kept):
    *_, result = kept
    lines = "\n".join(verify_run(result.folder).lines)
    assert "personal/" in lines


def test_local_dp_sgd_trains_a_and_b_with_noise_on_both(tmp_path):
    privacy = {"unit": "example", "mechanism": "local", "noise_multiplier": 4.0}
    path = written(tmp_path, "fedsa", privacy=privacy, training={"rounds": 2, "local_steps": 2})
    federation = Federation.from_config(path)
    result = federation.run(tmp_path / "out")
    assert verify_run(result.folder).finished
    own = load_file(tmp_path / "out" / "personal" / "site-0" / "round-2.safetensors")
    assert all(bool(value.all()) for value in own.values())  # noise reaches every entry
    for figures in (unprotected(federation, Silent()), clients_alone(federation, Silent())):
        assert np.isfinite(figures.nll)


# -- what guards example-level privacy ---------------------------------------------------------


def test_a_wrong_gradient_in_a_later_turn_is_found_before_the_first_round(tmp_path, monkeypatch):
    batch_gradients = PerExampleGradients._batch_gradients

    def mixed(self, batch):
        found = batch_gradients(self, batch)
        return {n: g.flip(0) if factor_of(n) == "A" else g for n, g in found.items()}

    monkeypatch.setattr(PerExampleGradients, "_batch_gradients", mixed)
    assert Federation.from_config(written(tmp_path, "ffa")).prepare()
    for sharing in ("rolora", "fedit"):
        with pytest.raises(GradientCheckError, match="lora_A"):
            Federation.from_config(written(tmp_path, sharing)).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_trainer_that_changes_what_is_frozen_in_its_round_is_refused(tmp_path):
    own = {"rounds": 3, "trainer": "own_trainers:MovesFrozenFactor"}
    for sharing in ("rolora", "fedsb", "fedsvd"):
        path = averaged(tmp_path, sharing, training=own)
        with pytest.raises(ConfigError, match=r"frozen tensor .*lora_"):
            Federation.from_config(path).run(tmp_path / f"out-{sharing}")
        assert len(read_ledger(tmp_path / f"out-{sharing}" / "ledger.jsonl")) > 4  # in round 2


def test_a_trainer_of_the_users_own_works_in_turns_and_with_a_kept_b(tmp_path):
    own = {"rounds": 3, "trainer": "own_trainers:Quiet"}
    for sharing in ("rolora", "fedsa", "fedsvd"):
        path = averaged(tmp_path, sharing, training=own)
        assert Federation.from_config(path).run(tmp_path / f"out-{sharing}").rounds == 3


def test_comparisons_begin_every_client_anew(tmp_path):
    federation = Federation.from_config(written(tmp_path, "rolora", training={"rounds": 2}))
    result = federation.run(tmp_path / "out")
    first = clients_alone(federation, Silent())
    assert np.isfinite(unprotected(federation, Silent()).nll)
    again = clients_alone(federation, Silent())
    # Samples are drawn afresh, the starting point is not.
    assert again.nll == pytest.approx(first.nll, rel=0.2)
    assert first.nll < result.before.nll
    assert json.loads((result.folder / "costs.json").read_text())


@pytest.mark.parametrize(
    ("kind", "sharing"),
    [
        ("prompt", "ffa"),
        pytest.param(["lora", "ia3", "bottleneck"], "rolora", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_inserted_modules_train_with_dp_sgd_verify_and_load_back(tmp_path, kind, sharing):
    path = written(tmp_path, sharing, lora=LORA | {"sharing": sharing, "kind": kind},
                   training={"rounds": 2, "server_learning_rate": 0.05},
                   privacy={"noise_multiplier": 4.0})  # fmt: skip
    federation = Federation.from_config(path)
    result = federation.run(tmp_path / "out")
    verdict = verify_run(result.folder)
    assert verdict.finished
    assert any("adapter/inserted.safetensors" in line for line in verdict.lines)
    model = federation._used.model
    first = load_file(result.folder / "checkpoints" / "initial.safetensors")
    last = adapter_state(model)
    assert all(not torch.equal(first[n], last[n]) for n in first if factor_of(n) == "whole")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    if "lora" in kind:
        loaded = PeftModel.from_pretrained(loaded, str(result.folder / "adapter"))
    load_inserted(loaded, result.folder / "adapter")
    ids = torch.arange(8).unsqueeze(0)
    torch.testing.assert_close(
        loaded(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-4, rtol=1e-4
    )
