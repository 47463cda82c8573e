import json
import math
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny import write_run
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoModelForCausalLM

from securefed import Federation
from securefed.config import load_config
from securefed.engines import compare, settings, workbench
from securefed.engines.cohort import SimulatedClient
from securefed.engines.verify import verify_run
from securefed.engines.workbench import Workbench
from securefed.errors import (
    BudgetExceeded,
    ConfigError,
    DataError,
    ThresholdNotMet,
)
from securefed.evidence.budget import read_charges
from securefed.evidence.ledger import read_ledger
from securefed.privacy.accounting import epsilon_text
from securefed.training.data import ClientData, Examples
from securefed.training.dp_sgd import PerExampleGradients


class Lines:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.events: list = []
        self.folders: list[Path] = []

    def begun(self, folder):
        assert not self.events
        self.folders.append(folder)

    def message(self, text):
        self.messages.append(text)

    def working(self, what, done, total):
        assert 0 <= done <= total

    def round_end(self, event):
        self.events.append(event)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def finished(base):
    """One whole run, with two dropouts."""
    path = write_run(
        base,
        cohort={
            "simulated_dropouts": [
                {"round": 2, "client": "site-1", "stage": "masked_input"},
                {"round": 3, "client": "site-4", "stage": "unmask"},
            ]
        },
        evaluation={"max_windows": 4, "window_tokens": 8, "show_clients": True},
    )
    lines = Lines()
    result = Federation.from_config(path, observer=lines).run(base / "out")
    return result, lines


def test_a_run_trains_and_says_what_it_did(finished):
    result, lines = finished
    assert result.rounds == 3
    assert [e.round for e in lines.events] == [0, 1, 2, 3]
    assert [e.survivors for e in lines.events] == [6, 6, 5, 6]
    assert [e.silent for e in lines.events] == [0, 0, 0, 1]
    assert [e.note for e in lines.events] == [
        "",
        "",
        "1 dropped out",
        "1 fell silent after sending",
    ]
    assert lines.folders == [result.folder]
    assert result.after.perplexity < result.before.perplexity
    assert result.after.worst >= result.after.perplexity
    epsilons = [e.epsilon for e in lines.events]
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] == result.guarantees["server"].epsilon


def test_the_adapter_loads_with_peft_and_gives_the_same_model(finished, base):
    result, _ = finished
    adapter = result.folder / "adapter"
    model = AutoModelForCausalLM.from_pretrained(base / "model")
    loaded = PeftModel.from_pretrained(model, adapter)
    moved = [p for n, p in loaded.named_parameters() if "lora_B" in n]
    assert any(float(p.detach().abs().max()) > 0 for p in moved)
    text = (adapter / "adapter_config.json").read_text()
    assert str(base) not in text
    with torch.no_grad():
        out = loaded(torch.arange(8).unsqueeze(0)).logits
    assert torch.isfinite(out).all()


