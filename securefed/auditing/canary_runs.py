"""Training runs with canaries among one client's windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from securefed.attacks.exposure import Exposure, exposure
from securefed.attacks.membership.canaries import CanaryFormat, completed, secret_losses
from securefed.auditing.membership import MembershipBench
from securefed.engines.results import RunResult
from securefed.errors import ConfigError


def canary_run(
    bench: MembershipBench,
    *,
    copies: Sequence[int],
    prefix: int,
    reference: int,
    generator: torch.Generator,
    folder: Path,
    confidence: float = 0.95,
) -> tuple[list[Exposure], RunResult]:
    """Put canaries into one client's data, train for real, and measure how exposed they are.

    A canary is a window of random tokens: a prefix of its own, public, and a secret behind it.
    Its copies take the place of windows of the first client, so that sizes stay what they are.

    Args:
        bench: of a causal language model, whose windows are longer than ``prefix``.
        copies: how often each canary is put in; 0: a canary that is measured and never trained on.
        prefix: tokens of a prefix, >= 1.
        reference: other secrets that each is ranked among, >= 100.
        generator: of the canaries, the half that is trained on, and the other secrets.
        folder: of the run; is made.
        confidence: of each interval.

    Returns:
        An exposure of each canary, in order; and the run.

    Raises:
        ConfigError: the task is another, or the copies do not fit into a client's half.
    """
    width = bench.candidates.input_ids.shape[1]
    if bench.public.task != "causal-lm" or not 1 <= prefix < width or reference < 100:
        raise ConfigError(
            f"task = {bench.public.task!r}, prefix = {prefix}, reference = {reference}; allowed: "
            f"'causal-lm', 1 .. {width - 1} and >= 100"
        )
    special = bench.public.special_tokens
    embeddings = cast(Any, bench.public.model).get_input_embeddings()
    alphabet = tuple(t for t in range(embeddings.num_embeddings) if t not in special)
    forms, secrets = [], []
    for _ in copies:
        chosen = torch.randint(len(alphabet), (prefix,), generator=generator).tolist()
        form = CanaryFormat(tuple(alphabet[i] for i in chosen), alphabet, width - prefix)
        forms.append(form)
        secrets.append(form.sample(1, generator)[0])
    inside = bench.halves(1, generator)[0]
    rows = np.flatnonzero(inside)[: sum(copies)]
    half = len(bench.candidates) // len(bench.names) // 2
    if sum(copies) > half:
        raise ConfigError(f"copies = {list(copies)}: a client trains on {half} windows in all")
    planted = bench.candidates.input_ids.copy()
    windows = [np.concatenate([f.prefix, s]) for f, s in zip(forms, secrets, strict=True)]
    if sum(copies):
        planted[rows] = np.repeat(np.stack(windows), copies, axis=0)
    records = replace(bench.candidates, input_ids=planted)
    target, result = bench.federated(inside, folder, records=records)
    found = []
    for form, secret, times in zip(forms, secrets, copies, strict=True):
        others = form.sample(reference, generator)
        losses = secret_losses(
            target.view, bench.public, form, np.concatenate([secret[None], others])
        )
        found.append(
            exposure(
                float(losses[0]),
                losses[1:],
                copies=times,
                bits=form.bits,
                extracted=completed(target.view, bench.public, form) == tuple(secret.tolist()),
                confidence=confidence,
            )
        )
    return found, result
