"""Runs whose clients have unlike ranks: each slice is summed among those that hold it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import write_run
from transformers import LlamaForCausalLM

from securefed import Federation
from securefed.config import LoraSection, load_config, parse_config
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.compare import clients_alone
from securefed.engines.events import Silent
from securefed.engines.mixed_ranks import MixedRanks, mixed_ranks, rank_sections
from securefed.engines.planning import _least_cohort
from securefed.engines.round_halves import SlicedHalves
from securefed.engines.settings import Settings
from securefed.engines.verify import verify_run
from securefed.errors import ConfigError, LedgerTampered, ThresholdNotMet
from securefed.evidence.budget import ClientBudget, read_charges
from securefed.evidence.ledger import Ledger, read_ledger
from securefed.lora.adapter import adapter_state, build_adapter, load_adapter_state
from securefed.lora.columns import at_rank
from securefed.lora.parts import AdapterParts
from securefed.lora.ranks import limited_to_rank, section_at
from securefed.privacy.clipping import L2Clip
from securefed.privacy.pld import gaussian_epsilon
from securefed.secagg.aggregations import PairwiseAggregation
from securefed.training.dp_sgd import PerExampleGradients
from securefed.training.steps import AdamWTrainer

RANKS = [
    {"clients": ["site-0", "site-1"], "rank": 4},
    {"clients": ["site-2", "site-3"], "rank": 2},
    {"clients": "others", "rank": 1},
]
OWN = {"site-0": 4, "site-1": 4, "site-2": 2, "site-3": 2, "site-4": 1, "site-5": 1}
LORA = {"rank": 4, "alpha": 6.0}
COHORT = {"ranks": RANKS, "min_clients": 2, "least_contributors": 2}
PRIVACY = {"corrupt_fraction": 0.0, "noise_multiplier": 4.0}
MODULES, OUT = 4, 32  # of the tiny model: B is [4, 32, rank]
COLUMNS = {1: slice(0, 1), 2: slice(1, 2), 3: slice(2, 4)}
CPU = torch.device("cpu")


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def write(folder: Path, cohort: dict | None = None, **sections: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lora, privacy = (sections.pop(name, {}) for name in ("lora", "privacy"))
    return write_run(
        folder,
        lora=LORA | lora,
        cohort=COHORT | (cohort or {}),
        privacy=PRIVACY | privacy,
        **sections,
    )


def state(run_folder: Path, number: int) -> dict[str, np.ndarray]:
    path = run_folder / "checkpoints" / f"round-{number}" / "state.safetensors"
    found = {name: tensor.numpy() for name, tensor in load_file(path).items()}
    return {
        name: value.reshape(MODULES, OUT, -1) if value.size > 1 else value
        for name, value in found.items()
    }


def records(run_folder: Path, kind: str) -> list[dict]:
    return [r.body for r in read_ledger(run_folder / "ledger.jsonl") if r.kind == kind]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A kill after the first charge of round 2, slice 1 closed in it, slice 3 in the third."""
    base = tmp_path_factory.mktemp("ranks")
    drops = [
        {"round": 2, "client": "site-4", "stage": "masked_input"},
        {"round": 2, "client": "site-5", "stage": "masked_input"},
        {"round": 3, "client": "site-0", "stage": "consistency"},
    ]
    path, out = write(base, {"simulated_dropouts": drops}), base / "out"
    charge, seen = ClientBudget.charge, []

    def killed(self, event):
        charge(self, event)
        seen.append(event["round"])
        if event["round"] == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClientBudget, "charge", killed)
        with pytest.raises(KeyboardInterrupt):
            Federation.from_config(path).run(out)
    assert seen == [1] * 6 + [2]
    result = Federation.from_config(path).run(out, resume=True)
    assert result.rounds == 3
    return out


