"""examples/accuracy: both experiments in miniature, and the committed results as they are told."""

import importlib
import math
import random
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import WORDS, write_bert

from securefed.config import DataSection, LoraSection, ModelSection
from securefed.errors import DataError, ProtocolError
from securefed.lora.adapter import build_adapter
from securefed.lora.layout import AdapterLayout
from securefed.lora.sharing import travelling_parameters
from securefed.privacy.accounting import guarantee
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.pld import distributed_epsilon
from securefed.training.corpora import Corpus, Document
from securefed.training.dp_sgd import PerExampleGradients
from securefed.training.models import load_model

FOLDER = Path(__file__).parents[2] / "examples" / "accuracy"
LORA = LoraSection(
    rank=2,
    alpha=2.0,
    target_modules=["layer.2.attention.self.value"],
    modules_to_save=["classifier"],
)


@pytest.fixture(scope="module")
def scripts():
    names = ("bench", "mechanisms", "client_level", "figures")
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> ModelSection:
    """A BERT of three layers over the tiny vocabulary, weights at random."""
    folder = write_bert(tmp_path_factory.mktemp("bert"), layers=3, initializer_range=0.2)
    return ModelSection(source=str(folder), task="sequence-classification", labels=2)


def documents(count: int, seed: int, label: int) -> list[Document]:
    rng = random.Random(f"{seed} {label}")
    words = WORDS[:30] if label else WORDS[30:]
    return [
        Document(
            " ".join(rng.choices(words, k=rng.randint(4, 12))), label, f"{seed}-{label}-{i}", None
        )
        for i in range(count)
    ]


def mails(clients: int, wanted: int, spam: int) -> dict[str, list[Document]]:
    return {f"s{n:03}": documents(wanted, n, 0) + documents(spam, n, 1) for n in range(clients)}


@pytest.fixture(scope="module")
def mechanisms(scripts, tiny, tmp_path_factory):
    design = scripts.mechanisms.Design(
        rounds=2,
        expected_batch=30.0,
        learning_rate=0.05,
        seeds=(1, 2),
        model=tiny,
        lora=LORA,
        data=DataSection(window_tokens=8, held_out_fraction=0.4),
        micro_batch=8,
        dropout_fraction=0.2,
    )
    clients = mails(10, 6, 4)
    corpus = Corpus("mails", clients, [], tuple(clients), "", False)
    return scripts.mechanisms.Experiment(
        design, corpus, cache=tmp_path_factory.mktemp("cache"), offline=True
    )


@pytest.fixture(scope="module")
def client_level(scripts, tiny, tmp_path_factory):
    design = scripts.client_level.Design(
        epsilons=(None, 5.0),
        rounds=2,
        seeds=(1, 2),
        most_wanted=3,
        model=tiny,
        lora=LORA,
        window_tokens=8,
        micro_batch=8,
    )
    return scripts.client_level.Experiment(
        design, mails(40, 5, 1), cache=tmp_path_factory.mktemp("cache"), offline=True
    )


# -- what is computed ----------------------------------------------------------------------


