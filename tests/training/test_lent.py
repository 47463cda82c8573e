"""What a lent model and the process hold afterwards, whatever another library did to them."""

import os

import huggingface_hub.constants as hub
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from transformers import PretrainedConfig
from transformers.utils import logging

from securefed.training.lent import lent, process_as_it_was

STATES = (PartialState, AcceleratorState, GradientState)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 1)
        self.first.requires_grad_(False)
        self.config = PretrainedConfig(eos_token_id=3)
        self.config.inner = PretrainedConfig(eos_token_id=7)
        self.names, self.seen, self.scale = ["a", ["b"]], {"a"}, {"default": {"x": 1.0}}


def spoil(model):
    model.names.append("text")
    model.names[1].append("text")
    model.seen.add("text")
    model.scale["default"]["x"] = 2.0
    model.config.eos_token_id = 0
    model.config.inner.eos_token_id = 0
    model.first.forward = lambda given: given
    model.last.register_forward_hook(lambda *_: None)
    model.memory = torch.ones(2)
    model.first.weight.requires_grad_(True)
    model.last.weight.requires_grad_(False)
    model.last = nn.Linear(2, 1)
    model.train()


@pytest.mark.parametrize("fails", [False, True])
def test_all_but_values_is_put_back_even_if_training_fails(fails):
    model = Small().eval()
    last = model.last
    try:
        with lent(model):
            last.weight.grad = torch.ones_like(last.weight)
            last.weight.data.fill_(5.0)
            spoil(model)
            if fails:
                raise RuntimeError("out of memory")
    except RuntimeError:
        assert fails
    assert model.names == ["a", ["b"]]
    assert model.seen == {"a"}
    assert model.scale == {"default": {"x": 1.0}}
    assert model.config.eos_token_id == 3
    assert model.config.inner.eos_token_id == 7
    assert "forward" not in vars(model.first)
    assert not hasattr(model, "memory")
    assert model.last is last
    assert not last._forward_hooks
    assert not any(module.training for module in model.modules())
    assert not model.first.weight.requires_grad
    assert last.weight.requires_grad
    assert last.weight.grad is None
    assert bool((last.weight == 5.0).all())


def leave_traces_and_fail():
    with process_as_it_was():
        assert [dict(state._shared_state) for state in STATES] == [{}, {}, {}]
        assert hub.HF_HUB_DISABLE_TELEMETRY
        assert logging.get_verbosity() == logging.ERROR
        os.environ.update(NEW="1", CHANGED="after")
        del os.environ["TAKEN_AWAY"]
        for state in STATES:
            state._shared_state["left"] = "by this one"
        raise RuntimeError("out of memory")


def test_a_training_begins_without_what_another_left_in_the_process(monkeypatch):
    for state in STATES:
        monkeypatch.setitem(state._shared_state, "left", "by another")
    monkeypatch.setenv("LEFT_AS_IT_IS", "1")
    monkeypatch.setenv("CHANGED", "before")
    monkeypatch.setenv("TAKEN_AWAY", "before")
    monkeypatch.delenv("NEW", raising=False)
    monkeypatch.setattr(hub, "HF_HUB_DISABLE_TELEMETRY", False)
    environment, before = dict(os.environ), logging.get_verbosity()
    logging.set_verbosity_info()
    try:
        with pytest.raises(RuntimeError, match="memory"):
            leave_traces_and_fail()
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity(before)
    assert dict(os.environ) == environment
    assert all(state._shared_state["left"] == "by another" for state in STATES)
    assert not hub.HF_HUB_DISABLE_TELEMETRY