def test_a_run_with_a_kill_and_dropouts_is_resumed_and_verified_with_every_charge(finished):
    verdict = verify_run(finished)
    assert verdict.finished
    assert any("of 9 sums in 3 rounds 2 stayed closed" in line for line in verdict.lines)
    charges = {
        path.parent.name: len(read_charges(path))
        for path in (finished / "clients").glob("*/budget.jsonl")
    }
    # The attempt that was killed counts for all; silent before the masked input is not charged.
    assert charges == {**dict.fromkeys(OWN, 4), "site-4": 3, "site-5": 3}
    assert verdict.charges == 4
    first, second, third = records(finished, "round_summed")
    assert first["slices"] == {
        "1": sorted(OWN),
        "2": ["site-0", "site-1", "site-2", "site-3"],
        "3": ["site-0", "site-1"],
    }
    assert first["closed"] == {}
    # Four of six are too few for slice 1; all who hold slice 2 are there.
    assert second["closed"] == {"1": "ThresholdNotMet"}
    assert second["survivors"] == second["slices"]["2"] == sorted(OWN)[:4]
    assert third["closed"] == {"3": "ThresholdNotMet"}
    assert third["slices"] == {"1": sorted(OWN), "2": sorted(OWN)[:4]}
    assert third["silent"] == 1  # after its masked input, in two sums that others could open
    notes = [json.loads(line)["note"] for line in (finished / "metrics.jsonl").open()]
    assert notes[2] == "2 dropped out; slice 1 stayed closed"
    assert notes[3] == "1 fell silent after sending; slice 3 stayed closed"


def test_a_closed_slice_stays_where_it_is_and_keeps_its_moments(finished):
    """Adam would carry it on from the two rounds before."""
    before, after = state(finished, 2), state(finished, 3)
    columns = [name for name, value in before.items() if value.ndim == 3]
    assert {"parameters", "optimizer.exp_avg", "optimizer.exp_avg_sq"} <= set(columns)
    for name in columns:
        still = COLUMNS[3]
        np.testing.assert_array_equal(after[name][..., still], before[name][..., still])
        for number in (1, 2):
            assert (after[name][..., COLUMNS[number]] != before[name][..., COLUMNS[number]]).all()
    assert np.abs(before["optimizer.exp_avg"][..., COLUMNS[3]]).min() > 0
    assert np.abs(before["parameters"][..., COLUMNS[3]]).min() > 0


def test_the_adapter_at_each_rank_is_loaded_by_peft_and_is_what_clients_of_that_rank_run(finished):
    base = finished.parent / "model"
    ids = torch.arange(16).view(2, 8)

    def loaded(folder: Path) -> PeftModel:
        return PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), folder).eval()

    whole = loaded(finished / "adapter")
    seen = []
    for rank in (1, 2, 4):
        own = loaded(finished / "ranks" / str(rank) / "adapter")
        config = own.peft_config["default"]
        assert (config.r, config.lora_alpha) == (rank, 6.0 * rank / 4)
        with torch.no_grad(), limited_to_rank(whole, rank):
            expected = whole(input_ids=ids).logits
            torch.testing.assert_close(own(input_ids=ids).logits, expected)
        seen.append(expected)
    assert (seen[0] - seen[1]).abs().max() > 1e-3 < (seen[1] - seen[2]).abs().max()
    files = records(finished, "closed")[0]["files"]
    assert {f"ranks/{rank}/adapter/adapter_model.safetensors" for rank in (1, 2, 4)} <= set(files)


def test_bytes_are_those_of_the_slices_that_a_client_holds_and_was_sent(finished):
    costs = json.loads((finished / "costs.json").read_text())["by_rank"]
    up = [costs[rank]["bytes_up_per_client_and_round"] for rank in ("1", "2")]
    assert up[0] < up[1]
    own = {
        name: [
            row
            for row in json.loads((finished / "clients" / name / "costs.json").read_text())["rows"]
            if row["what"] == "round"
        ]
        for name in OWN
    }
    events = [json.loads(line) for line in (finished / "metrics.jsonl").open()]
    for place, number in enumerate((2, 3)):  # rounds since the resume
        down = sum(rows[place]["bytes_down"] for rows in own.values())
        assert down / 6 == pytest.approx(events[number]["bytes_down"])
    # By hand: all three slices, slice 1 closed, slice 3 closed.  What did not move is not sent.
    values = [2 * 512 + 2 * 256 + 2 * 128, 2 * 384 + 2 * 128, 2 * 256 + 2 * 256 + 2 * 128]
    for event, body, moved in zip(
        events[1:], records(finished, "round_summed"), values, strict=True
    ):
        assert event["bytes_down"] - body["bytes_down"] / 6 == pytest.approx(4 * moved / 6)


