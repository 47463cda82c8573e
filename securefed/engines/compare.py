"""What a run is worth: the same training unprotected, and each client on its own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from securefed.config import RunConfig, parse_config
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.events import Observer
from securefed.engines.figures import Figures
from securefed.engines.simulation import Federation
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.federation.server_step import ServerStep


def unprotected(federation: Federation, observer: Observer) -> Figures:
    """The same run with ``mechanism = "none"``: same clipping and sums, no noise.

    Only its figures are kept.  The folder it needs is the user's alone (mode 0700), lies where
    temporary files lie, and is removed at the end: an adapter, checkpoints and sums without noise
    have no place in a run folder that states an epsilon.
    """
    values = _without_noise(federation.config)
    values["budget"] = {}
    values["output"]["name"] = "unprotected"
    with tempfile.TemporaryDirectory(prefix="securefed-unprotected-") as folder:
        return federation.like(parse_config(values), observer).run(Path(folder) / "run").after


def clients_alone(federation: Federation, observer: Observer) -> Figures:
    """Each client trains on its own data only, as many rounds as the federation, without noise.

    A client alone takes the same steps with its own sums; nothing is sent anywhere.
    """
    values = _without_noise(federation.config)
    values["training"] = {k: v for k, v in values["training"].items() if k not in _OF_SUMS}
    bench, settings = federation.like(parse_config(values), observer).prepare()
    training = federation.config.training
    generator = NoiseGenerator()
    total = np.zeros(Figures.DIMENSION)
    shown = {}
    for done, name in enumerate(sorted(bench.clients)):
        observer.working("alone", done, len(bench.clients))
        bench.begin_anew()
        step = ServerStep(bench.parts, lambda initial: ServerOptimizer.of(initial, training))
        policy = settings.sum_policy
        for number in range(1, training.rounds + 1):
            bench.begin_round(number)
            own, count = bench.contribution(settings, policy, name, number, generator)
            step.step(number, settings.gradient(own, (name,)))
            bench.take_over((name,), (name,))
            policy = policy.after(settings.unclipped_fraction(count, (name,)))
        shown[name] = bench.figures(name)
        total += shown[name]
    bench.begin_anew()
    keep = shown if federation.config.evaluation.show_clients else None
    return Figures.from_sum(total, len(bench.clients), keep)


_OF_NOISE = {
    "noise",
    "noise_multiplier",
    "target_epsilon",
    "remove_excess_noise",
    "sampling",
    "noise_bands",
}


# A client alone sends nothing that could be cut, and has nobody to be corrected towards.
_OF_SUMS = {"sparsify", "keep_fraction", "error_feedback", "control_weight"}


def _without_noise(config: RunConfig) -> dict[str, Any]:
    """The run file for the same training without noise, measured exactly: nothing is protected."""
    values = config.model_dump(mode="json", exclude_none=True)
    del values["personal"]
    for key in ("figures", "histogram"):
        values["evaluation"].pop(key, None)
    kept = {key: value for key, value in values["privacy"].items() if key not in _OF_NOISE}
    values["privacy"] = kept | {"mechanism": "none"}
    if config.aggregation.kind == "ckks":  # which opens no sums without noise
        values["aggregation"]["kind"] = "bfv"
    if config.lora.sharing == "fedsa":  # which trains in local steps, whatever the unit
        values["privacy"]["unit"] = "client"
        values["data"].pop("user_field", None)
        values["training"].pop("examples_per_user", None)
    return values
