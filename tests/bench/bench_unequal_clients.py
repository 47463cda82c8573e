"""What a plan saves in time and costs in accuracy: real runs of a tiny model, real masked rounds.

Run by hand: ``python tests/bench/bench_unequal_clients.py [--rounds 12 --seeds 3]``.  A plan that
asks less of the weak (``--least-work 0.25``) ends its rounds sooner and learns less in each.

One strong, three middling and two weak clients train a two-layer Llama on six unlike texts, in runs
that carry out a plan (``Federation``, ``cohort.schedule.carry_out``); compute and links are slowed
by the factors in ``MACHINES``, on a virtual clock that is asked for the bytes that were really
carried.  There are two plans, as a run varies ranks or participation and not both: rank, steps and
ring with everybody in every round, and steps, ring and participation at one rank.  The same runs
with one lever only show what each buys.  No noise, so that what is compared is the plan.

Stated before any run, of both plans: the mean round ends in at most ``TIME`` of the uniform plan's,
and after as many rounds the mean held-out loss has improved by at least 1 - ``MARGIN`` of what it
improves under the uniform plan.  The script ends with an error where either fails.

Found in 12 rounds, time and improvement as shares of the uniform plan's.  At a least_work of 0.25
(seeds 0 to 2), the default then, the plan of ranks missed what was stated: 27 % and 86 % (81 to
94); that of participation, which leaves everybody in every round, had 28 % and 90 %.  Asked for 0.5
afterwards, with other seeds (3 to 5): 47 % and 91 % (89 to 94), 52 % and 95 %.  0.5 is the default
since.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import write_run

from securefed import Federation
from securefed.engines.planning import plan_cohort
from securefed.engines.run_plan import RunPlan
from securefed.engines.verify import verify_run
from securefed.federation.scheduling import Lever, schedule

TIME, MARGIN = 0.60, 0.10
LEVERS: dict[str, tuple[Lever, ...]] = {
    "uniform": (),
    "rank alone": ("rank",),
    "steps alone": ("steps",),
    "bits alone": ("bits",),
    "participation alone": ("participation",),
    "plan of ranks": ("rank", "steps", "bits"),
    "plan of participation": ("steps", "bits", "participation"),
}
PLANS = ("plan of ranks", "plan of participation")
RANK, TIERS, PERIODS = 8, [2, 4, 8], [1, 2]
_LINK = {"upload_mbit": 20.0, "download_mbit": 50.0, "memory_gib": 16.0}
_WEAK = {"upload_mbit": 0.4, "download_mbit": 4.0, "memory_gib": 2.0}
MACHINES = [
    _LINK | {"clients": ["site-0"]},
    _LINK | {"clients": "others", "slowdown": 2.5},
    _WEAK | {"clients": ["site-4", "site-5"], "slowdown": 10.0},
]


@dataclass(frozen=True)
class Trained:
    """One run.

    Attributes:
        seconds: of all its rounds, on the virtual clock.
        gained: by which the mean held-out loss fell, in nats a token.
        worst: perplexity of the worst client in the end.
        bytes_up: mean a client and round.
    """

    seconds: float
    gained: float
    worst: float
    bytes_up: float


def trained(plan: RunPlan, out: Path, *, verified: bool) -> Trained:
    """Train under a plan; one that follows from the run file itself must verify."""
    result = Federation(plan.config, plan=plan).run(out)
    if verified:
        verify_run(out)
    rounds = result.events[1:]
    return Trained(
        seconds=sum(event.virtual_seconds or 0.0 for event in rounds),
        gained=result.before.nll - result.after.nll,
        worst=result.after.worst or 0.0,
        bytes_up=float(np.mean([event.bytes_up for event in rounds])),
    )


def one_seed(folder: Path, seed: int, asked: argparse.Namespace) -> dict[str, Trained]:
    """A run under each choice of levers."""
    ranked, rare = (
        Federation.from_config(
            run_file(folder / name, asked.rounds, seed, least_work=asked.least_work, **choice)
        )
        for name, choice in (("ranked", {"rank_tiers": TIERS}), ("rare", {"periods": PERIODS}))
    )
    made = plan_cohort(ranked.config, *ranked.prepare())
    open_to = {
        ranked: made.rules,
        rare: replace(made.rules, ranks=[RANK], periods=PERIODS),
    }
    runs = {}
    print(f"seed {seed}")
    for label, levers in LEVERS.items():
        if asked.plans_only and label not in ("uniform", *PLANS):
            continue
        federation = rare if "participation" in levers else ranked
        rules = open_to[federation].only(*levers)
        planned = schedule(made.profiles, made.workload, rules)
        plan = RunPlan(planned, made.workload, made.profiles, rules, federation.config)
        out = folder / label.replace(" ", "-")
        runs[label] = trained(plan, out, verified=label in PLANS)
        one, uniform = runs[label], runs["uniform"]
        print(
            f"  {label:<21} {one.seconds:6.1f} virtual s ({one.seconds / uniform.seconds:4.0%}, "
            f"planned {planned.mean_seconds / planned.uniform_seconds:4.0%}), loss down by "
            f"{one.gained:.3f} nats ({one.gained / uniform.gained:4.0%}), worst perplexity "
            f"{one.worst:.1f}, {one.bytes_up / 1e3:.1f} kB up, {plan.bits} bits: "
            + ", ".join(
                f"{given.local_steps} at {given.rank}"
                f"{'' if given.period == 1 else f' in 1 of {given.period}'}"
                for given in map(plan.given, plan.profiles)
            )
        )
    return runs


def run_file(folder: Path, rounds: int, seed: int, **choice: Any) -> Path:
    """What all runs have in common, and what may be chosen in some."""
    folder.mkdir()
    return write_run(
        folder,
        lora={"rank": RANK, "target_modules": ["q_proj", "v_proj"], "seed": seed},
        privacy={
            "unit": "client",
            "mechanism": "none",
            "noise_multiplier": None,
            "expected_batch": None,
        },
        training={"rounds": rounds, "local_steps": 8, "batch_size": 8, "server_learning_rate": 0.05,
                  "local_learning_rate": 5e-3},
        cohort={
            "profiles": MACHINES,
            "schedule": {
                "local_steps": [1, 2, 4, 6, 8],
                "seconds_per_token": 2e-3,
                "carry_out": True,
            }
            | choice,
        },
        evaluation={"max_windows": 64, "show_clients": True},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=3)
    parser.add_argument("--least-work", type=float, default=0.5)
    parser.add_argument("--plans-only", action="store_true", help="no run with one lever alone")
    asked = parser.parse_args()
    found = []
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(one_seed(Path(folder), seed, asked))
    shares = {
        label: np.array(
            [
                (
                    runs[label].seconds / runs["uniform"].seconds,
                    runs[label].gained / runs["uniform"].gained,
                )
                for runs in found
            ]
        )
        for label in found[0]
    }
    for label, column in shares.items():
        times, gains = column.T
        print(
            f"{label:<21} time {times.mean():.1%} of uniform, improvement {gains.mean():.1%} of "
            f"uniform, {gains.min():.1%} to {gains.max():.1%}"
        )
    print(f"stated of both plans: time at most {TIME:.0%}, improvement at least {1 - MARGIN:.0%}")
    for label in PLANS:
        times, gains = shares[label].T
        if times.max() > TIME or gains.mean() < 1 - MARGIN:
            raise SystemExit(f"{label}: outside what was stated")


if __name__ == "__main__":
    main()
