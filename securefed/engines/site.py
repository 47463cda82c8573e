"""A data owner's model and data, at work for its agent: the training half of a deployed client."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from securefed.config import RunConfig
from securefed.crypto.identity import IdentityPublicKey
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.arrangement import figures_aggregation
from securefed.engines.deployed import (
    check_deployable,
    config_digest,
    leaves_adapters,
    local_config,
)
from securefed.engines.events import Observer
from securefed.engines.figures import Figures, encode_figures, figures_policy
from securefed.engines.settings import Settings
from securefed.engines.workbench import Workbench
from securefed.errors import ConfigError, LedgerTampered, RemoteProtocolError
from securefed.federation.client import Encode
from securefed.federation.invitations import Invitation
from securefed.federation.session import RoundSession
from securefed.federation.update_codec import UpdateCodec
from securefed.lora.adapter import adapter_state, load_adapter_state
from securefed.privacy.policy import PrivacyPolicy


class TrainingSite:
    """Loads model and data once; answers what its agent asks of them.

    Everything of a round that can be computed here is computed here: policy, clip, plan, the hash
    of model, adapter and run file.  Of the server only what cannot be known here is taken: sizes,
    noise multiplier, fractions, adapter.  What another client was told otherwise gives it another
    description of the round, and their masks do not cancel.

    Args:
        config: the run file that all parties have.
        client: whose data are here.
        model, data: what the run file's sources stand for on this machine.
        cache: where models and corpora are kept.
        offline: fetch nothing.
        observer: told what is being loaded.
        trainers: what the owner lets a run file name as ``training.trainer``.  It is imported and
            run here; any other is refused before it is imported.

    Raises:
        ConfigError, DataError, FetchError: run file, model or data are not as they must be.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        client: str,
        cache: Path,
        offline: bool,
        observer: Observer,
        model: str | None = None,
        data: str | None = None,
        trainers: Collection[str] = (),
    ) -> None:
        check_deployable(config)
        trainer = config.training.trainer
        if trainer is not None and trainer not in trainers:
            raise ConfigError(
                f"training.trainer = {trainer!r}: is not one of runs.trainers in this owner's "
                f"policy ({', '.join(trainers) or 'none'}), and was not imported"
            )
        own = local_config(config, model=model, data=data, client=client)
        loaded = Workbench(own, cache=cache, offline=offline, observer=observer, alone=True)
        self._bench = loaded.again(config, observer)
        self._config, self._client = config, client
        self._size = self._bench.sizes[client]
        self._digest = config_digest(config)
        self._first = adapter_state(self._bench.model)
        self._settings = functools.lru_cache(maxsize=1)(self._settings_of)

    @property
    def config(self) -> str:
        """SHA-256 of the resolved run file, hexadecimal."""
        return self._digest

    @property
    def model(self) -> str:
        """Fingerprint of the base weights, hexadecimal."""
        return self._bench.fingerprint

    @property
    def size(self) -> int:
        """How many units this client holds."""
        return self._size

    @property
    def keeps(self) -> bool:
        """Whether a client of this run keeps something from round to round."""
        return self._bench.kept.some

    def take(self, kept: bytes) -> None:
        """Go on from what :meth:`kept` gave in an earlier round; empty for the beginning.

        Raises:
            LedgerTampered: it is not of this run.
        """
        try:
            self._bench.kept.take(self._client, load(kept) if kept else None)
        except SafetensorError as error:
            raise LedgerTampered(f"kept state: {error}") from None

    def kept(self) -> bytes:
        """What is kept if the contribution that was made last is in its sum."""
        return save(self._bench.kept.noted(self._client))

    @property
    def leaves(self) -> bool:
        """Whether this run leaves clients an adapter of their own."""
        return leaves_adapters(self._config)

    def finish(self, adapter: bytes, kept: bytes, folder: Path) -> None:
        """Make this client's own adapter in ``folder``, as ``personal/CLIENT`` of a simulation is.

        Args:
            adapter: the shared one, as the run ended.
            kept: as of :meth:`take`.
            folder: is there.

        Raises:
            RemoteProtocolError, LedgerTampered: they do not fit the run file.
        """
        bench = self._bench
        self._load_adapter(adapter)
        self.take(kept)
        if bench.own_adapters is not None:
            bench.personalise(self._client, folder)
            return
        with bench.personal.of(self._client):
            bench.save_adapter(folder / "adapter")

    def round(
        self, invitation: Invitation, roster: Mapping[str, IdentityPublicKey]
    ) -> tuple[RoundSession, Encode]:
        """The round as this side describes it, and what makes the contribution.

        Raises:
            RemoteProtocolError: the adapter does not fit the model.
            ConfigError, OverflowBoundError: sizes and noise do not fit the run file.
            GradientCheckError: per-example gradients are not right on this machine.
        """
        bench = self._bench
        settings = self._settings(
            tuple(sorted(invitation.sizes.items())), invitation.noise_multiplier
        )
        bench.sizes = settings.sizes
        self._load(invitation)
        cohort = tuple(sorted(invitation.sizes))
        if invitation.figures:
            policy = figures_policy(settings.sum_policy)
            aggregation = figures_aggregation(self._config.aggregation, settings.aggregation)
            dimension = Figures.DIMENSION
        else:
            bench.begin_round(invitation.round)
            policy = settings.cohorts.policy_of(self._policy(settings, invitation), cohort)
            aggregation, dimension = settings.aggregation, bench.combining.length
        session = RoundSession(
            session=invitation.session,
            round=invitation.round,
            cohort=cohort,
            roster={name: roster[name] for name in cohort},
            dimension=dimension,
            policy=policy,
            aggregation=aggregation,
            model=settings.cohorts.binding(bench.model_hash()),
            stated=None if invitation.figures else settings.stated_apart,
        )
        return session, self._figures if invitation.figures else self._update(settings, invitation)

    def priced(self, invitation: Invitation) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The run's figures, and the event of the round, as the run's ledger must hold them."""
        settings = self._settings(
            tuple(sorted(invitation.sizes.items())), invitation.noise_multiplier
        )
        event = settings.round_event(self._policy(settings, invitation))
        name = {"round": invitation.round, "session": invitation.session.hex()}
        return settings.record(), event | name

    @staticmethod
    def _policy(settings: Settings, invitation: Invitation) -> PrivacyPolicy:
        """Of the round, with the clip that follows from the rounds before."""
        policy = settings.sum_policy
        for fraction in invitation.fractions:
            policy = policy.after(fraction)
        return policy

    def _update(self, settings: Settings, invitation: Invitation) -> Encode:
        def encode(codec: UpdateCodec, generator: NoiseGenerator) -> NDArray[np.uint32]:
            make = self._bench.encoder(settings, invitation.round, self._client)
            return make(self._bench.clients[self._client].train, codec, generator)

        return encode

    def _figures(self, codec: UpdateCodec, generator: NoiseGenerator) -> NDArray[np.uint32]:
        return encode_figures(self._bench.figures(self._client))(codec, generator)

    def _settings_of(self, sizes: tuple[tuple[str, int], ...], noise_multiplier: float) -> Settings:
        settings = Settings(
            self._config,
            sizes=dict(sizes),
            dimension=self._bench.combining.length,
            noise_multiplier=noise_multiplier,
        )
        if self._config.privacy.target_epsilon is None:
            given = settings.stated.noise_multiplier
            if given != noise_multiplier:
                raise ConfigError(
                    f"noise_multiplier = {noise_multiplier:g}: the run file says {given:g}"
                )
        self._check_gradients(settings)
        return settings

    def _check_gradients(self, settings: Settings) -> None:
        """Check them at the adapter that the run file begins with, never at the server's.

        The check looks at real examples, and what comes of it is seen: nothing that the server
        chose may be asked of them outside the noise.
        """
        bench = self._bench
        before = adapter_state(bench.model)
        try:
            load_adapter_state(bench.model, self._first)
            bench.sizes = settings.sizes
            bench.check_gradients(settings)
        finally:
            load_adapter_state(bench.model, before)

    def _load(self, invitation: Invitation) -> None:
        """Put what the server sent in place, not what clients keep for themselves."""
        bench = self._bench
        self._load_adapter(invitation.adapter)
        try:
            control = load(invitation.control) if invitation.control else {}
            bench.combining.restore(control)
        except (SafetensorError, ConfigError) as error:
            raise RemoteProtocolError(f"control: does not fit the run file ({error})") from None
        if control.keys() != bench.combining.server_state().keys():
            raise RemoteProtocolError("control: the run file has none")

    def _load_adapter(self, adapter: bytes) -> None:
        try:
            load_adapter_state(self._bench.model, load(adapter))
        except (SafetensorError, ConfigError) as error:
            raise RemoteProtocolError(f"adapter: does not fit the model ({error})") from None
        self._bench.personal.put_back()
