"""A client's own adapter beside the shared one: exact between the two, chosen well, never sent."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import write_clients, write_run
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

from securefed import Federation
from securefed.config import parse_config
from securefed.engines import evaluations, personal_adapters
from securefed.engines import run as engine
from securefed.engines.personal_adapters import PersonalAdapters
from securefed.engines.verify import verify_run
from securefed.engines.workbench import Workbench
from securefed.errors import ConfigError, LedgerTampered
from securefed.evidence.ledger import Ledger, read_ledger
from securefed.lora.adapter import adapter_state, build_adapter, state_hash
from securefed.lora.interpolation import interpolated
from securefed.lora.sharing import factor_of
from securefed.training import personal as training
from securefed.training.data import Examples
from securefed.training.steps import AdamWTrainer
from securefed.training.validation import LEAST_EXAMPLES, choose_mix, validation_parts

CPU = torch.device("cpu")
OWN = {"kind": "adapter", "steps": 20, "learning_rate": 0.05, "batch_size": 8, "margin": 2.0}
SHOWN = {"max_windows": 4, "window_tokens": 8, "show_clients": True}
# Whole clients' local steps without noise, so that what a run gives does not depend on a draw.
LOCAL = {"unit": "client", "mechanism": "none", "clip_norm": 100.0, "update_clip_norm": 100.0}
FEDAVG = {
    "rounds": 1, "local_steps": 3, "local_learning_rate": 0.02,
    "server_optimizer": "sgd", "server_learning_rate": 1.0,
}  # fmt: skip


def written(folder, personal=None, **sections):
    """A run of four clients, each with a pattern of its own."""
    data = {"source": str(write_clients(folder / "four", 4, words=320)), "window_tokens": 8}
    own = {"privacy": LOCAL, "training": FEDAVG, "evaluation": SHOWN, "personal": personal or OWN}
    return write_run(folder, **{"data": data} | own | sections)


# -- between two adapters ------------------------------------------------------------------


def classifier(sharing="ffa"):
    """A tiny model of two classes with an adapter and a head that travels."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, num_labels=2,
    )  # fmt: skip
    values = {
        "model": {"task": "sequence-classification", "labels": 2},
        "lora": {
            "rank": 2, "target_modules": ["v_proj"], "modules_to_save": ["score"],
            "sharing": sharing,
        },
        "personal": OWN,
    }  # fmt: skip
    run_file = parse_config(values)
    model = build_adapter(
        LlamaForSequenceClassification(config), run_file.lora, task="sequence-classification"
    )
    return model, run_file


def labelled(count, labels, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, 40, size=(count, 8))
    chosen = np.array([labels(row, rng) for row in ids], dtype=np.int64)
    return Examples(ids, np.ones_like(ids), chosen, np.arange(count))


def made(examples, tmp_path, sharing="ffa", **personal):
    """The shared adapter, the personal one, what was chosen, and logits under each mix."""
    model, run_file = classifier(sharing)
    run_file = run_file.model_copy(
        update={"personal": run_file.personal.model_copy(update=personal)}
    )
    own = PersonalAdapters(model, run_file, CPU)
    before = adapter_state(model)
    own.make("site", examples, tmp_path / "site", lambda path: path.mkdir())
    assert all(torch.equal(before[name], value) for name, value in adapter_state(model).items())
    return model, own, load_file(tmp_path / "site" / personal_adapters.OWN)


def logits(model):
    ids = torch.arange(1, 9).unsqueeze(0)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("trains", ["shared", "all"])
def test_mix_0_has_the_logits_of_the_shared_adapter_and_mix_1_those_of_the_personal(
    tmp_path, trains
):
    examples = labelled(30, lambda row, rng: 1)
    found = {}
    for mix in (0.0, 0.5, 1.0):
        model, own, personal = made(examples, tmp_path / str(mix), mix=mix, trains=trains)
        with own.of("site"):
            found[mix] = logits(model)
    shared = logits(model)
    with torch.no_grad():
        for name, value in personal.items():
            model.get_parameter(name).copy_(value)
    assert torch.equal(found[0.0], shared)
    assert torch.equal(found[1.0], logits(model))
    assert not torch.allclose(found[0.5], found[0.0])
    assert not torch.allclose(found[0.5], found[1.0])
    assert any(factor_of(name) == "A" for name in personal) == (trains == "all")


