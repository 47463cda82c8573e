import numpy as np
import pytest
import torch

from securefed.errors import ConfigError
from securefed.federation.server_optimizer import ServerOptimizer


def start(d: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=d).astype(np.float32)


def gradients(count: int, d: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=d) * 10.0 ** rng.integers(-3, 2) for _ in range(count)]


def optimizer(kind: str, rate: float = 0.01, initial: np.ndarray | None = None) -> ServerOptimizer:
    return ServerOptimizer(start() if initial is None else initial, kind=kind, learning_rate=rate)


def copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_sgd_at_rate_one_on_minus_a_mean_delta_is_federated_averaging():
    delta = gradients(1)[0]
    moved = optimizer("sgd", 1.0).step(-delta)
    np.testing.assert_allclose(moved, start() + delta, rtol=1e-6)


def test_adam_is_the_papers_recursion():
    """Kingma and Ba 2015, Algorithm 1, in float64."""
    ours, rate = optimizer("adam", 0.03), 0.03
    weights = start().astype(np.float64)
    first, second = np.zeros(6), np.zeros(6)
    for step, gradient in enumerate(gradients(20), start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        unbiased = first / (1 - 0.9**step), second / (1 - 0.999**step)
        weights -= rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
        np.testing.assert_allclose(ours.step(gradient), weights, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_step_goes_against_the_gradient(kind):
    moved = optimizer(kind).step(np.array([1.0, -1.0, 1.0, -1.0, 0.0, 0.0]))
    assert (np.sign(moved - start()) == [-1, 1, -1, 1, 0, 0]).all()


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_an_optimizer_restored_from_a_checkpoint_goes_on_as_if_it_had_not_stopped(kind):
    through = optimizer(kind)
    for gradient in gradients(3):
        through.step(gradient)
    resumed = optimizer(kind, initial=np.zeros(6, dtype=np.float32))
    resumed.restore(copied(through.state()))
    np.testing.assert_array_equal(resumed.parameters, through.parameters)
    for gradient in gradients(4):
        np.testing.assert_array_equal(resumed.step(gradient), through.step(gradient))


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_state_is_tensors_that_later_steps_do_not_change(kind):
    ours = optimizer(kind)
    ours.step(gradients(1)[0])
    state = ours.state()
    before = copied(state)
    ours.step(gradients(2)[1])
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    for name, value in before.items():
        assert torch.equal(state[name], value), name
    assert (len(state) > 1) == (kind == "adam")


def test_the_moments_are_part_of_the_state():
    """Without them the next step is another one."""
    through = optimizer("adam")
    for gradient in gradients(3):
        through.step(gradient)
    bare = optimizer("adam")
    bare.restore({"parameters": through.state()["parameters"].clone()})
    gradient = gradients(4)[3]
    assert not np.allclose(bare.step(gradient), through.step(gradient))


@pytest.mark.parametrize("length", [5, 7])
def test_a_checkpoint_of_another_length_is_refused_and_changes_nothing(length):
    ours = optimizer("adam")
    ours.step(gradients(1)[0])
    before = copied(ours.state())
    other = optimizer("adam", initial=start(length))
    with pytest.raises(ConfigError, match=rf"\({length},\) parameters: this run has \(6,\)"):
        ours.restore(other.state())
    for name, value in ours.state().items():
        assert torch.equal(before[name], value), name


@pytest.mark.parametrize("kind", ["Adam", "lamb", ""])
def test_an_unknown_kind_is_refused(kind):
    with pytest.raises(ConfigError, match="server_optimizer"):
        optimizer(kind)


def test_neither_the_initial_values_nor_what_is_read_are_shared():
    initial = start()
    ours = optimizer("sgd", 1.0, initial)
    read = ours.parameters
    ours.step(np.ones(6))
    np.testing.assert_array_equal(initial, start())
    np.testing.assert_array_equal(read, start())
    read[:] = 0
    np.testing.assert_allclose(ours.parameters, start() - 1, rtol=1e-6)


def test_a_gradient_of_another_length_is_refused_by_torch_and_changes_nothing():
    ours = optimizer("adam")
    with pytest.raises(RuntimeError):
        ours.step(np.zeros(5))
    np.testing.assert_array_equal(ours.parameters, start())


def test_restoring_leaves_the_checkpoint_alone_and_forgets_later_moments():
    start = np.zeros(4, dtype=np.float32)
    optimizer = ServerOptimizer(start, kind="adam", learning_rate=0.1)
    fresh = optimizer.state()
    optimizer.step(np.ones(4))
    kept = optimizer.state()
    before = {name: tensor.clone() for name, tensor in kept.items()}
    optimizer.restore(kept)
    optimizer.step(np.ones(4))
    assert all(bool((kept[name] == before[name]).all()) for name in kept)
    optimizer.restore(fresh)
    again = optimizer.step(np.ones(4))
    np.testing.assert_array_equal(again, before["parameters"].numpy())
