"""What a run's work cost, as it is written down: a client's own file, and what a server may know.

**What tells the batch size stays at the client.**  Seconds of training are in proportion to how
many examples were drawn, and memory may follow it too.  Where the draw is secret they are in
``clients/ID/costs.json`` alone, which in a deployment never leaves the client; with conditional
rounding likewise, since its time depends on the update, and with a trainer of the user's own, whose
time may depend on anything.  ``costs.json`` holds bytes, which whoever carries them sees, and the
server's own work; seconds of clients only where nothing secret decides them, or the policy says
that they are shown.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from securefed.engines.events import RoundEvent
from securefed.engines.in_process import Carried
from securefed.engines.metering import Work
from securefed.engines.run_folder import RunFolder
from securefed.engines.settings import Settings
from securefed.operations.whole_files import write_whole
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import Aggregation, PairwiseAggregation, PlaintextAggregation
from securefed.secagg.encryption import DECRYPTOR

What = Literal["round", "evaluation"]

OWN_PHASES = ("train", "clip", "encode", "noise")
"""What a client does with its data, whoever hides the result."""

MEASURED = {
    "bytes_up": "messages sent, counted as they were carried",
    "bytes_down": "messages received, and in a round the adapter (4 bytes a value)",
    "cpu_seconds": "CPU time of all threads of the process, by phase: train (sampling, gradients "
    "or local steps; with mechanism = 'local' their clipping and noise too), clip, encode "
    "(rotate and round), noise (draw it), mask, encrypt or send (keys, shares, signatures and all "
    "that is done to hide the vector), evaluate (held-out figures), personalise (the client's own "
    "adapter)",
    "seconds": "the same phases on the clock; work of a GPU is here and not in cpu_seconds",
    "peak_memory_bytes": "resident: most resident memory of the whole process while this party "
    "worked; in a simulation that process holds the model, every client's data and the server. "
    "resident_since_start: the same since the process began, where the peak cannot be set back. "
    "device: most memory that torch held on the GPU",
    "disk_bytes": "sizes of files: model (weights and configuration), account, the client's own "
    "part of the adapter, and the run's",
}


def hiding_phase(aggregation: Aggregation) -> str:
    """What a client's work in the protocol is called."""
    if isinstance(aggregation, PairwiseAggregation):
        return "mask"
    return "send" if isinstance(aggregation, PlaintextAggregation) else "encrypt"


def stays_at_the_client(policy: PrivacyPolicy, *, own_trainer: bool = False) -> bool:
    """Whether a client's seconds and memory would tell what must not be seen.

    Args:
        policy: that statements are about.
        own_trainer: whether training is the user's own, which may stop early on what it finds.
    """
    sampled = policy.unit != "client" and policy.separation is None
    drawn = sampled and policy.sample_is_secret
    return drawn or policy.rounding == "conditional" or own_trainer


def own_seconds(work: Work) -> float:
    """Seconds, by the clock, that a client spent on its contribution."""
    return sum(work.seconds.get(phase, 0.0) for phase in OWN_PHASES)


