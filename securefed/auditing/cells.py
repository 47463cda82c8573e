"""Cells of the matrix: one attack on one exposure with some of a run's protections on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import get_args

from pydantic import JsonValue

from securefed.auditing.exposures import ALL_COLLUDE, companions
from securefed.auditing.from_config import AuditedRun
from securefed.auditing.rounds import Bench
from securefed.config import Scheme
from securefed.errors import ConfigError

OFF, NOISE, MASKS, BOTH = "off", "noise", "masks", "noise and masks"
PROTOCOL, CLIP, GROUPS = "protocol", "clip", "clip and groups"
"""Which of the run's protections are on.  ``noise`` alone is what a client sends before it masks:
what is left where masks fail.  ``protocol`` is of games with a hostile server: all checks are in
force, and ``off`` is without the one that a game is about.  ``clip``, and ``clip and groups`` (sums
of groups, combined by a robust mean), stand against poisoned clients."""

_ALLOWED = (OFF, NOISE, MASKS, BOTH, PROTOCOL, CLIP, GROUPS)


class NotApplicable(ConfigError):
    """An attack has nothing in a cell that it could be tried on; the message says why."""


_SWEPT = re.compile(r"noise-(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\Z")


@dataclass(frozen=True)
class Cell:
    """One of them.

    Attributes:
        attack: its name in the catalogue.
        exposure: what the adversary sees.
        defence: ``off``, ``noise``, ``masks``, ``noise and masks``, or ``noise-Z``: noise of which
            each client adds a share of std Z clip norms.
        batch: examples of each client in the round.
        clients: in the round; as many as the run has without it.
        seeds: one a trial.
    """

    attack: str
    exposure: str
    defence: str
    batch: int = 1
    clients: int | None = None
    seeds: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Short and without spaces: of its file."""
        parts = [self.attack, self.exposure, self.defence, f"b{self.batch}"]
        if self.clients is not None:
            parts.append(f"n{self.clients}")
        return "--".join(part.replace(" ", "-") for part in parts)

    @property
    def captured(self) -> str:
        """The exposure as a round's capture knows it: the control is a plain update too."""
        return "plain" if self.exposure == "control" else self.exposure

    @property
    def noise(self) -> bool | float:
        """As :meth:`AuditedRun.bench` wants it."""
        swept = _SWEPT.fullmatch(self.defence)
        if swept and float(swept[1]) > 0.0:
            return float(swept[1])
        if self.defence not in _ALLOWED:
            raise ConfigError(
                f"defence = {self.defence!r}; allowed: {', '.join(map(repr, _ALLOWED))}, or "
                "'noise-Z' with Z > 0"
            )
        return self.defence in (NOISE, BOTH)

    @property
    def masks(self) -> bool:
        """Whether contributions are masked."""
        return self.defence in (MASKS, BOTH)

    def check(self) -> None:
        """Refuse a cell that says two things at once.

        Raises:
            ConfigError: the defence is unknown, or does not go with the exposure.
        """
        _ = self.noise  # refuses an unknown one
        in_clear = self.exposure in ("control", "plain", "other")
        if self.masks and in_clear:
            raise ConfigError(
                f"defence = {self.defence!r} with exposure = {self.exposure!r}: masks leave no "
                "plain update to be seen; take 'masked'"
            )
        if self.exposure.startswith(("masked", "encrypted")) and not self.masks:
            raise ConfigError(
                f"defence = {self.defence!r} with exposure = {self.exposure!r}: nothing is masked "
                "then; take 'masks' or 'noise and masks'"
            )
        if self.exposure == "control" and self.defence != OFF:
            raise ConfigError(f"defence = {self.defence!r} with exposure = 'control': take 'off'")

    def bench(self, run: AuditedRun, *, moves: bool = True) -> Bench:
        """The rounds that this cell's views are captured from.

        Args:
            run: that is audited.
            moves: as of :class:`~securefed.auditing.configured_rounds.ConfiguredBench`.

        Raises:
            NotApplicable: the run has no such protection, its rounds cannot be captured, or there
                are too few texts for one.
        """
        if self.exposure == "control":
            if run.config.model.quantize != "none":
                raise NotApplicable("quantised weights do not train: there is no full gradient")
            self._check_texts(run, 2)
            return run.control(self.batch)
        mechanism, kind = run.config.privacy.mechanism, run.config.aggregation.kind
        if self.noise is True and mechanism != "distributed":
            raise NotApplicable(f"clients of this run add no noise (mechanism = {mechanism!r})")
        if self.masks and kind == "plaintext":
            raise NotApplicable("this run masks nothing (aggregation.kind = 'plaintext')")
        encrypted = kind in get_args(Scheme)
        if self.exposure.startswith("masked") and encrypted:
            raise NotApplicable(f"contributions of this run are encrypted (kind = {kind!r})")
        if self.exposure == "encrypted" and not encrypted:
            raise NotApplicable(f"contributions of this run are not encrypted (kind = {kind!r})")
        if self.exposure.endswith(ALL_COLLUDE) and (encrypted or run.removes_noise):
            raise NotApplicable("colluding clients are there for plain pairwise rounds only")
        own = self.clients or len(run.workbench.clients)
        self._check_texts(run, 1 + companions(self.exposure, own))
        return run.bench(
            noise=self.noise, masks=self.masks, batch=self.batch, clients=self.clients, moves=moves
        )

    def _check_texts(self, run: AuditedRun, clients: int) -> None:
        if len(run.texts) < self.batch * clients:
            raise NotApplicable(
                f"{clients} clients with {self.batch} examples each need "
                f"{self.batch * clients} texts; there are {len(run.texts)}"
            )

    def settings(self) -> dict[str, JsonValue]:
        """What a stored result must have been made with to stand for this cell."""
        return {
            "batch": self.batch,
            "clients": self.clients,
            "wanted_seeds": list(self.seeds),
        }