# -- tampering ----------------------------------------------------------------------------


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def rewrite(path: Path, kind: str, change) -> None:
    """Rebuild a ledger with a valid chain, the first record of ``kind`` changed."""
    found = [(r.kind, dict(r.body)) for r in read_ledger(path)]
    body = next(body for own, body in found if own == kind)
    change(body)
    path.unlink()
    path.with_name(f"{path.stem}.head.json").unlink()
    with Ledger.create(path, found[0][1], clock=lambda: "2026-01-01T00:00:00Z") as ledger:
        for own, one in found[1:]:
            ledger.append(own, one)


def foreign_slice(body):
    body["slices"]["3"] = ["site-0", "site-2"]


def one_survivor(body):
    body["slices"]["3"] = ["site-0"]


def named_twice(body):
    body["slices"]["3"] = ["site-0", "site-0"]


def hidden_slice(body):
    del body["slices"]["3"]


def other_reason(body):
    del body["slices"]["3"]
    body["closed"] = {"3": "the server did not like it"}


def other_survivors(body):
    body["survivors"] = body["survivors"][:-1]


def no_slices(body):
    del body["slices"]


def other_price(body):
    body["slices"] = [dict(one, clients=6) for one in body["slices"]]


def other_ranks(body):
    body["privacy"]["ranks"] |= {"site-5": 4}


def other_widths(body):
    body["privacy"]["widths"] = [64, 64, 384]


def other_noise(body):
    body["privacy"]["slice_plans"][2]["local_std"] *= 2


