"""Rounds that keep a random part of the coordinates, the same for all clients."""

import json

import numpy as np
import pytest
from stopped_runs import check_resumes_exactly, final, write

from securefed import Federation
from securefed.config import TrainingSection, load_config
from securefed.encoding.sparsification import KeptCoordinates
from securefed.engines.client_state import ClientState
from securefed.engines.combining import Combining
from securefed.engines.verify import verify_run
from securefed.evidence.ledger import read_ledger
from securefed.training.dp_sgd import PerExampleGradients
from securefed.training.users import clipped_sum_of_users

RANDOM = {"sparsify": "random", "keep_fraction": 0.25}
D = 256  # of the tiny model


def kept_in(number: int, seed: int) -> np.ndarray:
    return KeptCoordinates(D, 0.25, seed=seed, round=number).indices


MODES = {
    "client, none": {"unit": "client", "mechanism": "none"},
    "client, distributed": {"unit": "client", "clip_norm": 0.5, "noise_multiplier": 4.0},
    "example, distributed": {"unit": "example", "expected_batch": 60, "noise_multiplier": 4.0},
    "user, distributed": {"unit": "user", "expected_batch": 6, "sample_is_secret": False},
    "example, local": {"mechanism": "local", "expected_batch": 60, "update_clip_norm": 5.0},
    "adaptive": {
        "unit": "client",
        "clip_norm": 0.5,
        "noise_multiplier": 4.0,
        "adaptive_clip": {"learning_rate": 0.5},
    },
}


SLOW = ("user, distributed", "example, local")


