"""A model lent to another library's trainer, and taken back as it was but for what travels.

Such a trainer hangs hooks on a model, replaces ``forward``, writes to its configuration and sets
state of the process: none of it may wait for the next client
(:mod:`securefed.training.untouched` looks, and refuses what is left).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import huggingface_hub.constants as hub
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from transformers.utils import logging

_SHARED = (PartialState, AcceleratorState, GradientState)


@contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """Put back afterwards what a model holds besides values of tensors.

    Put back are, at every module and every configuration that one refers to, all attributes and
    the contents of dicts, lists and sets: hooks, ``forward``, modes, sub-modules,
    ``config.use_cache``, token ids of ``generation_config``.  Also which parameters have
    ``requires_grad``; gradients are dropped.

    Args:
        model: exactly what travels has ``requires_grad``.

    Guarantees:
        - Values of parameters and buffers stay as they were left.
    """
    kept = _kept(model)
    trains = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for held, content in kept:
            if isinstance(held, list):
                held[:] = content
            elif isinstance(held, dict | set):
                held.clear()
                held.update(content)
            else:
                vars(held).clear()
                vars(held).update(content)
        for parameter, required in trains:
            parameter.requires_grad_(required)
            parameter.grad = None


def _kept(model: nn.Module) -> list[tuple[Any, Any]]:
    """What can change in place, each once, with a copy of its content."""
    kept, seen, waiting = [], set(), [model]
    while waiting:
        held: Any = waiting.pop()
        if id(held) in seen:
            continue
        if isinstance(held, dict):
            content: Any = dict(held)
            waiting += content.values()
        elif isinstance(held, list):
            content = list(held)
            waiting += content
        elif isinstance(held, set):
            content = set(held)
        elif isinstance(held, nn.Module) or _is_configuration(held):
            content = dict(vars(held))
            waiting += content.values()
        else:
            continue
        seen.add(id(held))  # held in `kept`, so that no other object gets its id
        kept.append((held, content))
    return kept


def _is_configuration(value: object) -> bool:
    """Whether it is a configuration of transformers or PEFT: these can be written as a dict."""
    return hasattr(value, "to_dict") and hasattr(value, "__dict__") and not isinstance(value, type)


@contextmanager
def process_as_it_was() -> Iterator[None]:
    """Begin without state that Hugging Face's libraries keep in the process, and put it back.

    These are the shared states of accelerate (device, precision and open data loaders are kept once
    for the process, whichever trainer set them), the environment, how much is logged (errors alone
    meanwhile), and whether use is reported to the Hub (no, meanwhile).
    """
    shared = [dict(state._shared_state) for state in _SHARED]
    environment = dict(os.environ)
    verbosity, reports = logging.get_verbosity(), hub.HF_HUB_DISABLE_TELEMETRY
    for state in _SHARED:
        state._shared_state.clear()
    logging.set_verbosity_error()
    hub.HF_HUB_DISABLE_TELEMETRY = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about names that trl still uses
            yield
    finally:
        hub.HF_HUB_DISABLE_TELEMETRY = reports
        logging.set_verbosity(verbosity)
        for state, before in zip(_SHARED, shared, strict=True):
            state._shared_state.clear()
            state._shared_state.update(before)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        for name, value in environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