def test_mixing_b_alone_mixes_weights_and_with_a_it_falls_short_by_a_product():
    generator = torch.Generator().manual_seed(1)
    drawn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    shared = {"B": drawn(6, 2), "A": drawn(2, 5)}
    for moved in ("B", "both"):
        personal = {"B": drawn(6, 2), "A": drawn(2, 5) if moved == "both" else shared["A"]}
        product = lambda each: each["B"] @ each["A"]  # noqa: E731
        for a in (0.0, 0.3, 1.0):
            wanted = (1 - a) * product(shared) + a * product(personal)
            short = a * (1 - a) * (personal["B"] - shared["B"]) @ (personal["A"] - shared["A"])
            found = product(interpolated(shared, personal, a))
            torch.testing.assert_close(found, wanted - short)
            if moved == "B":
                torch.testing.assert_close(found, wanted)
    with pytest.raises(ConfigError, match=r"share = 1\.5"):
        interpolated(shared, personal, 1.5)
    with pytest.raises(ConfigError, match="names and shapes"):
        interpolated(shared, {"B": shared["B"]}, 0.5)


# -- the choice ----------------------------------------------------------------------------


def chosen_by(tmp_path, examples, **personal):
    _, own, _ = made(examples, tmp_path, **personal)
    choice = json.loads((tmp_path / "site" / personal_adapters.CHOICE).read_text())
    assert choice["mix"] == own.mixes["site"]
    return choice


def test_a_client_with_unlike_labels_takes_its_own(tmp_path):
    choice = chosen_by(tmp_path, labelled(150, lambda row, rng: 1))
    assert choice["mix"] > 0.0
    assert choice["improvement"] > 2.0 * choice["standard_error"]
    assert choice["noise"] == "none"


def test_a_client_whose_labels_are_noise_keeps_the_shared_one(tmp_path):
    kept = [
        chosen_by(tmp_path / str(seed), labelled(60, lambda row, rng: rng.integers(2), seed))["mix"]
        for seed in range(6)
    ]
    assert kept == [0.0] * 6


def test_a_client_with_too_few_examples_to_tell_keeps_the_shared_one(tmp_path):
    for count in (0, 1, 2, 3 * LEAST_EXAMPLES):
        choice = chosen_by(tmp_path / str(count), labelled(count, lambda row, rng: 1))
        assert (choice["mix"], choice["improvement"]) == (0.0, None)


def test_training_that_diverges_keeps_the_shared_one(tmp_path):
    for place, personal in enumerate(({}, {"mix": 1.0})):
        examples = labelled(60, lambda row, rng: 1)
        choice = chosen_by(tmp_path / str(place), examples, learning_rate=1e30, **personal)
        assert choice["mix"] == 0.0


def test_the_margin_is_in_standard_errors_of_the_paired_difference():
    rng = np.random.default_rng(3)
    shared = rng.normal(2.0, 1.0, size=400)
    losses = {0.0: shared, 0.5: shared - 0.04 + rng.normal(0.0, 0.2, size=400), 1.0: shared + 1.0}
    found = choose_mix(losses, margin=0.0)
    ratio = found.improvement / found.standard_error
    assert found.mix == 0.5
    assert found.standard_error == pytest.approx(0.01, rel=0.2)  # paired: not 1 / 20
    assert choose_mix(losses, margin=ratio * 0.999).mix == 0.5
    assert choose_mix(losses, margin=ratio * 1.001).mix == 0.0
    assert choose_mix(losses | {0.5: np.full(400, math.nan)}, margin=0.0).mix == 0.0


