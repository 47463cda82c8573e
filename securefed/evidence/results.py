"""What one attack was measured to do: the document that is signed and kept.

``measurement`` holds all that follows from the captured views, the settings and the seeds: made
twice of the same ones it is the same, byte for byte, as canonical JSON.  ``about`` holds what does
not: when, how long and with which code.  Neither holds a token or a text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError

from securefed.config.base import Section
from securefed.crypto.identity import IdentityKey, IdentityPublicKey
from securefed.errors import RemoteProtocolError
from securefed.evidence.reading import read_bounded
from securefed.evidence.signing import canonical, sign, verify

RESULT_TYPE = "application/vnd.securefed.attack-result+json"
"""Payload type of a signed result."""

_BYTES_LIMIT = 1 << 25

Kind = Literal["texts", "membership", "game", "epsilon", "poisoning"]
Verdict = Literal["guessed", "void", "not_applicable", "out_of_time"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Interval = tuple[Finite, Finite]
Count = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Metric(Section):
    """One figure over all trials.

    ``prior`` is what the same figure is for whoever sees nothing; ``lift`` what the attack has over
    that, trial by trial.  ``method`` says how the intervals were made: ``exact`` (Clopper and
    Pearson), ``bootstrap`` over trials, or another in words.
    """

    value: Finite
    interval: Interval | None = None
    prior: Finite | None = None
    lift: Finite | None = None
    lift_interval: Interval | None = None
    method: str | None = None

    @property
    def shows_lift(self) -> bool:
        """Whether the lift's interval lies above 0."""
        return self.lift_interval is not None and self.lift_interval[0] > 0.0


class Subject(Section):
    """The model that was attacked."""

    source: str
    fingerprint: Digest | None = None


class Measurement(Section):
    """What was found; everything here is repeatable from the same captured views.

    Rounds that add noise have it from the operating system: captured anew, they are other views.

    ``verdict``: ``guessed``: the attack ran, and the metrics are what it reached.  ``void``: its
    failure shows nothing, for the ``reason`` given.  ``not_applicable``: this exposure or defence
    has nothing that the attack could be tried on.  ``out_of_time``: no trial of it fitted the time.
    ``curve`` holds points of a receiver operating characteristic as (false, true) positive rates.
    """

    format: Literal["securefed/attack-measurement/1"] = "securefed/attack-measurement/1"
    attack: Annotated[str, Field(min_length=1)]
    attacks: Kind
    exposure: Annotated[str, Field(min_length=1)]
    defence: Annotated[str, Field(min_length=1)]
    model: Subject
    settings: dict[str, JsonValue]
    seeds: list[Count]
    n: Count
    metrics: dict[str, Metric]
    headline: str | None = None
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95
    verdict: Verdict
    reason: str = ""
    void: Count = 0
    predicted: dict[str, JsonValue] | None = None
    curve: list[tuple[Finite, Finite]] = Field(default=[])

    @property
    def main(self) -> Metric | None:
        """The metric that the matrix shows."""
        return None if self.headline is None else self.metrics.get(self.headline)

    def encoded(self) -> bytes:
        """Its canonical JSON."""
        return canonical(self.model_dump(mode="json"))

    def digest(self) -> str:
        """SHA-256 of :meth:`encoded`, in hexadecimal."""
        return hashlib.sha256(self.encoded()).hexdigest()


class About(Section):
    """What differs when the same is measured again.

    ``ended_by_time``: how many trials the time limit ended before the attack was through; with one
    of them another machine may find another measurement.
    """

    time: str
    seconds: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    seconds_per_trial: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    ended_by_time: Count = 0
    version: str


class AttackDocument(Section):
    """A measurement, and what is known about it."""

    measurement: Measurement
    about: About

    def signed(self, key: IdentityKey) -> dict[str, Any]:
        """The envelope that is stored."""
        return sign(self.model_dump(mode="json"), key, payload_type=RESULT_TYPE)


def opened(envelope: Mapping[str, Any], trusted: Collection[IdentityPublicKey]) -> AttackDocument:
    """The result in an envelope, once its signature holds.

    Raises:
        RemoteProtocolError: as :func:`~securefed.evidence.signing.verify`, or the document is no
            attack result.
        ConfigError: there is no trusted key.
    """
    document = verify(envelope, trusted, payload_type=RESULT_TYPE)
    try:
        return AttackDocument.model_validate(document)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise RemoteProtocolError(
            f"attack result: {where} is not as `securefed schema attack-result` has it"
        ) from None


def read_result(path: Path, trusted: Collection[IdentityPublicKey]) -> AttackDocument:
    """The result in a file.

    Raises:
        ConfigError: the file cannot be read, or there is no trusted key.
        RemoteProtocolError: as :func:`opened`.
    """
    text = read_bounded(path, _BYTES_LIMIT, what="result")
    try:
        envelope = json.loads(text)
    except (ValueError, RecursionError):
        raise RemoteProtocolError(f"result {path}: is not JSON") from None
    if not isinstance(envelope, dict):
        raise RemoteProtocolError(f"result {path}: is no envelope")
    return opened(envelope, trusted)


def result_schema() -> str:
    """The JSON Schema of a result, as text; ``securefed/schemas/attack-result.json`` is this."""
    schema = AttackDocument.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$id"] = "urn:securefed:schema:attack-result-1"
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"
