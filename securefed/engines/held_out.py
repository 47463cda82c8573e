"""A model's held-out figures at one client."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.config import RunConfig
from securefed.engines.figures import Figures
from securefed.training.data import Examples
from securefed.training.evaluate import evaluate


def held_out_figures(
    model: torch.nn.Module,
    held_out: Examples,
    config: RunConfig,
    device: torch.device,
    *,
    micro_batch: int | None = None,
) -> NDArray[np.float64]:
    """A model's figures on one client's held-out examples, a bounded float64[3].

    Args:
        model: on ``device``.
        held_out: the examples.
        config: the run file.
        device: where to compute.
        micro_batch: examples at a time, >= 1; ``training.micro_batch`` without it.
    """
    found = evaluate(
        model,
        held_out,
        task=config.model.task,
        micro_batch=micro_batch or config.training.micro_batch,
        device=device,
    )
    classifier = config.model.task == "sequence-classification"
    return Figures.vector(
        nll=found.nll_sum / max(found.tokens, 1),
        accuracy=found.accuracy if classifier else None,
    )