def test_the_faster_model_computes_what_the_plain_one_does(scripts, mechanisms, tiny, tmp_path):
    fast = mechanisms.model(3)
    torch.manual_seed(3)
    loaded = load_model(tiny, cache=tmp_path, offline=True, device=torch.device("cpu"))
    plain = build_adapter(
        loaded.model, LORA.model_copy(update={"seed": 3}), task="sequence-classification"
    )
    travelling = travelling_parameters(plain, "ffa")
    layout = AdapterLayout({name: tuple(p.shape) for name, p in travelling.items()})
    assert layout.size == fast.layout.size
    start = layout.flatten({n: p.detach() for n, p in travelling.items()})
    assert np.array_equal(start, fast.initial)
    values = np.random.default_rng(5).normal(0, 0.3, layout.size).astype(np.float32)
    fast.load(values)
    with torch.no_grad():
        for name, tensor in layout.unflatten(values).items():
            travelling[name].copy_(tensor)
    examples = mechanisms.mails.test
    assert len(set(examples.attention_mask.sum(axis=1))) > 1  # padding is tried too
    logits, sums = [], []
    for module, own in ((plain, layout), (fast.module, fast.layout)):
        batch = {
            "input_ids": torch.from_numpy(examples.input_ids),
            "attention_mask": torch.from_numpy(examples.attention_mask),
        }
        with torch.no_grad():
            logits.append(module(**batch).logits.numpy())
        gradients = PerExampleGradients(
            module,
            own,
            task="sequence-classification",
            micro_batch=4,
            device=torch.device("cpu"),
        )
        sums.append(gradients.clipped_sum(examples, 0.1))
        gradients.close()
    assert logits[0].std() > 0.05
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5)
    assert np.linalg.norm(sums[0]) > 0.1
    np.testing.assert_allclose(sums[1], sums[0], atol=1e-5)


def test_frozen_layers_are_computed_once_an_example_and_whatever_is_beside_it(scripts):
    calls = []

    class Layer(torch.nn.Module):
        def forward(self, hidden, mask, **options):
            calls.append(len(hidden))
            return hidden * 2 + mask

    memoised = scripts.bench.Memoised([Layer()])
    hidden, mask = torch.randn(3, 4, 2), torch.ones(3, 1, 1)
    mask[2] = 0
    first = memoised(hidden, mask)
    again = memoised(hidden.flip(0), mask.flip(0))
    assert calls == [1, 1, 1]
    assert torch.equal(again.flip(0), first)
    assert torch.equal(first, hidden * 2 + mask)
    memoised(hidden[:1], mask[2:])  # the same example under another mask is another
    assert calls == [1] * 4


def test_rows_belong_to_their_owners(scripts, mechanisms):
    model = mechanisms.model(1)
    gradients = PerExampleGradients(
        model.module,
        model.layout,
        task="sequence-classification",
        micro_batch=4,
        device=torch.device("cpu"),
    )
    owned = {name: data.train for name, data in list(mechanisms.mails.clients.items())[:3]}
    owned["none"] = owned["s000"].take([])
    sums = dict.fromkeys(owned, np.zeros(model.layout.size))
    for name, row in scripts.bench.rows_by_owner(gradients, owned, model.layout):
        sums[name] = sums[name] + row
    for name, examples in owned.items():
        alone = gradients.clipped_sum(examples, 1e6)
        np.testing.assert_allclose(sums[name], alone, atol=1e-6)
    gradients.close()


def test_figures_of_two_classes_are_those_of_the_definition(scripts):
    scores = np.array([0.3, -0.2, 0.3, -1.0, 2.0])
    labels = np.array([1, 1, 0, 0, 1])
    found = scripts.bench.binary_figures(scores, labels)
    pairs = [(a > b) + (a == b) / 2 for a in (0.3, -0.2, 2.0) for b in (0.3, -1.0)]
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["auc"] == pytest.approx(sum(pairs) / len(pairs))


# -- who adds the noise --------------------------------------------------------------------


@pytest.mark.slow
def test_every_arm_spends_the_same_epsilon(mechanisms):
    design, size = mechanisms.design, len(mechanisms.cohort.names)
    for arm, against in (("distributed", "server"), ("central", "release"), ("local", "server")):
        policy = mechanisms.policy(arm)
        plan = plan_round(policy, cohort_size=size, dimension=mechanisms.dimension)
        spent = guarantee(policy, plan, cohort_size=size, against=against).epsilon
        assert 0.98 * design.epsilon < spent <= design.epsilon, arm
    policy = mechanisms.policy("local_sum")
    spent = distributed_epsilon(
        plan_round(policy, cohort_size=size, dimension=mechanisms.dimension),
        honest=1,
        sampling_probability=policy.sampling_probability,
        rounds=policy.rounds,
        delta=policy.delta,
    )
    assert 0.98 * design.epsilon < spent <= 1.001 * design.epsilon


