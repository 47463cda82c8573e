"""A deployment in one process: agents of tiny clients, and a courier that hands them bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from tiny import write_run

from securefed.agent.agent import Agent
from securefed.agent.policy import AgentPolicy
from securefed.agent.runs import RunAccounts
from securefed.agent.spending import Spending
from securefed.config import load_config
from securefed.crypto.identity import IdentityKey
from securefed.engines.deployed import config_digest
from securefed.engines.events import Silent
from securefed.engines.remote_federation import Deployment
from securefed.engines.site import TrainingSite
from securefed.evidence.roster import Roster
from securefed.evidence.signed_roster import SignedRoster
from securefed.operations.log import Log

CLOCK = "2026-01-01T00:00:00Z"


def policy_values(client: str, server: str, /, **sections: Any) -> dict[str, Any]:
    """A policy that takes part in what ``write_deployment`` writes."""
    values: dict[str, Any] = {
        "client": client,
        "server": server,
        "runs": {"configurations": ["0" * 64], "models": ["0" * 64]},
        "floors": {
            "min_clients": 3,
            "min_threshold": 2,
            "min_noise_multiplier": 0.5,
            "max_clip_norm": 1.0,
            "max_delta": 1e-5,
            "min_corrupt_fraction": 0.1,
            "max_dropout_fraction": 0.25,
            "units": ["example"],
            "exact_figures": True,
        },
        "budget": {"epsilon": 1e6, "delta": 1e-4, "unit": "example"},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    return values


class FakeTime:
    """A clock that stands still but for what is waited."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@dataclass
class World:
    """Everything that the parties of a tiny deployment have on their machines."""

    folder: Path
    server: IdentityKey
    identities: dict[str, IdentityKey]
    roster: Roster
    deployment: Deployment
    logs: dict[str, io.StringIO] = field(default_factory=dict)

    @property
    def run_file(self) -> Path:
        return Path(self.deployment.run_file)

    def site(self, name: str, trainers: Collection[str] = ()) -> TrainingSite:
        config = load_config(self.run_file)
        return TrainingSite(
            config,
            client=name,
            cache=self.folder / "cache",
            offline=True,
            observer=Silent(),
            model=str(self.folder / "model"),
            data=str(self.folder / "data"),
            trainers=trainers,
        )

    def agent(self, name: str, site: Any = None, **sections: Any) -> Agent:
        trainers = sections.get("runs", {}).get("trainers", [])
        site = self.site(name, trainers) if site is None else site
        runs = {"configurations": [site.config], "models": [site.model]}
        values = policy_values(name, self.server.public.raw.hex(), runs=runs)
        for key, section in sections.items():
            values[key] = values.get(key, {}) | section
        policy = AgentPolicy.model_validate(values)
        log = self.logs.setdefault(name, io.StringIO())
        spending = Spending(self.folder / "accounts" / name, name, policy.budget, lambda: CLOCK)
        time = FakeTime()
        return Agent(
            policy,
            self.identities[name],
            self.roster,
            site,
            spending,
            RunAccounts(self.folder / "accounts" / name / "runs", name, lambda: CLOCK),
            Log(log, lambda: CLOCK),
            clock=time,
            pause=time.pause,
        )


def write_deployment(folder: Path, clients: int = 4, **sections: dict[str, Any]) -> World:
    """Run file, model, data, keys and signed roster; data of six clients, some of them enrolled."""
    shown = {"privacy": {"sample_is_secret": False, "noise_multiplier": 0.8}}
    merged = {k: shown.get(k, {}) | sections.get(k, {}) for k in {*shown, *sections}}
    merged["training"] = {"rounds": 2} | sections.get("training", {})
    run_file = write_run(folder, **merged)
    config = load_config(run_file)
    # In the common file model and data are names, not places on one of the machines.
    values = config.model_dump(mode="json", exclude_none=True)
    values["model"]["source"], values["data"]["source"] = "model", "data"
    common = folder / "common" / "run.toml"
    common.parent.mkdir()
    common.write_text(tomli_w.dumps(values))
    names = [f"site-{i}" for i in range(clients)]
    server, identities = IdentityKey.generate(), {n: IdentityKey.generate() for n in names}
    roster = Roster(server.public, {n: key.public for n, key in identities.items()})
    (folder / "roster.json").write_text(SignedRoster(roster, 1).to_text(server))
    server.save(folder / "server.pem")
    deployment = Deployment(
        run_file=str(common),
        roster=str(folder / "roster.json"),
        key=str(folder / "server.pem"),
        out=str(folder / "run"),
        model=str(folder / "model"),
        offline=True,
    )
    assert config_digest(load_config(common))
    return World(folder, server, identities, roster, deployment)


class DirectCourier:
    """Hands each request to the agent of its node, unless ``lost`` says that it is lost."""

    def __init__(
        self,
        agents: Mapping[int, Callable[[bytes], bytes]],
        lost: Callable[[int, str], bool] = lambda node, what: False,
    ) -> None:
        self.agents, self.lost = dict(agents), lost
        self.stages: list[str] = []

    def nodes(self, wanted: int) -> list[int]:
        return sorted(self.agents)

    def exchange(self, requests: Mapping[int, bytes], *, what: str) -> Mapping[int, bytes]:
        self.stages.append(what)
        return {
            node: self.agents[node](request)
            for node, request in requests.items()
            if not self.lost(node, what)
        }
