"""transformers' Trainer as a client's trainer: what it computes, and what it leaves behind."""

import gc
import os

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from foreign_trainers import RATE, Adapted, section, what_is_written, windows
from tiny import write_bert, write_model, write_run
from transformers import (
    AutoModelForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from securefed import Federation
from securefed.config import RunConfig, load_config
from securefed.engines.events import Silent
from securefed.engines.verify import verify_run
from securefed.engines.workbench import Workbench
from securefed.errors import ConfigError, DataError
from securefed.training.examples import Examples
from securefed.training.hf_trainer import HfTrainer
from securefed.training.lent import lent, process_as_it_was
from securefed.training.untouched import Untouched

NAMED = "securefed.training.hf_trainer:HfTrainer"


class Plain(HfTrainer):
    """Steps of plain SGD, which can be calculated."""

    def arguments(self):
        return {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


class Everything(HfTrainer):
    """What hangs most on a model."""

    def arguments(self):
        return {
            "bf16": True,
            "activation_checkpointing": True,
            "neftune_noise_alpha": 5.0,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 1,
            "weight_decay": 0.1,
            "label_smoothing_factor": 0.1,
        }


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Trainer collects garbage at each end: not over all that other tests have loaded."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> Adapted:
    return Adapted(write_model(tmp_path_factory.mktemp("hf") / "model"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Adapted:
    found = Adapted(
        write_bert(tmp_path_factory.mktemp("bert"), layers=1), "sequence-classification"
    )
    for module in found.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found.guard = Untouched(found.model)
    return found


def labelled(count=6) -> Examples:
    ids = windows(count).input_ids
    mask = np.ones_like(ids)
    mask[::2, 5:] = 0
    return Examples(ids, mask, np.arange(count) % 2)


@pytest.mark.parametrize("micro_batch", [8, 3])
@pytest.mark.parametrize("targets", [False, True], ids=["windows", "conversations"])
def test_a_step_is_the_gradient_of_the_mean_over_tokens_that_count(adapted, targets, micro_batch):
    data = windows(targets=targets)
    trainer = Plain(section(local_steps=1, batch_size=8, micro_batch=micro_batch))
    wanted = -RATE * adapted.gradient(data)
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(adapted.change(trainer, data), wanted, atol=1e-7)


@pytest.mark.parametrize("micro_batch", [6, 2])
def test_a_step_on_records_is_the_gradient_of_the_mean_over_them(classifier, micro_batch):
    data = labelled()
    trainer = Plain(section(local_steps=1, batch_size=6, micro_batch=micro_batch))
    wanted = -RATE * classifier.gradient(data)
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(classifier.change(trainer, data), wanted, atol=1e-7)


def test_a_loss_of_ones_own_is_divided_by_nothing_more(classifier):
    """It is told how many examples a step has, and divides by that itself."""

    class Own(Plain):
        def build(self, **given):
            def loss(found, labels, num_items_in_batch):
                return torch.nn.functional.cross_entropy(
                    found.logits, labels, reduction="sum"
                ) / num_items_in_batch  # fmt: skip

            return Trainer(**given, compute_loss_func=loss)

    data = labelled()
    trainer = Own(section(local_steps=1, batch_size=6, micro_batch=2))
    wanted = -RATE * classifier.gradient(data)
    np.testing.assert_allclose(classifier.change(trainer, data), wanted, atol=1e-7)


def test_dropout_is_on_and_follows_the_seed(classifier):
    dropouts = [m for m in classifier.model.modules() if isinstance(m, torch.nn.Dropout)]
    data, trainer = labelled(), Plain(section(local_steps=1, batch_size=6, micro_batch=6))
    without = classifier.change(trainer, data, round=3)
    for module in dropouts:
        module.p = 0.5
    classifier.guard = Untouched(classifier.model)
    try:
        first, again = (classifier.change(trainer, data, round=3) for _ in range(2))
    finally:
        for module in dropouts:
            module.p = 0.0
        classifier.guard = Untouched(classifier.model)
    assert np.array_equal(first, again)
    assert not np.allclose(first, without)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_the_number_of_steps_is_the_run_file_s_whatever_a_client_holds(adapted, count):
    built = []

    class Counted(HfTrainer):
        def build(self, **given):
            built.append(super().build(**given))
            return built[-1]

    trainer = Counted(section(local_steps=3, batch_size=4, micro_batch=2))
    assert np.abs(adapted.change(trainer, windows(count=count))).max() > 0.0
    assert built[0].state.global_step == 3


@pytest.mark.parametrize("kind", [HfTrainer, Everything])
def test_one_client_s_training_leaves_no_trace_in_another_s(adapted, kind):
    """What the first one holds, and how it is trained, decides no bit of the second one's."""
    second = windows(seed=2)
    alone = adapted.change(HfTrainer(section()), second)
    assert np.abs(alone).max() > 0.0
    for first in (windows(seed=3), windows(count=3, seed=4)):
        adapted.change(kind(section(local_steps=3)), first)
        assert np.array_equal(adapted.change(HfTrainer(section()), second), alone)


def test_without_lending_the_model_would_come_back_changed(adapted, tmp_path):
    class Bare:
        def train(self, model, data, round):
            args = TrainingArguments(
                output_dir=str(tmp_path), use_cpu=True, max_steps=1, report_to="none",
                save_strategy="no", remove_unused_columns=False, disable_tqdm=True, bf16=True,
            )  # fmt: skip
            with process_as_it_was():
                Trainer(model, args, **HfTrainer(section()).parts(data)).train()

    class Lent(Bare):
        def train(self, model, data, round):
            with lent(model):
                super().train(model, data, round)

    adapted.change(Lent(), windows())
    with lent(adapted.model), pytest.raises(ConfigError, match=r"Bare: .* was changed"):
        adapted.change(Bare(), windows())
    adapted.parts.load_flat(adapted.made)
    adapted.guard = Untouched(adapted.model)


def test_the_state_of_the_process_is_put_back(adapted, monkeypatch):
    with process_as_it_was():  # so that this test leaves nothing either
        Accelerator(cpu=True, mixed_precision="bf16")
        states = [dict(s._shared_state) for s in (PartialState, AcceleratorState, GradientState)]
        assert states[1]["_mixed_precision"] == "bf16"
        logging.set_verbosity_info()
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        environment = dict(os.environ)
        adapted.change(Everything(section()), windows())
        found = [dict(s._shared_state) for s in (PartialState, AcceleratorState, GradientState)]
        assert found == states
        assert logging.get_verbosity() == logging.INFO
        assert dict(os.environ) == environment


def test_nothing_is_written_printed_or_sent(adapted, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    adapted.change(HfTrainer(section()), windows())  # what is imported late
    capfd.readouterr()
    with what_is_written() as seen:
        adapted.change(HfTrainer(section()), windows())
    assert seen == []
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    with what_is_written() as seen, lent(adapted.model), process_as_it_was():
        args = TrainingArguments(use_cpu=True, max_steps=1, remove_unused_columns=False)
        Trainer(adapted.model, args, **HfTrainer(section()).parts(windows())).train()
    adapted.parts.load_flat(adapted.made)
    assert any("checkpoint-1" in path for path in seen)
    assert "train_loss" in "".join(capfd.readouterr())


def test_a_reporter_that_the_environment_asks_for_is_not_taken(adapted, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "http://127.0.0.1:9")
    asked = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none").report_to
    assert asked == ["kubeflow"]
    built = []

    class Kept(HfTrainer):
        def build(self, **given):
            built.append(super().build(**given))
            return built[-1]

    adapted.change(Kept(section(local_steps=1)), windows())
    names = [type(each).__name__ for each in built[0].callback_handler.callbacks]
    assert names
    assert not any("Kubeflow" in name for name in names)


def given(**settings):
    return type("Mine", (HfTrainer,), {"arguments": lambda self: settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"save_steps": 5}, "nothing of a client's training is written to disk"),
        ({"output_dir": "x"}, "nothing of a client's training is written to disk"),
        ({"report_to": "wandb"}, "a client's losses are its own"),
        ({"push_to_hub": True}, "nothing of a client's training leaves the process"),
        ({"eval_strategy": "steps"}, "held-out figures are measured by the run"),
        ({"fp16": True}, "use bf16"),
        ({"learning_rate": 1e-3}, "is set by training.local_learning_rate in the run file"),
        ({"num_train_epochs": 2}, "is set by training.local_steps in the run file"),
        ({"deepspeed": "x.json"}, "allowed: activation_checkpointing, "),
    ],
)
def test_settings_that_reach_out_of_a_call_are_refused_when_the_trainer_is_made(settings, said):
    with pytest.raises(ConfigError) as raised:
        given(**settings)(section())
    assert str(raised.value).startswith(f"Mine.arguments: {next(iter(settings))!r} is")
    assert said in str(raised.value)


def test_settings_that_change_after_the_trainer_was_made_are_refused_too(adapted, tmp_path):
    class Later(HfTrainer):
        def arguments(self):
            return getattr(self, "later", {})

    trainer = Later(section())
    trainer.later = {"logging_dir": str(tmp_path)}
    with pytest.raises(ConfigError, match="'logging_dir' is not for a client's training"):
        trainer.train(adapted.model, windows(), 1)


def test_a_device_that_the_library_would_not_train_on_is_refused():
    with pytest.raises(ConfigError, match=r"training\.device: the model is on cuda:1"):
        HfTrainer(section())._settings(torch.device("cuda", 1), 1)


def test_what_the_library_refuses_is_said_in_its_words(adapted):
    with pytest.raises(ConfigError, match=r"Mine\.arguments: adamx is not a valid"):
        given(optim="adamx")(section()).train(adapted.model, windows(), 1)


def test_a_trainer_of_another_model_is_refused(adapted, tmp_path):
    class Other(HfTrainer):
        def build(self, **given):
            given["model"] = AutoModelForCausalLM.from_pretrained(write_model(tmp_path / "other"))
            return super().build(**given)

    class OtherArguments(HfTrainer):
        def build(self, **given):
            given["args"] = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
            return super().build(**given)

    class Nothing(HfTrainer):
        def build(self, **given):
            return "trained"

    with pytest.raises(ConfigError, match=r"Other\.build: the trainer has another model"):
        Other(section()).train(adapted.model, windows(), 1)
    with pytest.raises(ConfigError, match=r"or other arguments, than it was given"):
        OtherArguments(section()).train(adapted.model, windows(), 1)
    with pytest.raises(ConfigError, match=r"Nothing\.build: gave a str"):
        Nothing(section()).train(adapted.model, windows(), 1)
    with pytest.raises(DataError, match="no example"):
        HfTrainer(section()).train(adapted.model, windows(count=0), 1)


@pytest.mark.parametrize("privacy", [{"unit": "example"}, {"unit": "user", "mechanism": "local"}])
def test_it_is_refused_where_single_examples_or_users_are_protected(privacy):
    with pytest.raises(ValueError, match=r"training\.trainer") as raised:
        RunConfig.model_validate({"training": {"trainer": NAMED}, "privacy": privacy})
    said = str(raised.value)
    assert f"training.trainer = {NAMED!r} cannot be used with privacy.unit = " in said
    assert "only the client's whole update can be clipped" in said
    assert "use privacy.unit = 'client'" in said


def a_run(folder, **training):
    return write_run(
        folder,
        data={"clients": ["site-0", "site-1", "site-2"]},
        privacy={"unit": "client", "expected_batch": None, "clip_norm": 1.0},
        training={"rounds": 1, "trainer": NAMED, "local_steps": 1, "batch_size": 8} | training,
    )


def test_a_client_s_texts_decide_no_bit_of_the_next_client_s_update(tmp_path):
    found = []
    for number, words in enumerate((640, 64)):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = load_config(a_run(folder))
        if number:
            changed = folder / "data" / "site-0.txt"
            changed.write_text(" ".join(f"w{(7 * n) % 50}" for n in range(words * 3)))
        bench = Workbench(config, cache=folder, offline=True, observer=Silent())
        bench.begin_round(1)
        settings = Federation(config, cache=folder, offline=True)._settings(bench)
        found.append(
            [bench._delta(name, settings, bench.clients[name].train, 1) for name in
             ("site-0", "site-1")]
        )  # fmt: skip
    assert not np.array_equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])
    assert np.abs(found[0][1]).max() > 0.0


def test_a_run_trains_with_it_and_verifies(tmp_path):
    result = Federation.from_config(a_run(tmp_path, rounds=1)).run(tmp_path / "out")
    assert result.rounds == 1
    assert result.guarantees["server"].unit == "one client's whole contribution"
    assert verify_run(tmp_path / "out").finished