@pytest.mark.parametrize("arm", ["none", "central", "distributed", "local_sum"])
def test_the_noise_that_is_told_of_is_the_noise_on_the_sum(scripts, mechanisms, arm):
    dimension = 8000
    session = mechanisms.cohort.session(1, mechanisms.policy(arm), dimension)
    encoded = {
        name: session.codec.encode_clipped_sum(np.zeros(dimension), scripts.bench.NoiseGenerator())
        for name in mechanisms.cohort.names
    }
    found = np.std(scripts.bench.plain_sum(session, encoded)) / session.policy.clip_norm
    assert found == pytest.approx(mechanisms.noise_on_the_sum(arm), rel=0.05, abs=1e-4)


@pytest.mark.slow
def test_the_mechanisms_run_resume_and_are_told(scripts, mechanisms, tmp_path):
    path = tmp_path / "mechanisms.jsonl"
    scripts.mechanisms.run_all(mechanisms, scripts.bench.Results(path), Console(quiet=True))
    runs = scripts.bench.Results(path).runs
    assert {(run["arm"], run["seed"]) for run in runs} == {
        (arm, seed) for arm in scripts.mechanisms.ARMS for seed in (1, 2)
    }
    assert [(r["arm"], r["seed"]) for r in runs if r["masked"]] == [("distributed", 1)]
    for run in runs:
        assert all(0.0 <= run[figure] <= 1.0 for figure in ("accuracy", "auc"))
        assert run["held_out"] == len(mechanisms.mails.test) == 20
    before = path.read_bytes()
    scripts.mechanisms.run_all(mechanisms, scripts.bench.Results(path), Console(quiet=True))
    assert path.read_bytes() == before
    scripts.figures.draw_mechanisms(runs, tmp_path / "a.svg")
    ET.parse(tmp_path / "a.svg")
    assert "distributed" in scripts.figures.mechanisms_table(runs)


def test_a_masked_sum_that_is_not_the_plain_one_ends_the_run(scripts, mechanisms, monkeypatch):
    real = scripts.mechanisms.plain_sum
    monkeypatch.setattr(scripts.mechanisms, "plain_sum", lambda *a: real(*a) + 1e-9)
    with pytest.raises(ProtocolError, match="the masked sum is not the plain one"):
        mechanisms.run("distributed", 1, on=mechanisms.mails.test, masked=True)


def test_without_noise_the_miniature_learns(mechanisms, monkeypatch):
    monkeypatch.setattr(mechanisms, "design", replace(mechanisms.design, rounds=20))
    found = mechanisms.run("none", 1, on=mechanisms.mails.test)
    assert found["auc"] > 0.8


# -- whole clients -------------------------------------------------------------------------


def test_mails_are_dealt_by_hashes_and_no_measured_sender_is_a_client(scripts):
    senders = mails(60, 5, 2)
    clients, validation, test = scripts.client_level.deal(senders, 3)
    again = scripts.client_level.deal(dict(reversed(senders.items())), 3)
    assert [[d.key for d in part] for part in (*clients.values(), validation, test)] == [
        [d.key for d in part] for part in (*again[0].values(), *again[1:])
    ]
    keys = [d.key for part in (*clients.values(), validation, test) for d in part]
    assert len(set(keys)) == len(keys)
    sender_of = {d.key: name for name, own in senders.items() for d in own}
    for part in (validation, test):
        assert [d.label for d in part] == sorted(d.label for d in part)
        assert sum(d.label == 0 for d in part) == sum(d.label == 1 for d in part) > 0
        assert not {sender_of[d.key] for d in part if d.label == 0} & set(clients)
    for own in clients.values():
        assert 1 <= sum(d.label == 0 for d in own) <= 3
        assert sum(d.label == 1 for d in own) >= 1
    assert 30 < len(clients) < 55


