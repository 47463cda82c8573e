"""examples/accuracy/sharing.py in miniature: no figure of it comes without the work."""

import importlib
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from tiny import WORDS, write_bert, write_clients, write_model, write_run

from securefed import Federation
from securefed.config import LoraSection, ModelSection
from securefed.crypto.prg import NoiseGenerator
from securefed.encoding.wire import packed_size
from securefed.lora.adapter import adapter_state
from securefed.lora.layout import AdapterLayout
from securefed.training.corpora import Corpus, Document

FOLDER = Path(__file__).parents[2] / "examples" / "accuracy"
NAMES = (
    *("bench", "quick", "combining"),
    *("sharing_tasks", "sharing_rounds", "sharing_wire", "sharing_table", "sharing"),
    *("mechanisms", "sharing_private"),
)
SMALL = {
    "clients": 4,
    "left_out": 2,
    "held_out": 4,
    "tiers": (4, 4, 4, 2),
    "core_rank": 3,
    "window_tokens": 8,
    "rounds": 2,
    "local_steps": 2,
    "batch_size": 8,
    "personal_steps": 3,
    "seeds": (1,),
    "tuning_seeds": (10,),
    "bfloat16": False,
}


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def speeches(scripts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("speeches")
    task = replace(
        scripts.sharing_tasks.SPEECHES,
        source=str(write_clients(folder / "data")),
        model=ModelSection(source=str(write_model(folder / "model"))),
        **SMALL,
    )
    ground = scripts.sharing_tasks.Speeches(task, cache=folder, offline=True)
    return scripts.sharing.Experiment(ground)


def mails(count: int, seed: int, label: int) -> list[Document]:
    rng = random.Random(f"{seed} {label}")
    words = WORDS[:30] if label else WORDS[30:]
    return [
        Document(" ".join(rng.choices(words, k=rng.randint(4, 12))), label, f"{seed}-{i}", None)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def mail(scripts, tmp_path_factory):
    folder = write_bert(tmp_path_factory.mktemp("bert"), layers=2)
    task = replace(
        scripts.sharing_tasks.MAILS,
        model=ModelSection(source=str(folder), task="sequence-classification", labels=2),
        **SMALL,
    )
    senders = {f"s{n}": mails(20 + 10 * n, n, 0) + mails(20, n, 1) for n in range(8)}
    ground = scripts.sharing_tasks.Mails(task, senders, cache=folder, offline=True)
    return scripts.sharing.Experiment(ground)


def arm(scripts, name):
    (found,) = (each for each in scripts.sharing.ARMS if each.name == name)
    return found


def flat(parameters):
    layout = AdapterLayout({name: tuple(p.shape) for name, p in parameters.items()})
    return layout.flatten(parameters)


def quietly(scripts, experiment, path):
    results = scripts.bench.Results(path)
    scripts.sharing.run_all(experiment, results, Console(quiet=True))
    return scripts.bench.Results(path)


MAIL_ARMS = ("full fine-tuning", "FFA", "FedSA", "Fed-SB", "personal copy after FFA", "bottleneck")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["speeches", "mail"])
def test_every_method_runs_is_measured_and_resumes(which, scripts, request, tmp_path, monkeypatch):
    experiment = request.getfixturevalue(which)
    if which == "mail":  # what differs with a head
        some = tuple(each for each in scripts.sharing.ARMS if each.name in MAIL_ARMS)
        monkeypatch.setattr(scripts.sharing, "ARMS", some)
    path = tmp_path / "sharing.jsonl"
    results = quietly(scripts, experiment, path)
    task, runs = experiment.task.name, results.runs
    for arm in scripts.sharing.ARMS:
        (own,) = scripts.sharing_table.of(runs, task, arm.name)
        assert all(np.isfinite(v) for v in own.values() if isinstance(v, float))
        assert own["nll"] <= own["worst_nll"]
        assert own["train_seconds"] > 0.0
        tried = {run["rate"] for run in runs if run.get("arm") == arm.name and run["seed"] == 10}
        assert 2 < len(tried) <= scripts.sharing.MOST_TRIED
        assert own["rate"] in tried
    before = path.read_bytes()
    quietly(scripts, experiment, path)
    assert path.read_bytes() == before
    shown = scripts.sharing_table.tables(results)
    assert len(shown.splitlines()) == 2 + 3 + 1 + 2 + 2 * len(scripts.sharing.ARMS)


def test_what_is_sent_is_counted_from_the_parameters_and_a_masked_round(scripts, speeches):
    base = sum(p.numel() for p in speeches.ground.fresh(1).parameters())
    sent = {}
    for name in ("full fine-tuning", "FFA", "FedIT", "Fed-SB", "mixed ranks"):
        method = arm(scripts, name)
        trained = speeches.trained(method, 1e-3, 1, 0.0)
        tiers = None
        if method.way == "tiered":
            parts = scripts.sharing.AdapterParts(speeches.adapted(method, 0), "ffa")
            names = scripts.sharing_wire.cohort_of(speeches.task).names
            tiers = scripts.sharing_rounds.Tiered.of(speeches.task, parts, names)
        sent[name] = scripts.sharing_wire.wire(speeches.task, trained.values, tiers)
    assert sent["full fine-tuning"]["values"] == base
    for found in sent.values():
        if "bytes_by_rank" not in found:
            assert found["masked_bytes"] >= packed_size(found["values"], 20)
        assert found["bytes_up"] > found["masked_bytes"]
        assert found["client_seconds"] > 0.0
    by_rank = sent["mixed ranks"]["bytes_by_rank"]
    assert by_rank["2"] < sent["mixed ranks"]["bytes_up"] < by_rank["4"]
    order = ["Fed-SB", "FFA", "FedIT", "full fine-tuning"]
    assert [sent[name]["values"] for name in order] == sorted(sent[n]["values"] for n in order)


@pytest.mark.parametrize("sharing", ["ffa", "rolora"])
def test_a_method_is_what_a_run_of_the_library_does(sharing, scripts, speeches, tmp_path):
    """The same clients, rounds, steps and batches through ``Federation``, and through the table."""
    task, clients = speeches.task, speeches.clients(1)
    section = task.section({"sharing": sharing}, 1)
    path = write_run(
        tmp_path,
        data={
            "source": task.source,
            "clients": sorted(clients.train),
            "window_tokens": task.window_tokens,
        },
        lora={
            "rank": section.rank,
            "alpha": section.alpha,
            "target_modules": section.target_modules,
            "sharing": sharing,
            "seed": 1,
        },
        training={
            "rounds": task.rounds,
            "local_steps": task.local_steps,
            "batch_size": task.batch_size,
            "local_learning_rate": 0.01,
            "server_optimizer": "sgd",
            "server_learning_rate": 1.0,
        },
        privacy={
            "unit": "client",
            "mechanism": "none",
            "clip_norm": task.clip_norm,
            "update_clip_norm": task.clip_norm,
        },
    )
    federation = Federation.from_config(path)
    federation.run(tmp_path / "out")
    expected = adapter_state(federation._used.model)
    method = scripts.sharing.Arm("", "shared", {}, {"sharing": sharing})
    found = adapter_state(speeches.trained(method, 0.01, 1, 0.0).model)
    first = adapter_state(speeches.adapted(method, 1))
    moved = flat(expected) - flat(first)
    # Adam takes the sign of a gradient that rounding alone decides, so a few values may differ.
    assert np.linalg.norm(flat(found) - flat(expected)) < 0.03 * np.linalg.norm(moved)
    assert np.abs(moved).max() > 0.015


def test_the_mean_of_all_parameters_is_that_of_encoded_ones(scripts, speeches):
    task, clients = replace(speeches.task, rounds=1), speeches.clients(1)
    start = flat(dict(speeches.ground.fresh(1).named_parameters()))
    found = scripts.sharing_rounds.full(
        task, speeches.ground.fresh(1), clients, rate=1e-3, seed=1
    ).model
    cohort = scripts.bench.Cohort.of(tuple(sorted(clients.train)))
    session = cohort.session(1, scripts.sharing_rounds.policy_of(task), start.size)
    encoded = {}
    for name in cohort.names:
        model = speeches.ground.fresh(1).requires_grad_(True)
        scripts.sharing_rounds.local_steps(
            task, model, clients.train[name], rate=1e-3, number=1, seed=1
        )
        moved = flat(dict(model.named_parameters())) - start
        encoded[name] = session.codec.encode_update(moved, NoiseGenerator())
    mean = scripts.bench.plain_sum(session, encoded) / len(cohort.names)
    np.testing.assert_allclose(flat(dict(found.named_parameters())) - start, mean, atol=1e-4)
    assert np.abs(mean).max() > 1e-3


def test_steps_in_bfloat16_follow_those_in_float32(scripts, speeches):
    """Weights that autocast had kept from the first step would make every later one repeat it."""
    examples = next(iter(speeches.clients(1).train.values()))
    moved = {}
    for low in (False, True):
        task = replace(speeches.task, bfloat16=low, local_steps=12)
        model = speeches.ground.fresh(1).requires_grad_(True)
        start = flat(dict(model.named_parameters()))
        scripts.sharing_rounds.local_steps(task, model, examples, rate=0.03, number=1, seed=1)
        moved[low] = flat(dict(model.named_parameters())) - start
    cosine = moved[0] @ moved[1] / np.linalg.norm(moved[0]) / np.linalg.norm(moved[1])
    assert cosine > 0.9


def test_clients_left_out_take_no_part_and_seeds_draw_others(scripts, speeches, mail):
    for experiment in (speeches, mail):
        clients = experiment.ground.clients(1)
        assert list(clients.train) == list(clients.held_out)
        assert not set(clients.train) & set(clients.left_out)
        assert len(clients.train) == 4
        assert len(clients.left_out) == 2
        draws = {tuple(experiment.ground.clients(seed).train) for seed in range(6)}
        assert len(draws) > 1
        assert all(len(held_out) <= 4 for held_out in clients.held_out.values())


def test_a_client_without_a_b_of_its_own_has_the_base_model(scripts, speeches):
    trained = speeches.trained(arm(scripts, "FedSA"), 0.03, 1, 0.0)
    found, before = speeches.measured(trained, 1, whole=True), speeches.before(1)
    assert found["left_nll"] == pytest.approx(before["left_nll"], abs=1e-4)
    assert found["nll"] < before["nll"] - 0.01


def test_a_personal_copy_is_kept_where_it_serves_better(scripts, speeches, monkeypatch):
    experiment = scripts.sharing.Experiment(speeches.ground)
    experiment.task = replace(speeches.task, rounds=4, local_steps=4)
    common = 0.1
    method = arm(scripts, "personal copy after FFA")
    ffa = experiment.measured(
        experiment.trained(arm(scripts, "FFA"), common, 1, 0.0), 1, whole=True
    )
    trained = experiment.trained(method, 0.01, 1, common)
    found = experiment.measured(trained, 1, whole=True)
    assert trained.notes["mean_weight"] > 0.0
    assert found["nll"] < ffa["nll"] < speeches.before(1)["nll"] - 0.1
    assert found["left_nll"] == pytest.approx(
        ffa["left_nll"], abs=1e-5
    )  # who took no part has none
    # Weights that lead away from what was learnt: the shared one is kept, or what beats it.
    monkeypatch.setattr(scripts.sharing_rounds, "WEIGHTS", (-1e3, -1.0))
    trained, kept = experiment.trained(method, 0.03, 1, common), 0
    for place, (name, examples) in enumerate(sorted(experiment.clients(1).train.items())):
        order = np.random.default_rng([1, 17, place]).permutation(len(examples))
        aside = examples.take(order[: min(round(0.25 * len(examples)), 16)])
        shared = experiment._scored(trained, "", aside)[0]
        own = experiment._scored(trained, name, aside)[0]
        assert own <= shared + 1e-6
        kept += own == pytest.approx(shared, abs=1e-6)
    assert trained.notes["kept_the_shared"] == kept / 4 >= 0.5


def test_the_tables_of_the_readme_are_those_of_the_results(scripts):
    results = scripts.bench.Results(FOLDER / "results" / "sharing.jsonl")
    told = (FOLDER / "README.md").read_text(encoding="utf-8")
    for task in dict.fromkeys(run["task"] for run in results.runs):
        assert scripts.sharing_table.gains(results.runs, task) in told
        assert scripts.sharing_table.costs(results.runs, task) in told
    private = scripts.bench.Results(FOLDER / "results" / "sharing_private.jsonl")
    design = scripts.sharing_private.Design()
    assert scripts.sharing_private.table(private.runs, design) in told


def run_of(task, arm, seed, nll, **others):
    return {"task": task, "arm": arm, "seed": seed, "nll": nll} | others


@pytest.mark.parametrize(
    ("after", "sent", "holds"), [(1.04, 9, True), (1.06, 9, False), (1.04, 11, False)]
)
def test_the_claim_holds_only_with_both_its_figures(scripts, after, sent, holds):
    runs = [run_of("speeches", "before training", seed, 2.0) for seed in (1, 2, 3)]
    runs += [run_of("speeches", "full fine-tuning", seed, 1.0, values=1000) for seed in (1, 2, 3)]
    runs += [run_of("speeches", "FFA", seed, after, values=8) for seed in (1, 2, 3)]
    runs += [run_of("speeches", "FFA", 10, 0.0, values=8)]  # of the tuning: not counted
    runs += [{"task": "speeches", "wire": n, "bytes_up": b} for n, b in ((1000, 1000), (8, sent))]
    found = scripts.sharing_table.claim(runs, "speeches", "FFA")
    assert found["gain"] == pytest.approx(2.0 - after)
    assert found["bytes"] == pytest.approx(sent / 1000)
    assert found["holds"] is holds


@pytest.mark.slow
def test_the_modes_run_under_noise_and_resume(scripts, mail, tmp_path, monkeypatch):
    corpus = Corpus("mails", mail.ground._senders, [], tuple(mail.ground._senders), "", False)
    design = scripts.sharing_private.Design(
        rounds=2,
        expected_batch=40.0,
        seeds=(1,),
        most_tried=2,
        core_rank=3,
        model=mail.task.model,
        lora=LoraSection(
            rank=2,
            alpha=2.0,
            target_modules=["layer.1.attention.self.value"],
            modules_to_save=["classifier"],
        ),
        data=scripts.mechanisms.DATA.model_copy(update={"window_tokens": 8}),
        micro_batch=4,
    )
    experiment = scripts.sharing_private.Experiment(design, corpus, cache=tmp_path, offline=True)
    path = tmp_path / "private.jsonl"
    monkeypatch.setattr(scripts.sharing_private, "MODES", ("fedsb", "rolora"))
    scripts.sharing_private.run_all(experiment, scripts.bench.Results(path), Console(quiet=True))
    runs = scripts.bench.Results(path).runs
    assert len(runs) == 3 * (2 + 1)
    assert len(scripts.sharing_private.table(runs, design).splitlines()) == 2 + 3
    for run in runs:
        assert 0.0 <= run["auc"] <= 1.0
        assert (run["epsilon"] is not None) is run["noise"]
        assert run["epsilon"] is None or 3.9 < run["epsilon"] <= 4.0
        assert (run["noise_multiplier"] > 0.3) is run["noise"]
    before = path.read_bytes()
    scripts.sharing_private.run_all(experiment, scripts.bench.Results(path), Console(quiet=True))
    assert path.read_bytes() == before