def test_a_run_folder_holds_what_it_should(finished):
    result, _ = finished
    names = {path.name for path in result.folder.iterdir()}
    assert {
        "adapter",
        "checkpoints",
        "clients",
        "config.toml",
        "costs.json",
        "ledger.head.json",
        "ledger.jsonl",
        "metrics.jsonl",
    } <= names
    assert load_config(result.folder / "config.toml").training.rounds == 3
    for line in (result.folder / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["held_out_guaranteed"] is False
    assert json.loads((result.folder / "shown.json").read_text())["guaranteed"] is False
    costs = json.loads((result.folder / "costs.json").read_text())
    assert costs["bytes_up_per_client_and_round"] > 0
    for path in result.folder.rglob("*.jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line)


def test_the_ledger_opens_a_round_before_it_sums_it_and_sums_before_it_applies(finished):
    result, _ = finished
    kinds = [r.kind for r in read_ledger(result.folder / "ledger.jsonl")]
    assert kinds[0] == "genesis"
    assert kinds[-2:] == ["closed", "witnessed"]
    order = [k for k in kinds if k.startswith("round_")]
    assert order == ["round_opened", "round_summed", "round_applied"] * 3


def test_a_client_that_sent_nothing_is_not_charged_and_one_that_sent_is(finished):
    result, _ = finished
    charges = {
        path.parent.name: len(read_charges(path))
        for path in (result.folder / "clients").glob("*/budget.jsonl")
    }
    assert charges["site-1"] == 2  # silent in round 2 before its input
    assert charges["site-4"] == 3  # silent in round 3 after its input
    assert result.charges == 3


def test_verify_recomputes_what_the_run_claims(finished):
    result, _ = finished
    verdict = verify_run(result.folder)
    assert verdict.finished
    assert verdict.charges == 3
    shown = epsilon_text(result.guarantees["server"].epsilon)
    assert f"epsilon against server: {shown}" in "\n".join(verdict.lines)


def test_an_existing_run_folder_is_not_overwritten(finished, base):
    with pytest.raises(ConfigError, match="is there already"):
        Federation.from_config(base / "run.toml").run(base / "out")


@pytest.mark.parametrize(
    ("privacy", "training"),
    [
        ({"unit": "example", "mechanism": "local", "update_clip_norm": 5.0}, {"local_steps": 2}),
        ({"unit": "client", "mechanism": "distributed", "clip_norm": 1.0}, {"local_steps": 2}),
        ({"unit": "client", "mechanism": "none"}, {"local_steps": 4, "local_learning_rate": 0.02}),
        ({"unit": "example", "mechanism": "none"}, {}),
        ({"noise": "skellam"}, {}),
        ({"mechanism": "central"}, {}),
        pytest.param({"noise_multiplier": None, "target_epsilon": 0.3}, {}, marks=pytest.mark.slow),
    ],
    ids=["local", "client", "none-client", "none-example", "skellam", "central", "target"],
)
def test_every_privacy_mode_runs(tmp_path, privacy, training):
    privacy = {"expected_batch": 60, "noise_multiplier": 4.0} | privacy
    path = write_run(
        tmp_path,
        privacy=privacy,
        training={"rounds": 2, "server_optimizer": "sgd", "server_learning_rate": 1.0, "threads": 1}
        | training,
    )
    result = Federation.from_config(path).run(tmp_path / "out")
    mechanism = privacy.get("mechanism", "distributed")
    statement = result.guarantees["server"]
    assert statement.protected == (mechanism not in ("none", "central"))
    assert result.guarantees["release"].protected == (mechanism != "none")
    spoken_of = result.guarantees[result.events[-1].against]
    assert result.events[-1].epsilon == (spoken_of.epsilon if spoken_of.protected else None)
    if "target_epsilon" in privacy:
        assert 0.297 < statement.epsilon <= 0.3
    if mechanism == "none":
        assert "NO differential privacy" in str(statement)
        assert result.after.nll < result.before.nll
    assert verify_run(result.folder).finished


def test_plaintext_sums_are_named_unprotected_against_the_server(tmp_path):
    path = write_run(tmp_path, aggregation={"kind": "plaintext"}, training={"rounds": 1})
    result = Federation.from_config(path).run(tmp_path / "out")
    assert result.guarantees["server"].epsilon == math.inf
    assert math.isfinite(result.guarantees["release"].epsilon)


def test_the_budget_stops_the_run_before_the_round_that_would_exceed_it(tmp_path):
    path = write_run(tmp_path, training={"rounds": 4})
    settings = Federation.from_config(path).prepare()[1]
    limit = (settings.epsilon_after(2) + settings.epsilon_after(3)) / 2
    path = write_run(tmp_path, training={"rounds": 4}, budget={"epsilon": limit})
    result = Federation.from_config(path).run(tmp_path / "out")
    assert result.rounds == 2
    assert result.guarantees["server"].epsilon <= limit
    assert "would exceed" in result.stopped
    metrics = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics[-1])["perplexity"] == result.after.perplexity
    assert verify_run(tmp_path / "out").finished


def test_retries_do_not_carry_a_run_beyond_its_target(tmp_path, monkeypatch):
    drops = [{"round": 2, "client": f"site-{i}", "stage": "unmask"} for i in range(3)]
    path = write_run(
        tmp_path,
        privacy={"noise_multiplier": None, "target_epsilon": 0.3},
        cohort={"simulated_dropouts": drops},
    )
    with pytest.raises(ThresholdNotMet):
        Federation.from_config(path).run(tmp_path / "out")
    # A resumed run goes on with the noise that is on record; another library might find another.
    monkeypatch.setattr(
        settings, "calibrated_policy", lambda *a, **k: pytest.fail("searched again")
    )
    with pytest.raises(ThresholdNotMet):  # round 2 once more; two charges of three are gone
        Federation.from_config(path).run(tmp_path / "out", resume=True)
    result = Federation.from_config(path).run(tmp_path / "out", resume=True)
    assert result.charges == 3
    assert result.rounds == 1
    assert "privacy.target_epsilon = 0.3: round 2 would exceed it" in result.stopped
    assert result.guarantees["server"].epsilon <= 0.3
    assert verify_run(tmp_path / "out").finished


def test_a_budget_too_small_for_one_round_runs_nothing(tmp_path):
    path = write_run(tmp_path, budget={"epsilon": 0.001})
    with pytest.raises(BudgetExceeded, match="nothing was run"):
        Federation.from_config(path).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_few_survivors_end_the_run_and_it_can_be_resumed_and_verified(tmp_path):
    drops = [{"round": 2, "client": f"site-{i}", "stage": "masked_input"} for i in range(3)]
    path = write_run(tmp_path, cohort={"simulated_dropouts": drops})
    with pytest.raises(ThresholdNotMet, match="at least 5 are needed"):
        Federation.from_config(path).run(tmp_path / "out")
    records = read_ledger(tmp_path / "out" / "ledger.jsonl")
    assert records[-1].kind == "round_failed"
    verdict = verify_run(tmp_path / "out")
    assert not verdict.finished
    # The three that sent an input are charged for it although no sum was opened.
    assert verdict.charges == 2


def watched_contributions(monkeypatch):
    """How many examples each contribution summed, and how often the model was called for it."""
    sizes, calls = [], []
    encoder, clipped_sum = Workbench.encoder, PerExampleGradients.clipped_sum

    def watched_encoder(self, settings, number, client_id):
        encode = encoder(self, settings, number, client_id)

        def watched(examples, codec, generator):
            called = []
            hook = register_module_forward_pre_hook(lambda *_: called.append(1))
            try:
                return encode(examples, codec, generator)
            finally:
                hook.remove()
                calls.append(len(called))

        return watched

    def watched_sum(self, examples, *clip, **phase):
        sizes.append(len(examples))
        return clipped_sum(self, examples, *clip, **phase)

    monkeypatch.setattr(Workbench, "encoder", watched_encoder)
    monkeypatch.setattr(PerExampleGradients, "clipped_sum", watched_sum)
    return sizes, calls


def test_an_empty_poisson_draw_sends_noise_and_never_calls_the_model(tmp_path, monkeypatch):
    sizes, calls = watched_contributions(monkeypatch)
    # Six clients draw one of their examples or more with probability 1e-12 in all.
    path = write_run(tmp_path, privacy={"expected_batch": 1e-12}, training={"rounds": 1})
    result = Federation.from_config(path).run(tmp_path / "out")
    assert result.rounds == 1
    assert sizes == [0] * 6
    assert calls == [0] * 6
    costs = json.loads((tmp_path / "out" / "costs.json").read_text())
    assert costs["bytes_up_per_client_and_round"] > 0


def test_every_client_and_round_draws_a_poisson_sample_of_its_own(tmp_path, monkeypatch):
    sizes, calls = watched_contributions(monkeypatch)
    rounds, clients = 6, 6
    privacy = {"expected_batch": 60, "noise_multiplier": 4.0}
    path = write_run(tmp_path, privacy=privacy, training={"rounds": rounds})
    result = Federation.from_config(path).run(tmp_path / "out")
    genesis = read_ledger(result.folder / "ledger.jsonl")[0].body
    q = genesis["privacy"]["sampling_probability"]
    counts = np.array([genesis["client_sizes"][name] for name in genesis["cohort"]])
    drawn = np.array(sizes).reshape(rounds, clients)
    assert [bool(called) for called in calls] == [bool(size) for size in sizes]
    # Eight standard errors of a binomial mean: outside it once in 10^15 runs.
    z = (drawn - q * counts) / np.sqrt(q * (1 - q) * counts)
    assert abs(z.mean()) < 8 / np.sqrt(z.size)
    # Not a batch of a fixed size: 36 binomial sizes would agree in each client once in 10^20 runs.
    assert (drawn != drawn[0]).any()


def test_missing_and_empty_data_make_no_run_folder(tmp_path):
    path = write_run(tmp_path)
    (tmp_path / "data" / "site-3.txt").write_text("")
    with pytest.raises(DataError, match="site-3"):
        Federation.from_config(path).run(tmp_path / "out")
    path = write_run(tmp_path, data={"source": str(tmp_path / "nowhere")})
    with pytest.raises(DataError, match="nowhere"):
        Federation.from_config(path).run(tmp_path / "out")
    path = write_run(tmp_path, data={"min_examples": 1000})
    with pytest.raises(DataError, match="1000"):
        Federation.from_config(path).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resume_refuses_a_folder_without_a_run_and_other_settings(finished, base, tmp_path):
    with pytest.raises(ConfigError, match="no run to go on with"):
        Federation.from_config(base / "run.toml").run(tmp_path / "nothing", resume=True)
    other = write_run(tmp_path, training={"rounds": 9})
    with pytest.raises(
        ConfigError, match=rf"model\.source is .*{base.name}.*, not .*{tmp_path.name}"
    ):
        Federation.from_config(other).run(base / "out", resume=True)


@pytest.mark.slow
def test_clients_alone_and_unprotected_runs_are_comparable_and_leave_nothing(tmp_path, monkeypatch):
    from securefed.engines.compare import clients_alone, unprotected

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = write_run(
        tmp_path,
        evaluation={"max_windows": 4, "window_tokens": 8},
        privacy={"remove_excess_noise": True},  # which nothing without noise can have
    )
    federation = Federation.from_config(path)
    result = federation.run(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    without = unprotected(federation, Lines())
    alone = clients_alone(federation, Lines())
    assert sorted(tmp_path.rglob("*")) == before
    assert without.nll < result.before.nll
    assert alone.nll < result.before.nll
    assert np.isfinite([without.nll, alone.nll]).all()


def test_an_unprotected_run_that_fails_leaves_nothing_either(tmp_path, monkeypatch):
    from securefed.engines.compare import unprotected

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    drops = [{"round": 2, "client": f"site-{i}", "stage": "masked_input"} for i in range(3)]
    path = write_run(tmp_path, cohort={"simulated_dropouts": drops})
    with pytest.raises(ThresholdNotMet):
        unprotected(Federation.from_config(path), Lines())
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("show", [False, True])
def test_training_that_ends_in_nan_sends_noise_and_is_not_seen_from_outside(tmp_path, show):
    """A diverging client counts as zeros; silence would tell it apart outside the noise."""
    privacy = {"unit": "client", "mechanism": "distributed", "clip_norm": 1.0}
    training = {"rounds": 1, "trainer": "tiny:DivergingTrainer"}
    evaluation = {"max_windows": 4, "window_tokens": 8, "show_clients": show}
    path = write_run(tmp_path, privacy=privacy, training=training, evaluation=evaluation)
    lines = Lines()
    result = Federation.from_config(path, observer=lines).run(tmp_path / "out")
    told = [text for text in lines.messages if "NaN" in text]
    # Only whoever owns all clients is told, once, and neither which client nor how many.
    assert len(told) == show
    assert not any("site-" in text for text in told)
    assert [e.survivors for e in lines.events] == [6, 6]
    assert "NaN" not in (result.folder / "ledger.jsonl").read_text()
    assert result.charges == 1


def test_runs_that_begin_in_one_minute_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_run(tmp_path, training={"rounds": 1})
    federation = Federation.from_config(path, clock=lambda: "2026-01-01T00:00:00Z")
    first, second = federation.run().folder, federation.run().folder
    assert first != second
    for folder in (first, second):
        assert re.fullmatch(r"tiny-20260101T000000Z-[0-9a-f]{6}", folder.name)


def test_a_client_says_nothing_of_its_data_when_printed():
    marked = np.full((3, 8), 271828)
    examples = Examples(marked, np.ones_like(marked), None)
    client = SimulatedClient("site-0", ClientData("site-0", examples, examples), None, None, None)
    assert "271828" not in repr(client)
    assert "array" not in repr(client)


def test_a_run_folder_is_flushed_before_it_takes_its_place(tmp_path, monkeypatch):
    flushed, moved = set(), []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor):
        flushed.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def noted_rename(self, target):
        if self.name == ".out.partial":
            whole = {str(path) for path in [self, *self.rglob("*")]}
            moved.append((whole, whole - flushed))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    Federation.from_config(write_run(tmp_path, training={"rounds": 1})).run(tmp_path / "out")
    ((whole, unflushed),) = moved
    assert any(name.endswith("initial.safetensors") for name in whole)
    assert unflushed == set()


@pytest.mark.parametrize(("mechanism", "times"), [("distributed", 1), ("local", 3)])
def test_a_comparison_takes_over_the_model_with_the_adapter_as_it_was_made(
    tmp_path, monkeypatch, mechanism, times
):
    loads = []

    def counted(*args, **kwargs):
        loads.append(args)
        return load_model(*args, **kwargs)

    load_model = workbench.load_model
    monkeypatch.setattr(workbench, "load_model", counted)
    path = write_run(tmp_path, training={"rounds": 1}, privacy={"mechanism": mechanism})
    federation = Federation.from_config(path)
    result = federation.run(tmp_path / "out")
    assert compare.unprotected(federation, Lines()).clients == 6
    assert compare.clients_alone(federation, Lines()).clients == 6
    assert len(loads) == times
    bench, _ = federation.like(federation.config, Lines()).prepare()
    begun = read_ledger(result.folder / "ledger.jsonl")[0].body
    assert bench.adapter_hash().hex() == begun["adapter_sha256"]
    assert verify_run(result.folder).finished