def test_too_few_senders_are_refused(scripts):
    with pytest.raises(DataError, match="too few for clients and a"):
        scripts.client_level.deal(mails(2, 2, 1), 3)


@pytest.mark.slow
def test_the_client_level_runs_resume_and_are_told(scripts, client_level, tmp_path):
    path = tmp_path / "client_level.jsonl"
    scripts.client_level.run_all(client_level, scripts.bench.Results(path), Console(quiet=True))
    runs = scripts.bench.Results(path).runs
    (masked,) = (run for run in runs if run.get("masked_round"))
    assert masked["clients"] == len(client_level.mails.clients)
    levels = scripts.figures.by_level(runs)
    assert [own[0]["target_epsilon"] for own in levels] == [5.0, None]
    for run in levels[0]:
        assert 4.9 < run["epsilon_server"] <= 5.0
        assert run["epsilon_release"] < run["epsilon_server"]
    assert all(run["epsilon_server"] is None for run in levels[1])
    before = path.read_bytes()
    scripts.client_level.run_all(client_level, scripts.bench.Results(path), Console(quiet=True))
    assert path.read_bytes() == before
    scripts.figures.draw_client_level(runs, tmp_path / "a.svg")
    ET.parse(tmp_path / "a.svg")


@pytest.mark.parametrize("clip_norm", [0.01, 100.0])
def test_a_clients_vector_is_its_mean_gradient_clipped_as_one(client_level, clip_norm):
    policy = replace(client_level.policy(None), clip_norm=clip_norm)
    session = client_level.cohort.session(1, policy, client_level.dimension)
    model = client_level.model(1)
    gradients = client_level._gradients(model)
    encoded = client_level._encoded(session, gradients, model.layout)
    name, examples = next(iter(client_level.mails.clients.items()))
    mean = gradients.clipped_sum(examples, 1e6) / len(examples)
    gradients.close()
    norm = np.linalg.norm(mean)
    assert 0.01 < norm < 100.0
    mean *= min(1.0, clip_norm / norm)
    np.testing.assert_allclose(session.codec.decode(encoded[name]), mean, atol=1e-4 * norm)


# -- what is committed ---------------------------------------------------------------------


def test_an_interval_is_the_t_interval(scripts):
    mean, half = scripts.figures.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert half == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert scripts.figures.reached([0.001, -0.001, 0.002, 0.0])
    assert not scripts.figures.reached([0.03, -0.03, 0.02, -0.02])
    assert not scripts.figures.reached([0.02, 0.021, 0.02, 0.019])


@pytest.fixture(scope="module")
def committed(scripts):
    results = FOLDER / "results"
    return {
        name: scripts.bench.Results(results / f"{name}.jsonl").runs
        for name in ("mechanisms", "client_level")
    }


def test_the_tables_of_the_readme_are_those_of_the_results(scripts, committed):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert scripts.figures.mechanisms_table(committed["mechanisms"]) in text
    assert scripts.figures.client_table(committed["client_level"]) in text


def test_at_least_five_seeds_and_five_hundred_clients_are_behind_the_results(scripts, committed):
    figures = scripts.figures
    for other in ("central", "local_sum", "local"):
        assert len(figures.differences(committed["mechanisms"], "distributed", other, "auc")) >= 5
    assert all(run["clients"] >= 500 for run in committed["client_level"])
    assert any(run.get("masked_round") for run in committed["client_level"])


@pytest.mark.parametrize("name", ["mechanisms", "client_level"])
def test_the_figures_show_the_results(scripts, committed, name, tmp_path):
    def words(path: Path) -> list[str]:
        return re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"))

    getattr(scripts.figures, f"draw_{name}")(committed[name], tmp_path / "now.svg")
    assert words(FOLDER / "results" / f"{name}.svg") == words(tmp_path / "now.svg")