@pytest.mark.parametrize("users", [None, np.repeat(np.arange(5), 4), np.zeros(20, dtype=np.int64)])
def test_a_validation_part_shares_no_example_and_no_user_with_the_rest(users):
    ids = np.arange(20)[:, None]
    examples = Examples(ids, np.ones_like(ids), None, users)
    for fraction in (0.01, 0.3, 0.99):
        parts = validation_parts(examples, fraction, seed=1)
        assert sorted([*parts.fit, *parts.validation]) == list(range(20))
        assert len(parts.fit)
        assert len(parts.validation)
        if users is not None and len(set(users)) > 1:
            assert not set(users[parts.fit]) & set(users[parts.validation])
        else:  # of one text its end
            assert parts.validation.min() > parts.fit.max()


def test_held_out_examples_decide_nothing_and_validation_examples_are_not_trained_on(
    tmp_path, monkeypatch
):
    trained, scored = [], []
    train, losses = AdamWTrainer.train, training.example_losses

    def train_kept(self, model, data, round):
        trained.append({tuple(row) for row in data.input_ids})
        train(self, model, data, round)

    def losses_kept(model, examples, **options):
        scored.append({tuple(row) for row in examples.input_ids})
        return losses(model, examples, **options)

    federation = Federation.from_config(written(tmp_path, OWN | {"refit": False}))
    bench, _ = federation.prepare()
    # Windows of a repeating text are like each other; these are not.
    rng = np.random.default_rng(1)
    client = bench.clients["site-0"]
    for part in (client.train, client.held_out):
        part.input_ids[:] = rng.integers(2, 60, size=part.input_ids.shape)
    monkeypatch.setattr(AdamWTrainer, "train", train_kept)
    monkeypatch.setattr(training, "example_losses", losses_kept)
    bench.personalise("site-0", tmp_path / "site-0")
    held_out = {tuple(row) for row in client.held_out.input_ids}
    assert len(trained) == 1
    assert len(scored) > 1
    assert all(trained[0].isdisjoint(each) for each in scored)
    assert held_out.isdisjoint(trained[0].union(*scored))
    assert trained[0] | scored[0] == {tuple(row) for row in client.train.input_ids}


# -- whole runs ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run, and every byte that reached the server in it."""
    base = tmp_path_factory.mktemp("personal")
    received = []
    carry = engine.carry

    def kept(*arguments, **options):
        carried = carry(*arguments, **options | {"keep_transcript": True})
        received.extend(m for stage in carried.transcript.values() for m in stage.values())
        return carried

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "carry", kept)
        federation = Federation.from_config(written(base))
        result = federation.run(base / "out")
    return base, result, federation, received


def test_on_unlike_clients_own_adapters_help_the_worst_client_and_every_other(whole):
    _, result, _, _ = whole
    assert result.personal.worst < 0.9 * result.after.worst
    assert result.personal.perplexity < result.after.perplexity < result.before.perplexity
    assert all(own < shared for own, shared in zip(*_spreads(result), strict=True))
    shown = json.loads((result.folder / "shown.json").read_text())
    assert set(shown["mixes"].values()) <= {0.25, 0.5, 0.75, 1.0}
    assert shown["guaranteed"] is False


def _spreads(result):
    for figures in (result.personal, result.after):
        assert list(figures.spread) == sorted(figures.spread)
        assert figures.worst == figures.spread[-1]
    return result.personal.spread, result.after.spread


