"""What clients keep of a round: nothing of an attempt that failed, and nobody else may read it."""

import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stopped_runs import ROUNDING, final, write

from securefed import Federation
from securefed.config import TrainingSection
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.combining import Combining
from securefed.engines.run import Run
from securefed.engines.run_folder import RunFolder
from securefed.engines.verify import verify_run
from securefed.engines.workbench import Workbench
from securefed.federation.update_codec import UpdateCodec
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.policy import PrivacyPolicy

KEEPS = {"sparsify": "random", "keep_fraction": 0.5, "error_feedback": True}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A run whose clients keep both a B of their own and what was cut off."""
    folder = tmp_path_factory.mktemp("kept")
    return write(folder, KEEPS | {"rounds": 1}, lora={"sharing": "fedsa", "rank": 2})


def held(bench: Workbench) -> dict[str, np.ndarray]:
    found = {}
    for name in bench.clients:
        with bench.personal.of(name):
            own = torch.cat([each.reshape(-1) for each in bench.parts.kept().values()])
        found[name] = np.concatenate([own.numpy(), bench.combining.state.of(name, "residual")])
    return found


def test_a_round_of_which_no_sum_came_changes_nothing_that_a_client_keeps(path):
    bench, settings = Federation.from_config(path).prepare()
    names = tuple(sorted(bench.clients))

    def attempt(number: int) -> None:
        bench.begin_round(number)
        for name in names:
            bench.contribution(settings, settings.sum_policy, name, number, NoiseGenerator())

    attempt(1)
    bench.take_over(names, names)
    first = held(bench)
    assert all(np.count_nonzero(each) > 100 for each in first.values())
    attempt(2)  # it fails: nobody takes anything over
    bench.begin_round(2)
    bench.take_over(names, names)
    for name, kept in held(bench).items():
        np.testing.assert_array_equal(kept, first[name])
    attempt(2)
    bench.take_over(names[1:], names)  # the first one's vector did not reach the sum
    residuals = {n: bench.combining.state.of(n, "residual") for n in names}
    kept = len(residuals[names[0]])
    np.testing.assert_array_equal(residuals[names[0]], first[names[0]][-kept:])
    assert all(not np.array_equal(residuals[n], first[n][-kept:]) for n in names[1:])


def test_what_is_made_from_one_clients_data_is_for_the_owner_of_the_folder_alone(path, tmp_path):
    """The personal adapter's files are readable, as an adapter's are; nobody else gets to them."""
    Federation.from_config(path).run(tmp_path / "out")
    assert (tmp_path / "out" / "personal" / "site-0" / "adapter").is_dir()
    for name in ("personal", "clients"):
        assert stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) == 0o700


# -- kills inside a round -------------------------------------------------------------------

ROUNDS = 3
TO_THE_END = KEEPS | {"rounds": ROUNDS, "local_steps": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    path = write(folder, TO_THE_END, lora={"sharing": "fedsa", "rank": 2})
    Federation.from_config(path).run(folder / "out")
    return path, folder / "out"


def kept_files(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(folder.glob(f"personal/*/*-{ROUNDS}.safetensors")):
        for name, value in load_file(path).items():
            found[f"{path.parent.name} {name}"] = value.numpy()
    return found


@pytest.mark.parametrize(
    ("owner", "name"), [(RunFolder, "save_checkpoint"), (Run, "_book"), (Workbench, "take_over")]
)
def test_a_kill_between_sum_and_end_of_a_round_leaves_what_clients_kept_before_it(
    whole, tmp_path, monkeypatch, owner, name
):
    """Before, between and after their files of that round are written, and once it is applied."""
    path, wanted = whole
    works, out = getattr(owner, name), tmp_path / "out"

    def stops(self, *arguments, **named):
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return works(self, *arguments, **named)

    rounds: list[int] = []
    begin = Workbench.begin_round
    monkeypatch.setattr(
        Workbench, "begin_round", lambda self, n: (rounds.append(n), begin(self, n))[1]
    )
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stops)
        with pytest.raises(KeyboardInterrupt):
            Federation.from_config(path).run(out)
    result = Federation.from_config(path).run(out, resume=True)
    repeated = name != "_book"
    assert rounds == ([1, 2, 2, 3] if repeated else [1, 2, 3])
    assert result.charges == ROUNDS + repeated
    expected, found = kept_files(wanted), kept_files(out)
    assert len(expected) == len(found) == 6 * (4 + 1)  # of each client: four B and a residual
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=ROUNDING)
    np.testing.assert_allclose(final(out, ROUNDS), final(wanted, ROUNDS), atol=ROUNDING)
    assert verify_run(out).finished


# -- values at the end of what floats hold --------------------------------------------------


def test_a_change_beyond_what_float32_holds_counts_as_zeros_and_ends_no_round(path, monkeypatch):
    """An error, or a residual of infinities, would show what went wrong with one client's data."""
    bench, settings = Federation.from_config(path).prepare()
    flat, calls = bench.parts.flat, []

    def at_both_ends():
        calls.append(None)
        return np.full_like(flat(), 3e38 * (-1.0) ** len(calls))

    monkeypatch.setattr(bench.parts, "flat", at_both_ends)
    monkeypatch.setattr(bench.parts, "load_flat", lambda vector: None)
    bench.begin_round(1)
    vector = bench._vector(
        "site-0", settings, settings.sum_policy, bench.clients["site-0"].train, 1
    )
    assert len(calls) == 2
    assert not vector.any()
    bench.take_over(("site-0",), ("site-0",))
    assert not held(bench)["site-0"].any()
    assert bench.saw_non_finite


def test_a_control_is_made_of_the_largest_finite_change_as_of_any_other():
    """Divided by a small K eta it is beyond float32; the pair is clipped and encoded all the same.

    The clip refuses what is not finite, and a refusal would end the round for everybody.
    """
    section = TrainingSection(
        local_steps=2, local_learning_rate=1e-3, local_optimizer="sgd", control_weight=1.0
    )
    combining = Combining(section, seed=1, dimension=3)
    delta = np.array([3e38, 0.0, -1e38], dtype=np.float32)
    pair = combining.vector("a", delta, weight=0.5, clip_norm=1.0, number=1)
    assert np.isfinite(pair).all()
    np.testing.assert_allclose(pair[3:], -pair[:3])
    combining.state.take_over(["a"])
    assert np.isfinite(combining.state.of("a", "control")).all()
    policy = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0)
    codec = UpdateCodec(policy, plan_round(policy, cohort_size=8, dimension=6), bytes(32))
    zeroed: list[str] = []
    codec.encode_update(pair, NoiseGenerator(), on_zeroed=zeroed.append)
    assert zeroed == []
