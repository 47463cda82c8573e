"""What a data owner allows, whatever a server asks: the policy file of an agent.

Nothing in it comes from the server, and no default is looser than the protocol's own.  What it
does not name is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

import tomli_w
from pydantic import Field, ValidationError, model_validator

from securefed.config import KeyHolder, Mechanism, Unit
from securefed.config.base import NonNegative, Positive, Section
from securefed.config.complaints import complaints
from securefed.config.files import read_toml
from securefed.crypto.identity import IdentityPublicKey
from securefed.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from securefed.federation.floors import ClientFloors
from securefed.operations.private_folder import check_unwritten_by_others

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Trainer = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class FloorsSection(Section):
    """The least that each round must protect; as of ``ClientFloors``, without its loose defaults.

    ``mechanisms`` and ``units``: those that are taken part in.  ``exact_figures``: whether sums of
    held-out figures, which carry no noise and no guarantee, are taken part in as well; where a
    client keeps a factor of its own (``lora.sharing = "fedsa"``) they are of that one, and so tell
    of its training data too.
    """

    min_clients: Annotated[int, Field(ge=2)]
    min_threshold: Annotated[int, Field(ge=2)]
    min_noise_multiplier: NonNegative
    max_clip_norm: Positive
    max_delta: Share
    min_corrupt_fraction: Annotated[float, Field(ge=0.0, lt=1.0)]
    max_dropout_fraction: Annotated[float, Field(ge=0.0, le=1.0)]
    min_bits: Annotated[int, Field(ge=20, le=32)] = 20
    mechanisms: Annotated[list[Mechanism], Field(min_length=1)] = Field(default=["distributed"])
    units: Annotated[list[Unit], Field(min_length=1)] = Field(default=list(get_args(Unit)))
    key_holders: list[KeyHolder] = Field(default=[])
    allow_plaintext: bool = False
    allow_ring: bool = False
    allow_conditional_rounding: bool = False
    exact_figures: bool = False

    def of(self, *, figures: bool) -> ClientFloors:
        """The floors of one round.

        Args:
            figures: whether it sums held-out figures, without noise.

        Raises:
            LocalProtocolError: it does, and the owner takes no part in such sums.
        """
        if figures and not self.exact_figures:
            raise LocalProtocolError(
                "a sum of held-out figures without noise: this owner takes part in none "
                "(floors.exact_figures)"
            )
        values = self.model_dump(exclude={"exact_figures"})
        for name in ("mechanisms", "units", "key_holders"):
            values[name] = tuple(values[name])
        if figures:
            values |= {"mechanisms": ("none",), "units": get_args(Unit)}
            values |= {"min_noise_multiplier": 0.0, "max_clip_norm": float("inf")}
        return ClientFloors(**values)


class BudgetSection(Section):
    """What may be spent in all, over every run and for good.

    ``epsilon`` and ``delta`` bound the sums over all kinds of rounds that were ever taken part in
    (basic composition), for one ``unit`` and zero-out adjacency of that unit, against the adversary
    ``against``.
    """

    epsilon: Positive
    delta: Share
    unit: Unit
    adjacency: Literal["zero-out"] = "zero-out"
    against: Literal["server", "release"] = "server"


class RunsSection(Section):
    """What is trained: run files by the SHA-256 of their resolved form, models by fingerprint.

    ``trainers``: code of the owner's own (``module:Class``) that a run file may name as
    ``training.trainer``.  It is imported from this machine, with all that this process may do; what
    is not listed is not imported.
    """

    configurations: Annotated[list[Digest], Field(min_length=1)]
    models: Annotated[list[Digest], Field(min_length=1)]
    trainers: list[Trainer] = Field(default=[])


class AnswersSection(Section):
    """When answers leave.

    How long training takes tells how many examples were drawn, which sampling is credited for.
    With ``hold_seconds`` the contribution is made when the invitation comes, and the first answer
    leaves that many seconds after it, never earlier; if the work takes longer, the round is
    refused, at a multiple of it.  Without it, training is part of the masked input's stage, and a
    round whose sample is secret is refused.
    """

    hold_seconds: Positive | None = None


class AgentPolicy(Section):
    """A whole policy file.

    ``client`` is this owner's id in the roster, ``server`` the key that must have signed roster and
    invitations (hexadecimal), told out of band; ``least_serial`` the oldest roster that is taken.
    """

    client: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")]
    server: Annotated[str, Field(pattern=r"^[0-9a-f]+$")]
    least_serial: Annotated[int, Field(ge=1)] = 1
    runs: RunsSection
    floors: FloorsSection
    budget: BudgetSection
    answers: AnswersSection = AnswersSection()

    @model_validator(mode="after")
    def _budget_is_of_the_units_taken_part_in(self) -> Self:
        if self.floors.units != [self.budget.unit]:
            raise ValueError(
                f"floors.units = {self.floors.units} with budget.unit = {self.budget.unit!r}: a "
                "budget is of one unit; list that one alone"
            )
        if self.floors.max_delta > self.budget.delta:
            raise ValueError(
                f"floors.max_delta = {self.floors.max_delta:g} with budget.delta = "
                f"{self.budget.delta:g}: it must not exceed that"
            )
        return self

    @property
    def server_key(self) -> IdentityPublicKey:
        """The server's identity.

        Raises:
            ConfigError: it is no key.
        """
        try:
            return IdentityPublicKey.from_bytes(bytes.fromhex(self.server))
        except (ValueError, RemoteProtocolError) as error:
            raise ConfigError(f"server: is no identity key ({error})") from None

    def check_run(self, config: str, model: str) -> None:
        """Refuse a run file or a model that the owner did not allow.

        Args:
            config: SHA-256 of the resolved run file, hexadecimal.
            model: fingerprint of the base weights, hexadecimal.

        Raises:
            LocalProtocolError: names the one that is not listed.
        """
        if config not in self.runs.configurations:
            raise LocalProtocolError(
                f"run file {config}: is not one of runs.configurations in this owner's policy"
            )
        if model not in self.runs.models:
            raise LocalProtocolError(
                f"model {model}: is not one of runs.models in this owner's policy"
            )


def load_policy(path: Path) -> AgentPolicy:
    """Read a policy file.

    Raises:
        ConfigError: it is missing, others can write it, it is not TOML, or a field is unknown or
            out of range; the message names each field.
    """
    values = read_toml(path, "policy", check=check_unwritten_by_others)
    try:
        policy = AgentPolicy.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"policy {path}: {complaints(error, AgentPolicy, 'policy')}") from None
    _ = policy.server_key
    return policy


def dump_policy(policy: AgentPolicy) -> str:
    """The policy as TOML; ``load_policy`` of it gives an equal object."""
    return tomli_w.dumps(policy.model_dump(mode="json", exclude_none=True))


def policy_schema() -> str:
    """The JSON Schema of policy files; ``securefed/schemas/agent-policy.json`` is this."""
    schema = AgentPolicy.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$id"] = "urn:securefed:schema:agent-policy-1"
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"
