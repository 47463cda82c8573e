"""The run file for the same training without noise.  Needs no torch."""

from __future__ import annotations

from typing import Any

from securefed.config import RunConfig

_OF_NOISE = {
    "noise",
    "noise_multiplier",
    "target_epsilon",
    "remove_excess_noise",
    "sampling",
    "noise_bands",
}

OF_SUMS = {"sparsify", "keep_fraction", "error_feedback", "control_weight"}
"""Training settings about what is cut off or corrected when many are summed."""


def without_noise(config: RunConfig) -> dict[str, Any]:
    """The run file for the same training without noise, measured exactly, as sections.

    Clip, sums, rounds, steps and batches stay.  What takes local steps goes on taking them, which
    without noise is ``unit = "client"`` whatever the unit was; examples that came in turn
    (``sampling = "cyclic"``) are drawn.
    """
    values = config.model_dump(mode="json", exclude_none=True)
    del values["personal"]
    for key in ("figures", "histogram"):
        values["evaluation"].pop(key, None)
    kept = {key: value for key, value in values["privacy"].items() if key not in _OF_NOISE}
    values["privacy"] = kept | {"mechanism": "none"}
    values["budget"] = {}  # which no run without an epsilon can have
    if config.aggregation.kind == "ckks":  # which opens no sums without noise
        values["aggregation"]["kind"] = "bfv"
    if config.lora.sharing == "fedsa" or config.privacy.mechanism == "local":
        values["privacy"]["unit"] = "client"
        values["data"].pop("user_field", None)
        values["training"].pop("examples_per_user", None)
    return values
