"""A training step of the user's own cannot carry one client's data into another's update."""

import own_trainers
import pytest
import torch
from tiny import write_run

from securefed import Federation
from securefed.engines.workbench import Workbench
from securefed.errors import ConfigError
from securefed.evidence.budget import read_charges


def run_with(tmp_path, name: str, **training):
    path = write_run(
        tmp_path,
        privacy={"unit": "client", "mechanism": "distributed", "clip_norm": 1.0},
        training={"rounds": 2, "trainer": f"own_trainers:{name}"} | training,
    )
    return Federation.from_config(path).run(tmp_path / "out")


def test_each_client_and_round_has_a_trainer_of_its_own(tmp_path):
    own_trainers.Quiet.made.clear()
    assert run_with(tmp_path, "Quiet").rounds == 2
    called = [trainer.calls for trainer in own_trainers.Quiet.made if trainer.calls]
    assert sorted(called) == [[1]] * 6 + [[2]] * 6


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MovesFrozen", r"frozen tensor .*embed_tokens"),
        ("MovesBuffer", r"frozen tensor .*inv_freq"),
        ("LeavesTrainingMode", "was left in training mode"),
    ],
)
def test_a_trainer_that_leaves_more_than_its_update_is_refused_before_anything_is_sent(
    tmp_path, name, words
):
    with pytest.raises(ConfigError, match=rf"training\.trainer = 'own_trainers:{name}': .*{words}"):
        run_with(tmp_path, name)
    for account in (tmp_path / "out" / "clients").glob("*/budget.jsonl"):
        assert read_charges(account) == []


def test_no_client_finds_another_ones_gradient(tmp_path):
    assert run_with(tmp_path, "LeavesGradients").rounds == 2


def test_draws_in_training_leave_the_global_generator_alone(tmp_path, monkeypatch):
    delta, kept = Workbench._delta, []

    def checked(self, *args):
        before = torch.get_rng_state()
        found = delta(self, *args)
        kept.append(torch.equal(torch.get_rng_state(), before))
        return found

    monkeypatch.setattr(Workbench, "_delta", checked)
    own_trainers.DrawsGlobally.seen.clear()
    assert run_with(tmp_path, "DrawsGlobally", rounds=1).rounds == 1
    assert kept == [True] * 6
    assert len(set(own_trainers.DrawsGlobally.seen)) == 6