def test_nothing_personal_is_in_any_message_ledger_line_or_file_that_is_handed_on(whole):
    _, result, federation, received = whole
    out = result.folder
    shared = adapter_state(federation._used.model)
    places = [
        *received,
        *(
            path.read_bytes()
            for path in out.rglob("*")
            if path.is_file() and "personal" not in path.relative_to(out).parts
        ),
    ]
    for client in federation._used.clients:
        folder = out / "personal" / client
        own, choice = load_file(folder / "own.safetensors"), folder / "choice.json"
        told = json.loads(choice.read_text())
        secrets = [told["own_sha256"].encode(), json.dumps(told["improvement"]).encode()]
        for name, value in own.items():
            for tensor in (value, value - shared[name]):
                raw = tensor.numpy().tobytes()
                secrets += [raw[start : start + 8] for start in range(0, len(raw) - 8, 64)]
        mine = (folder / "own.safetensors").read_bytes() + choice.read_bytes()
        assert sum(secret in mine for secret in secrets) > 4  # what is looked for can be found
        assert not any(secret in place for secret in secrets for place in places)
    ledger = (out / "ledger.jsonl").read_text() + (out / "metrics.jsonl").read_text()
    assert "mix" not in ledger
    assert "choice" not in ledger


def test_it_costs_no_charge_and_stands_in_the_ledger_as_one_more_sum_without_noise(whole):
    _, result, _, _ = whole
    records = read_ledger(result.folder / "ledger.jsonl")
    figures = [r.body for r in records if r.kind == "evaluated"]
    assert [(body["round"], body.get("of")) for body in figures] == [
        (0, None), (1, None), (1, "personal"),
    ]  # fmt: skip
    assert all(body["guaranteed"] is False for body in figures)
    assert result.charges == 1
    lines = verify_run(result.folder).lines
    assert any("3 sums without noise were begun and 3 recorded" in line for line in lines)


def test_figures_of_own_adapters_do_not_pass_for_those_of_the_shared_one(whole, tmp_path):
    copy = shutil.copytree(whole[1].folder, tmp_path / "copy")
    path = copy / "ledger.jsonl"
    records = [(r.kind, dict(r.body)) for r in read_ledger(path)]
    last = max(place for place, (kind, _) in enumerate(records) if kind == "evaluated")
    del records[last][1]["of"]
    path.unlink()
    path.with_name("ledger.head.json").unlink()
    with Ledger.create(path, records[0][1], clock=lambda: "2026-01-01T00:00:00Z") as ledger:
        for kind, body in records[1:]:
            ledger.append(kind, body)
    with pytest.raises(LedgerTampered, match="opened for 'personal'"):
        verify_run(copy)


def test_it_can_be_had_without_anything_being_told_of_it(tmp_path):
    path = written(tmp_path, OWN | {"measured": False})
    result = Federation.from_config(path).run(tmp_path / "out")
    figures = [r for r in read_ledger(result.folder / "ledger.jsonl") if r.kind == "evaluated"]
    assert len(figures) == 2
    assert result.personal is None
    assert verify_run(result.folder).finished
    assert (result.folder / "personal" / "site-0" / "adapter").is_dir()


