"""One client's step of distributed DP-SGD on real texts, by examples at a time: memory and sum.

Run by hand: ``python tests/bench/bench_memory_limit.py [--tokens 128] [--rank 8] [--dtype float32]
[--at 16 8 4 1] [--limit 4e9]`` (model and texts by ``securefed fetch``).  Each row is a process of
its own.  The last one has a hard limit on its memory (``RLIMIT_DATA``) and takes as many examples
at a time as ``securefed.training.memory`` says fit; its sum, and the integers of it that would be
masked, are compared with those of the first row.  Sample, rounding and noise come from one public
key here, so that they are the same in all rows; a client draws that key in secret.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NAME = "james-monroe"


def peak() -> int:
    """Most resident bytes of this process so far (VmHWM)."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def step(asked: argparse.Namespace) -> None:
    """One client's step, in this process alone; prints JSON, writes sum and integers."""
    if asked.hard:
        limit = int(asked.hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    import torch

    from securefed.config import load_config
    from securefed.crypto.prg import NoiseGenerator
    from securefed.engines.events import Silent
    from securefed.engines.settings import Settings
    from securefed.engines.workbench import Workbench
    from securefed.federation.update_codec import UpdateCodec
    from securefed.privacy.clipping import L2Clip
    from securefed.training.assets import cache_dir
    from securefed.training.dp_sgd import PerExampleGradients
    from securefed.training.memory import made_up, step_memory

    torch.set_num_threads(1)
    source = Path(__file__).parents[2] / "securefed" / "demo.toml"
    config = load_config(source)
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"dtype": asked.dtype}),
            "data": config.data.model_copy(update={"window_tokens": asked.tokens}),
            "lora": config.lora.model_copy(
                update={"rank": asked.rank, "target_modules": ["q_proj", "v_proj"]}
            ),
        }
    )
    bench = Workbench(config, cache=cache_dir(), offline=True, observer=Silent())
    settings = Settings(config, sizes=bench.sizes, dimension=bench.dimension)
    bench.begin_round(1)
    task = config.model.task
    gradients = PerExampleGradients(
        bench.model, bench.parts.trained, task=task, micro_batch=asked.at[0], device=bench.device
    )

    def run(count: int) -> object:
        return list(gradients.at_a_time(count).micro_batches(made_up(count, asked.tokens, None)))

    memory = step_memory(run, bench.model, travelling=bench.dimension, most=max(asked.at[0], 2))
    if asked.limit:
        gradients = gradients.at_a_time(memory.most(asked.at[0], int(asked.limit)))
    foreseen = gradients.micro_batch
    examples = bench.clients[NAME].train
    with bench.parts.away_from_zero():
        note = gradients.check(examples.take(np.arange(3))) if asked.check else None
        generator = NoiseGenerator.from_key(bytes(32))
        sample = examples.take(np.arange(asked.examples))
        started = time.perf_counter()
        policy = settings.sum_policy
        total = gradients.clipped_sum(sample, L2Clip(policy.clip_norm).clip_norm)
        seconds = time.perf_counter() - started
    codec = UpdateCodec(policy, settings.plan, bytes(32))
    integers = codec.encode_clipped_sum(total, generator)
    np.savez(asked.out, total=total, integers=integers, clip=policy.clip_norm)
    print(
        json.dumps(
            {
                "asked": asked.at[0],
                "used": gradients.micro_batch,
                "foreseen": memory.needed(foreseen),
                "held": memory.held,
                "peak": peak(),
                "seconds": seconds,
                "values": bench.dimension,
                "note": note,
            }
        )
    )


def child(
    *,
    at: int,
    out: Path,
    tokens: int = 128,
    rank: int = 8,
    dtype: str = "float32",
    examples: int = 16,
    limit: float = 0.0,
    hard: float = 0.0,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """One step in a process of its own; its last line of output is JSON."""
    command = [sys.executable, __file__, "--one", "--at", str(at), "--out", str(out)]
    given = {"tokens": tokens, "rank": rank, "dtype": dtype, "examples": examples}
    given |= {"limit": limit, "hard": hard}
    for name, value in given.items():
        command += [f"--{name}", str(value)]
    if check:
        command += ["--check"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--hard", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--at", type=int, nargs="+", default=[16, 8, 4, 1])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--limit", type=float, default=4e9)
    parser.add_argument("--check", action="store_true", help="compare bits first (slow)")
    asked = parser.parse_args()
    if asked.one:
        step(asked)
        return
    common = {name: getattr(asked, name) for name in ("tokens", "rank", "dtype", "examples")}
    print(f"{common}")
    heading = f"{'at a time':>10} {'limit':>8} {'used':>5} {'foreseen':>9} {'peak':>7}"
    print(f"{heading} {'seconds':>8} {'furthest':>9} {'norm':>9} integers that differ")
    rows = [(at, 0.0) for at in asked.at] + [(asked.at[0], asked.limit)]
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for number, (at, limit) in enumerate(rows):
            out = Path(folder) / f"{number}.npz"
            done = child(at=at, out=out, limit=limit, hard=limit, check=asked.check, **common)
            if done.returncode:
                print(f"{at:>10} {limit / 1e9:>8.1f} failed: {done.stderr.strip()[-300:]}")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            kept = np.load(out)
            first = kept if first is None else first
            apart = np.abs(kept["total"] - first["total"])
            differ = int((kept["integers"] != first["integers"]).sum())
            print(
                f"{at:>10} {limit / 1e9:>8.1f} {found['used']:>5} {found['foreseen'] / 2**30:>9.2f}"
                f" {found['peak'] / 2**30:>7.2f} {found['seconds']:>8.1f}"
                f" {apart.max() / float(kept['clip']):>9.1e}"
                f" {np.linalg.norm(apart) / float(kept['clip']):>9.1e}"
                f" {differ} of {len(kept['integers'])}",
                flush=True,
            )
            if found["note"]:
                print(f"    {found['note']}")


if __name__ == "__main__":
    main()
