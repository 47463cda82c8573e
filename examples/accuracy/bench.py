"""What the experiments share: a model over memoised frozen layers, the sum of a round, results.

Nothing of a client's data is written: results are counts and averages over all held-out mails.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import nn

from securefed.config import LoraSection, ModelSection
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.in_process import carry
from securefed.errors import DataError, ProtocolError
from securefed.federation.client import ClientRound
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.lora.adapter import build_adapter
from securefed.lora.layout import AdapterLayout
from securefed.lora.sharing import travelling_parameters
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import PairwiseAggregation
from securefed.secagg.aggregator import SESSION_BYTES
from securefed.training.corpora import Document
from securefed.training.data import Examples
from securefed.training.dp_sgd import PerExampleGradients
from securefed.training.evaluate import batches
from securefed.training.models import load_model

TASK = "sequence-classification"
CPU = torch.device("cpu")
MODEL = ModelSection(source="builtin:minilm-l6-v2", task=TASK, labels=2)
LORA = LoraSection(
    rank=4,
    alpha=4.0,
    target_modules=["layer.5.attention.self.value"],
    modules_to_save=["classifier"],
)


class Memoised(nn.Module):
    """The frozen lower layers of a BERT encoder, each example computed once and kept.

    They have no trainable parameter and no dropout, so their output is a function of the example
    alone.  A row is computed by itself: its bits cannot depend on the rows beside it.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self._layers = nn.ModuleList(layers)
        self._known: dict[bytes, torch.Tensor] = {}

    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor | None = None, *_: Any, **options: Any
    ) -> torch.Tensor:
        rows = []
        for place in range(len(hidden)):
            row = hidden[place : place + 1]
            seen = None if mask is None else mask[place : place + 1]
            digest = hashlib.blake2b(row.numpy().tobytes())
            digest.update(b"" if seen is None else seen.contiguous().numpy().tobytes())
            if digest.digest() not in self._known:
                with torch.no_grad():
                    for layer in self._layers:
                        row = layer(row, seen, **options)
                self._known[digest.digest()] = row
            rows.append(self._known[digest.digest()])
        return torch.cat(rows)


class FirstToken(nn.Module):
    """A BERT encoder's last layer, computed where the classifier reads it: at the first token.

    Queries, keys and values are those of all tokens; only what follows attention, which acts on
    each token by itself, is left out for the others.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor | None = None, *_: Any, **options: Any
    ) -> torch.Tensor:
        context, _ = self.layer.attention.self(hidden, mask, **options)
        attended = self.layer.attention.output(context[:, :1], hidden[:, :1])
        return self.layer.feed_forward_chunk(attended)


class _Through(nn.Module):
    """Stands where a memoised layer was, so that the names of those above stay."""

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden


class Model:
    """A BERT classifier with an adapter on its last layer; ``seed`` decides head and adapter.

    It computes what the plain model does, in a tenth of the time: the frozen layers are memoised
    and the last one is computed at the first token only.

    Args:
        model: what to load.
        lora: the adapter; its seed is replaced.
        cache: where models are kept.
        offline: fetch nothing.
        seed: of the new head and of A.
        known: memoised outputs of another model of the same base, to be used again.
    """

    def __init__(
        self,
        model: ModelSection,
        lora: LoraSection,
        *,
        cache: Path,
        offline: bool,
        seed: int,
        known: Memoised | None = None,
    ) -> None:
        torch.manual_seed(seed)  # the head is new, and torch draws it
        loaded = load_model(model, cache=cache, offline=offline, device=CPU)
        self.tokenizer = loaded.tokenizer
        adapted = build_adapter(loaded.model, lora.model_copy(update={"seed": seed}), task=TASK)
        self.module: nn.Module = adapted
        (layers,) = (
            module.layer
            for name, module in adapted.named_modules()
            if name.endswith("bert.encoder")
        )
        last = len(layers) - 1
        self.lower = Memoised(list(layers)[:last]) if known is None else known
        for place in range(last):
            layers[place] = _Through() if place else self.lower
        layers[last] = FirstToken(layers[last])
        self.travelling = travelling_parameters(adapted, lora.sharing)
        self.layout = AdapterLayout({n: tuple(p.shape) for n, p in self.travelling.items()})
        self.initial = self.flat()

    def flat(self) -> NDArray[np.float32]:
        """The travelling parameters as float32[d]."""
        return self.layout.flatten({n: p.detach() for n, p in self.travelling.items()})

    def load(self, vector: NDArray[np.float32]) -> None:
        """Put float32[d] into the model."""
        tensors = self.layout.unflatten(vector)
        with torch.no_grad():
            for name, parameter in self.travelling.items():
                parameter.copy_(tensors[name])

    def figures(self, examples: Examples) -> dict[str, float]:
        """Accuracy, balanced accuracy and area under the ROC curve on held-out examples."""
        if examples.labels is None:
            raise DataError("held-out examples: labels are needed")
        scores = []
        with torch.no_grad():
            for batch in batches(examples, 32, CPU):
                logits = self.module(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask
                ).logits
                scores.append((logits[:, 1] - logits[:, 0]).double().numpy())
        return binary_figures(np.concatenate(scores), examples.labels)


def binary_figures(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Figures of a two-class score, positive for class 1; ties of the ROC curve count half."""
    positive = labels == 1
    hit = (scores > 0) == positive
    ones, zeros = int(positive.sum()), int((~positive).sum())
    ranks = float(rankdata(scores)[positive].sum())
    return {
        "accuracy": float(hit.mean()),
        "balanced_accuracy": float((hit[positive].mean() + hit[~positive].mean()) / 2),
        "auc": (ranks - ones * (ones + 1) / 2) / (ones * zeros),
    }


