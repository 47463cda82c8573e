"""A whole federation between machines, from the server's configuration."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from safetensors import SafetensorError

from securefed.config import RunConfig, first_difference, load_config
from securefed.crypto.identity import IdentityKey
from securefed.engines.couriers import Courier, Greeted, greet
from securefed.engines.deployed import (
    check_deployable,
    config_digest,
    leaves_adapters,
    local_config,
)
from securefed.engines.deployment import Deployment
from securefed.engines.events import Lines, Observer
from securefed.engines.remote import RemoteRun
from securefed.engines.remote_witnesses import gather_from
from securefed.engines.results import RunResult, recorded_result
from securefed.engines.run_folder import RunFolder
from securefed.engines.settings import Settings
from securefed.engines.simulation import utc_now
from securefed.engines.witnessing import unwitnessed
from securefed.engines.workbench import Workbench
from securefed.errors import ConfigError, LedgerTampered
from securefed.evidence.ledger import Ledger, read_ledger
from securefed.evidence.roster import Roster
from securefed.evidence.signed_roster import read_signed_roster
from securefed.training.assets import cache_dir


def federate(
    deployment: Deployment,
    courier: Courier,
    *,
    observer: Observer | None = None,
    cache: Path | None = None,
    clock: Callable[[], str] = utc_now,
) -> RunResult:
    """Train with the clients that are there.

    Args:
        deployment: where things lie.
        courier: reaches the nodes.
        observer: told of progress; one line each on standard error without it.
        cache: where models are kept.
        clock: gives RFC 3339 text for ledger records.

    Raises:
        ConfigError, DataError, FetchError: something is wrong before the first round.
        ThresholdNotMet: too few clients are there, or were left in a round; the run can be resumed.
        BudgetExceeded, LedgerError: as of ``Federation.run``.
    """
    shown: Observer = Lines() if observer is None else observer
    config = load_config(Path(deployment.run_file))
    check_deployable(config)
    found, made_for = config_digest(config), deployment.run_file_sha256
    if made_for not in ("", found):
        raise ConfigError(
            f"run_file = {deployment.run_file!r}: is run file {found}, and the app was made for "
            f"{made_for}; name that one, or make an app of this one (securefed flower init)"
        )
    server = IdentityKey.load(Path(deployment.key))
    roster = read_signed_roster(Path(deployment.roster), server.public).roster
    folder = RunFolder(Path(deployment.out))
    finished = _finished(folder, config) if deployment.resume else None
    if not deployment.resume:
        folder.check_new()
    leaves = leaves_adapters(config)
    if finished is not None and not leaves and unwitnessed(read_ledger(folder.ledger)) is None:
        shown.message(f"the run in {folder.path} is finished; nothing is left")
        return finished
    greeted = greet(
        courier,
        found,
        roster,
        server,
        shown,
        min_clients=config.cohort.min_clients,
    )
    if finished is not None:
        _witness_closing(folder, courier, greeted, roster, server, shown, clock)
        if not leaves:
            return finished
    sizes, noise = dict(greeted.sizes), None
    if deployment.resume:
        sizes, noise = _begun(folder, greeted, roster)
    local = local_config(config, model=deployment.model or None)
    bench = Workbench(
        local,
        cache=cache_dir() if cache is None else cache,
        offline=deployment.offline,
        observer=shown,
        sizes=sizes,
    ).again(config, shown)
    settings = Settings(
        config, sizes=sizes, dimension=bench.combining.length, noise_multiplier=noise
    )
    run = RemoteRun(
        config,
        folder,
        bench,
        settings,
        shown,
        clock,
        courier=courier,
        greeted=greeted,
        roster=roster,
        server=server,
    )
    if finished is not None:
        run.hand_out_again(finished.rounds)
        return finished
    return run.go(resume=deployment.resume)


def _finished(folder: RunFolder, config: RunConfig) -> RunResult | None:
    folder.check_resumable()
    recorded = load_config(folder.config)
    if recorded != config:
        raise ConfigError(
            f"resume: in {folder.config} {first_difference(recorded, config)}; a run goes on with "
            "the settings it began with"
        )
    return recorded_result(folder.path)


def _witness_closing(
    folder: RunFolder,
    courier: Courier,
    greeted: Greeted,
    roster: Roster,
    server: IdentityKey,
    observer: Observer,
    clock: Callable[[], str],
) -> None:
    """Have the closing record of a finished run signed: a kill came before that."""
    with ExitStack() as held:

        def opened(path: Path) -> Ledger:
            return held.enter_context(Ledger.open(path, clock=clock))

        ledger = opened(folder.ledger)
        due, own = unwitnessed(ledger.records), Roster.of_record(ledger.records[0].body["roster"])
        if due is None:
            return
        now = {name: roster.clients.get(name) for name in own.clients}
        changed = [name for name, key in own.clients.items() if now[name] != key]
        if changed or roster.server != own.server:
            raise ConfigError(
                f"resume: the roster has another key of {changed[0] if changed else 'the server'} "
                "than the run began with"
            )
        copies = {name: opened(folder.budget(name)) for name in own.clients}
        nodes = {name: node for name, node in greeted.nodes.items() if name in copies}
        gather_from(courier, nodes, ledger, due, server, copies, own, observer)


def _begun(folder: RunFolder, greeted: Greeted, roster: Roster) -> tuple[dict[str, int], float]:
    """Sizes and noise that a run began with, which those who are there must still have.

    Raises:
        ConfigError: a client of the run is no longer in the roster, or holds another number.
        LedgerTampered: the ledger's first record lacks what it must hold.
    """
    genesis = read_ledger(folder.ledger)[0].body
    try:
        sizes = {str(name): int(size) for name, size in genesis["client_sizes"].items()}
        noise = float(genesis["privacy"]["noise_multiplier"])
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise LedgerTampered(
            f"{folder.ledger}: the first record lacks what it must hold ({error})"
        ) from None
    for name, size in sizes.items():
        if name not in roster.clients:
            raise ConfigError(f"resume: {name!r} is in the run and no longer in the roster")
        if greeted.sizes.get(name, size) != size:
            raise ConfigError(
                f"resume: {name!r} holds {greeted.sizes[name]} units now, {size} when the run began"
            )
    return sizes, noise
