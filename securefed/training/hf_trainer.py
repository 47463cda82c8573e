"""``transformers.Trainer`` as a client's trainer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from securefed.config import TrainingSection
from securefed.errors import ConfigError, DataError
from securefed.training.examples import Examples
from securefed.training.lent import lent, process_as_it_was
from securefed.training.steps import trainable

_NOWHERE = os.path.join(os.devnull, "nothing-is-written")
"""No folder can be made there: whatever tries to save fails."""

_NOT_COUNTED = -100
"""The label of a token whose prediction does not count, in transformers."""

_RUN_FILE = {
    "max_steps": "training.local_steps",
    "num_train_epochs": "training.local_steps",
    "learning_rate": "training.local_learning_rate",
    "per_device_train_batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.batch_size and training.micro_batch",
    "use_cpu": "training.device",
    "completion_only_loss": "data.completion_only",
    "assistant_only_loss": "data.completion_only",
    "max_length": "data.window_tokens",
}
"""What the run file says, which every round binds and the record holds."""

_NEVER = {
    "save": "nothing of a client's training is written to disk",
    "output_dir": "nothing of a client's training is written to disk",
    "load_best": "nothing of a client's training is written to disk",
    "resume": "nothing is carried from one call to the next",
    "logging": "a client's losses are its own and are shown to nobody",
    "log_": "a client's losses are its own and are shown to nobody",
    "report_to": "a client's losses are its own and are shown to nobody",
    "push_to_hub": "nothing of a client's training leaves the process",
    "hub_": "nothing of a client's training leaves the process",
    "eval": "held-out figures are measured by the run",
    "fp16": "its loss scaling leaves out steps by what the gradients are; use bf16",
    "packing": "texts are cut into windows already (data.window_tokens)",
    "peft": "the run's own adapter is trained",
}
"""Why settings that begin so are not for a client's training."""


class HfTrainer:
    """A :class:`~securefed.training.local.LocalTrainer` that runs ``transformers.Trainer``.

    Name it in the run file (``training.trainer = "securefed.training.hf_trainer:HfTrainer"``), or a
    subclass that gives ``arguments`` of its own, or builds a ``Trainer`` of its own.  Steps, batch
    size, learning rate and device are those of the run file's ``[training]``: an optimiser step is
    over ``batch_size`` examples, at most ``micro_batch`` at a time.  All else is as ``Trainer`` has
    it where ``arguments`` does not say otherwise: fused AdamW, a learning rate that falls linearly
    to 0 within the round, gradients clipped to a norm of 1, and dropout, where the model has any.

    An example's tokens are those of :class:`Examples`, as they are: nothing is tokenized again.
    The loss is the mean over all tokens that count in a step; to classify, the mean of the means of
    its micro-batches, which are alike in size where a client has ``batch_size`` examples or more.

    What a client sends is clipped to ``privacy.clip_norm`` as a whole afterwards
    (``privacy.unit = "client"``, for which alone the run file takes a trainer of one's own).
    Clipping by ``max_grad_norm`` is of a batch's mean gradient, and bounds no example's part in it.

    Args:
        section: the run file's ``[training]``.

    Guarantees:
        - Nothing is written to disk, printed, logged or sent: ``Trainer`` has no folder, no
          reporters and no progress bar, and libraries' reports of use are off.
        - Of the model only the values of what has ``requires_grad`` are changed: hooks, modes,
          ``forward`` and configurations are put back, and a run refuses changed frozen values.
        - Accelerate's shared states, the environment and libraries' verbosity are, before and
          after a call, as if no other client had trained in the process.
        - The number of steps does not depend on a client's data.

    Not covered: what a subclass itself keeps, writes or prints.
    """

    kind: ClassVar[type[Any]] = TrainingArguments
    """Of the arguments."""

    allowed: ClassVar[frozenset[str]] = frozenset(
        {
            "activation_checkpointing",
            "activation_checkpointing_kwargs",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "average_tokens_across_devices",
            "bf16",
            "data_seed",
            "label_smoothing_factor",
            "lr_scheduler_kwargs",
            "lr_scheduler_type",
            "max_grad_norm",
            "neftune_noise_alpha",
            "optim",
            "optim_args",
            "seed",
            "torch_empty_cache_steps",
            "warmup_steps",
            "weight_decay",
        }
    )
    """What ``arguments`` may set."""

    preset: ClassVar[Mapping[str, Any]] = {}
    """Settings where ``arguments`` has none, if the library's own are not wanted."""

    def __init__(self, section: TrainingSection) -> None:
        self.section = section
        _check(type(self).__name__, self.arguments(), self.allowed)

    def arguments(self) -> dict[str, Any]:
        """Settings of ``TrainingArguments`` that differ from its own; yours to replace.

        ``seed`` is otherwise the number of the round: of order and dropout, which carry no
        guarantee.
        """
        return {}

    def build(self, **given: Any) -> Any:
        """The ``Trainer``; yours to replace, for a subclass of it or a loss of your own.

        Args:
            given: ``model``, ``args``, ``train_dataset`` (rows of ``input_ids``,
                ``attention_mask`` and ``labels``) and ``data_collator``, to be passed on.
        """
        return Trainer(**given)

    def parts(self, data: Examples) -> dict[str, Any]:
        """What ``build`` is given besides model and arguments."""
        return {"train_dataset": _Rows(data), "data_collator": _stacked}

    def train(self, model: nn.Module, data: Examples, round: int) -> None:
        """As :meth:`~securefed.training.local.LocalTrainer.train`.

        Raises:
            ConfigError: a setting is not for a client's training or the library refuses it, the
                model lies where ``Trainer`` does not train, or ``build`` built something else.
            DataError: there is no example.
        """
        if len(data) == 0:
            raise DataError("training data: no example; a local step needs at least one")
        device = next(iter(trainable(model).values())).device
        with process_as_it_was(), lent(model):
            args = self._settings(device, round)
            try:
                trainer = self.build(model=model, args=args, **self.parts(data))
            except (TypeError, ValueError) as error:  # nothing of the texts is read here
                raise ConfigError(f"{self._name}.build: {error}") from None
            if not isinstance(trainer, Trainer):
                raise ConfigError(
                    f"{self._name}.build: gave a {type(trainer).__name__}; it must give a "
                    "transformers.Trainer"
                )
            if trainer.model is not model or trainer.args is not args:
                raise ConfigError(
                    f"{self._name}.build: the trainer has another model, or other arguments, than "
                    "it was given: the run's own adapter must be trained; pass both on as they are"
                )
            trainer.remove_callback(PrinterCallback)
            if data.labels is not None and trainer.compute_loss_func is None:
                # A classifier's own loss is a mean over each micro-batch: transformers takes it for
                # one over the whole step, which would make steps longer by the number of parts.
                trainer.loss_is_scaled_for_ga = trainer.loss_is_scaled_for_ga or False
            trainer.train()

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _settings(self, device: torch.device, round: int) -> Any:
        own, section = self.arguments(), self.section
        _check(self._name, own, self.allowed)
        at_once = _at_once(section.batch_size, section.micro_batch)
        settings = {
            "seed": round,
            **self.preset,
            **own,
            "max_steps": section.local_steps,
            "per_device_train_batch_size": at_once,
            "gradient_accumulation_steps": section.batch_size // at_once,
            "learning_rate": section.local_learning_rate,
            "use_cpu": device.type == "cpu",
            "output_dir": _NOWHERE,
            "save_strategy": "no",
            "eval_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "log_level": "error",
            "disable_tqdm": True,
            "remove_unused_columns": False,
        }
        kind = type(self.kind.__name__, (self.kind,), {"should_save": property(lambda _: False)})
        try:
            args = kind(**settings)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self._name}.arguments: {error}") from None
        args.report_to = []  # some are put there for an environment that is found
        args._n_gpu = min(args.n_gpu, 1)  # else copies on every device, whose sum is another
        if torch.device(args.device.type, args.device.index or 0) != torch.device(
            device.type, device.index or 0
        ):
            raise ConfigError(
                f"training.device: the model is on {device}, and transformers' Trainer trains on "
                f"{args.device}; use 'cpu', or let CUDA_VISIBLE_DEVICES choose the one that is seen"
            )
        return args


