"""One gradient an example, clipped and summed: the local half of distributed DP-SGD."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from torch import nn

from securefed.errors import ConfigError, DataError, GradientCheckError
from securefed.lora.layout import AdapterLayout
from securefed.phases import Phase, unmeasured
from securefed.privacy.clipping import L2Clip
from securefed.training.data import Examples
from securefed.training.evaluate import Batch, batches, check_task, predict

# How far a per-example gradient may lie from the one-by-one gradient, relative to its norm: the
# same sums in another order.  bfloat16 has 8 bits of precision and some 30 layers add up.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_LOW_PRECISION_TOLERANCE = 0.15
_CHECKED_EXAMPLES = 4


class PerExampleGradients:
    """Per-example gradients of a model's travelling parameters, by Opacus hooks.

    The loss of an example is the mean over its own targets, and a micro-batch's loss is the *sum*
    of those.  A token mean over the batch, which libraries give by default, divides one example's
    gradient by the other examples' lengths: then one example moves every summand, and clipping
    bounds nothing.  Dropout is off, so a gradient is a function of model and example alone.

    Opacus records only in modules in training mode.  The model stays in evaluation mode and just
    the modules that hold a trainable parameter of their own are switched, during a call; linear
    layers compute the same in both modes.

    Floating-point kernels are chosen by shape, and some models take another path when no row of a
    batch is padded.  Both would let one example move another's gradient in the last bits, which no
    clipping bounds.  So every micro-batch has the same shape, whatever was sampled: it is filled up
    with constant examples, whose gradients are thrown away.  For ``causal-lm`` the model gets no
    padding mask (``predict``); for classification one more row of every micro-batch is a constant,
    padded one.  What is left, that a row's bits depend on its place or on the rows beside it, is
    measured by :meth:`check`.  With ``micro_batch`` = 1 an example is computed alone.

    Args:
        model: a model on ``device``; exactly the parameters in ``layout`` have ``requires_grad``.
        layout: names and order of those parameters.
        task: ``causal-lm`` or ``sequence-classification``.
        micro_batch: examples at a time, >= 1; a public constant (``filled_micro_batch``).
        device: where to compute.

    Raises:
        ConfigError: the task is unknown or ``micro_batch`` < 1.
        GradientCheckError: other parameters are trainable than ``layout`` says (as after loading
            an adapter with ``is_trainable=True``, which thaws A), gradient checkpointing is on,
            the adapter is not LoRA, or Opacus refuses a module.

    Guarantees:
        - Hooks act only inside a call; ``close`` removes them.
        - Gradients, modes and parameters of the model are afterwards as they were.
        - Shapes and masking of what the model is given do not depend on which examples were drawn;
          only the number of micro-batches does.

    Assumption, void for ``micro_batch`` = 1: kernels that gave the examples of :meth:`check` the
    same bits at every place and beside every neighbour tried do so for all examples of that shape.

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", Algorithm 1.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: AdapterLayout,
        *,
        task: str,
        micro_batch: int,
        device: torch.device,
    ) -> None:
        check_task(task)
        if micro_batch < 1:
            raise ConfigError(f"micro_batch = {micro_batch}; it must be >= 1")
        self._model, self._layout, self._task = model, layout, task
        self._micro_batch, self._device = micro_batch, device
        self._check_setting()
        parameters = dict(model.named_parameters())
        self._parameters = {name: parameters[name] for name in layout.names}
        self._owners = [
            module
            for module in model.modules()
            if any(p.requires_grad for p in module.parameters(recurse=False))
        ]
        try:
            self._hooks = GradSampleModule(model, loss_reduction="sum", strict=True)
        except (NotImplementedError, ValueError) as error:
            raise GradientCheckError(f"Opacus cannot follow this model: {error}") from error
        self._hooks.disable_hooks()

    @property
    def micro_batch(self) -> int:
        """Examples at a time; less than was asked for where :meth:`check` lowered it."""
        return self._micro_batch

    def at_a_time(self, micro_batch: int) -> PerExampleGradients:
        """The same model and hooks with another micro-batch, to be checked by itself.

        Raises:
            ConfigError: ``micro_batch`` < 1.
        """
        if micro_batch < 1:
            raise ConfigError(f"micro_batch = {micro_batch}; it must be >= 1")
        other = copy.copy(self)
        other._micro_batch = micro_batch
        return other

    @property
    def dimension(self) -> int:
        """Length d of a gradient."""
        return self._layout.size

    def close(self) -> None:
        """Take the hooks off the model; calling it again does nothing."""
        self._hooks.cleanup()
        self._forget()

    def clipped_sum(
        self,
        examples: Examples,
        clip_norm: float,
        count_weight: float = 0.0,
        kept: NDArray[np.int64] | None = None,
        *,
        phase: Phase = unmeasured,
    ) -> NDArray[np.float64]:
        """Sum of the examples' gradients, each clipped by itself.

        Args:
            examples: the sampled examples; none are fine.
            clip_norm: C > 0.
            count_weight: of each example's bit under adaptive clipping (``L2Clip``); 0 for none.
            kept: int64[k], the coordinates to which each gradient is cut *before* it is clipped;
                all of them without it.
            phase: told when rows are clipped.

        Returns:
            float64[k] (float64[d] without ``kept``), followed by the bits' sum where there are any;
            zeros without calling the model for no examples.

        Raises:
            ConfigError: ``clip_norm`` is not a finite number > 0.
            DataError: classification without labels.
            GradientCheckError: the model's setting has changed so that no gradient is right.

        Guarantees:
            - Each example contributes a vector of norm <= C, rounding included, that depends on no
              other example (see the class, and :meth:`check`, which the caller runs first).
            - An example whose gradient holds NaN or infinity contributes zeros.  Stopping the
              round instead would tell everybody that such an example was drawn; a zero vector has
              norm 0 <= C, so the sensitivity holds.
        """
        if not (math.isfinite(clip_norm) and clip_norm > 0.0):
            raise ConfigError(f"clip_norm = {clip_norm}; it must be finite and > 0")
        clip = L2Clip(clip_norm, count_weight)
        length = self._layout.size if kept is None else len(kept)
        total = np.zeros(length + clip.bits, dtype=np.float64)
        for rows in self.flat_rows(examples):
            with phase("clip"):
                total += clip.clip_rows(rows if kept is None else rows[:, kept])
        return total

    def micro_batches(self, examples: Examples) -> Iterator[dict[str, torch.Tensor]]:
        """Gradients of at most ``micro_batch`` examples at a time.

        Yields:
            Name to ``[m, *shape]`` on the device, m <= ``micro_batch``; an example whose gradient
            is not finite is all zeros in every entry.

        Raises:
            DataError: classification without labels.
            GradientCheckError: as :meth:`clipped_sum`.
        """
        return map(_without_non_finite, self._found(examples))

    def flat_rows(self, examples: Examples) -> Iterator[NDArray[np.float32]]:
        """The same gradients as float32[m, d], one row an example, as they are: finite or not."""
        for found in self._found(examples):
            count = len(next(iter(found.values())))
            rows = np.zeros((count, self._layout.size), dtype=np.float32)
            start = 0
            for name in self._layout.names:  # written in place: a second copy may not fit
                flat = found.pop(name).flatten(1)
                rows[:, start : start + flat.shape[1]] = flat.float().cpu().numpy()
                start += flat.shape[1]
            yield rows

    def _found(self, examples: Examples) -> Iterator[dict[str, torch.Tensor]]:
        check_task(self._task, examples)
        if len(examples) == 0:
            return
        self._check_setting()
        for start in range(0, len(examples), self._micro_batch):
            part = examples.take(range(start, min(start + self._micro_batch, len(examples))))
            (batch,) = batches(self._filled(part), self._size, self._device)
            found = self._batch_gradients(batch)
            yield {name: g[: len(part)] for name, g in found.items()}

    def check(self, examples: Examples) -> str | None:
        """Show on real examples that the per-example gradients are what DP-SGD needs.

        Up to four examples are compared with the gradients that plain autograd gives for each one
        alone.  Then, with the device's own kernels and in micro-batches of the size in use, their
        gradients are compared bit by bit: in another order, beside copies of one example, beside
        others (tokens in reverse, half as long) and beside the examples that fill up.  Where bits
        differ, ``micro_batch`` is halved until they do not; 1 leaves nothing to differ.  A client
        runs it by itself before the first round; nothing of it is sent.

        Args:
            examples: at least one.

        Returns:
            None, or in words why ``micro_batch`` was lowered, with device, type and parameter.

        Raises:
            DataError: there is no example, or classification without labels.
            GradientCheckError: names the parameter, what is wrong with it and by how much.
        """
        check_task(self._task, examples)
        if len(examples) == 0:
            raise DataError("examples: the gradient check needs at least one")
        self._check_setting()
        few = examples.take(range(min(len(examples), _CHECKED_EXAMPLES)))
        few = _joined(few, _disguised(few))
        real = max(2, len(few) // 2)
        singles = [self._alone(few.take([row])) for row in range(real)]
        found = self._rows(few.take(range(real)))
        for row, alone in enumerate(singles):
            self._compare({n: g[row] for n, g in found.items()}, alone, "computed alone")
        if not any(_norm(alone) > 0.0 for alone in singles):
            raise GradientCheckError(
                "every gradient of the checked examples is zero: nothing trains"
            )
        note = None
        while self._micro_batch > 1 and (name := self._first_that_differs(few)) is not None:
            types = sorted({str(p.dtype).removeprefix("torch.") for p in self._model.parameters()})
            note = (
                f"on {self._device} ({', '.join(types)}) the last bits of an example's gradient "
                f"depend on its micro-batch of {self._micro_batch}, first seen in {name}: "
                f"{self._micro_batch // 2} at a time are computed instead"
            )
            self._micro_batch //= 2
        return note

    def _first_that_differs(self, examples: Examples) -> str | None:
        """A parameter in which an example's gradient has other bits in another micro-batch."""
        size = self._micro_batch
        mixed = examples.take([row % len(examples) for row in range(size)])
        found = self._rows(mixed)
        others = {
            "in another order": self._rows(mixed.take(range(size - 1, -1, -1)), reverse=True),
            "beside copies of itself": self._rows(mixed.take([0] * size)),
            "beside what fills up": self._rows(mixed.take([size - 1])),
        }
        pairs = [(row, "in another order", row) for row in range(size)]
        pairs += [(0, "beside copies of itself", row) for row in range(size)]
        pairs += [(size - 1, "beside what fills up", 0)]
        differing = None
        for row, how, place in pairs:
            expected = {name: g[row] for name, g in found.items()}
            given = {name: g[place] for name, g in others[how].items()}
            for name, gradient in given.items():
                if not torch.equal(gradient, expected[name]):
                    self._compare(given, expected, how)
                    differing = differing or name
        return differing

    @property
    def _size(self) -> int:
        """Rows of a micro-batch: the same always."""
        padded = self._task == "sequence-classification" and self._micro_batch > 1
        return self._micro_batch + (1 if padded else 0)

    def _filled(self, part: Examples) -> Examples:
        """``part`` and constant examples after it, of the task's constant masking."""
        missing, width = self._size - len(part), part.input_ids.shape[1]
        mask = np.ones((missing, width), dtype=np.int64)
        if self._task == "sequence-classification":
            mask[:, max(1, width // 2) :] = 0
        labels = None if part.labels is None else np.zeros(missing, dtype=np.int64)
        return _joined(part, Examples(np.zeros((missing, width), dtype=np.int64), mask, labels))

    def _check_setting(self) -> None:
        trainable = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        extra = sorted(set(trainable) - set(self._layout.names))
        missing = sorted(set(self._layout.names) - set(trainable))
        if extra or missing:
            raise GradientCheckError(
                f"trainable parameters differ from what travels: trainable but not to travel: "
                f"{', '.join(extra) or 'none'}; to travel but frozen or absent: "
                f"{', '.join(missing) or 'none'} (an adapter loaded with is_trainable=True thaws A)"
            )
        for name, shape in self._layout.shapes.items():
            if tuple(trainable[name].shape) != shape:
                raise GradientCheckError(
                    f"{name} has shape {tuple(trainable[name].shape)}; the layout says {shape}"
                )
        for name, module in self._model.named_modules():
            if getattr(module, "gradient_checkpointing", False):
                raise GradientCheckError(
                    f"gradient checkpointing is on in {name or 'the model'}: forward runs twice, "
                    "and per-example gradients would be counted wrongly; switch it off"
                )
        for adapter, config in getattr(self._model, "peft_config", {}).items():
            kind = str(getattr(config, "peft_type", None)).rpartition(".")[2]
            if kind != "LORA":
                raise GradientCheckError(
                    f"adapter {adapter!r} has PEFT type {kind}; only LORA is allowed"
                )

    @contextlib.contextmanager
    def _modes(self, *, recording: bool) -> Iterator[None]:
        modes = {module: module.training for module in self._model.modules()}
        gradients = {name: p.grad for name, p in self._parameters.items()}
        self._model.eval()
        for module in self._owners:
            module.training = recording
        if recording:
            self._hooks.enable_hooks()
        try:
            yield
        finally:
            self._hooks.disable_hooks()
            self._forget()
            for module, mode in modes.items():
                module.training = mode
            for name, parameter in self._parameters.items():
                parameter.grad = gradients[name]

    def _forget(self) -> None:
        """Drop what Opacus leaves behind, a failed pass included."""
        for parameter in self._parameters.values():
            if hasattr(parameter, "_current_grad_sample"):
                del parameter._current_grad_sample
            if hasattr(parameter, "grad_sample"):
                parameter.grad_sample = None
                parameter._forward_counter = 0  # type: ignore[attr-defined]
        for module in self._owners:
            for leftover in ("activations", "max_batch_len"):
                if hasattr(module, leftover):
                    delattr(module, leftover)

    def _backward(self, batch: Batch) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None
        with torch.enable_grad(), warnings.catch_warnings():
            # The first layer's input needs no gradient; Opacus reads the output's only.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            predict(self._model, batch, self._task).losses().sum().backward()  # type: ignore[no-untyped-call]

    def _batch_gradients(self, batch: Batch) -> dict[str, torch.Tensor]:
        count = len(batch.input_ids)
        found: dict[str, torch.Tensor] = {}
        with self._modes(recording=True):
            self._backward(batch)
            for name, parameter in self._parameters.items():
                gradient = getattr(parameter, "grad_sample", None)
                if not isinstance(gradient, torch.Tensor):
                    raise GradientCheckError(
                        f"{name} has no per-example gradient: its module is not used, is used more "
                        "than once, or hides from the hooks"
                    )
                if tuple(gradient.shape) != (count, *self._layout.shapes[name]):
                    raise GradientCheckError(
                        f"{name} has a per-example gradient of shape {tuple(gradient.shape)}; it "
                        f"must be {(count, *self._layout.shapes[name])}"
                    )
                found[name] = gradient
        return found

    def _rows(self, examples: Examples, *, reverse: bool = False) -> dict[str, torch.Tensor]:
        """Name to ``[n, *shape]`` for all examples at once; ``reverse``: the last one first."""
        parts = list(self.micro_batches(examples))
        whole = {name: torch.cat([part[name] for part in parts]) for name in self._layout.names}
        return {name: g.flip(0) for name, g in whole.items()} if reverse else whole

    def _alone(self, example: Examples) -> dict[str, torch.Tensor]:
        """The gradient of one example by autograd, without Opacus."""
        (batch,) = batches(example, 1, self._device)
        with self._modes(recording=False):
            self._backward(batch)
            return {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for name, p in self._parameters.items()
            }

    def _compare(
        self, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], how: str
    ) -> None:
        # The base model's type decides: bfloat16 activations under float32 adapters are common.
        types = {p.dtype for p in self._model.parameters() if p.is_floating_point()}
        tolerance = max(_TOLERANCE.get(kind, _LOW_PRECISION_TOLERANCE) for kind in types)
        whole = _norm(expected)
        for name, right in expected.items():
            distance = float((found[name].double() - right.double()).norm())
            # A parameter whose own gradient is tiny is judged by the whole gradient's rounding.
            allowed = tolerance * (float(right.double().norm()) + 1e-2 * whole)
            if not distance <= allowed:  # also refuses nan
                raise GradientCheckError(
                    f"{name}: its gradient of an example in a batch differs from the one {how} by "
                    f"{distance:.3g}, allowed is {allowed:.3g}: the examples of a batch are not "
                    "independent, or a module is not followed rightly"
                )


def filled_micro_batch(most: int, expected: float, task: str, device: torch.device) -> int:
    """How many examples at a time, when every micro-batch is filled up to one size.

    On a CPU a row costs about the same in any batch, a batch some half a row more, and for
    classification a constant row besides: a sample of s costs (s/m + 1/2) (m + k), k = 1/2 or 3/2,
    least at m = sqrt(2 k s).  SmolLM2-135M with 16 windows of 32 tokens: 4 at a time, 15 % more
    work than without filling up; at 16 at a time it would be 58 %.  On other devices a batch costs
    much the same whatever its size: ``most``.

    Args:
        most: ``training.micro_batch``, >= 1, which bounds memory.
        expected: s, examples in a client's expected sample, > 0, from public figures alone.
        task: ``causal-lm`` or ``sequence-classification``.
        device: where gradients are computed.
    """
    if device.type != "cpu":
        return most
    extra = 1.5 if task == "sequence-classification" else 0.5
    return min(most, max(1, round(math.sqrt(2.0 * extra * expected))))


def _norm(gradients: dict[str, torch.Tensor]) -> float:
    return math.hypot(*(float(g.double().norm()) for g in gradients.values()))


def _without_non_finite(gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    finite = torch.stack([torch.isfinite(g).flatten(1).all(dim=1) for g in gradients.values()])
    keep = finite.all(dim=0)
    return {
        name: torch.where(keep.view(-1, *[1] * (gradient.dim() - 1)), gradient, 0.0)
        for name, gradient in gradients.items()
    }


def _disguised(examples: Examples) -> Examples:
    """Other content and other lengths, from tokens that the model surely knows."""
    mask = examples.attention_mask.copy()
    mask[:, max(2, mask.shape[1] // 2) :] = 0
    return Examples(np.ascontiguousarray(examples.input_ids[:, ::-1]), mask, examples.labels)


def _joined(first: Examples, second: Examples) -> Examples:
    """One after the other; whose they are is not kept."""
    labels = (
        None
        if first.labels is None or second.labels is None
        else np.concatenate([first.labels, second.labels])
    )
    targets = weights = None
    if first.targets is not None or second.targets is not None:
        targets = np.concatenate([_or_ones(e.targets, e.input_ids) for e in (first, second)])
    if first.weights is not None or second.weights is not None:
        weights = np.concatenate(
            [np.ones(len(e)) if e.weights is None else e.weights for e in (first, second)]
        )
    return Examples(
        np.concatenate([first.input_ids, second.input_ids]),
        np.concatenate([first.attention_mask, second.attention_mask]),
        labels,
        None,
        targets,
        weights,
    )


def _or_ones(found: NDArray[np.int64] | None, like: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.ones_like(like) if found is None else found