class CostRecords:
    """Books what each party's work cost, and writes it in the end.

    Rounds are those since the last resume: what a stopped process measured is lost with it.

    Args:
        cohort: names of the clients.
    """

    def __init__(self, cohort: Collection[str]) -> None:
        self._rows: dict[str, list[dict[str, Any]]] = {name: [] for name in cohort}
        self._work: list[list[Work]] = []  # of each round, its clients'
        self._server: list[dict[str, Any]] = []
        self._decryptor: list[Work] = []
        self._rounds: list[int] = []

    def book(
        self,
        what: What,
        number: int,
        carried: Carried,
        work: Mapping[str, Work],
        server: Work,
        *,
        adapter_bytes: Mapping[str, int],
    ) -> None:
        """Note what one round, or one evaluation, took.

        Args:
            what: which of the two.
            number: of the round, or of the one that is evaluated after.
            carried: its messages.
            work: of each client, and of a decryptor, since the last call; rows are of those who
                were invited.
            server: likewise.
            adapter_bytes: what each client is sent of the adapter, besides the messages; nothing
                for one that is not named.
        """
        members = [name for name in self._rows if name in carried.bytes_up]
        for name in members:
            self._rows[name].append(
                {
                    "what": what,
                    "round": number,
                    "bytes_up": carried.bytes_up[name],
                    "bytes_down": carried.bytes_down[name] + adapter_bytes.get(name, 0),
                    **work[name].to_record(),
                }
            )
        if what == "round":
            self._rounds.append(number)
            self._work.append([work[name] for name in members])
            if DECRYPTOR in work:
                self._decryptor.append(work[DECRYPTOR])
        self._server.append(
            {
                "what": what,
                "round": number,
                "bytes_in": sum(carried.bytes_up.values()),
                "bytes_out": sum(carried.bytes_down.values()) + sum(adapter_bytes.values()),
                **server.to_record(),
            }
        )

    def mean_seconds(self, number: int) -> float:
        """Mean over a round's cohort of the seconds spent on contributions to it."""
        place = self._rounds.index(number)
        return float(np.mean([own_seconds(work) for work in self._work[place]]))

    def write(
        self, folder: RunFolder, events: list[RoundEvent], settings: Settings, model_bytes: int
    ) -> None:
        """Write ``costs.json`` and each client's own file.

        Args:
            folder: of the run.
            events: of all its rounds.
            settings: what the run file means for the cohort.
            model_bytes: of the base model's files.
        """
        own_trainer = settings.config.training.trainer is not None
        secret = stays_at_the_client(settings.stated, own_trainer=own_trainer)
        for name, rows in self._rows.items():
            path = folder.client_costs(name)
            record = {
                "client": name,
                "stays": "at this client: its seconds and memory tell about how many examples it "
                "drew, what its update was, or whether it uses an adapter of its own; hand them to "
                "nobody"
                if secret or settings.config.personal.kind != "none"
                else "at this client unless it chooses to show it",
                "rows": rows,
                "disk_bytes": {
                    "model": model_bytes,
                    "account": _size(path.parent),
                    "personal": _size(folder.personal / name),
                },
                "measured": MEASURED,
            }
            _write(path, record)
        _write(
            folder.costs,
            self._summary(events, settings, secret)
            | {"server": self._server_summary(folder), "measured": MEASURED}
            | _encryption(events, settings)
            | ({"decryptor": _worked(self._decryptor)} if self._decryptor else {}),
        )

    def _summary(
        self, events: list[RoundEvent], settings: Settings, secret: bool
    ) -> dict[str, Any]:
        rounds = [event for event in events if event.round > 0]
        summary: dict[str, Any] = {
            "aggregation": settings.config.aggregation.kind,
            "rounds": len(rounds),
            "clients": settings.cohort_size,
            "trainable_parameters": settings.dimension,
            "bytes_up_per_client_and_round": _mean(event.bytes_up for event in rounds),
            "bytes_down_per_client_and_round": _mean(event.bytes_down for event in rounds),
            **self._by_rank(settings),
        }
        if secret:
            return summary | {
                "client_work": "each client's own, in clients/ID/costs.json: it would tell how "
                "many examples a client drew, or what its update was"
            }
        done = [work for works in self._work for work in works]
        return summary | {
            "client_work": _worked(done) | {"over": "clients and rounds since the last resume"},
            "seconds_per_round": _mean(event.seconds for event in rounds if event.seconds > 0),
        }

    def _by_rank(self, settings: Settings) -> dict[str, Any]:
        """What clients of each rank sent and were sent; nothing with one rank for all."""
        if settings.ranks is None:
            return {}
        found: dict[str, Any] = {}
        for rank in settings.ranks.tiers.ranks:
            names = [name for name, own in settings.ranks.rank_of.items() if own == rank]
            rows = [r for name in names for r in self._rows[name] if r["what"] == "round"]
            found[str(rank)] = {
                "clients": len(names),
                "bytes_up_per_client_and_round": _mean(row["bytes_up"] for row in rows),
                "bytes_down_per_client_and_round": _mean(row["bytes_down"] for row in rows),
            }
        return {"by_rank": found | {"over": "rounds since the last resume"}}

    def _server_summary(self, folder: RunFolder) -> dict[str, Any]:
        rows = [row for row in self._server if row["what"] == "round"]
        return {
            "bytes_in_per_round": _mean(row["bytes_in"] for row in rows),
            "bytes_out_per_round": _mean(row["bytes_out"] for row in rows),
            "cpu_seconds": _spread(row["cpu_seconds"] for row in rows),
            "seconds": _spread(row["seconds"] for row in rows),
            "peak_memory_bytes": _most(row["peak_memory_bytes"] for row in rows),
            "disk_bytes": {"run": _size(folder.path, folder.clients, folder.personal)},
        }


def _worked(done: list[Work]) -> dict[str, Any]:
    return {
        "cpu_seconds": _spread(work.cpu_seconds for work in done),
        "seconds": _spread(work.seconds for work in done),
        "peak_memory_bytes": _most(work.peak_memory_bytes for work in done),
    }


def _encryption(events: list[RoundEvent], settings: Settings) -> dict[str, Any]:
    """Sizes of ciphertexts, and seconds that depend on no sample; nothing without encryption."""
    encryption = settings.encryption
    if encryption is None:
        return {}
    timed = [event for event in events if event.round > 0 and event.seconds > 0]
    return {
        "encryption": {
            "key_holder": encryption.key_holder,
            "masked": encryption.masked,
            "ciphertexts_per_contribution": encryption.count,
            "bytes_per_contribution": encryption.input_bytes,
            "bytes_per_value": encryption.input_bytes / settings.plan.dimension,
            "client_seconds_encrypting": _mean(event.encrypting_seconds for event in timed),
            "server_seconds_adding": _mean(event.adding_seconds for event in timed),
            "key_holder_seconds_opening": _mean(event.opening_seconds for event in timed),
            "note": "seconds a round: a client's for the answer with its contribution, making and "
            "charging that left out; the server's for all of these; one key holder's.  They depend "
            "on no sample",
        }
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else 0.0


def _spread(books: Iterable[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and largest by phase; a phase that did not come counts as 0."""
    found = list(books)
    phases = sorted({phase for book in found for phase in book})
    columns = {phase: [book.get(phase, 0.0) for book in found] for phase in phases}
    return {
        phase: {"mean": round(float(np.mean(column)), 6), "most": round(max(column), 6)}
        for phase, column in columns.items()
    }


def _most(books: Iterable[Mapping[str, int]]) -> dict[str, int]:
    most: dict[str, int] = {}
    for book in books:
        for name, value in book.items():
            most[name] = max(most.get(name, 0), value)
    return most


def _size(folder: Path, *without: Path) -> int:
    """Bytes of the files in a folder, but for those in the folders named."""
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not any(path.is_relative_to(other) for other in without)
    )


def _write(path: Path, record: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(record, indent=1, sort_keys=True) + "\n")
