"""Tiny runs of whole clients' updates, some of them stopped in the middle and resumed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tiny import write_run

from securefed import Federation
from securefed.engines.run import Run
from securefed.engines.verify import verify_run

UNPROTECTED = {"unit": "client", "mechanism": "none", "update_clip_norm": 10.0}
# What stochastic rounding (1e-7) may grow to through local Adam; data and order are the same.
ROUNDING = 1e-4


def write(folder: Path, training: dict, **sections: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    training = {
        "rounds": 4,
        "local_steps": 3,
        "local_learning_rate": 0.02,
        "server_optimizer": "sgd",
        "server_learning_rate": 1.0,
    } | training
    return write_run(folder, training=training, **({"privacy": UNPROTECTED} | sections))


def final(run_folder: Path, rounds: int = 4) -> np.ndarray:
    state = load_file(run_folder / "checkpoints" / f"round-{rounds}" / "state.safetensors")
    return state["parameters"].numpy()


def stopped_in_round_three_and_resumed(path: Path, out: Path, monkeypatch) -> None:
    opened = Run._round

    def stops(self, ledger, number):
        if number == 3:
            raise KeyboardInterrupt
        opened(self, ledger, number)

    monkeypatch.setattr(Run, "_round", stops)
    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(path).run(out)
    monkeypatch.setattr(Run, "_round", opened)
    assert Federation.from_config(path).run(out, resume=True).rounds == 4


def check_resumes_exactly(
    tmp_path: Path,
    training: dict,
    forgets: list[tuple[type, str, Callable]],
    monkeypatch,
    **sections: dict,
) -> None:
    """A run that was stopped ends where one that was not does; without its state it would not.

    Args:
        tmp_path: a folder.
        training: of the run file.
        forgets: owner, name and another form of a method, with which a run resumes without one
            part of its state.
        monkeypatch: of the test.
        sections: other sections of the run file.
    """
    path = write(tmp_path, training, **sections)
    Federation.from_config(path).run(tmp_path / "whole")
    stopped_in_round_three_and_resumed(path, tmp_path / "resumed", monkeypatch)
    whole = final(tmp_path / "whole")
    np.testing.assert_allclose(final(tmp_path / "resumed"), whole, atol=ROUNDING)
    assert verify_run(tmp_path / "resumed").finished
    for place, (owner, name, bare) in enumerate(forgets):
        out = tmp_path / f"forgotten-{place}"
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, bare)
            stopped_in_round_three_and_resumed(path, out, monkeypatch)
        assert np.abs(final(out) - whole).max() > 20 * ROUNDING
