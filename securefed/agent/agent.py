"""The data owner's half of a federation, sans I/O: a request in, a reply out.

====================  ===================  ====================================================
state                 request              what happens
====================  ===================  ====================================================
idle or in a round    ``Hello``            introduces this client; the round, if any, goes on
idle or in a round    ``Invitation``       checks it against the owner's policy; the round before,
                                           if any, is forgotten with its secrets; sends keys
idle or in a round    ``Ending``           writes down what the run left to this client
idle or in a round    ``HeadRequest``      signs where a run's ledger stands, if it extends what was
                                           signed before
in a round            ``Step`` of it       the protocol's answer; the masked input only after it was
                                           charged durably
idle                  ``Step``             refused
====================  ===================  ====================================================

Whatever is refused changes nothing but that a round with bad content is over for this client.
"""

from __future__ import annotations

import functools
import math
import traceback
from collections.abc import Callable, Mapping
from pathlib import PurePath

from securefed.agent.ended import Ended
from securefed.agent.kept import Kept
from securefed.agent.policy import AgentPolicy
from securefed.agent.runs import RunAccounts
from securefed.agent.site import Site
from securefed.agent.spending import Spending
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import RandomBytes, SecretHolder, system_random
from securefed.encoding.wire import message_type
from securefed.errors import ConfigError, LocalProtocolError, SecureFedError, WireError
from securefed.evidence.roster import Roster
from securefed.federation.client import ClientRound
from securefed.federation.invitations import (
    ENDING,
    HEAD,
    HELLO,
    INVITATION,
    STEP,
    Ending,
    HeadRequest,
    Hello,
    Introduction,
    Invitation,
    Step,
    encode_answer,
    encode_refusal,
)
from securefed.federation.session import RoundSession
from securefed.operations.log import Log

FAILED = "Failed"
"""What a server is told of an error that is not one of this package's."""

_UNFORESEEN = (
    ArithmeticError,
    AssertionError,  # how torch and transformers refuse an argument
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,  # torch's own, a full accelerator among them
    TypeError,
    ValueError,
)
"""What work on a server's request may raise that nobody foresaw: a full disk, a library's refusal.

The round is over then.  Whatever else is raised, memory that ran out for one, ends the process."""

_MOST_SEEN = 4096
"""Sessions that are kept, lest their number be up to the server.

A repeat of an older invitation ends a round, as a new one does; a session that was charged is never
charged again, by the accounts.
"""

_NAMES = {
    HELLO: "hello",
    INVITATION: "invitation",
    STEP: "step",
    HEAD: "head",
    ENDING: "ending",
}


