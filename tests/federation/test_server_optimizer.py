import numpy as np
import pytest
import torch

from securefed.config import TrainingSection, parse_config
from securefed.errors import ConfigError
from securefed.federation.server_optimizer import ServerOptimizer


def start(d: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=d).astype(np.float32)


def gradients(count: int, d: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=d) * 10.0 ** rng.integers(-3, 2) for _ in range(count)]


def optimizer(kind: str, rate: float = 0.01, initial: np.ndarray | None = None) -> ServerOptimizer:
    return ServerOptimizer(start() if initial is None else initial, kind=kind, learning_rate=rate)


STATEFUL = ["adam", "yogi", "adagrad", "momentum"]
EVERY = ["sgd", *STATEFUL]


def rule(kind: str, rate: float = 0.01, initial: np.ndarray | None = None) -> ServerOptimizer:
    """As ``optimizer``; ``"momentum"`` is SGD with momentum 0.9."""
    if kind != "momentum":
        return optimizer(kind, rate, initial)
    values = start() if initial is None else initial
    return ServerOptimizer(values, kind="sgd", learning_rate=rate, momentum=0.9)


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


def test_yogi_is_the_papers_recursion():
    """Zaheer et al. 2018, Algorithm 2, from v_0 = tau^2 (Reddi et al. 2021), in float64."""
    rate, beta1, beta2, tau = 0.03, 0.8, 0.95, 1e-2
    ours = ServerOptimizer(
        start(), kind="yogi", learning_rate=rate, betas=(beta1, beta2), epsilon=tau
    )
    weights = start().astype(np.float64)
    first, second = np.zeros(6), np.full(6, tau**2)
    adams = second.copy()
    for gradient in gradients(20):
        first = beta1 * first + (1 - beta1) * gradient
        second = second - (1 - beta2) * gradient**2 * np.sign(second - gradient**2)
        adams = beta2 * adams + (1 - beta2) * gradient**2
        weights -= rate * first / (np.sqrt(second) + tau)
        np.testing.assert_allclose(ours.step(gradient), weights, rtol=2e-4, atol=2e-5)
    assert (second > 1.2 * adams).any()  # or Adam's moment would have passed as well


def test_one_step_of_yogi_by_hand():
    """g = 3 and 0.001 at tau = 0.1: v = 0.01 + 0.1 * 9 and 0.01 - 0.1 * 1e-6."""
    ours = ServerOptimizer(
        np.zeros(2, np.float32), kind="yogi", learning_rate=1.0, betas=(0.5, 0.9), epsilon=0.1
    )
    moved = ours.step(np.array([3.0, 0.001]))
    by_hand = [-1.5 / (np.sqrt(0.91) + 0.1), -0.0005 / (np.sqrt(0.0099999) + 0.1)]
    np.testing.assert_allclose(moved, by_hand, rtol=1e-6)


def test_adagrad_is_the_papers_recursion():
    """Reddi et al. 2021, Algorithm 2 with beta1 = 0: v_0 = tau^2, v_t = v_{t-1} + g^2."""
    rate, tau = 0.03, 1e-2
    ours = ServerOptimizer(start(), kind="adagrad", learning_rate=rate, epsilon=tau)
    weights, second = start().astype(np.float64), np.full(6, tau**2)
    for gradient in gradients(20):
        second = second + gradient**2
        weights -= rate * gradient / (np.sqrt(second) + tau)
        np.testing.assert_allclose(ours.step(gradient), weights, rtol=2e-4, atol=2e-5)


def test_momentum_is_the_papers_recursion():
    """Hsu, Qi and Brown 2019: v_t = 0.9 v_{t-1} + mean delta, x_t = x_{t-1} + v_t."""
    ours = rule("momentum", 1.0)
    weights, velocity = start().astype(np.float64), np.zeros(6)
    for gradient in gradients(10):
        velocity = 0.9 * velocity - gradient
        weights += velocity
        np.testing.assert_allclose(ours.step(gradient), weights, rtol=1e-4, atol=1e-4)