@pytest.mark.parametrize(
    ("kind", "change", "found"),
    [
        ("round_summed", foreign_slice, "slice 3: 'site-2' does not hold it"),
        ("round_summed", one_survivor, "slice 3: 1 survivor, at least 2 are needed"),
        ("round_summed", named_twice, "slice 3: a client is named twice"),
        ("round_summed", hidden_slice, "of 3 slices"),
        ("round_summed", other_reason, "closed: slice 3 by"),
        ("round_summed", other_survivors, "survivors: are not those of the slices"),
        ("round_summed", no_slices, "lacks what it must hold"),
        ("round_opened", other_price, "slices = "),
        ("genesis", other_ranks, "ranks = "),
        ("genesis", other_widths, "widths = .*no slices of ranks"),
        ("genesis", other_noise, "slice_plans = "),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_altered_slices_are_noticed(copy, kind, change, found):
    rewrite(copy / "ledger.jsonl", kind, change)
    with pytest.raises(LedgerTampered, match=found):
        verify_run(copy)


def test_another_adapter_at_a_rank_or_another_account_is_noticed(copy):
    path = copy / "ranks" / "2" / "adapter" / "adapter_config.json"
    text = path.read_text()
    path.write_text(text.replace('"lora_alpha": 3.0', '"lora_alpha": 6.0'))
    assert path.read_text() != text
    with pytest.raises(LedgerTampered, match=r"ranks/2/adapter/adapter_config\.json"):
        verify_run(copy)
    path.write_text(text)
    rewrite(copy / "clients" / "site-0" / "budget.jsonl", "charge", other_price)
    with pytest.raises(LedgerTampered, match=r"site-0.*slices = "):
        verify_run(copy)


# -- the same sums by hand ----------------------------------------------------------------


def base_model(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder / "model").eval()


def own_model(folder: Path, section: LoraSection, initial: dict, rank: int):
    """A client's own smaller model, as a deployment builds it."""
    model = build_adapter(base_model(folder), section_at(section, rank), task="causal-lm")
    load_adapter_state(model, at_rank(initial, rank))
    return model, AdapterParts(model, "ffa")


def means_by_slice(vectors: dict[str, np.ndarray], counts: dict[str, float]) -> np.ndarray:
    """Of [4, 32, own rank] each, column by column over those who have it: [4, 32, 4]."""
    mean = np.zeros((MODULES, OUT, 4))
    for column in range(4):
        holders = [name for name, rank in OWN.items() if rank > column]
        total = sum(vectors[name][..., column] for name in holders)
        mean[..., column] = total / sum(counts[name] for name in holders)
    return mean


def test_a_run_of_local_steps_is_the_mean_of_own_smaller_models_column_by_column(tmp_path):
    path = write(
        tmp_path,
        training={
            "rounds": 1,
            "local_steps": 3,
            "local_learning_rate": 0.02,
            "server_optimizer": "sgd",
            "server_learning_rate": 1.0,
        },
        privacy={"unit": "client", "mechanism": "none", "update_clip_norm": 10.0},
    )
    federation = Federation.from_config(path)
    federation.run(tmp_path / "out")
    config, bench = load_config(path), federation.prepare()[0]
    initial = adapter_state(bench.model)
    vectors = {}
    for name, rank in OWN.items():
        model, parts = own_model(tmp_path, config.lora, initial, rank)
        before = parts.flat()
        AdamWTrainer(
            local_steps=3, batch_size=16, learning_rate=0.02, task="causal-lm", device=CPU,
            seed=config.lora.seed,
        ).train(model, bench.clients[name].train, 1)  # fmt: skip
        vectors[name] = (parts.flat() - before).reshape(MODULES, OUT, rank)
    expected = means_by_slice(vectors, dict.fromkeys(OWN, 1.0))
    found = state(tmp_path / "out", 1)["parameters"]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(expected).max(axis=(0, 1)).min() > 0.01  # every column moves


def test_a_dp_sgd_step_clips_each_example_over_all_that_its_client_holds(tmp_path):
    """In round 2: before it B is zero, and so are the columns that a client must not see."""
    path = write(
        tmp_path,
        training={"rounds": 2, "server_optimizer": "sgd", "server_learning_rate": 30.0},
        privacy={"mechanism": "none", "expected_batch": 474, "clip_norm": 0.05},
    )
    federation = Federation.from_config(path)
    federation.run(tmp_path / "out")
    before, after = (state(tmp_path / "out", number)["parameters"] for number in (1, 2))
    assert np.abs(before).max() > 0.1
    bench, settings = federation.prepare()
    bench.parts.load_flat(before.reshape(-1))
    initial, config = adapter_state(bench.model), load_config(path)
    vectors, shortened = {}, 0
    for name, rank in OWN.items():
        model, parts = own_model(tmp_path, config.lora, initial, rank)
        gradients = PerExampleGradients(
            model, parts.layout, task="causal-lm", micro_batch=16, device=CPU
        )
        total = np.zeros(parts.dimension)
        for rows in gradients.flat_rows(bench.clients[name].train):
            shortened += int((np.linalg.norm(rows, axis=1) > 0.05).sum())
            total += L2Clip(0.05).clip_rows(rows)
        gradients.close()
        vectors[name] = total.reshape(MODULES, OUT, rank)
    assert shortened > 100
    sizes = {name: float(len(bench.clients[name].train)) for name in OWN}
    expected = means_by_slice(vectors, sizes)
    np.testing.assert_allclose((before - after) / 30.0, expected, atol=1e-5)
    assert np.abs(expected).max() > 3e-3
    # A client that trains alone makes the same vector, with zeros where it holds nothing.
    bench.begin_round(1)
    alone, _ = bench.contribution(settings, settings.sum_policy, "site-2", 1, NoiseGenerator())
    alone = alone.reshape(MODULES, OUT, 4)
    np.testing.assert_allclose(alone[..., :2], vectors["site-2"], atol=1e-5)
    assert not alone[..., 2:].any()


@pytest.mark.parametrize(
    ("training", "lora", "privacy"),
    [
        ({"examples_per_user": 2}, {}, {"unit": "user", "expected_batch": 6}),
        pytest.param(
            {"client_weights": "examples"},
            {"kind": ["lora", "bottleneck"], "bottleneck_width": 2},
            {"unit": "client", "noise_multiplier": None, "target_epsilon": 1.0},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["user", "client, to a target, beside other modules"],
)
def test_other_units_train_and_verify(tmp_path, training, lora, privacy):
    path = write(tmp_path, training={"rounds": 2} | training, lora=lora, privacy=privacy)
    federation = Federation.from_config(path)
    result = federation.run(tmp_path / "out")
    assert verify_run(tmp_path / "out").finished
    own = records(tmp_path / "out", "genesis")[0]["privacy"]
    if lora:
        assert 0.95 * 1.0 < result.guarantees["server"].epsilon <= 1.0
        assert result.noise_multiplier == own["noise_multiplier"]
        assert own["widths"][0] > own["widths"][1]  # all that has no rank is in slice 1
        assert (tmp_path / "out" / "ranks" / "1" / "adapter" / "inserted.safetensors").is_file()
    # What it is compared with: each client alone, at its own rank.
    assert clients_alone(federation, Silent()).clients == 6


# -- tiers that too few reach -------------------------------------------------------------


def test_a_rank_that_too_few_reach_is_merged_and_the_run_says_so(tmp_path):
    ranks = [
        {"clients": ["site-0"], "rank": 4},
        {"clients": ["site-1", "site-2"], "rank": 2},
        {"clients": "others", "rank": 1},
    ]
    path, told = write(tmp_path, {"ranks": ranks}, training={"rounds": 1}), Told()
    Federation.from_config(path, observer=told).run(tmp_path / "out")
    (line,) = [line for line in told.lines if line.startswith("ranks: ")]
    assert line == (
        "ranks: 3 clients at rank 1, 3 clients at rank 2; rank 4 merged into 2: only 1 client "
        "would hold the columns beyond it, too few for a sum of their own"
    )
    privacy = records(tmp_path / "out", "genesis")[0]["privacy"]
    assert privacy["ranks"]["site-0"] == 2
    assert privacy["widths"] == [128, 128]
    assert sorted(p.name for p in (tmp_path / "out" / "ranks").iterdir()) == ["1", "2"]
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 3.0)
    assert verify_run(tmp_path / "out").finished


def test_a_round_without_any_slice_left_is_charged_and_opens_nothing(tmp_path):
    silent = [{"round": 1, "client": f"site-{i}", "stage": "consistency"} for i in (0, 1, 2, 4)]
    path = write(tmp_path, {"simulated_dropouts": silent}, training={"rounds": 1})
    with pytest.raises(ThresholdNotMet, match="no slice is left"):
        Federation.from_config(path).run(tmp_path / "out")
    (failed,) = records(tmp_path / "out", "round_failed")
    assert failed["charged"] == sorted(OWN)
    assert verify_run(tmp_path / "out").charges == 1


# -- what is stated, without a model ------------------------------------------------------

SIZES = {f"c{i:02}": 100 for i in range(12)}
TWELVE = [
    {"clients": [f"c{i:02}" for i in range(4)], "rank": 4},
    {"clients": [f"c{i:02}" for i in range(4, 8)], "rank": 2},
    {"clients": "others", "rank": 1},
]


def settings_of(ranks=TWELVE, widths=(50, 40, 80), **privacy) -> Settings:
    values = {
        "lora": {"rank": 4},
        "cohort": {"ranks": ranks} if ranks else {},
        "privacy": {"corrupt_fraction": 0.1, "dropout_fraction": 0.25} | privacy,
        "training": {"rounds": 5},
    }
    return Settings(
        parse_config(values), sizes=SIZES, dimension=170, widths=widths if ranks else None
    )


@pytest.mark.parametrize(
    ("unit", "noise"), [pytest.param("example", 0.8, marks=pytest.mark.slow), ("client", 4.0)]
)
def test_epsilon_is_no_less_than_with_one_rank_at_the_same_noise(unit, noise):
    """But for the rounding on other grids; and never less than of an ideal Gaussian."""
    mixed, one = (settings_of(ranks, unit=unit, noise_multiplier=noise) for ranks in (TWELVE, None))
    q = mixed.stated.sampling_probability
    ideal = gaussian_epsilon(noise, q, 5, mixed.stated.delta)
    for who in ("server", "fellow_client"):
        stated = mixed.guarantee(who, 5)
        assert (1 - 1e-5) * one.guarantee(who, 5).epsilon <= stated.epsilon < np.inf
        assert "3 slices of one vector" in stated.mechanism
    assert ideal <= mixed.epsilon_after(5) < 1.05 * ideal
    assert mixed.epsilon_after(3) < mixed.epsilon_after(5)


def test_a_target_is_met_with_the_least_noise_by_the_accounting_of_slices():
    settings = settings_of(target_epsilon=0.5)
    found = settings.stated.noise_multiplier
    assert settings.epsilon_after(5) <= 0.5
    assert settings_of(noise_multiplier=0.99 * found).epsilon_after(5) > 0.5
    assert settings.limit == ("privacy.target_epsilon", 0.5)


def test_what_is_charged_and_recorded_names_each_slice():
    event, record = settings_of().event(), settings_of().record()
    assert [(one["rank"], one["clients"], one["dimension"]) for one in event["slices"]] == [
        (1, 12, 50), (2, 8, 40), (4, 4, 80),
    ]  # fmt: skip
    assert record["slices"] == event["slices"]
    assert record["ranks"] == {name: 4 if int(name[1:]) < 4 else 2 if int(name[1:]) < 8 else 1
                               for name in SIZES}  # fmt: skip
    assert record["widths"] == [50, 40, 80]
    assert record["dimension"] == 170


@pytest.mark.parametrize(
    "widths", [None, (50, 120), (50, 40, 81), (50, 41, 79), (20, 50, 100), (90, 0, 80), ()]
)
def test_widths_that_are_no_slices_of_the_ranks_are_refused(widths):
    with pytest.raises(ConfigError, match="widths = "):
        settings_of(widths=widths)


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"lora": {"sharing": "fedit"}}, r"lora\.sharing = 'fedit'.*frozen"),
        ({"lora": {"sharing": "rolora"}}, r"lora\.sharing = 'rolora'"),
        ({"lora": {"kind": "ia3"}}, r"lora\.kind = 'ia3'"),
        ({"lora": {"rank": 3}}, r"the largest is 4, and lora\.rank = 3"),
        ({"aggregation": {"kind": "bfv"}}, r"aggregation\.kind = 'bfv'.*'pairwise'"),
        ({"aggregation": {"kind": "ckks"}}, r"aggregation\.kind = 'ckks'"),
        ({"privacy": {"mechanism": "local"}}, "beyond a client's rank"),
        ({"privacy": {"mechanism": "central"}}, r"privacy\.mechanism = 'central'"),
        ({"privacy": {"mechanism": "central", "sampling": "cyclic"}}, "'central'"),
        ({"privacy": {"noise": "skellam"}}, r"privacy\.noise = 'skellam'"),
        ({"privacy": {"unit": "client", "rounding": "conditional"}}, r"privacy\.rounding"),
        ({"privacy": {"adaptive_clip": {}}}, r"privacy\.adaptive_clip"),
        ({"privacy": {"remove_excess_noise": True}}, r"privacy\.remove_excess_noise = True"),
        (
            {
                "privacy": {"unit": "client"},
                "training": {"control_weight": 1.0, "local_optimizer": "sgd"},
            },
            r"training\.control_weight",
        ),
        ({"training": {"sparsify": "random", "keep_fraction": 0.5}}, r"training\.sparsify"),
        (
            {
                "privacy": {"unit": "client"},
                "training": {"sparsify": "random", "keep_fraction": 0.5, "error_feedback": True},
            },
            r"training\.sparsify",
        ),
        ({"privacy": {"unit": "client"}, "training": {"trainer": "m:T"}}, r"training\.trainer"),
        ({"cohort": {"least_contributors": 2}}, "least_contributors = 2 with min_clients = 3"),
        ({"cohort": {"ranks": [], "least_contributors": 3}}, "without ranks"),
        (
            {"cohort": {"ranks": [*TWELVE, {"clients": ["c00"], "rank": 1}]}},
            "'c00' is named twice",
        ),
        (
            {"cohort": {"ranks": [*TWELVE, {"clients": "others", "rank": 2}]}},
            "two tables have clients = 'others'",
        ),
    ],
)
def test_what_mixed_ranks_do_not_cover_is_refused_by_name(sections, why):
    values = {"lora": {"rank": 4}, "cohort": {"ranks": TWELVE}}
    parse_config(values)
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    with pytest.raises(ConfigError, match=why):
        parse_config(values)


