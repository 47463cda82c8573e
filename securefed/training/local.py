"""Training on a client's own data for a round: local steps whose result is an update."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from torch import nn

from securefed.config import TrainingSection, Unit
from securefed.crypto.prg import NoiseGenerator
from securefed.errors import ConfigError
from securefed.lora.layout import AdapterLayout
from securefed.privacy.samplers import poisson_sample
from securefed.training.data import Examples
from securefed.training.dp_sgd import PerExampleGradients
from securefed.training.evaluate import check_task
from securefed.training.steps import (
    check_count,
    check_positive,
    of_float32,
    proximal_pull,
    trainable,
)
from securefed.training.users import sampled_users, user_means


@runtime_checkable
class LocalTrainer(Protocol):
    """What a client runs on its own data in a round; write your own by having this method.

    For transformers' Trainer and trl's there are ``securefed.training.hf_trainer`` and
    ``securefed.training.trl_trainer``.

    A trainer named in the run file (``training.trainer = "module:Class"``) is constructed with the
    ``training`` section as its one argument, anew for each client and each round.  Its update is
    clipped to ``privacy.clip_norm`` as a whole afterwards, whatever its steps were.

    That bounds what a client moves only if nothing of its data reaches another client's update.  So
    a run is refused where a call leaves anything but the travelling parameters changed in the
    model (frozen weights, buffers, modes, hooks; :mod:`securefed.training.untouched`), and torch's,
    NumPy's and Python's global generators are seeded anew for each call.  What cannot be checked,
    and is yours to keep: it carries nothing from call to call in module globals, class attributes
    or files, and whether it ends well does not depend on the data, since an error shows.  How long
    it takes shows too where answers are timed: let that not depend on the data, or prepare
    contributions before a round (``ClientRound.prepare``).
    """

    def train(self, model: nn.Module, data: Examples, round: int) -> None:
        """Change the travelling parameters of ``model`` in place.

        Args:
            model: holds the round's adapter, in evaluation mode; exactly what travels has
                ``requires_grad``.  Everything else must be afterwards as it was, modes too;
                gradients are cleared for you.
            data: the client's training examples.
            round: the number of the round, from 1.
        """
        ...


class _SecretNoiseOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser with its noise from a cipher.

    ``torch.Generator`` on the CPU keeps 32 bits of its seed and is a Mersenne Twister: whoever
    knows a noised sum could try every stream.
    """

    def __init__(
        self, *args: object, noise: NoiseGenerator, proximal_mu: float, **kwargs: object
    ) -> None:
        super().__init__(*args, **kwargs)
        self._noise = noise
        self._pull = proximal_pull(self.params, proximal_mu)

    def add_noise(self) -> None:
        """``p.grad`` = clipped sum + N(0, (noise_multiplier * max_grad_norm)^2)."""
        for parameter in self.params:
            summed = parameter.summed_grad
            values = _gaussian(summed.numel(), self._noise)
            values *= self.noise_multiplier * self.max_grad_norm
            drawn = torch.from_numpy(values).to(summed.device, summed.dtype)
            parameter.grad = (summed + drawn.view_as(summed)).view_as(parameter)

    def scale_grad(self) -> None:
        """As Opacus', and the proximal term: of released values alone, so it needs no noise."""
        super().scale_grad()
        self._pull()