def test_what_the_run_file_asks_for_reaches_the_optimizer():
    section = TrainingSection(
        server_optimizer="yogi",
        server_learning_rate=0.5,
        server_betas=[0.5, 0.75],
        server_epsilon=0.25,
    )
    ours, same = (
        ServerOptimizer.of(start(), section),
        ServerOptimizer(start(), kind="yogi", learning_rate=0.5, betas=(0.5, 0.75), epsilon=0.25),
    )
    plain = ServerOptimizer(start(), kind="yogi", learning_rate=0.5)
    for gradient in gradients(3):
        moved = ours.step(gradient)
        np.testing.assert_array_equal(moved, same.step(gradient))
        assert not np.array_equal(moved, plain.step(gradient))
    section = TrainingSection(server_optimizer="sgd", server_momentum=0.9, server_learning_rate=1.0)
    ours, same = ServerOptimizer.of(start(), section), rule("momentum", 1.0)
    for gradient in gradients(3):
        np.testing.assert_array_equal(ours.step(gradient), same.step(gradient))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"server_optimizer": "adam", "server_momentum": 0.9}, "server_momentum with .*'adam'"),
        ({"server_optimizer": "sgd", "server_betas": [0.9, 0.99]}, "server_betas with .*'sgd'"),
        ({"server_optimizer": "adagrad", "server_betas": [0.9, 0.99]}, "of 'adam' and 'yogi'"),
        ({"server_optimizer": "sgd", "server_epsilon": 1e-3}, "server_epsilon with .*'sgd'"),
        ({"server_optimizer": "sgd", "server_momentum": 1.0}, "server_momentum"),
        ({"server_betas": [0.9, 1.0]}, "server_betas"),
        ({"server_betas": [-0.1, 0.9]}, "server_betas"),
        ({"server_epsilon": 0.0}, "server_epsilon"),
        ({"server_epsilon": 2.0}, "server_epsilon"),
    ],
)
def test_a_run_file_with_a_value_out_of_range_or_without_effect_is_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        parse_config({"training": values})


@pytest.mark.parametrize("kind", EVERY)
def test_a_step_goes_against_the_gradient(kind):
    moved = rule(kind).step(np.array([1.0, -1.0, 1.0, -1.0, 0.0, 0.0]))
    assert (np.sign(moved - start()) == [-1, 1, -1, 1, 0, 0]).all()


@pytest.mark.parametrize("kind", EVERY)
def test_an_optimizer_restored_from_a_checkpoint_goes_on_as_if_it_had_not_stopped(kind):
    through = rule(kind)
    for gradient in gradients(3):
        through.step(gradient)
    resumed = rule(kind, initial=np.zeros(6, dtype=np.float32))
    resumed.restore(copied(through.state()))
    np.testing.assert_array_equal(resumed.parameters, through.parameters)
    for gradient in gradients(4):
        np.testing.assert_array_equal(resumed.step(gradient), through.step(gradient))


@pytest.mark.parametrize("kind", EVERY)
def test_a_state_is_tensors_that_later_steps_do_not_change(kind):
    ours = rule(kind)
    ours.step(gradients(1)[0])
    state = ours.state()
    before = copied(state)
    ours.step(gradients(2)[1])
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    for name, value in before.items():
        assert torch.equal(state[name], value), name
    assert (len(state) > 1) == (kind != "sgd")


@pytest.mark.parametrize("kind", STATEFUL)
def test_the_moments_are_part_of_the_state(kind):
    """Without them the next step is another one."""
    through = rule(kind)
    for gradient in gradients(3):
        through.step(gradient)
    bare = rule(kind)
    if kind == "adagrad":  # its state is there from the start: take the first one's
        fresh = {n: t for n, t in bare.state().items() if n != "parameters"}
        bare.restore({"parameters": through.state()["parameters"].clone(), **fresh})
        assert not np.allclose(bare.step(gradients(4)[3]), through.step(gradients(4)[3]))
        return
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


# -- coordinates that stay -----------------------------------------------------------------

STILL = np.array([False, True, False, True, True, False])


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("before", [0, 3], ids=["first step", "later"])
def test_coordinates_of_which_nothing_was_heard_stay_with_their_moments(kind, before):
    ours, free, others = rule(kind), rule(kind), rule(kind)
    *earlier, last = gradients(before + 1)
    for gradient in earlier:
        ours.step(gradient)
        free.step(gradient)
        others.step(gradient)
    gradient = np.where(STILL, 0.0, last)
    held = copied(ours.state())
    moved = ours.step(gradient, still=STILL)
    expected = others.step(last)
    np.testing.assert_array_equal(moved[STILL], held["parameters"].numpy()[STILL])
    np.testing.assert_array_equal(moved[~STILL], expected[~STILL])
    for name, value in ours.state().items():
        if value.shape == (6,) and name in held:
            np.testing.assert_array_equal(value.numpy()[STILL], held[name].numpy()[STILL])
            np.testing.assert_array_equal(
                value.numpy()[~STILL], others.state()[name].numpy()[~STILL]
            )
    if before and kind in STATEFUL[:1] + STATEFUL[3:]:  # what a gradient of 0 alone would do
        assert (free.step(gradient)[STILL] != held["parameters"].numpy()[STILL]).all()