def test_peft_loads_each_clients_own_adapter_as_it_is_used(whole):
    base, result, federation, _ = whole
    bench = federation._used
    ids = torch.arange(2, 10).unsqueeze(0)
    for client in ("site-0", "site-3"):
        plain = AutoModelForCausalLM.from_pretrained(base / "model")
        loaded = PeftModel.from_pretrained(
            plain, str(result.folder / "personal" / client / "adapter")
        )
        with bench.own_adapters.of(client):
            wanted = bench.model(input_ids=ids).logits
        shared = bench.model(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(wanted, shared, atol=1e-3)


def test_a_finished_run_is_read_back_with_its_personal_figures(whole):
    base, result, _, _ = whole
    again = Federation.from_config(base / "run.toml").run(result.folder, resume=True)
    assert (again.personal, again.after) == (result.personal, result.after)


@pytest.mark.parametrize("killed_at", ["third client", "figures"])
def test_a_run_killed_among_personal_adapters_ends_as_one_that_was_not(
    whole, tmp_path, monkeypatch, killed_at
):
    base, result, _, _ = whole
    personalise, out, made_in = Workbench.personalise, tmp_path / "out", []

    def stops(self, name, folder):
        if name == "site-2":
            raise KeyboardInterrupt
        personalise(self, name, folder)

    def stopped(self, number, of):
        if of == "personal":
            raise KeyboardInterrupt
        return summed(self, number, of)

    summed = evaluations.Evaluations._sum
    if killed_at == "figures":
        monkeypatch.setattr(evaluations.Evaluations, "_sum", stopped)
    else:
        monkeypatch.setattr(Workbench, "personalise", stops)
    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(base / "run.toml").run(out)
    monkeypatch.undo()
    file = out / "personal" / "site-1" / "own.safetensors"
    good = file.read_bytes()
    file.write_bytes(b"other")
    with pytest.raises(LedgerTampered, match="site-1"):
        Federation.from_config(base / "run.toml").run(out, resume=True)
    file.write_bytes(good)
    train = training.PersonalTrainer.made

    def counted(self, examples):
        made_in.append(examples)
        return train(self, examples)

    monkeypatch.setattr(training.PersonalTrainer, "made", counted)
    again = Federation.from_config(base / "run.toml").run(out, resume=True)
    assert len(made_in) == (0 if killed_at == "figures" else 2)  # none is made again
    assert again.personal.perplexity == pytest.approx(result.personal.perplexity, rel=1e-3)
    assert again.personal.spread == pytest.approx(result.personal.spread, rel=1e-3)
    assert verify_run(out).finished


def test_an_adapter_that_was_made_from_another_shared_one_is_made_again(tmp_path):
    examples = labelled(30, lambda row, rng: 1)
    model, own, first = made(examples, tmp_path, mix=1.0)
    with torch.no_grad():
        for name in first:
            model.get_parameter(name).add_(0.5)
    own.make("site", examples, tmp_path / "site", lambda path: path.mkdir())
    again = load_file(tmp_path / "site" / personal_adapters.OWN)
    assert all((again[name] - first[name]).abs().max() > 0.1 for name in first)
    choice = json.loads((tmp_path / "site" / personal_adapters.CHOICE).read_text())
    assert choice["begun_from"] == state_hash({n: model.get_parameter(n).detach() for n in first})


@pytest.mark.parametrize("sharing", ["fedsa", "rolora", "fedsb"])
def test_every_way_of_sharing_can_go_on_into_an_adapter_of_ones_own(tmp_path, sharing):
    lora = {"rank": 2, "target_modules": ["up_proj"], "sharing": sharing}
    path = written(tmp_path, OWN | {"mix": 1.0, "margin": 1.0}, lora=lora)
    federation = Federation.from_config(path)
    result = federation.run(tmp_path / "out")
    assert verify_run(result.folder).finished
    assert result.personal.perplexity < result.after.perplexity
    bench = federation._used
    ids = torch.arange(2, 10).unsqueeze(0)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    folder = result.folder / "personal" / "site-1"
    loaded = PeftModel.from_pretrained(plain, str(folder / "adapter"))
    with bench.personal.of("site-1"), bench.own_adapters.of("site-1"):
        wanted = bench.model(input_ids=ids).logits
    torch.testing.assert_close(loaded(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-4)
    own = load_file(folder / "own.safetensors")
    factors = {"fedsa": {"A", "B"}, "rolora": {"A", "B"}, "fedsb": {"core"}}[sharing]
    assert {factor_of(name) for name in own} == factors
    if sharing == "fedsa":  # it went on from the client's own B
        kept = load_file(folder / "round-1.safetensors")
        assert all(own[name].shape == value.shape for name, value in kept.items())
        assert any(value.any() for value in kept.values())


@pytest.mark.parametrize(
    ("personal", "words"),
    [
        ({"steps": 5}, "kind = 'none'"),
        ({"kind": "adapter", "mix": 0.5, "refit": False}, "mix = 0.5"),
        ({"kind": "adapter", "mix": 1.5}, "mix"),
        ({"kind": "adapter", "choices": [0.0]}, "at least one must be > 0"),
        ({"kind": "adapter", "choices": [-0.5, 1.0]}, "choices"),
    ],
)
def test_a_section_that_says_nothing_or_too_much_is_refused(personal, words):
    with pytest.raises(ConfigError, match=words):
        parse_config({"personal": personal})