class Agent(SecretHolder):
    """Answers a server by the owner's policy.

    Args:
        policy: the owner's.
        identity: the client's long-term key.
        roster: as the server signed it and the owner pinned it.
        site: model and data.
        spending: the owner's accounts.
        runs: what this client did in each run, by which it signs the run's ledger.
        log: where every refusal is explained.
        clock: seconds, never backwards.
        pause: waits that many seconds.
        random: source of round secrets.

    Raises:
        ConfigError: identity, roster and policy are not of one client and one server.
        LocalProtocolError: the owner does not allow this run file or this model.

    Guarantees:
        - Nothing is computed or sent for a run file, a model or a round that the policy refuses.
        - No masked input leaves before it is charged durably; a retry is charged again.
        - What a request makes fail unexpectedly ends its round and is refused as ``Failed``.
        - A refusal tells the server its kind; the reason stays in the log.
        - What a client keeps from round to round is written after the charge and before the masked
          input leaves, and counts only once the run's ledger has it in that sum.
        - No round of a run is taken part in whose ledger has this client in a sum that its accounts
          do not hold: accounts that were restored from an older copy are noticed.
        - Where the sample of a round is secret, answers leave at times that do not depend on it,
          but for whether the work took longer than ``answers.hold_seconds`` in all.
    """

    def __init__(
        self,
        policy: AgentPolicy,
        identity: IdentityKey,
        roster: Roster,
        site: Site,
        spending: Spending,
        runs: RunAccounts,
        log: Log,
        *,
        clock: Callable[[], float],
        pause: Callable[[float], None],
        random: RandomBytes = system_random,
    ) -> None:
        self._policy, self._identity = policy, identity
        self._roster = self._checked(roster)
        policy.check_run(site.config, site.model)
        self._site, self._spending, self._log = site, spending, log
        self._runs = runs
        self._clock, self._pause, self._random = clock, pause, random
        self._seen: dict[bytes, None] = {}  # the last sessions, oldest first
        self._round: tuple[bytes, ClientRound] | None = None

    def renew(self, roster: Roster) -> None:
        """Go by another roster from now on; the round before, if any, is forgotten.

        Args:
            roster: as the server signed it and the owner pinned it, later than the present one.

        Raises:
            ConfigError: it is of another server, or no longer names this client with this identity:
                then this client is revoked, and the agent must answer no more.
        """
        self._roster = self._checked(roster)
        self._round = None

    def _checked(self, roster: Roster) -> Roster:
        if roster.server != self._policy.server_key:
            raise ConfigError("roster: its server is not the one of the policy")
        client = self._policy.client
        if roster.clients.get(client) != self._identity.public:
            raise ConfigError(f"roster: its key of {client!r} is not that of this identity file")
        return roster

    def handle(self, request: bytes) -> bytes:
        """Answer one request.

        Returns:
            An Introduction, an Answer or a Refusal.
        """
        kind = message_type(request)
        try:
            if kind == HELLO:
                return self._introduced(request)
            if kind == INVITATION:
                return encode_answer(self._invited(request))
            if kind == STEP:
                return encode_answer(self._stepped(request))
            if kind == HEAD:
                return encode_answer(self._witnessed(request))
            if kind == ENDING:
                return encode_answer(self._ended(request))
            raise WireError(f"message type: {kind} found, one of {sorted(_NAMES)} expected")
        except SecureFedError as error:
            name = type(error).__name__
            self._log.write(
                "refused", request=_NAMES.get(kind, "unknown"), kind=name, why=str(error)
            )
            return encode_refusal(name)
        except _UNFORESEEN as error:  # what one request does must not end the owner's process
            self._round = None
            # Its text may repeat what it was about, data too; where it came from cannot.
            self._log.write(
                "failed",
                request=_NAMES.get(kind, "unknown"),
                kind=type(error).__name__,
                where=_raised_at(error),
            )
            return encode_refusal(FAILED)

    def finish(self) -> None:
        """Make this client's own adapters of runs that have ended.

        Run by: the owner's process, while it answers nobody: how long this takes depends on what
        is found in the data.  What fails is in the log, and is tried again another time.
        """
        if not self._site.leaves:
            return
        try:
            for ended in self._runs.ended.due(self._site.config):
                self._finish(ended)  # one that cannot be made keeps no other from being made
        except (SecureFedError, OSError) as error:
            self._log.write("unfinished", kind=type(error).__name__, why=str(error))

    def _finish(self, ended: Ended) -> None:
        self._log.write("finishing", ledger=ended.ledger)
        try:
            made = functools.partial(self._site.finish, ended.adapter, ended.kept)
            place = self._runs.ended.make(ended, made)
        except SecureFedError as error:
            self._log.write(
                "unfinished", ledger=ended.ledger, kind=type(error).__name__, why=str(error)
            )
        except _UNFORESEEN as error:
            where = _raised_at(error)
            self._log.write(
                "unfinished", ledger=ended.ledger, kind=type(error).__name__, where=where
            )
        else:
            self._log.write("finished", ledger=ended.ledger, folder=str(place))

    def _introduced(self, request: bytes) -> bytes:
        hello = Hello.decode(request, self._roster.server)
        if hello.config.hex() != self._site.config:
            raise LocalProtocolError(
                f"run file {hello.config.hex()}: this agent was started for {self._site.config}"
            )
        own = Introduction(client=self._policy.client, size=self._site.size)
        self._log.write("introduced", run=hello.run.hex(), node=hello.node)
        return own.encode(hello, self._identity)

    def _invited(self, request: bytes) -> bytes:
        arrived = self._clock()
        invitation = Invitation.decode(request, self._roster.server)
        client, figures = self._policy.client, invitation.figures
        if invitation.session in self._seen:  # a message that comes twice ends no round
            raise LocalProtocolError("session: an attempt needs a new one")
        self._round = None
        self._seen[invitation.session] = None
        if len(self._seen) > _MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        floors = self._policy.floors.of(figures=figures)
        strangers = sorted(set(invitation.sizes) - set(self._roster.clients))
        if strangers:
            raise LocalProtocolError(f"cohort: {strangers[0]!r} is not in the roster")
        if invitation.sizes.get(client) != self._site.size:
            raise LocalProtocolError(
                f"sizes.{client} = {invitation.sizes.get(client)}: this client holds "
                f"{self._site.size}"
            )
        base = self._gone_on_from(invitation.ledger.hex(), invitation.round, invitation.summed)
        if base is not None:
            self._site.take(base.state)
        session, encode = self._site.round(invitation, self._roster.clients)
        hold = None if figures else self._policy.answers.hold_seconds
        if not figures:
            if hold is None and _sample_is_secret(session):
                raise LocalProtocolError(
                    "sample_is_secret = True: how long this client takes to answer would tell how "
                    "many units it drew; give answers.hold_seconds, or take part in runs with "
                    "privacy.sample_is_secret = false"
                )
            floors.check(session)  # before an account is begun for it
            self._spending.check(session)
            self._join(invitation)
        half = ClientRound(
            session,
            client,
            self._identity,
            encode,
            charge=None if figures else lambda: self._charge(session, invitation, base),
            floors=floors,
            random=self._random,
        )
        if hold is not None:
            self._prepared(half, arrived, hold)
        message = half.start()
        self._round = (invitation.session, half)
        self._log.write(
            "invited",
            round=invitation.round,
            session=invitation.session.hex(),
            of="figures" if figures else "updates",
            cohort=len(session.cohort),
        )
        return message

    def _gone_on_from(self, ledger: str, number: int, summed: Mapping[str, str]) -> Kept | None:
        """What this client goes on from; None where the run has it keep nothing.

        Raises:
            LocalProtocolError: the run's ledger has this client in a sum that its accounts do not
                hold, or goes on from a state that it does not hold.
        """
        said = summed.get(self._policy.client)
        if said is not None:
            charge = self._runs.charged(ledger, said)
            noised = charge is not None and charge.get("mechanism") != "none"
            if charge is None or (noised and not self._spending.holds(said)):
                raise LocalProtocolError(
                    f"summed = {said}: the run's ledger has this client in that sum, and its "
                    "accounts hold no charge for it: they were lost, or are an older copy; bring "
                    "back the newest"
                )
        if not self._site.keeps:
            return None
        return self._runs.kept.base(ledger, number, said)

    def _prepared(self, half: ClientRound, arrived: float, hold: float) -> None:
        """Make the contribution, and wait for a moment that does not depend on how long it took."""
        try:
            half.prepare()
        finally:
            elapsed = self._clock() - arrived
            times = max(1, math.ceil(elapsed / hold))
            self._pause(times * hold - elapsed)
        if times > 1:
            raise LocalProtocolError(
                f"answers.hold_seconds = {hold:g}: the contribution took longer"
            )

    def _join(self, invitation: Invitation) -> None:
        """Begin the account of a run, if this is its first round here."""
        privacy, _ = self._site.priced(invitation)
        self._runs.join(
            invitation.ledger.hex(), privacy, cohort=invitation.sizes, size=self._site.size
        )

    def _charge(self, session: RoundSession, invitation: Invitation, base: Kept | None) -> None:
        ledger = invitation.ledger.hex()
        self._spending.charge(session)
        _, event = self._site.priced(invitation)
        self._runs.charge(ledger, event)
        if base is not None:  # after the charge: what was not charged must leave nothing behind
            made = Kept(session.round, session.session.hex(), self._site.kept())
            self._runs.kept.note(ledger, base, made)
        self._log.write(
            "charged",
            round=session.round,
            session=session.session.hex(),
            **self._spending.terms(),
        )

    def _stepped(self, request: bytes) -> bytes:
        step = Step.decode(request)
        if self._round is None or self._round[0] != step.session:
            raise LocalProtocolError("step: it is of no round that this agent is in")
        return self._round[1].handle(step.message)

    def _ended(self, request: bytes) -> bytes:
        ending = Ending.decode(request, self._roster.server)
        ledger = ending.ledger.hex()
        if not self._site.leaves:
            raise LocalProtocolError("ending: this run file leaves clients no adapter of their own")
        if self._policy.client not in ending.summed:
            raise LocalProtocolError(f"ending: this client is in no sum of run {ledger}")
        base = self._gone_on_from(ledger, ending.round + 1, ending.summed)
        kept = b"" if base is None else base.state
        self._runs.ended.note(Ended(ledger, self._site.config, ending.adapter, kept))
        self._log.write("ended", ledger=ledger, round=ending.round)
        return b""

    def _witnessed(self, request: bytes) -> bytes:
        asked = HeadRequest.decode(request)
        signature = self._runs.sign(asked, self._identity, self._roster, self._site.config)
        self._log.write("signed", ledger=asked.ledger.hex(), lines=len(asked.lines))
        return signature


def _raised_at(error: BaseException) -> str:
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{PurePath(last.filename).name}:{last.lineno}"


def _sample_is_secret(session: RoundSession) -> bool:
    policy = session.promised
    return policy.unit != "client" and policy.separation is None and policy.sample_is_secret
