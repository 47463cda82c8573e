"""How a language model rates secrets of a known format, and what it says after their prefix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.attacks.base import AdversaryView, PublicKnowledge
from securefed.attacks.membership.seen import as_seen
from securefed.errors import ConfigError
from securefed.training.data import Examples
from securefed.training.evaluate import batches, predict


@dataclass(frozen=True)
class CanaryFormat:
    """A public prefix, and a secret of so many tokens, each uniform over an alphabet.

    Args:
        prefix: token ids, one at least.
        alphabet: token ids that a secret is made of, two or more, each once.
        length: tokens of a secret, >= 1.

    Raises:
        ConfigError: an argument is outside that.
    """

    prefix: tuple[int, ...]
    alphabet: tuple[int, ...]
    length: int

    def __post_init__(self) -> None:
        if not self.prefix or self.length < 1:
            raise ConfigError(
                f"prefix of {len(self.prefix)} tokens, length = {self.length}; both must be >= 1"
            )
        if len(self.alphabet) < 2 or len(set(self.alphabet)) < len(self.alphabet):
            raise ConfigError("alphabet: two tokens or more are needed, each once")

    @property
    def bits(self) -> float:
        """log2 of how many secrets there are."""
        return self.length * math.log2(len(self.alphabet))

    def sample(self, count: int, generator: torch.Generator) -> NDArray[np.int64]:
        """int64[count, length], uniform secrets, each drawn by itself."""
        chosen = torch.randint(len(self.alphabet), (count, self.length), generator=generator)
        found: NDArray[np.int64] = np.asarray(self.alphabet, dtype=np.int64)[chosen.numpy()]
        return found

    def texts(self, secrets: NDArray[np.int64]) -> Examples:
        """Secrets with the prefix before each, as a language model's examples."""
        start = np.tile(np.asarray(self.prefix, dtype=np.int64), (len(secrets), 1))
        ids = np.concatenate([start, secrets], axis=1)
        return Examples(ids, np.ones_like(ids), None)


def secret_losses(
    view: AdversaryView,
    public: PublicKnowledge,
    form: CanaryFormat,
    secrets: NDArray[np.int64],
    *,
    micro_batch: int = 32,
) -> NDArray[np.float64]:
    """Negative log-likelihood, in nats, of each secret after the prefix.

    Args:
        view: shows the model.
        public: of a causal language model.
        form: of the secrets.
        secrets: int64[m, form.length].
        micro_batch: secrets at a time, >= 1.

    Returns:
        float64[m].

    Raises:
        ConfigError: the model is none that predicts next tokens.
    """
    _check(public)
    device = next(public.model.parameters()).device
    first = len(form.prefix) - 1  # the place that predicts the first token of a secret
    found = []
    with as_seen(view, public), torch.no_grad():
        for batch in batches(form.texts(secrets), micro_batch, device):
            nll = predict(public.model, batch, public.task).nll
            found.append(nll[:, first:].double().sum(dim=1).cpu().numpy())
    return np.concatenate(found)


def completed(view: AdversaryView, public: PublicKnowledge, form: CanaryFormat) -> tuple[int, ...]:
    """The ``form.length`` tokens that the model likes best after the prefix, one after the other.

    Nothing but the prefix is used of the format: this is what any user of the model would see.

    Source: Carlini et al. 2023, "Quantifying Memorization Across Neural Language Models"
    (2202.07646), section 3, for greedy decoding as the test of what can be extracted.
    """
    _check(public)
    device = next(public.model.parameters()).device
    tokens = list(form.prefix)
    with as_seen(view, public), torch.no_grad():
        for _ in range(form.length):
            ids = torch.tensor([tokens], device=device)
            logits = public.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            tokens.append(int(logits[0, -1].argmax()))
    return tuple(tokens[len(form.prefix) :])


def _check(public: PublicKnowledge) -> None:
    if public.task != "causal-lm":
        raise ConfigError(f"task = {public.task!r}; canaries are for 'causal-lm'")
