"""What a trainer of one's own leaves behind in the model is seen, whatever it is."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

from securefed.errors import ConfigError
from securefed.training.untouched import Untouched, own_random_state


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.last = nn.Linear(3, 2, bias=False)
        self.scaling = {"default": 2.0}
        self.config = PretrainedConfig(use_cache=True)
        self.used = False
        self.memory = torch.zeros(3)
        self.seen = {"a"}

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    found = Small().eval()
    for parameter in found.parameters():
        parameter.requires_grad_(False)
    found.last.weight.requires_grad_(True)
    return found


def test_what_travels_may_change_and_gradients_are_cleared(model):
    guard = Untouched(model)
    with guard.watching("it"):
        model(torch.randn(4, 3)).sum().backward()
        with torch.no_grad():
            model.last.weight += 1.0
    assert model.last.weight.grad is None
    with guard.watching("it"):
        pass


def stays(tensor_name, change):
    return pytest.param(change, tensor_name, id=tensor_name)


def negate_two(model):
    """Sign flips of two values: what a careless checksum over 64-bit words would not see."""
    with torch.no_grad():
        model.first.weight[0, 0] *= -1
        model.first.weight[0, 2] *= -1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        stays("first.weight", negate_two),
        stays("first.bias", lambda m: m.first.bias.data.add_(1e-6)),
        stays("norm.running_mean", lambda m: m.norm.running_mean.add_(1.0)),
        stays("norm.num_batches_tracked", lambda m: m.norm.num_batches_tracked.add_(1)),
        stays("extra", lambda m: m.register_buffer("extra", torch.zeros(1))),
        stays("last.weight", lambda m: setattr(m.last, "weight", nn.Parameter(torch.ones(2, 3)))),
        stays("first.weight ", lambda m: m.first.weight.requires_grad_(True)),
        stays("norm", lambda m: m.norm.train()),
        stays("first", lambda m: setattr(m, "first", nn.Linear(3, 3))),
        stays("last", lambda m: m.last.register_forward_hook(lambda *_: None)),
        stays("last.weight ", lambda m: m.last.weight.register_hook(lambda g: g)),
        stays("used", lambda m: setattr(m, "used", True)),
        stays("scaling", lambda m: m.scaling.update(default=3.0)),
        stays("config", lambda m: setattr(m.config, "use_cache", False)),
        stays("secret", lambda m: setattr(m, "secret", 17)),
        stays("memory", lambda m: m.memory.add_(1.0)),
        stays("seen", lambda m: m.seen.add("b")),
        stays("last.weight: attribute memory", lambda m: setattr(m.last.weight, "memory", 17)),
        stays("last.weight: type", lambda m: m.last.double()),
    ],
)
def test_everything_else_is_refused_by_name(model, change, named):
    guard = Untouched(model)
    with pytest.raises(ConfigError, match=rf"^it: .*{named.strip()}"), guard.watching("it"):
        change(model)


def test_modes_and_flags_are_put_back_and_a_changed_weight_spoils_the_model(model):
    guard = Untouched(model)
    with pytest.raises(ConfigError, match="training mode"), guard.watching("it"):
        model.train()
    with pytest.raises(ConfigError, match="requires_grad = True"), guard.watching("it"):
        model.first.weight.requires_grad_(True)
    assert not any(module.training for module in model.modules())
    assert not model.first.weight.requires_grad
    with guard.watching("it"):
        pass
    with pytest.raises(ConfigError, match=r"first\.weight"), guard.watching("it"):
        model.first.weight.data.zero_()
    with pytest.raises(ConfigError, match="not used again"), guard.watching("it"):
        pytest.fail("a spoiled model was handed out")


def test_an_error_of_the_trainer_is_not_hidden_and_modes_are_put_back(model):
    guard = Untouched(model)
    with pytest.raises(ZeroDivisionError), guard.watching("it"):
        model.train().scaling["default"] /= 0
    assert not any(module.training for module in model.modules())
    with pytest.raises(ConfigError, match="not used again"), guard.watching("it"):
        pytest.fail("what it left behind is not known")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
def test_one_changed_value_is_seen_in_every_type_and_length(dtype):
    module = nn.Module()
    module.register_buffer("values", torch.zeros(262_147, dtype=dtype))
    guard = Untouched(module)
    with pytest.raises(ConfigError, match="values"), guard.watching("it"):
        module.values[-1] = 1


def test_random_draws_inside_do_not_move_the_ones_outside():
    def draws():
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = draws()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    with own_random_state():
        first = draws()
    with own_random_state():
        second = draws()
    assert draws() == expected
    assert first != second
