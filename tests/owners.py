"""Owners of recorded vectors: agents without model or data, and rounds between them."""

from __future__ import annotations

import io
import json

import numpy as np
from deployed import CLOCK, FakeTime, policy_values
from recorded_site import CONFIG, MODEL, POLICY, RecordedSite, session_of

from securefed import PrivacyPolicy
from securefed.agent.agent import Agent
from securefed.agent.policy import AgentPolicy
from securefed.agent.runs import RunAccounts
from securefed.agent.spending import Spending
from securefed.crypto.identity import IdentityKey
from securefed.errors import RemoteProtocolError
from securefed.evidence.roster import Roster
from securefed.federation.invitations import RUN_BYTES, Invitation, Step, answered
from securefed.federation.server import ServerRound
from securefed.operations.log import Log

NAMES = tuple(f"site-{i}" for i in range(4))
SERVER = IdentityKey.generate()
KEYS = {name: IdentityKey.generate() for name in NAMES}
ROSTER = Roster(SERVER.public, {name: key.public for name, key in KEYS.items()})
DIMENSION = 24
SAMPLED = PrivacyPolicy(
    clip_norm=1.0, noise_multiplier=1.0, unit="example", sampling_probability=0.1, max_examples=10
)


class Owner:
    def __init__(
        self,
        folder,
        name="site-0",
        policy=POLICY,
        roster=ROSTER,
        work=0.0,
        count=None,
        **sections,
    ):
        unit = policy.unit
        floors = {"mechanisms": [policy.mechanism], "units": [unit], "min_noise_multiplier": 0.0}
        merged = {
            "runs": {"configurations": [CONFIG], "models": [MODEL]},
            "floors": floors | sections.pop("floors", {}),
            "budget": {"epsilon": 1e5, "delta": 1e-4, "unit": unit} | sections.pop("budget", {}),
        } | sections
        values = policy_values(name, SERVER.public.raw.hex(), **merged)
        self.log, self.time = io.StringIO(), FakeTime()
        length = session_of(
            bytes(16), NAMES, ROSTER.clients, DIMENSION, policy=policy
        ).context.length

        def work_on():
            self.time.now += work

        self.site = RecordedSite(np.arange(length) % 7, DIMENSION, policy, work_on)
        allowed = AgentPolicy.model_validate(values)
        self.spending = Spending(folder / name, name, allowed.budget, lambda: CLOCK)
        self.runs = RunAccounts(folder / name / "runs", name, lambda: CLOCK)
        self.agent = Agent(
            allowed,
            KEYS[name],
            roster,
            self.site,
            self.spending,
            self.runs,
            Log(self.log, lambda: CLOCK, count=count),
            clock=self.time,
            pause=self.time.pause,
        )

    def stop(self):
        self.spending.close()
        self.runs.close()

    def asked(self, request):
        return answered(self.agent.handle(request))

    @property
    def said(self):
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


def invitation(session=b"s" * 16, key=SERVER, **changed):
    values = {
        "run": bytes(RUN_BYTES),
        "ledger": bytes(32),
        "round": 1,
        "session": session,
        "figures": False,
        "sizes": dict.fromkeys(NAMES, 1),
        "noise_multiplier": 0.0,
        "fractions": (),
        "adapter": b"adapter",
    }
    return Invitation(**(values | changed)).encode(key)


def carried(owners, session=b"s" * 16, policy=POLICY, stated=None):
    """A whole round between agents and the server's half."""
    server = ServerRound(
        session_of(session, NAMES, ROSTER.clients, DIMENSION, policy=policy, stated=stated)
    )
    inbox = dict.fromkeys(NAMES)
    while server.stage is not None:
        for name, message in inbox.items():
            request = invitation(session) if message is None else Step(session, message).encode()
            try:
                server.receive(name, owners[name].asked(request))
            except RemoteProtocolError:
                continue
        inbox = server.advance()
    return server
