"""Training runs on random halves of a cohort's records, for membership attacks to be tried on."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.attacks.base import AdversaryView, PublicKnowledge
from securefed.attacks.membership.base import MembershipAttack, MembershipQuestion, Records
from securefed.attacks.membership.shadows import Shadows
from securefed.attacks.membership_results import MembershipTrial
from securefed.attacks.views import released_adapter
from securefed.config import RunConfig
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.events import Silent
from securefed.engines.results import RunResult
from securefed.engines.simulation import Federation
from securefed.engines.workbench import Workbench
from securefed.errors import ConfigError
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.federation.server_step import ServerStep
from securefed.federation.session import RoundSession
from securefed.lora.adapter import adapter_state
from securefed.privacy.mechanisms import RoundPlan
from securefed.secagg.aggregator import SESSION_BYTES
from securefed.training.data import ClientData, Examples, client_sizes
from securefed.training.models import load_model, resolve_device


@dataclass(frozen=True, eq=False)
class Target:
    """A finished training run that is attacked.

    Attributes:
        view: what the attacker sees of it.
        inside: bool[n], the truth: which candidates it was trained on.
    """

    view: AdversaryView
    inside: NDArray[np.bool_]


class MembershipBench:
    """A run file's cohort, of whose records every run trains on another random half.

    Of each client's training examples 2 h are candidates, and each run trains that client on h of
    them: sizes, which are public, are the same in all runs.  What is left over is the attacker's
    own: a population, and a pool that offline shadow runs train on.  A run with a record differs
    from one without it in two records, since another one stands in its place: a promise for one
    record counts twice there (``summarise_membership``).

    Args:
        config: of runs whose clients all take part in every round, without personal parts.
        per_client: 2 h, candidates of each client, even, >= 2.
        population: records of the attacker's own that no run trains on, >= 1.
        seed: of which records are which.
        cache: where models and corpora are kept.
        offline: fetch nothing.

    Attributes:
        candidates: n = 2 h times the number of clients.
        population: p records.
        pool: the rest.
        public: what everybody knows of the runs.
        records: candidates and population, as an attacker has them.

    Raises:
        ConfigError: a client has fewer than 2 h examples, too few are left over, or the run file
            asks for what a run on halves has no use for.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        per_client: int,
        population: int,
        seed: int,
        cache: Path,
        offline: bool = False,
    ) -> None:
        _check_config(config)
        if per_client < 2 or per_client % 2 or population < 1:
            raise ConfigError(
                f"per_client = {per_client}, population = {population}; allowed: an even number "
                ">= 2, and >= 1"
            )
        self.config, self._cache, self._offline = config, cache, offline
        bench = Workbench(config, cache=cache, offline=offline, observer=Silent())
        self.names = tuple(sorted(bench.clients))
        rng = np.random.default_rng(seed)
        chosen, left = [], []
        for name in self.names:
            train = bench.clients[name].train
            if len(train) < per_client:
                raise ConfigError(
                    f"per_client = {per_client}: client {name!r} has {len(train)} examples"
                )
            order = rng.permutation(len(train))
            chosen.append(train.take(order[:per_client]))
            left.append(train.take(order[per_client:]))
        self.candidates, rest = _joined(chosen), _joined(left)
        half = per_client // 2
        if len(rest) < population:
            raise ConfigError(
                f"population = {population}: {len(rest)} examples are left over beside candidates"
            )
        order = rng.permutation(len(rest))
        self.population = rest.take(order[:population])
        self.pool = rest.take(order[population:])
        self._per_client, self._held = per_client, {n: c.held_out for n, c in bench.clients.items()}
        self._deal(bench, np.tile(np.arange(per_client) < half, len(self.names)))
        bench.sizes = client_sizes(bench.clients, config.privacy.unit)
        made = Federation(config, cache=cache, offline=offline, loaded=bench)
        self._bench, self.settings = made.prepare()
        tokenizer = load_model(
            config.model, cache=cache, offline=offline, device=resolve_device("cpu")
        ).tokenizer
        self._bench.begin_round(1)
        self.public = self._public(tokenizer)
        self.records = Records(
            public=self.public, candidates=self.candidates, population=self.population
        )

    def halves(self, runs: int, generator: torch.Generator) -> NDArray[np.bool_]:
        """bool[runs, n]: a random half of each client's candidates a run, in pairs of opposites.

        With an even number of runs each candidate is in exactly half of them.
        """
        size, clients = self._per_client, len(self.names)
        drawn = torch.rand((math.ceil(runs / 2), clients, size), generator=generator).numpy()
        first = drawn.argsort(axis=2).argsort(axis=2) < size // 2
        both = np.stack([first, ~first], axis=1).reshape(-1, clients * size)
        return both[:runs]

    # -- runs ------------------------------------------------------------------------------

    def federated(
        self, inside: NDArray[np.bool_], folder: Path, *, records: Examples | None = None
    ) -> tuple[Target, RunResult]:
        """A real run of the library on one half, with all of its protocol and ledger.

        Args:
            inside: bool[n], as :meth:`halves` gives them.
            folder: of the run; is made.
            records: n records that are trained on in place of the candidates.
        """
        self._deal(self._bench, inside, records)
        federation = Federation(
            self.config, cache=self._cache, offline=self._offline, loaded=self._bench
        )
        result = federation.run(folder)
        return self._ended(inside), result

    def trained(self, inside: NDArray[np.bool_], generator: torch.Generator) -> Target:
        """The same training without masks, records and rounding: what an attacker does at home.

        Its noise is Gaussian and of the std that a sum of all clients has.  It and the samples come
        from ``generator``, but for local DP-SGD, whose clients draw their own as in a real run.
        """
        self._deal(self._bench, inside)
        self._train(generator)
        return self._ended(inside)

    def offline(self, generator: torch.Generator) -> Target:
        """The same, on records of the attacker's pool alone.

        Raises:
            ConfigError: the pool holds fewer records than a run trains on.
        """
        half, clients = self._per_client // 2, len(self.names)
        if len(self.pool) < half * clients:
            raise ConfigError(
                f"pool: {len(self.pool)} records; a run trains on {half * clients} of them"
            )
        order = torch.randperm(len(self.pool), generator=generator).numpy()
        for place, name in enumerate(self.names):
            rows = order[place * half : (place + 1) * half]
            self._bench.clients[name] = ClientData(name, self.pool.take(rows), self._held[name])
        self._train(generator)
        return self._ended(np.zeros(len(self.candidates), dtype=np.bool_))

    def shadows(self, runs: Sequence[Target]) -> Shadows:
        """What runs of the attacker's own say of candidates and population."""
        found = [self.question(run.view, None) for run in runs]
        return Shadows(
            np.stack([run.inside for run in runs]),
            np.stack([question.losses for question in found]),
            np.stack([question.population_losses for question in found]),
        )

    def question(self, view: AdversaryView, shadows: Shadows | None) -> MembershipQuestion:
        """Which candidates were trained on, by a view."""
        return MembershipQuestion(view, self.records, shadows)

    def _train(self, generator: torch.Generator) -> None:
        bench, settings, training = self._bench, self.settings, self.config.training
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        words = NoiseGenerator.from_key(rng.bytes(32))  # the attacker's own, kept from nobody
        plan, policy = settings.plan, settings.sum_policy
        std = noise_of_all(plan, len(self.names))
        bench.begin_anew()
        step = ServerStep(bench.parts, lambda initial: ServerOptimizer.of(initial, training))
        for number in range(1, training.rounds + 1):
            bench.begin_round(number)
            total = np.zeros(bench.combining.length)
            for name in self.names:
                total += bench.contribution(settings, policy, name, number, words)[0]
            total += std * plan.resolution * rng.standard_normal(len(total))
            gradient = settings.gradient(total, self.names)
            opened = bench.combining.opened(gradient, number=number, share=1.0)
            step.step(number, opened)
            bench.take_over(self.names, self.names)

    def _ended(self, inside: NDArray[np.bool_]) -> Target:
        view = released_adapter(adapter_state(self._bench.model), clients=len(self.names))
        self._bench = self._bench.again(self.config, Silent())  # no per-example hooks, adapter anew
        self._bench.begin_round(1)
        return Target(view, inside)

    def _deal(
        self, bench: Workbench, inside: NDArray[np.bool_], records: Examples | None = None
    ) -> None:
        rows = inside.reshape(len(self.names), self._per_client)
        if not np.array_equal(rows.sum(axis=1), np.full(len(rows), self._per_client // 2)):
            raise ConfigError("inside: exactly half of each client's candidates must be in a run")
        for place, name in enumerate(self.names):
            chosen = np.flatnonzero(rows[place]) + place * self._per_client
            given = (self.candidates if records is None else records).take(chosen)
            bench.clients[name] = ClientData(name, given, self._held[name])

    def _public(self, tokenizer: object) -> PublicKnowledge:
        training, task = self.config.training, self.config.model.task
        session = RoundSession(
            session=secrets.token_bytes(SESSION_BYTES),
            round=1,
            cohort=self.names,
            roster={name: IdentityKey.generate().public for name in self.names},
            dimension=self._bench.combining.length,
            policy=self.settings.sum_policy,
            aggregation=self.settings.aggregation,
            model=self._bench.model_hash(),
        )
        one_step = self.settings.one_step
        return PublicKnowledge(
            model=self._bench.model,
            tokenizer=tokenizer,
            task=task,
            layout=self._bench.parts.layout,
            session=session,
            sharing=self.config.lora.sharing,
            optimizer="sgd" if one_step else training.local_optimizer,
            local_steps=1 if one_step else training.local_steps,
            learning_rate=1.0 if one_step else training.local_learning_rate,
            batch_size=training.batch_size,
            window_tokens=self.config.data.window_tokens if task == "causal-lm" else None,
        )


def noise_of_all(plan: RoundPlan, clients: int) -> float:
    """Std in grid units of the noise in the opened sum of a round that no client is missing from.

    Where excess noise is removed, what is left.
    """
    return math.hypot(math.sqrt(clients) * plan.retained_std(0), plan.server_std)


def attack_runs(
    attacks: Sequence[MembershipAttack],
    bench: MembershipBench,
    targets: Sequence[Target],
    shadows: Shadows | None,
    *,
    seed: int,
) -> dict[str, list[MembershipTrial]]:
    """Try attacks on each of some runs.

    Args:
        attacks: that are tried.
        bench: of the runs.
        targets: the runs.
        shadows: the attacker's own; a target that is among them is attacked with the others.
        seed: of the attacks on the first run; each next run has the next.

    Returns:
        By attack, a trial of each run.
    """
    found: dict[str, list[MembershipTrial]] = {attack.name: [] for attack in attacks}
    for number, target in enumerate(targets, start=seed):
        own = None if shadows is None else shadows.apart_from(target.inside)
        question = bench.question(target.view, own)
        for attack in attacks:
            found[attack.name].append(membership_trial(attack, question, target.inside, number))
    return found


def membership_trial(
    attack: MembershipAttack,
    question: MembershipQuestion,
    inside: NDArray[np.bool_],
    seed: int,
) -> MembershipTrial:
    """One attack on one question, beside the truth that it is not shown.

    Args:
        attack: that is tried.
        question: what it is given.
        inside: bool[n], which candidates are members.
        seed: of its random choices, which share no draw with a generator of the same seed.
    """
    # Apart from the draws of who is a member, which come from a generator of the seed itself: an
    # attack with that one in its hands could draw them again.
    own = int(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0])
    started = time.perf_counter()
    guess = attack.run(question, generator=torch.Generator().manual_seed(own))
    spent = time.perf_counter() - started
    return MembershipTrial(guess.scores, inside, guess.verdict, seed, spent)


def _joined(parts: Sequence[Examples]) -> Examples:
    labels = [part.labels for part in parts if part.labels is not None]
    return Examples(
        np.concatenate([part.input_ids for part in parts]),
        np.concatenate([part.attention_mask for part in parts]),
        np.concatenate(labels) if labels else None,
    )


def _check_config(config: RunConfig) -> None:
    refused = {
        "privacy.unit": config.privacy.unit == "user",
        "privacy.adaptive_clip": config.privacy.adaptive_clip is not None,
        "privacy.sampling": config.privacy.sampling != "poisson",
        "training.class_weights": config.training.class_weights is not None,
        "data.messages_field": config.data.messages_field is not None,
        "cohort.ranks": bool(config.cohort.ranks),
        "cohort.schedule.carry_out": config.cohort.schedule.carry_out,
        "cohort.simulated_dropouts": bool(config.cohort.simulated_dropouts),
        "personal.kind": config.personal.kind != "none",
        "lora.sharing": config.lora.sharing == "fedsa",
    }
    wrong = [name for name, given in refused.items() if given]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: runs on halves are of one rank and one policy, with all clients "
            "in every round, examples or clients as units, windows or records that weigh alike, "
            "and nothing that clients keep"
        )
