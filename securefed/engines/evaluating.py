"""Base, shared and personal adapters of a finished run on a set of one's own.

It is measured here and shown to whoever asks: nothing is summed, noised or charged.  Whoever hands
the figures on hands on what they tell of the set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from securefed.engines.from_objects import GivenClients, Texts, corpus_from
from securefed.engines.released import Released, with_adapter
from securefed.errors import ConfigError
from securefed.training.assets import Progress, cache_dir
from securefed.training.corpora import OBJECTS, load_corpus
from securefed.training.data import Examples, measured_examples, tokenize_clients
from securefed.training.folder import Document, read_folder
from securefed.training.metrics import Metric, check_metric, load_metric, measured
from securefed.training.models import LoadedModel, resolve_device
from securefed.training.scores import Measured, Scores, accuracy, change, example_scores, perplexity

BASE, SHARED, PERSONAL = "base", "shared", "personal"
EVERYBODY = "all"


@dataclass(frozen=True)
class Row:
    """One adapter on one set.

    Attributes:
        adapter: ``base`` (none), ``shared`` or ``personal``.
        who: whose set: ``all`` together, or a client's.
        figure: perplexity of a language model, accuracy of a classifier.
        change: against the base model on the same set, paired: the ratio of perplexities, or the
            difference of accuracies; None for the base itself.
        metric: mean of the user's own metric over documents; None without one.
    """

    adapter: str
    who: str
    figure: Measured
    change: Measured | None
    metric: Measured | None


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate_run` found.

    Attributes:
        kind: ``perplexity`` or ``accuracy``.
        source: what was measured on, in words.
        rows: by adapter and set.
        metric: the name of the user's own metric; empty without one.
    """

    kind: str
    source: str
    rows: list[Row]
    metric: str = ""


@dataclass(frozen=True)
class _Set:
    examples: Examples
    documents: Sequence[Document]


