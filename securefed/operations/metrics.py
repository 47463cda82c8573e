"""Prometheus metrics of an agent or a server, counted from the lines of its log and nothing else.

An agent's are its owner's own: what it spent, and how often it took part or refused.  A server's
are what every party of a run may know.  How long an agent computes is in neither, since it tells
how large a secret sample was; for the same reason the process's own figures (CPU seconds, memory),
which the library exports if it is let, are left out.  How fast a scrape is answered may still
tell: an agent's address is for its owner's own monitoring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Summary,
    disable_created_metrics,
    start_http_server,
)

from securefed import errors
from securefed.errors import ConfigError
from securefed.operations.log import UNPROTECTED

OTHER = "other"

_KINDS = frozenset(
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.SecureFedError)
) | {"Failed"}
"""Kinds of refusals that are told apart: a name is from elsewhere, and each makes a series."""

_AT = ("stage", "of")
_EPSILON_LABELS = ("unit", "adjacency", "delta", "against")


def address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``; an IPv6 host is in brackets.

    Raises:
        ConfigError: it is not that.

    Example:
        >>> address("127.0.0.1:9464"), address("[::1]:9464")
        (('127.0.0.1', 9464), ('::1', 9464))
    """
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare) != (bare != host) or not port.isdecimal():
        raise ConfigError(f"metrics = {text!r}: must be HOST:PORT, [HOST]:PORT for IPv6")
    if not 1 <= int(port) <= 65535:
        raise ConfigError(f"metrics = {text!r}: the port must be in 1..65535")
    return bare, int(port)


@contextmanager
def answering(place: str, registry: CollectorRegistry) -> Iterator[None]:
    """Answer Prometheus at one address, and nowhere else, for the length of a block.

    Args:
        place: HOST:PORT, as of :func:`address`.
        registry: what is told.

    Raises:
        ConfigError: nothing can listen there.
    """
    host, port = address(place)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ConfigError(f"metrics = {place!r}: cannot listen there ({error.strerror})") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Metrics:
    """Counts events by the log's own names; what it does not know it passes over.

    Attributes:
        registry: of these metrics alone.
    """

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry(auto_describe=False)
        self._counted: dict[str, Callable[[Mapping[str, Any]], None]] = {}

    def count(self, event: str, values: Mapping[str, Any]) -> None:
        """Take one line of the log."""
        if event in self._counted:
            self._counted[event](values)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"securefed_{name}", what, labels, registry=self.registry)

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"securefed_{name}", what, labels, registry=self.registry)


class AgentMetrics(Metrics):
    """What one data owner's agent counts."""

    def __init__(self) -> None:
        super().__init__()
        self._invited = self._counter(
            "agent_invitations", "Rounds taken part in, by what they sum", "of"
        )
        self._charged = self._counter("agent_charges", "Rounds charged to the owner's account")
        self._refused = self._counter("agent_refusals", "Requests refused", "request", "kind")
        self._turned_away = self._counter("agent_turned_away", "Peers that were not listened to")
        self._signed = self._counter("agent_heads_signed", "Heads of ledgers signed")
        self._last = self._gauge("agent_last_round", "Round charged last")
        self._serial = self._gauge("agent_roster_serial", "Serial of the roster in force")
        self._spent = self._gauge(
            "agent_epsilon_spent", "Epsilon spent in all runs (+Inf: unprotected)", *_EPSILON_LABELS
        )
        self._budget = self._gauge(
            "agent_epsilon_budget", "Epsilon that the owner allows in all", *_EPSILON_LABELS
        )
        self._received = self._counter("agent_received_bytes", "Bytes of requests")
        self._sent = self._counter("agent_sent_bytes", "Bytes of replies")
        self._counted = {
            "invited": lambda v: self._invited.labels(of=v["of"]).inc(),
            "charged": self._on_charge,
            "spent": self._on_spent,
            "refused": lambda v: self._refuse(v["request"], v["kind"]),
            "failed": lambda v: self._refuse(v["request"], "Failed"),
            "turned away": lambda v: self._turned_away.inc(),
            "signed": lambda v: self._signed.inc(),
            "roster": lambda v: self._serial.set(v["serial"]),
        }

    def carried(self, received: int, sent: int) -> None:
        """Count the bytes of one request and of its reply."""
        self._received.inc(received)
        self._sent.inc(sent)

    def _refuse(self, request: str, kind: str) -> None:
        self._refused.labels(request=request, kind=kind if kind in _KINDS else OTHER).inc()

    def _on_charge(self, values: Mapping[str, Any]) -> None:
        self._charged.inc()
        self._last.set(values["round"])
        self._on_spent(values)

    def _on_spent(self, values: Mapping[str, Any]) -> None:
        terms = {name: values[name] for name in ("unit", "adjacency", "against")}
        # The deltas of all kinds of rounds add up: one series, not one for each sum so far.
        self._spent.clear()
        spent = self._spent.labels(**terms, delta=f"{values['delta_in_all']:g}")
        spent.set(epsilon_of(values["epsilon_in_all"]))
        if "epsilon_budget" in values:
            budget = self._budget.labels(**terms, delta=f"{values['delta_budget']:g}")
            budget.set(values["epsilon_budget"])


