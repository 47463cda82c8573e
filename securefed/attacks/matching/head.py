"""Labels from the gradient of a classifier's head.

For one text the gradient of the classes' bias is p - y, p the model's probabilities and y the
label's one-hot vector: negative at the label alone.  That of the weights is (p - y) h^T, h the
head's input.  Of a batch it is the mean.  p and h of the victim's texts are not known; means over
random texts stand in.  Clipping hides the length of a gradient: the labels
taken are then those whose mean of p - y has its direction, which of two classes says only which one
is the commoner.

Source: Zhao, Mopuri and Bilen 2020, "iDLG" (2001.02610), section 3, for one text; Wainakh et al.
2022, "User-Level Label Leakage from Gradients in Federated Learning" (2105.09369), for batches.
Comparing directions is this module's.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from securefed.attacks.base import PublicKnowledge
from securefed.attacks.matching.target import ObservedGradient

_TEXTS = 16
_TOKENS = 12
_MOST = 20_000
_ALIKE = 1e-3


def labels_from_head(
    public: PublicKnowledge, observed: ObservedGradient, generator: torch.Generator
) -> tuple[int, ...] | None:
    """The labels of a batch, in rising order.

    Args:
        public: the model and the batch's size.
        observed: the gradient.
        generator: of the random texts.

    Returns:
        ``batch_size`` labels; None where the update holds no head, or there are too many
        possibilities (20 000).
    """
    found = _head(public, observed)
    if found is None:
        return None
    name, head = found
    texts, classes = public.batch_size, head.out_features
    if math.comb(texts + classes - 1, texts) > _MOST:
        return None
    probabilities, inputs = _expected(public, head, generator)
    bias = observed.tensors.get(f"{name}.bias")
    seen = observed.tensors[f"{name}.weight"] @ inputs if bias is None else bias
    every = list(itertools.combinations_with_replacement(range(classes), texts))
    shares = nn.functional.one_hot(torch.tensor(every), classes).float().mean(dim=1)
    expected = probabilities - shares
    if observed.scaled:
        return every[int((expected - seen).norm(dim=1).argmin())]
    fits = cosine_similarity(expected, seen[None], dim=1)
    # Several may have one direction, as of two classes.  What was clipped was long.
    alike = fits > fits.max() - _ALIKE
    return every[int(expected.norm(dim=1).masked_fill(~alike, -1.0).argmax())]


def _head(public: PublicKnowledge, observed: ObservedGradient) -> tuple[str, nn.Linear] | None:
    """The linear layer that makes the logits, if its weights are in the update."""
    classes = getattr(getattr(public.model, "config", None), "num_labels", None)
    if public.task != "sequence-classification":
        return None
    for name, module in public.model.named_modules():
        if (
            isinstance(module, nn.Linear)
            and module.out_features == classes
            and f"{name}.weight" in observed.tensors
        ):
            return name, module
    return None


def _expected(
    public: PublicKnowledge, head: nn.Linear, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean probabilities float32[classes] and mean head's input float32[d] of random texts."""
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        seen.append(given[0].detach().float())

    allowed = sorted(set(range(len(public.tokenizer))) - public.special_tokens)
    drawn = torch.randint(len(allowed), (_TEXTS, _TOKENS), generator=generator)
    ids = torch.tensor(allowed)[drawn]
    hook = head.register_forward_pre_hook(keep)
    try:
        with torch.no_grad():
            logits = public.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    finally:
        hook.remove()
    return logits.float().softmax(dim=-1).mean(dim=0), seen[0].flatten(0, -2).mean(dim=0)