def _gaussian(count: int, generator: NoiseGenerator) -> NDArray[np.float64]:
    """float64[count] standard normal values by Box and Muller, from 53-bit uniforms."""
    pairs = (count + 1) // 2
    words = generator.uint64(2 * pairs) >> np.uint64(11)
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-53  # never 0, whose logarithm is not finite
    radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
    angle = 2.0 * np.pi * uniform[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


class DpSgdTrainer:
    """DP-SGD within one client, by Opacus: the client adds all of the noise itself.

    A step draws a secret Poisson sample of the client's examples, clips each one's gradient (or a
    sample of users, and clips each one's mean gradient), adds
    Gaussian noise of std ``noise_multiplier * clip_norm`` to the sum, divides by
    ``expected_batch_size`` and takes an Adam step.  An empty draw is a step of noise alone, without
    a call of the model: leaving the step out would show that nothing was drawn.

    Args:
        layout: the travelling parameters.
        local_steps: steps a round, >= 1.
        sampling_probability: q, 0 < q <= 1, of each unit in each step.
        expected_batch_size: q times the number of units, > 0; public, never the size drawn.
        clip_norm: C > 0.
        noise_multiplier: noise std / C, > 0.
        learning_rate: of Adam, > 0.
        micro_batch: examples at a time, >= 1.
        task: ``causal-lm`` or ``sequence-classification``.
        device: where the model is.
        generator: the secret words of sample and noise.
        unit: ``"example"`` or ``"user"``.
        examples_per_user: most examples of a user in one step, >= 1; all of them without it.
        proximal_mu: as :class:`LocalSteps` has it; its gradient is added
            to the noised one.

    Raises:
        ConfigError: an argument is outside that.

    Guarantees:
        - The steps of a round are ``local_steps`` Poisson-sampled Gaussian mechanisms with (q,
          ``noise_multiplier``) under add-or-remove adjacency of one unit; what the optimiser does
          with them is post-processing.

    Assumptions: the noise is float Gaussian (Box and Muller on 53-bit uniforms from AES-256-CTR,
    rounded to float32), not exact, so its low bits may leak (Mironov 2012; Haney et al. 2021,
    2112.05307); Opacus' clipping and sums hold to float32 rounding, whatever the type of what
    trains.  The noise of the secure sum has neither weakness.

    Source: Abadi et al. 2016, Algorithm 1; Yousefpour et al. 2021, "Opacus" (2109.12298).
    """

    def __init__(
        self,
        layout: AdapterLayout,
        *,
        local_steps: int,
        sampling_probability: float,
        expected_batch_size: float,
        clip_norm: float,
        noise_multiplier: float,
        learning_rate: float,
        micro_batch: int,
        task: str,
        device: torch.device,
        generator: NoiseGenerator,
        unit: Unit = "example",
        examples_per_user: int | None = None,
        proximal_mu: float = 0.0,
    ) -> None:
        check_task(task)
        if unit == "client":
            raise ConfigError("unit = 'client': DP-SGD protects one 'example' or one 'user'")
        check_count("local_steps", local_steps)
        check_count("micro_batch", micro_batch)
        check_positive("sampling_probability", sampling_probability)
        if sampling_probability > 1.0:
            raise ConfigError(
                f"sampling_probability = {sampling_probability}; it must be > 0 and <= 1"
            )
        check_positive("expected_batch_size", expected_batch_size)
        check_positive("clip_norm", clip_norm)
        check_positive("noise_multiplier", noise_multiplier)
        check_positive("learning_rate", learning_rate)
        self.layout, self.local_steps, self.task, self.device = layout, local_steps, task, device
        self.sampling_probability = sampling_probability
        self.expected_batch_size = expected_batch_size
        self.clip_norm, self.noise_multiplier = clip_norm, noise_multiplier
        self.learning_rate, self.micro_batch = learning_rate, micro_batch
        self._generator = generator
        self.unit, self.examples_per_user = unit, examples_per_user
        self.proximal_mu = proximal_mu

    def train(self, model: nn.Module, data: Examples, round: int) -> None:
        """As :meth:`LocalTrainer.train`; ``data`` may be empty.

        Raises:
            DataError: classification without labels.
            GradientCheckError: the model does not fit the layout, or Opacus cannot follow it.
        """
        check_task(self.task, data)
        gradients = PerExampleGradients(
            model, self.layout, task=self.task, micro_batch=self.micro_batch, device=self.device
        )
        try:
            named = dict(model.named_parameters())
            parameters = {name: of_float32(named[name]) for name in self.layout.names}
            optimizer = _SecretNoiseOptimizer(
                torch.optim.Adam(parameters.values(), lr=self.learning_rate),
                noise_multiplier=self.noise_multiplier,
                max_grad_norm=self.clip_norm,
                expected_batch_size=self.expected_batch_size,
                noise=self._generator,
                proximal_mu=self.proximal_mu,
            )
            for _ in range(self.local_steps):
                self._step(optimizer, self._drawn(gradients, data), parameters)
                with torch.no_grad():
                    for name, parameter in parameters.items():
                        if parameter is not named[name]:
                            named[name].copy_(parameter)
        finally:
            gradients.close()
            for parameter in trainable(model).values():
                parameter.grad = None

    def _drawn(
        self, gradients: PerExampleGradients, data: Examples
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Gradients of a fresh sample's units, some at a time: name to ``[m, *shape]``."""
        if self.unit == "example":
            kept = poisson_sample(len(data), self.sampling_probability, self._generator)
            yield from gradients.micro_batches(data.take(kept))
            return
        drawn = sampled_users(
            data, self.sampling_probability, self._generator, most=self.examples_per_user
        )
        for mean in user_means(gradients.flat_rows(drawn), drawn.users):
            finite = mean if np.isfinite(mean).all() else np.zeros_like(mean)
            tensors = self.layout.unflatten(finite)
            yield {name: tensor[None].to(self.device) for name, tensor in tensors.items()}

    def _step(
        self,
        optimizer: DPOptimizer,
        drawn: Iterator[dict[str, torch.Tensor]],
        parameters: dict[str, nn.Parameter],
    ) -> None:
        optimizer.zero_grad(set_to_none=True)
        for part in drawn:
            for name, parameter in parameters.items():
                parameter.grad_sample = part[name].to(parameter.dtype)  # type: ignore[attr-defined]
            optimizer.signal_skip_step(do_skip=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        # The noise comes once, with a last part of no examples: an empty draw takes this path only.
        for parameter in parameters.values():
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]
        optimizer.signal_skip_step(do_skip=False)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def load_trainer(path: str, section: TrainingSection) -> LocalTrainer:
    """A trainer of the user's own.

    Args:
        path: ``module:Class``; the module must be importable (installed, or on ``PYTHONPATH``).
        section: given to the class as its only argument.

    Raises:
        ConfigError: the module or class is not there, the class cannot be made with the section,
            or what it makes has no method ``train``.
    """
    module_name, colon, class_name = path.partition(":")
    if not (colon and module_name and class_name.isidentifier()):
        raise ConfigError(f"training.trainer = {path!r}; it must have the form module:Class")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        what_to_do = (
            "in the clone of securefed, pip install -c constraints.txt -e '.[trl]'"
            if (error.name or "").partition(".")[0] in ("trl", "datasets")
            else "is the module installed or on PYTHONPATH?"
        )
        raise ConfigError(f"training.trainer = {path!r}: {error} ({what_to_do})") from error
    factory: Callable[[TrainingSection], object] | None = getattr(module, class_name, None)
    if not isinstance(factory, type):
        raise ConfigError(f"training.trainer = {path!r}: {module_name} has no class {class_name}")
    try:
        trainer = factory(section)
    except TypeError as error:
        raise ConfigError(
            f"training.trainer = {path!r}: it must accept the training section as its one "
            f"argument: {error}"
        ) from error
    if not isinstance(trainer, LocalTrainer):
        raise ConfigError(
            f"training.trainer = {path!r}: it has no method train(model, data, round)"
        )
    return trainer
