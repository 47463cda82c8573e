"""What a run is worth: the same training unprotected, and each client on its own."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from securefed.config import parse_config
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.events import Observer
from securefed.engines.figures import Figures
from securefed.engines.simulation import Federation
from securefed.engines.without_noise import OF_SUMS, without_noise
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.federation.server_step import ServerStep
from securefed.phases import Phase, unmeasured


def unprotected(federation: Federation, observer: Observer) -> Figures:
    """The same run with ``mechanism = "none"``: same clipping and sums, no noise.

    Only its figures are kept.  The folder it needs is the user's alone (mode 0700), lies where
    temporary files lie, and is removed at the end: an adapter, checkpoints and sums without noise
    have no place in a run folder that states an epsilon.
    """
    values = without_noise(federation.config)
    values["output"]["name"] = "unprotected"
    with tempfile.TemporaryDirectory(prefix="securefed-unprotected-") as folder:
        return federation.like(parse_config(values), observer).run(Path(folder) / "run").after


def clients_alone(federation: Federation, observer: Observer) -> Figures:
    """Each client trains on its own data only, as many rounds as the federation, without noise.

    A client alone takes the same steps with its own sums; nothing is sent anywhere.
    """
    found = figures_of_clients_alone(federation, observer)
    shown = found if federation.config.evaluation.show_clients else None
    return Figures.from_sum(sum(found.values(), np.zeros(Figures.DIMENSION)), len(found), shown)


def figures_of_clients_alone(
    federation: Federation, observer: Observer, phase: Phase = unmeasured
) -> dict[str, NDArray[np.float64]]:
    """Each client's own held-out figures after it has trained as :func:`clients_alone` says.

    Args:
        federation: whose run is over.
        observer: told how many clients are done.
        phase: told when a client trains.

    Returns:
        ``Figures.vector`` of each client, by name: for whoever owns all clients.
    """
    values = without_noise(federation.config)
    values["training"] = {k: v for k, v in values["training"].items() if k not in OF_SUMS}
    bench, settings = federation.like(parse_config(values), observer).prepare()
    training = federation.config.training
    generator = NoiseGenerator()
    found = {}
    for done, name in enumerate(sorted(bench.clients)):
        observer.working("alone", done, len(bench.clients))
        bench.begin_anew()
        step = ServerStep(bench.parts, lambda initial: ServerOptimizer.of(initial, training))
        policy = settings.sum_policy
        with phase("train"):
            for number in range(1, training.rounds + 1):
                bench.begin_round(number)
                own, count = bench.contribution(settings, policy, name, number, generator)
                step.step(number, settings.gradient(own, (name,)))
                bench.take_over((name,), (name,))
                policy = policy.after(settings.unclipped_fraction(count, (name,)))
        found[name] = bench.figures(name)
    bench.begin_anew()
    return found
