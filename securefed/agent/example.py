"""A policy to begin from: the least that a run file already promises, as an owner's own floors."""

from __future__ import annotations

from securefed.agent.policy import (
    AgentPolicy,
    AnswersSection,
    BudgetSection,
    FloorsSection,
    RunsSection,
)
from securefed.config import RunConfig

HOLD_SECONDS = 120.0


def example_policy(
    config: RunConfig,
    *,
    client: str,
    server: str,
    digest: str,
    model: str,
    hold_seconds: float = HOLD_SECONDS,
) -> AgentPolicy:
    """The policy of an owner who takes part in one run file and asks for just what it says.

    Args:
        config: the run file.
        client: the owner's id.
        server: the server's public key, hexadecimal.
        digest: SHA-256 of the resolved run file, hexadecimal.
        model: fingerprint of the base weights, hexadecimal.
        hold_seconds: how long answers are held back where the run's samples are secret, or the
            owner's own code trains.
    """
    privacy = config.privacy
    clip = privacy.clip_norm
    if privacy.adaptive_clip is not None:
        clip = privacy.adaptive_clip.max_clip_norm or 1000.0 * clip
    noise = privacy.noise_multiplier or 0.0
    if privacy.mechanism == "none":
        noise = 0.0
        if privacy.unit == "client":
            clip = privacy.update_clip_norm  # of whole vectors that are summed without noise
    # A trainer of one's own may take longer on some texts than on others.
    own = config.training.trainer is not None
    held = own or (privacy.unit != "client" and privacy.sample_is_secret)
    return AgentPolicy(
        client=client,
        server=server,
        runs=RunsSection(
            configurations=[digest],
            models=[model],
            trainers=[] if config.training.trainer is None else [config.training.trainer],
        ),
        floors=FloorsSection(
            min_clients=config.cohort.min_clients,
            min_threshold=2,
            min_noise_multiplier=noise,
            max_clip_norm=clip,
            max_delta=privacy.delta,
            min_corrupt_fraction=privacy.corrupt_fraction,
            max_dropout_fraction=privacy.dropout_fraction,
            mechanisms=[privacy.mechanism],
            units=[privacy.unit],
            allow_plaintext=config.aggregation.kind == "plaintext",
            allow_conditional_rounding=privacy.rounding == "conditional",
        ),
        budget=BudgetSection(
            epsilon=config.budget.epsilon or privacy.target_epsilon or 8.0,
            delta=privacy.delta,
            unit=privacy.unit,
            against="release" if privacy.mechanism == "central" else "server",
        ),
        answers=AnswersSection(hold_seconds=hold_seconds if held else None),
    )
