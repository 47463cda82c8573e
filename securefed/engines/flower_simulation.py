"""Rounds through Flower's simulation engine: every node on this machine, its ClientApp in a worker.

The workers are Ray's processes, and a node's messages land on any of them; what a ClientApp keeps
would be serialised from one to the next.  So nothing of a client is there: a worker's ClientApp is
the relay of a deployment, and the agents live in one process beside it, each behind a socket of its
own, with data, keys and round secrets.

Ray's processes listen on every address of the machine, and whoever may speak to them runs code as
this user.  They are told to take nobody without a token, which is made here and leaves this process
only in the environment of Ray's own.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from securefed.engines.couriers import Courier
from securefed.engines.flower import GridCourier, relaying
from securefed.errors import ConfigError

PARTITION = "partition-id"
"""What Flower's simulation engine calls a node's place among all nodes."""

_NODES_WITHIN = 60.0
_STARTS = 3

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def simulate(
    serve: Callable[[Courier], None],
    sockets: Sequence[Path],
    *,
    folder: Path,
    workers: int,
    stage_seconds: float,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Run the server's half over one simulated node for each socket.

    Run by: the one process of a simulation, in which the agents answer already.

    Args:
        serve: the server's half; it runs in a thread of its own.
        sockets: of the agents; the node of each is the one with its place as partition.
        folder: where Ray keeps its files, of this user alone; its path must be short.
        workers: processes that carry messages, >= 1.
        stage_seconds: how long the answers of a stage are waited for.
        stopped: once it says so, nothing more is waited for.

    Raises:
        ConfigError: Ray is missing, or runs in this process already.
        Exception: whatever ``serve`` raises.
    """
    os.environ.update(_QUIET | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token()})
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "Ray: is not installed, and Flower's simulation engine runs on it; install "
            "securefed[simulation]"
        ) from None
    if ray.is_initialized():
        raise ConfigError("Ray: runs in this process already, with settings of someone else")
    from flwr.simulation import run_simulation

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(
            GridCourier(
                grid, stage_seconds=stage_seconds, wait_seconds=_NODES_WITHIN, stopped=stopped
            )
        )

    # Its own lines would stand between ours; an error of the run is raised.
    logging.getLogger("flwr").setLevel(logging.ERROR)
    _start_ray(folder, workers)
    try:
        run_simulation(
            server_app=app,
            client_app=relaying(functools.partial(_of_partition, [str(each) for each in sockets])),
            num_supernodes=len(sockets),
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )
    finally:
        ray.shutdown()


def _start_ray(folder: Path, workers: int) -> None:
    """Start it before Flower would: if it does not start, no server waits for its nodes.

    Raises:
        ConfigError: it was too slow three times.
    """
    import ray

    for attempt in range(_STARTS):
        try:
            ray.init(
                num_cpus=workers,
                num_gpus=0,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=str(folder / str(attempt)),
            )
        except Exception as error:
            # Ray says so with a bare Exception after half a minute, which a busy machine may need.
            if type(error) is not Exception or "timed out during startup" not in str(error):
                raise
        else:
            return
    raise ConfigError(f"Ray: did not start within its time, {_STARTS} times; is the machine busy?")


def _of_partition(sockets: Sequence[str], context: Context) -> Path:
    return Path(sockets[int(context.node_config[PARTITION])])


@functools.cache
def _token() -> str:
    """One for the life of this process: Ray reads it once."""
    return secrets.token_hex(32)
