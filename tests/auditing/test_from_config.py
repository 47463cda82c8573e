"""Rounds made from a run file are those of the run."""

import shutil

import numpy as np
import pytest
import torch
from run_audits import load, run_file

from securefed import Federation
from securefed.attacks.base import Limits
from securefed.attacks.inversion.exact import SpanInversion
from securefed.auditing.cells import Cell, NotApplicable
from securefed.auditing.from_config import AuditedRun, audited_file
from securefed.auditing.trials import attempt, capture
from securefed.errors import ConfigError, LedgerTampered


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Distributed DP-SGD, FFA: B of rank 8 travels, windows of 8 tokens."""
    return load(tmp_path_factory.mktemp("audited"), lora={"rank": 8})


def test_a_contribution_is_the_clipped_gradient_of_the_runs_own_path(audited):
    bench = audited.bench(noise=False, masks=False)
    text = audited.texts[0]
    found = bench.update([text])
    model = audited.workbench.model
    audited.workbench.begin_round(1)
    ids = torch.tensor([text])
    model.zero_grad()
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1]
    torch.nn.functional.cross_entropy(logits, ids[0, 1:]).backward()
    layout = audited.workbench.parts.layout
    parameters = dict(model.named_parameters())
    flat = layout.flatten({n: parameters[n].grad for n in layout.names})
    clip = audited.config.privacy.clip_norm
    expected = -flat * min(1.0, clip / np.linalg.norm(flat))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    model.zero_grad(set_to_none=True)


def test_several_examples_are_clipped_one_by_one(audited):
    bench = audited.bench(noise=False, masks=False, batch=2)
    pair = bench.update(audited.texts[:2])
    single = [bench.update([text]) for text in audited.texts[:2]]
    np.testing.assert_allclose(pair, single[0] + single[1], atol=1e-6)


@pytest.mark.parametrize(("masks", "exposure"), [(False, "plain"), (True, "sum")])
def test_what_the_server_reads_is_what_clients_sent(audited, masks, exposure):
    bench = audited.bench(noise=False, masks=masks)
    found = capture(bench, audited.texts, exposure=exposure, seed=0)
    order = np.random.default_rng([0, 1]).permutation(len(audited.texts))
    dealt = [audited.texts[i] for i in order[: 1 if exposure == "plain" else 6]]
    assert found.inside == tuple((text,) for text in dealt)
    expected = sum(bench.update([text]) for text in dealt)
    np.testing.assert_allclose(found.view.reading(found.public), expected, atol=1e-3)


def test_the_runs_own_noise_is_in_what_a_client_sends_before_it_masks(audited):
    quiet, noisy = (audited.bench(noise=noise, masks=False) for noise in (False, True))
    text = audited.texts[:1]
    share = noisy.session().plan.local_std * noisy.session().plan.resolution
    assert share > 0.0
    found = capture(noisy, audited.texts, exposure="plain", seed=0)
    off = found.view.reading(found.public) - quiet.update(found.inside[0])
    assert 0.9 * share < off.std() < 1.1 * share
    swept = audited.bench(noise=0.25, masks=False).session()
    z = swept.plan.local_std * swept.plan.resolution / audited.config.privacy.clip_norm
    assert z == pytest.approx(0.25, rel=0.05)
    assert len(quiet.update(text)) == audited.workbench.dimension


def test_the_attack_works_with_the_defence_off_and_not_on_another_clients_update(audited):
    attack, limits = SpanInversion(), Limits(seconds=20.0, max_tokens=12)
    bench = audited.bench(noise=False, masks=False)
    plain, other = (
        attempt(
            attack,
            capture(bench, audited.texts, exposure=exposure, seed=3),
            audited.prior(),
            limits=limits,
        )
        for exposure in ("plain", "other")
    )
    assert plain.score.token_recall > other.score.token_recall + 0.3


def test_a_moves_only_while_b_is_not_zero(tmp_path):
    run = load(tmp_path, lora={"sharing": "rolora", "rank": 4})
    assert (run.number, run.state) == (2, "B drawn at random, std 0.02")
    bench = run.bench(noise=False, masks=False)
    assert all(".lora_A." in name for name in bench.layout.names)
    assert np.abs(bench.update(run.texts[:1])).max() > 0.0


def test_local_steps_are_the_runs_own(tmp_path):
    run = load(
        tmp_path,
        privacy={"unit": "client", "expected_batch": 1.0, "clip_norm": 1.0},
        training={"local_steps": 3, "local_optimizer": "sgd", "local_learning_rate": 0.5},
    )
    setup = run.setup(2)
    assert (setup.local_steps, setup.optimizer, setup.learning_rate) == (3, "sgd", 0.5)
    before = run.workbench.parts.flat()
    assert np.abs(run.bench(noise=False, masks=False).update(run.texts[:2])).max() > 0.0
    np.testing.assert_array_equal(run.workbench.parts.flat(), before)


def test_the_control_is_over_whole_weights_of_two_clients(audited):
    bench = audited.control()
    assert bench.setup.clients == 2
    assert not any("lora" in name for name in bench.layout.names)
    found = attempt(
        SpanInversion(),
        capture(bench, audited.texts, exposure="plain", seed=0),
        audited.prior(),
        limits=Limits(seconds=20.0, max_tokens=12),
    )
    assert found.score.token_recall > 0.85  # the last token is a target only


@pytest.mark.parametrize(
    ("cell", "sections", "words"),
    [
        (Cell("a", "plain", "noise"), {"privacy": {"mechanism": "none"}}, "add no noise"),
        (Cell("a", "masked", "masks"), {"aggregation": {"kind": "plaintext"}}, "masks nothing"),
        (Cell("a", "plain", "off", batch=1000), {}, "need 6000 texts"),
    ],
)
def test_what_a_run_does_not_have_is_not_applicable(tmp_path, cell, sections, words):
    sections = {"privacy": {"noise_multiplier": None}} | sections
    with pytest.raises(NotApplicable, match=words):
        cell.bench(load(tmp_path, **sections))


@pytest.mark.parametrize("defence", ["on", "noise-", "noise-x", "noise--1"])
def test_an_unknown_defence_is_refused(audited, defence):
    with pytest.raises(ConfigError, match="defence"):
        Cell("a", "plain", defence).bench(audited)


def test_what_is_not_covered_is_refused_before_anything_is_loaded(tmp_path):
    sections = {"training": {"sparsify": "random", "keep_fraction": 0.5}}
    with pytest.raises(ConfigError, match=r"training\.sparsify"):
        load(tmp_path, **sections)


@pytest.mark.slow
def test_a_finished_runs_own_adapter_is_attacked_and_a_changed_one_refused(tmp_path):
    path = run_file(tmp_path, training={"rounds": 1})
    folder = Federation.from_config(path).run(tmp_path / "out").folder
    config, found = audited_file(folder)
    assert found == folder
    run = AuditedRun.load(config, folder=folder)
    assert (run.number, run.state) == (2, "after round 1")
    assert any(bool(t.any()) for n, t in run.released().items() if "lora_B" in n)
    copy = shutil.copytree(folder, tmp_path / "copy")
    ledger = bytearray((copy / "ledger.jsonl").read_bytes())
    ledger[len(ledger) // 2] ^= 1
    (copy / "ledger.jsonl").write_bytes(ledger)
    with pytest.raises(LedgerTampered):
        AuditedRun.load(config, folder=copy)
    with pytest.raises(ConfigError, match="missing"):
        audited_file(tmp_path)