@dataclass(frozen=True)
class Cohort:
    """The clients of an experiment, with the keys of its masked rounds."""

    names: tuple[str, ...]
    identities: Mapping[str, IdentityKey]

    @classmethod
    def of(cls, names: tuple[str, ...]) -> Cohort:
        """Clients by name, with new keys."""
        return cls(names, {name: IdentityKey.generate() for name in names})

    def session(self, number: int, policy: PrivacyPolicy, dimension: int) -> RoundSession:
        """The public description of round ``number``."""
        return RoundSession(
            session=secrets.token_bytes(SESSION_BYTES),
            round=number,
            cohort=self.names,
            roster={name: key.public for name, key in self.identities.items()},
            dimension=dimension,
            policy=policy,
            aggregation=PairwiseAggregation(),
            model=hashlib.sha256(b"securefed/1/accuracy experiment").digest(),
        )

    def masked_sum(
        self, session: RoundSession, encoded: Mapping[str, NDArray[np.uint32]]
    ) -> tuple[NDArray[np.float64], int]:
        """The decoded sum by the real protocol, and the mean bytes that a client sent."""
        server = ServerRound(session)
        clients = {
            name: ClientRound(
                session, name, self.identities[name], lambda codec, noise, own=encoded[name]: own
            )
            for name in self.names
        }
        carried = carry(server, clients, keep_transcript=False)
        if server.survivors != self.names:
            raise ProtocolError(f"{len(server.survivors)} of {len(self.names)} clients were summed")
        return server.sum, round(float(np.mean(list(carried.bytes_up.values()))))


def plain_sum(
    session: RoundSession, encoded: Mapping[str, NDArray[np.uint32]]
) -> NDArray[np.float64]:
    """The decoded sum of the same vectors without masks: what the protocol gives, to the bit.

    With ``mechanism="central"`` the server's noise is in it.
    """
    total = np.zeros(session.plan.padded, dtype=np.uint32)
    for vector in encoded.values():
        total += vector
    total &= np.uint32((1 << session.plan.bits) - 1)
    return session.codec.decode(session.codec.add_server_noise(total, NoiseGenerator()))


def joined(parts: list[Examples]) -> Examples:
    """Labelled examples, one part after the other."""
    return Examples(
        np.concatenate([part.input_ids for part in parts]),
        np.concatenate([part.attention_mask for part in parts]),
        np.concatenate([part.labels for part in parts if part.labels is not None]),
    )


def rows_by_owner(
    gradients: PerExampleGradients, owned: Mapping[str, Examples], layout: AdapterLayout
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The gradient of every example, with the name of whose it is, computed in one stream.

    A client computes its own by itself.  Here the micro-batches are filled with several clients'
    examples to save time: a row does not depend on those beside it (``PerExampleGradients.check``).

    Yields:
        Name and float32[d].
    """
    owners = (name for name, examples in owned.items() for _ in range(len(examples)))
    for part in gradients.micro_batches(joined(list(owned.values()))):
        rows = torch.cat([part[name].flatten(1) for name in layout.names], dim=1).numpy()
        yield from zip(itertools.islice(owners, len(rows)), rows, strict=True)


def tokenized(documents: list[Document], tokenizer: Any, width: int) -> Examples:
    """One example a document, cut off and padded to ``width`` tokens."""
    found = tokenizer(
        [document.text for document in documents],
        truncation=True,
        max_length=width,
        padding="max_length",
        return_tensors="np",
    )
    return Examples(
        found["input_ids"].astype(np.int64),
        found["attention_mask"].astype(np.int64),
        np.array([document.label for document in documents], dtype=np.int64),
    )


def climbed(loss: Callable[[float], float], start: float, most: int, factor: float = 3.0) -> float:
    """The rate of least loss: two neighbours, then on the better one's side until it is worse.

    Args:
        loss: of a rate.
        start: the lower of the first two.
        most: tried at most.
        factor: between neighbours.
    """
    tried: dict[float, float] = {}

    def at(place: int) -> float:
        rate = float(f"{start * factor**place:.3g}")
        if rate not in tried:
            tried[rate] = loss(rate)
        return tried[rate]

    step = 1 if at(1) < at(0) else -1
    place = max(0, step)
    while len(tried) < most and at(place + step) < at(place):
        place += step
    return min(tried, key=tried.__getitem__)


class Results:
    """Finished runs, one JSON line each; a run that is there already is not repeated."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.runs: list[dict[str, Any]] = []
        if path.exists():
            self.runs = [json.loads(line) for line in path.read_text().splitlines()]

    def has(self, **which: Any) -> bool:
        """Whether a run with these values is finished."""
        return any(all(run.get(k) == v for k, v in which.items()) for run in self.runs)

    def add(self, run: dict[str, Any]) -> None:
        """Keep a finished run."""
        self.runs.append(run)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run, sort_keys=True) + "\n")