@pytest.mark.parametrize(
    ("ranks", "why"),
    [
        ([{"clients": ["nobody"], "rank": 4}, *TWELVE[1:]], "'nobody' is no client"),
        (TWELVE[:2], "'c08' has none; name it"),
    ],
)
def test_tables_that_do_not_fit_the_cohort_are_refused(ranks, why):
    with pytest.raises(ConfigError, match=why):
        settings_of(ranks)


def test_slices_are_refused_in_a_run_of_one_rank_and_missed_in_one_of_several():
    with pytest.raises(ConfigError, match="widths"):
        Settings(parse_config({}), sizes=SIZES, dimension=170, widths=(50, 40, 80))
    assert isinstance(SlicedHalves(settings_of(), np.arange(170)), SlicedHalves)


# -- from a plan --------------------------------------------------------------------------


def test_ranks_that_a_plan_chose_are_the_same_tables():
    sections = rank_sections({name: 1 + (place % 3) for place, name in enumerate(SIZES)})
    assert [section.rank for section in sections] == [1, 2, 3]
    values = {"lora": {"rank": 3}, "cohort": {"ranks": [s.model_dump() for s in sections]}}
    found = mixed_ranks(parse_config(values), SIZES)
    assert found is not None
    assert found.rank_of == {name: 1 + (place % 3) for place, name in enumerate(SIZES)}


