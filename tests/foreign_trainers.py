"""Tiny models for trainers of other libraries, and what such a trainer writes or sends."""

import functools
import os
import sys
from contextlib import contextmanager

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from securefed.config import LoraSection, TrainingSection
from securefed.lora.adapter import build_adapter
from securefed.lora.parts import AdapterParts
from securefed.training.evaluate import batches, predict
from securefed.training.examples import Examples
from securefed.training.untouched import Untouched, own_random_state

CPU = torch.device("cpu")
RATE = 0.1


def section(**changes) -> TrainingSection:
    values = {"local_steps": 2, "batch_size": 4, "micro_batch": 4, "local_learning_rate": RATE}
    return TrainingSection(**values | changes)


def windows(count=8, seed=0, width=8, targets=False) -> Examples:
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, 60, size=(count, width))
    mask, wanted = np.ones_like(ids), None
    if targets:  # conversations: padded on the right, and some tokens alone count
        mask[: count // 2, width - 3 :] = 0
        wanted = rng.integers(0, 2, size=ids.shape) * mask
        wanted[:, 2] = 1
    return Examples(ids, mask, None, targets=wanted)


class Adapted:
    """A model of its own and what travels of it."""

    def __init__(self, folder, task="causal-lm"):
        kind = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
        modules = ["q_proj", "v_proj"] if task == "causal-lm" else ["query", "value"]
        head = {} if task == "causal-lm" else {"modules_to_save": ["classifier"]}
        lora = LoraSection(rank=2, target_modules=modules, **head)
        self.task, self.folder = task, folder
        self.model = build_adapter(kind.from_pretrained(folder), lora, task=task).eval()
        self.parts = AdapterParts(self.model, "ffa")
        self.parts.begin(1)
        self.made = self.parts.flat()
        self.guard = Untouched(self.model)

    def change(self, trainer, data, round=1):
        """What a client's call changes, under the checks of a run; the adapter is put back."""
        with self.guard.watching(type(trainer).__name__), own_random_state():
            trainer.train(self.model, data, round)
        change = self.parts.flat() - self.made
        self.parts.load_flat(self.made)
        return change

    def gradient(self, data):
        """Of the mean over all tokens that count (or examples), float32[d]."""
        whole = predict(self.model, next(batches(data, len(data), CPU)), self.task)
        (whole.nll.sum() / whole.counted.sum()).backward()
        named = dict(self.model.named_parameters())
        flat = torch.cat([named[name].grad.reshape(-1) for name in self.parts.trained.names])
        self.model.zero_grad()
        return flat.numpy()


_OUTWARD = {
    "os.mkdir", "os.rename", "os.link", "os.symlink", "subprocess.Popen",
    "socket.connect", "socket.sendto", "socket.getaddrinfo",
}  # fmt: skip
_SEEN: list[str] = []
_WATCHED = [False]


def _hook(event, arguments):
    if not _WATCHED[0]:
        return
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        if (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _SEEN.append(os.fsdecode(arguments[0]))
    elif event in _OUTWARD:
        _SEEN.append(f"{event} {arguments[0]}")


@functools.cache
def _hooked() -> None:
    """Once: a hook cannot be taken off again."""
    sys.addaudithook(_hook)


@contextmanager
def what_is_written():
    """Paths made or opened for writing, programs started, addresses asked for or called."""
    _hooked()
    _SEEN.clear()
    _WATCHED[0] = True
    try:
        yield _SEEN
    finally:
        _WATCHED[0] = False