@pytest.mark.parametrize(
    "privacy",
    [
        pytest.param(privacy, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, privacy in MODES.items()
    ],
)
def test_a_round_moves_the_kept_coordinates_and_no_other(tmp_path, privacy):
    few = {"examples_per_user": 2} if privacy.get("unit") == "user" else {}
    path = write(tmp_path, RANDOM | few | {"rounds": 2}, privacy=privacy)
    result = Federation.from_config(path).run(tmp_path / "out")
    seed = load_config(path).lora.seed
    first, second = final(result.folder, 1), final(result.folder, 2)
    assert first.shape == (D,)
    np.testing.assert_array_equal(np.flatnonzero(first), kept_in(1, seed))  # B begins at zero
    np.testing.assert_array_equal(np.flatnonzero(second - first), kept_in(2, seed))
    assert read_ledger(result.folder / "ledger.jsonl")[0].body["privacy"]["dimension"] == D / 4
    assert verify_run(result.folder).finished


def test_the_masked_sum_of_a_sparse_round_is_the_plain_mean_of_the_kept_parts(
    tmp_path, monkeypatch
):
    seen = []
    vector = Combining.vector

    def watch(self, client, delta, **others):
        seen.append((delta, vector(self, client, delta, **others)))
        return seen[-1][1]

    monkeypatch.setattr(Combining, "vector", watch)
    path = write(tmp_path, RANDOM | {"rounds": 1})
    result = Federation.from_config(path).run(tmp_path / "out")
    indices = kept_in(1, load_config(path).lora.seed)
    expected = np.zeros(D)
    expected[indices] = np.mean([delta[indices] for delta, _ in seen], axis=0)
    np.testing.assert_allclose(final(result.folder, 1), expected, atol=1e-6)
    assert {len(sent) for _, sent in seen} == {D // 4}


def bytes_up(tmp_path, training) -> tuple[float, int]:
    """Sent by a client in a round, and the bits of a value."""
    path = write(tmp_path, {"rounds": 1} | training, lora={"rank": 32})
    result = Federation.from_config(path).run(tmp_path / "out")
    bits = read_ledger(result.folder / "ledger.jsonl")[0].body["privacy"]["bits"]
    costs = json.loads((result.folder / "costs.json").read_text())
    return costs["bytes_up_per_client_and_round"], bits


def test_bytes_on_the_wire_fall_with_what_is_kept(tmp_path):
    """Of 4,096 values an eighth is left, and an eighth of the masked input's bytes."""
    whole, bits = bytes_up(tmp_path / "whole", {})
    eighth, same_bits = bytes_up(tmp_path / "eighth", RANDOM | {"keep_fraction": 0.125})
    assert bits == same_bits
    assert whole - eighth == pytest.approx(16 * D * 7 / 8 * bits / 8, rel=0.001)


def test_what_clients_are_sent_is_what_may_have_changed(tmp_path):
    """A quarter of the values; with moments at the server all of them move."""
    down = {}
    for kind in ("sgd", "adam"):
        path = write(tmp_path / kind, RANDOM | {"rounds": 2, "server_optimizer": kind})
        result = Federation.from_config(path).run(tmp_path / kind / "out")
        down[kind] = result.events[2].bytes_down
        changed = final(result.folder, 2) != final(result.folder, 1)
        assert changed.sum() > D // 4 if kind == "adam" else changed.sum() <= D // 4
        assert verify_run(result.folder).finished
    assert down["adam"] - down["sgd"] == pytest.approx(4 * (D - D // 4), abs=1)


def rows_of(monkeypatch, rows: np.ndarray) -> PerExampleGradients:
    gradients = PerExampleGradients.__new__(PerExampleGradients)
    gradients._layout = type("Layout", (), {"size": rows.shape[1]})()
    monkeypatch.setattr(PerExampleGradients, "flat_rows", lambda self, examples: iter([rows]))
    return gradients


@pytest.mark.parametrize("unit", ["example", "user"])
def test_each_unit_is_clipped_on_its_kept_coordinates(monkeypatch, unit):
    """Norm C of the kept part, not of the whole: the rest of a long gradient takes nothing."""
    rng = np.random.default_rng(0)
    rows = (10 * rng.normal(size=(4, 40))).astype(np.float32)
    rows[3] *= 1e-4  # below the clip
    indices = KeptCoordinates(40, 0.25, seed=1, round=1).indices
    gradients = rows_of(monkeypatch, rows)
    if unit == "example":
        found = gradients.clipped_sum(None, 0.5, 0.0, indices)
    else:
        examples = type("Examples", (), {"users": np.arange(4)})()
        found = clipped_sum_of_users(gradients, examples, 0.5, 0.0, indices)
    expected = np.zeros(10)
    for row in rows:
        part = row[indices].astype(np.float64)
        expected += part * min(1.0, 0.5 / np.linalg.norm(part))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_repeated_attempt_keeps_the_same_coordinates(tmp_path):
    """Whatever the session is called: the server cannot try until a subset pleases."""
    first, again = (Combining(TrainingSection(**RANDOM), seed=5, dimension=D) for _ in range(2))
    np.testing.assert_array_equal(first.cut_to(3), again.cut_to(3))
    assert not np.array_equal(first.cut_to(3), first.cut_to(4))
    assert Combining(TrainingSection(), seed=5, dimension=D).cut_to(3) is None


# -- error feedback -----------------------------------------------------------------------


def test_what_was_cut_off_is_added_later_and_nothing_is_lost():
    ours = Combining(TrainingSection(**RANDOM, error_feedback=True), seed=5, dimension=D)
    bare = Combining(TrainingSection(**RANDOM), seed=5, dimension=D)
    rng = np.random.default_rng(0)
    sent, lost, whole = np.zeros(D), np.zeros(D), np.zeros(D)
    for number in range(1, 31):
        delta = rng.normal(size=D).astype(np.float32)
        for combining, total in ((ours, sent), (bare, lost)):
            vector = combining.vector("c", delta, weight=0.5, clip_norm=1e6, number=number)
            total -= combining.opened(-vector, number=number, share=1.0)
            combining.state.take_over(["c"])
        whole += 0.5 * delta.astype(np.float64)
    np.testing.assert_allclose(sent + ours.state.of("c", "residual"), whole, atol=1e-9)
    assert np.linalg.norm(whole - sent) < 0.6 * np.linalg.norm(whole - lost)


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_what_each_client_holds_back(tmp_path, monkeypatch):
    training = RANDOM | {"error_feedback": True}
    forgets = [(ClientState, "load", lambda self, *_: None)]
    check_resumes_exactly(tmp_path, training, forgets, monkeypatch)