def evaluate_run(
    folder: str | Path,
    *,
    data: GivenClients | None = None,
    clients: Mapping[str, Texts] | None = None,
    personal: bool = False,
    metric: Metric | str | None = None,
    cache: Path | None = None,
    offline: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Measure what a finished run made.

    Args:
        folder: the run folder.
        data: a folder as ``data.source`` takes it, or texts by client, all of which is measured on;
            without it the held-out parts of the run's own data.
        clients: what ``Federation(clients=...)`` was given, for a run from Python objects: its
            held-out parts are measured on.
        personal: also the adapters that clients use, each on the set of that client.
        metric: a function, or its name as ``module:function``; needs ``data``.
        cache: where models and corpora are kept.
        offline: fetch nothing.
        device: as ``training.device``.
        progress: told what takes time.

    Raises:
        ConfigError: it is no finished run, its base model has changed, no client of the set has an
            adapter of its own, or the metric is not one.
        DataError: the set is not as it must be.
        FetchError: model or corpus are neither here nor to be had.
    """
    say: Progress = progress if progress is not None else lambda line: None
    released = Released.of(Path(folder))
    if personal and not released.personal:
        raise ConfigError(
            f"{folder}: clients have no adapters of their own (personal.kind = 'none', and "
            f"lora.sharing = {released.config.lora.sharing!r} leaves them no part)"
        )
    named, own = "", None
    if metric is not None:
        own = load_metric(metric) if isinstance(metric, str) else metric
        named = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
        check_metric(own, named)
        if data is None:
            raise ConfigError(
                f"--metric {named}: needs --data (data=), a folder of documents to measure on"
            )
    base = released.base(
        cache=cache or cache_dir(), offline=offline, device=resolve_device(device), progress=say
    )
    if data is not None:
        sets = _given_sets(released, base, data)
    else:
        sets = _own_sets(released, base, clients, cache or cache_dir(), offline, say)
    measure = _Measuring(released, base, own, named, say)
    rows = measure.everybody(sets)
    if personal:
        rows += measure.each(sets)
    source = "the run's own held-out parts" if data is None else f"all of {_named(data)}"
    return Evaluation(measure.kind, source, rows, named)


def _named(data: GivenClients) -> str:
    return "the texts given" if isinstance(data, Mapping) else str(data)


def _given_sets(released: Released, base: LoadedModel, data: GivenClients) -> dict[str, _Set]:
    section, model = released.config.data, released.config.model
    if isinstance(data, Mapping):
        read: Mapping[str, list[Document]] = corpus_from(data, section, model.labels).clients
    else:
        read = read_folder(Path(data), section=section, labels=model.labels)
    found = {}
    for name, documents in read.items():
        examples = measured_examples(
            documents,
            section,
            tokenizer=base.tokenizer,
            task=model.task,
            labels=model.labels,
            tokens=_window(released),
        )
        found[name] = _Set(examples, documents)
    return found


def _own_sets(
    released: Released,
    base: LoadedModel,
    given: Mapping[str, Texts] | None,
    cache: Path,
    offline: bool,
    say: Progress,
) -> dict[str, _Set]:
    config = released.config
    labels = config.model.labels
    if given is not None:
        corpus = corpus_from(given, config.data, labels)
    elif config.data.source == OBJECTS:
        raise ConfigError(
            f"{released.folder}: the run's texts were objects of a program; give them again by "
            "evaluate_run(folder, clients=...), or a set of your own by data="
        )
    else:
        corpus = load_corpus(
            config.data.source,
            cache=cache,
            offline=offline,
            section=config.data,
            labels=labels,
            progress=say,
        )
    clients = tokenize_clients(
        corpus,
        config.data,
        tokenizer=base.tokenizer,
        task=config.model.task,
        labels=labels,
        held_out_windows=config.evaluation.max_windows,
        held_out_tokens=_window(released),
    )
    return {name: _Set(client.held_out, ()) for name, client in clients.items()}


def _window(released: Released) -> int:
    config = released.config
    return config.evaluation.window_tokens or config.data.window_tokens


class _Measuring:
    """Scores adapters on sets; the base's scores are kept for what is paired with them."""

    def __init__(
        self,
        released: Released,
        base: LoadedModel,
        metric: Metric | None,
        named: str,
        say: Progress,
    ) -> None:
        self._released, self._base, self._say = released, base, say
        self._metric, self._named = metric, named
        self._device = next(base.model.parameters()).device
        classifier = released.config.model.task == "sequence-classification"
        self.kind = "accuracy" if classifier else "perplexity"
        self._before: dict[str, Scores] = {}
        self._shared: dict[str, Scores] = {}

    def everybody(self, sets: Mapping[str, _Set]) -> list[Row]:
        """Base and shared adapter on all sets together."""
        documents = [document for each in sets.values() for document in each.documents]
        self._say("scoring the base model")
        self._before = self._scores(self._base.model, sets)
        before = _joined(list(self._before.values()))
        rows = [self._row(BASE, EVERYBODY, before, None, self._base.model, documents)]
        self._say("scoring the shared adapter")
        adapted = with_adapter(self._base.model, self._released.shared)
        self._shared = self._scores(adapted, sets)
        after = _joined(list(self._shared.values()))
        return [*rows, self._row(SHARED, EVERYBODY, after, before, adapted, documents)]

    def each(self, sets: Mapping[str, _Set]) -> list[Row]:
        """Base, shared and personal adapter of each client on its own set."""
        names = [name for name in sets if name in self._released.personal]
        if not names:
            raise ConfigError(
                f"no client of the set has an adapter of its own in {self._released.folder}; sets "
                f"are matched by name: the set has {', '.join(list(sets)[:5])}, the run "
                f"{', '.join(list(self._released.personal)[:5])}"
            )
        rows = []
        for name in names:
            self._say(f"scoring the adapter of {name}")
            adapted = with_adapter(self._base.model, self._released.personal[name])
            own = self._scores(adapted, {name: sets[name]})[name]
            before, shared = self._before[name], self._shared[name]
            # The user's metric is of the personal adapter only: it may take long.
            rows += [
                self._row(BASE, name, before, None, None, ()),
                self._row(SHARED, name, shared, before, None, ()),
                self._row(PERSONAL, name, own, before, adapted, sets[name].documents),
            ]
        return rows

    def _scores(self, model: nn.Module, sets: Mapping[str, _Set]) -> dict[str, Scores]:
        config = self._released.config
        return {
            name: example_scores(
                model,
                each.examples,
                task=config.model.task,
                micro_batch=config.training.micro_batch,
                device=self._device,
            )
            for name, each in sets.items()
        }

    def _row(
        self,
        adapter: str,
        who: str,
        scores: Scores,
        before: Scores | None,
        model: nn.Module | None,
        documents: Sequence[Document],
    ) -> Row:
        metric = None
        if self._metric is not None and model is not None:
            with torch.no_grad():
                metric = measured(self._metric, self._named, model, self._base.tokenizer, documents)
        return Row(
            adapter,
            who,
            perplexity(scores) if self.kind == "perplexity" else accuracy(scores),
            None if before is None else change(before, scores, of=self.kind),
            metric,
        )


def _joined(every: Sequence[Scores]) -> Scores:
    """Scores of several sets; no document is in two of them."""
    clusters, begin = [], 0
    for scores in every:
        clusters.append(scores.clusters + begin)
        begin += int(scores.clusters.max(initial=-1)) + 1
    return Scores(
        np.concatenate([scores.nll for scores in every]),
        np.concatenate([scores.counted for scores in every]),
        np.concatenate([scores.correct for scores in every]),
        np.concatenate(clusters),
    )