@pytest.mark.parametrize(("corrupt", "dropout"), [(0.0, 0.25), (0.1, 0.25), (0.25, 0.0)])
def test_the_smallest_slice_that_a_plan_allows_stands_in_a_run_and_a_smaller_one_does_not(
    corrupt, dropout
):
    """All corrupt clients of the cohort may be in it, not a share of them."""
    config = parse_config({"privacy": {"corrupt_fraction": corrupt, "dropout_fraction": dropout}})
    settings = Settings(config, sizes=SIZES, dimension=100)
    least = _least_cohort(3, settings, sliced=True)

    def tiers(holders: int) -> int:
        return len(
            MixedRanks.of(
                {name: 2 if place < holders else 1 for place, name in enumerate(SIZES)},
                corrupt_fraction=corrupt,
                dropout_fraction=dropout,
                aggregation=PairwiseAggregation(),
            ).tiers.ranks
        )

    assert tiers(least) == 2
    assert tiers(least - 1) == 1


def test_a_personal_adapter_is_of_its_clients_own_rank_and_leaves_the_shared_one(tmp_path):
    own = {"kind": "adapter", "steps": 3, "learning_rate": 0.05, "mix": 1.0, "trains": "all"}
    bench, _ = Federation.from_config(write(tmp_path, personal=own)).prepare()
    before = adapter_state(bench.model)
    for name in ("site-5", "site-2", "site-0"):
        bench.personalise(name, tmp_path / name)
        made = load_file(tmp_path / name / "own.safetensors")
        used = load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for key, value in made.items():
            turned = value if ".lora_B." in key else value.T - before[key].T
            assert turned[:, : OWN[name]].any()
            assert not turned[:, OWN[name] :].any()
        assert {min(value.shape) for value in used.values()} == {OWN[name]}
        after = adapter_state(bench.model)
        assert all(torch.equal(before[key], value) for key, value in after.items())
