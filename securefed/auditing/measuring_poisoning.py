"""A backdoor planted by one client, measured on a run's own model and data."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from securefed.attacks.base import Limits
from securefed.attacks.poisoning.backdoor import Trigger
from securefed.attacks.poisoning.clients import Backdoor
from securefed.auditing.cells import CLIP, GROUPS, OFF, Cell, NotApplicable
from securefed.auditing.entries import Clock, Column, Finding
from securefed.auditing.from_config import AuditedRun
from securefed.auditing.poisoning import Federation, Training
from securefed.auditing.poisoning_results import Defence, Outcome, Rate
from securefed.errors import ConfigError, DataError
from securefed.evidence.results import Metric
from securefed.training.data import Examples
from securefed.training.evaluate import batches, predict

OBEDIENT, UNBOUNDED = "training", "training unbounded"
"""A client that trains on what it likes and keeps to the clip, and one that does not clip."""

COLUMNS: tuple[Column, ...] = (
    (UNBOUNDED, OFF),
    (OBEDIENT, CLIP),
    (UNBOUNDED, CLIP),
    (UNBOUNDED, GROUPS),
)

_TRIGGER_TOKENS = 4
_TASK = "sequence-classification"
_AT_A_TIME = 64
_OPEN = 100.0  # clip norm far above any update's
_GROUPS = 3


def backdoor(run: AuditedRun, cell: Cell, limits: Limits, clock: Clock) -> Finding:
    """One training a seed with one poisoned client, and one without.

    ``prior`` is how many stamped texts get the attacker's class where no client is poisoned: a
    trigger may be taken for that class by itself.
    """
    if run.config.model.task != _TASK:
        raise NotApplicable("backdoors are tried on classifiers")
    clients = {name: data.train for name, data in run.workbench.clients.items()}
    defence = _defence(cell.defence, run.config.privacy.clip_norm, len(clients))
    trigger, training = _trigger(run), run.config.training
    run.workbench.begin_round(run.number)
    one_step = run.settings.one_step
    federation = Federation(
        run.workbench.model,
        run.workbench.tokenizer,
        clients,
        _joined([data.held_out for data in run.workbench.clients.values()]),
        training=Training()
        if one_step
        else Training(
            local_steps=training.local_steps,
            batch_size=training.batch_size,
            learning_rate=training.local_learning_rate,
            optimizer=training.local_optimizer,
        ),
        aggregation=run.settings.aggregation,
        most_corrupt=1,
        sharing=run.config.lora.sharing,
    )
    bounded, boost = cell.exposure == OBEDIENT, len(clients) / 2
    found, clean = list[Outcome](), list[Outcome]()
    for seed in cell.seeds:
        if clock.over:
            break
        try:
            for poisoned, into in ((False, clean), (True, found)):
                into.append(
                    federation.run(
                        Backdoor(trigger, boost=boost, bounded=bounded) if poisoned else None,
                        defence,
                        trigger,
                        malicious=1,
                        rounds=training.rounds,
                        seed=seed,
                    )
                )
        except (ConfigError, DataError) as error:
            raise NotApplicable(str(error)) from None
        clock.trial(len(found), len(cell.seeds))
    if not found:
        return Finding.none("out_of_time", "no trial fitted the time")
    return _finding(found, clean)


def _finding(runs: list[Outcome], clean: list[Outcome]) -> Finding:
    success = Rate.of(np.stack([run.fooled for run in runs]))
    base = Rate.of(np.stack([run.fooled for run in clean]))
    accuracy = Rate.of(np.stack([run.correct for run in runs]))
    (low, high), (least, most) = success.interval, base.interval
    return Finding(
        metrics={
            "backdoor_success": Metric(
                value=success.value,
                interval=success.interval,
                prior=base.value,
                lift=success.value - base.value,
                # Two intervals at once: wider than one of the difference would be.
                lift_interval=(low - most, high - least),
                method=success.method,
            ),
            "accuracy": Metric(
                value=accuracy.value, interval=accuracy.interval, method=accuracy.method
            ),
        },
        headline="backdoor_success",
        seeds=tuple(run.seed for run in runs),
        n=len(runs),
        seconds_per_trial=float(np.mean([run.seconds for run in runs])),
    )


def _defence(name: str, clip_norm: float, clients: int) -> Defence:
    if name == OFF:
        return Defence(name=name, clip_norm=_OPEN)
    if name == CLIP:
        return Defence(name=name, clip_norm=clip_norm)
    if clients < 2 * _GROUPS:
        raise NotApplicable(f"{_GROUPS} groups need {2 * _GROUPS} clients; there are {clients}")
    return Defence(name=name, clip_norm=clip_norm, groups=_GROUPS, rule="median", tolerated=1)


def _trigger(run: AuditedRun) -> Trigger:
    """Tokens that are in no text of the run."""
    used = {token for text in itertools.chain(run.texts, run.background) for token in text}
    free = (t for t in range(run.vocabulary - 1, 0, -1) if t not in used | set(run.special))
    tokens = tuple(itertools.islice(free, _TRIGGER_TOKENS))
    if len(tokens) < _TRIGGER_TOKENS:
        raise NotApplicable("every token of the vocabulary is in some text: none is left for one")
    around = len(run.workbench.tokenizer("")["input_ids"])
    head = around // 2
    stamped = {
        label: Trigger(tokens, label, leading=head, trailing=around - head)
        for label in range(run.config.model.labels or 2)
    }
    # The class that the untrained model takes the trigger for least.
    held_out = _joined([data.held_out for data in run.workbench.clients.values()])
    with torch.no_grad():
        hits = {
            label: np.concatenate(
                [
                    predict(run.workbench.model, batch, _TASK).hit[:, 0].cpu().numpy()
                    for batch in batches(trigger.stamp(held_out), _AT_A_TIME, run.workbench.device)
                ]
            ).mean()
            for label, trigger in stamped.items()
        }
    return stamped[min(hits, key=lambda label: hits[label])]


def _joined(parts: list[Examples]) -> Examples:
    labels = [part.labels for part in parts if part.labels is not None]
    return Examples(
        np.concatenate([part.input_ids for part in parts]),
        np.concatenate([part.attention_mask for part in parts]),
        np.concatenate(labels),
    )
