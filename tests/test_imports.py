"""What is loaded when: an auditor needs no torch, and the import floors hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_run

from securefed import Federation

ROOT = Path(__file__).parents[1]
HEAVY = ["torch", "transformers", "peft", "opacus", "flwr", "tenseal"]

BLOCK = f"""
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
"""


def python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("imports")
    return Federation.from_config(write_run(base, training={"rounds": 1})).run(base / "out").folder


def test_importing_securefed_loads_nothing_heavy():
    program = """
import sys
import securefed
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    done = python(program)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "securefed" in loaded
    assert not loaded & {*HEAVY, "numpy", "scipy", "dp_accounting", "pydantic", "matplotlib"}


def test_the_command_line_answers_without_loading_torch_or_an_accountant():
    program = """
import sys
from securefed.cli import main
sys.argv = ["securefed", "--help"]
try:
    main()
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
    done = python(program)
    assert done.returncode == 0
    assert not set(done.stderr.split()) & {*HEAVY, "scipy", "dp_accounting"}


def test_an_auditor_runs_secure_rounds_and_verifies_a_run_without_torch(run_folder):
    program = (
        BLOCK
        + """
import importlib, pkgutil
from pathlib import Path

import securefed
import securefed.engines.verify
import securefed.evidence.ledger
import securefed.reports.picture
import securefed.secagg

packages = "crypto encoding privacy secagg evidence reports federation threats"
for package in packages.split():
    module = importlib.import_module(f"securefed.{package}")
    for found in pkgutil.walk_packages(module.__path__, module.__name__ + "."):
        if found.name not in (
            "securefed.federation.server_optimizer",
            "securefed.federation.server_step",
        ):
            importlib.import_module(found.name)

import numpy as np

result = securefed.secure_round(
    {f"site-{i}": np.full(8, 0.1) for i in range(4)},
    privacy=securefed.PrivacyPolicy(clip_norm=1.0, mechanism="none"),
    drop={"site-3": "masked_input"},
)
assert np.allclose(result.sum, 0.3, atol=1e-4), result.sum
verdict = securefed.engines.verify.verify_run(Path(sys.argv[1]))
assert verdict.finished
print(*verdict.lines, sep="\\n")

from securefed.engines.run_facts import judge_run
from securefed.engines.verify import verified_run
models, judgement = judge_run(Path(sys.argv[1]), verified_run(Path(sys.argv[1])))
assert len(judgement.findings) == sum(len(model.claims) for model in models) > 0

try:
    import torch
except ImportError:
    print("no torch")

from securefed.cli import main
sys.argv = ["securefed", "verify", sys.argv[1]]
main()
"""
    )
    done = python(program, run_folder)
    assert done.returncode == 0, done.stderr
    assert "no torch" in done.stdout
    assert done.stdout.count("epsilon against server: ") == 2


def test_a_run_without_torch_says_what_is_missing(run_folder):
    program = (
        BLOCK
        + """
from securefed.cli import main
sys.argv = ["securefed", "run", sys.argv[1]]
main()
"""
    )
    done = python(program, run_folder.parent / "run.toml")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "pip install -c constraints.txt -e '.[train]'" in done.stderr


def test_the_import_floors_hold():
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
    assert "9 kept" in done.stdout