def _check(name: str, given: Mapping[str, Any], allowed: frozenset[str]) -> None:
    """Refuse what is not for a client's training.

    Raises:
        ConfigError: names the setting, why, and what is allowed.
    """
    for setting in given:
        if setting in allowed:
            continue
        if setting in _RUN_FILE:
            raise ConfigError(
                f"{name}.arguments: {setting!r} is set by {_RUN_FILE[setting]} in the run file, "
                "which every round binds; leave it out here"
            )
        why = [reason for start, reason in _NEVER.items() if setting.startswith(start)]
        raise ConfigError(
            f"{name}.arguments: {setting!r} is not for a client's training"
            + (f": {why[0]}" if why else "")
            + f"; allowed: {', '.join(sorted(allowed))}"
        )


def _at_once(batch_size: int, micro_batch: int) -> int:
    """The largest part of ``batch_size``, which it is a multiple of, within ``micro_batch``."""
    return max(n for n in range(1, min(batch_size, micro_batch) + 1) if batch_size % n == 0)


def row_columns(data: Examples) -> dict[str, list[Any]]:
    """Columns ``input_ids``, ``attention_mask`` and ``labels`` as transformers reads them.

    A language model is given no padding mask, as in :func:`securefed.training.evaluate.predict`;
    padding comes last, and what it predicts does not count.
    """
    ids, mask, labels = data.input_ids, data.attention_mask, data.labels
    if labels is None:
        counted = mask.astype(bool) if data.targets is None else mask & data.targets != 0
        labels, mask = np.where(counted, ids, _NOT_COUNTED), np.ones_like(mask)
    return {
        "input_ids": ids.tolist(),
        "attention_mask": mask.tolist(),
        "labels": labels.tolist(),
    }


class _Rows(Dataset[dict[str, Any]]):
    def __init__(self, data: Examples) -> None:
        self._columns = row_columns(data)

    def __len__(self) -> int:
        return len(self._columns["labels"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self._columns.items()}


def _stacked(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """int64[m, w] each, of the whole width w whatever is padding; labels of classes int64[m]."""
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