class ServerMetrics(Metrics):
    """What the server of one run counts, while the run goes on."""

    def __init__(self) -> None:
        super().__init__()
        self._planned = self._gauge("server_rounds_planned", "Rounds of the run")
        self._last = self._gauge("server_last_round", "Round applied last")
        self._cohort = self._gauge("server_cohort", "Clients invited to the last round")
        self._survivors = self._gauge("server_survivors", "Clients in the sum of the last round")
        self._epsilon = self._gauge(
            "server_epsilon_spent",
            "Epsilon spent by the run so far (+Inf: unprotected)",
            *_EPSILON_LABELS,
        )
        self._asked = self._counter("server_asked", "Requests sent to clients", *_AT)
        self._answered = self._counter("server_answered", "Requests answered", *_AT)
        self._silent = self._counter("server_silent", "Requests without a reply in time", *_AT)
        self._refused = self._counter("server_refusals", "Requests refused", *_AT, "kind")
        self._seconds = Summary(
            "securefed_server_stage_seconds",
            "Seconds that the replies of a stage were waited for",
            _AT,
            registry=self.registry,
        )
        self._received = self._counter("server_received_bytes", "Bytes of replies")
        self._sent = self._counter("server_sent_bytes", "Bytes of requests")
        self._counted = {"stage": self._on_stage, "round": self._on_round}

    def _on_stage(self, values: Mapping[str, Any]) -> None:
        at = (values["stage"], values["of"])
        self._asked.labels(*at).inc(values["asked"])
        self._answered.labels(*at).inc(values["answered"])
        self._silent.labels(*at).inc(len(values["silent"]))
        for kind in values["refused"].values():
            self._refused.labels(*at, kind if kind in _KINDS else OTHER).inc()
        self._seconds.labels(*at).observe(values["seconds"])
        self._sent.inc(values["bytes_down"])
        self._received.inc(values["bytes_up"])

    def _on_round(self, values: Mapping[str, Any]) -> None:
        self._planned.set(values["rounds"])
        self._last.set(values["round"])
        if not values["round"]:
            return
        self._cohort.set(values["cohort"])
        self._survivors.set(values["survivors"])
        terms = {name: values[name] for name in ("unit", "adjacency", "against")}
        epsilon = self._epsilon.labels(**terms, delta=f"{values['delta']:g}")
        epsilon.set(epsilon_of(values["epsilon"]))


def epsilon_of(logged: float | str) -> float:
    """Epsilon as a number: infinite where the log says that nothing is protected."""
    return math.inf if logged == UNPROTECTED else float(logged)
