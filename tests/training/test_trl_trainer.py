"""trl's SFTTrainer as a client's trainer: what it computes, and what it leaves behind."""

import gc

import numpy as np
import pytest
from foreign_trainers import RATE, Adapted, section, what_is_written, windows
from huggingface_hub.utils import _telemetry
from peft import LoraConfig
from tiny import write_model, write_run
from trl import SFTConfig, SFTTrainer

from securefed import Federation
from securefed.errors import ConfigError
from securefed.training.examples import Examples
from securefed.training.lent import lent, process_as_it_was
from securefed.training.trl_trainer import SftTrainer

pytestmark = pytest.mark.slow


class Plain(SftTrainer):
    """Steps of plain SGD, which can be calculated."""

    def arguments(self):
        return {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


class Everything(SftTrainer):
    """What hangs most on a model."""

    def arguments(self):
        return {
            "bf16": True,
            "gradient_checkpointing": True,
            "neftune_noise_alpha": 5.0,
            "loss_type": "dft",
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
    return Adapted(write_model(tmp_path_factory.mktemp("trl") / "model"))


@pytest.mark.parametrize("micro_batch", [8, 3])
@pytest.mark.parametrize("targets", [False, True], ids=["windows", "conversations"])
def test_a_step_is_the_gradient_of_the_mean_over_tokens_that_count(adapted, targets, micro_batch):
    data = windows(targets=targets)
    trainer = Plain(section(local_steps=1, batch_size=8, micro_batch=micro_batch))
    wanted = -RATE * adapted.gradient(data)
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(adapted.change(trainer, data), wanted, atol=1e-7)


@pytest.mark.parametrize("kind", [SftTrainer, Everything])
def test_one_client_s_training_leaves_no_trace_in_another_s(adapted, kind):
    second = windows(seed=2)
    alone = adapted.change(SftTrainer(section()), second)
    assert np.abs(alone).max() > 0.0
    for first in (windows(seed=3, targets=True), windows(count=3, seed=4)):
        adapted.change(kind(section(local_steps=3)), first)
        assert np.array_equal(adapted.change(SftTrainer(section()), second), alone)


def test_nothing_is_written_printed_or_sent(adapted, tmp_path, monkeypatch, capfd):
    """Reports of use are sent by a thread, from a queue: it stays empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(_telemetry, "_start_telemetry_thread", lambda: None)
    queue = _telemetry._TELEMETRY_QUEUE
    adapted.change(SftTrainer(section()), windows())  # what is imported late
    assert queue.empty()
    capfd.readouterr()
    with what_is_written() as seen:
        adapted.change(SftTrainer(section()), windows())
    assert seen == []
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert queue.empty()
    with lent(adapted.model):
        args = SFTConfig(output_dir=str(tmp_path / "theirs"), use_cpu=True, bf16=False)
        SFTTrainer(adapted.model, args, **SftTrainer(section()).parts(windows()))
    assert queue.get_nowait()["topic"] == "trl/SFTTrainer"
    assert (tmp_path / "theirs").is_dir()


def test_without_lending_the_model_would_come_back_changed(adapted):
    class Bare(SftTrainer):
        def train(self, model, data, round):
            with process_as_it_was():
                args = self._settings(next(model.parameters()).device, round)
                SFTTrainer(model, args, **self.parts(data)).train()

    with lent(adapted.model), pytest.raises(ConfigError, match=r"Bare: .* was changed"):
        adapted.change(Bare(section()), windows())
    adapted.__init__(adapted.folder)


def test_the_tokenizer_that_trl_is_given_knows_no_text(adapted):
    tokenizer = SftTrainer(section()).parts(windows())["processing_class"]
    assert set(tokenizer("any text at all")["input_ids"]) <= {0}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"completion_only_loss": True}, "is set by data.completion_only in the run file"),
        ({"assistant_only_loss": True}, "is set by data.completion_only in the run file"),
        ({"max_length": 8}, "is set by data.window_tokens in the run file"),
        ({"packing": True}, "texts are cut into windows already"),
        ({"chat_template_path": "x"}, "is not for a client's training"),
        ({"dataset_kwargs": {}}, "is not for a client's training"),
    ],
)
def test_other_ways_to_read_the_texts_are_refused(settings, said):
    kind = type("Mine", (SftTrainer,), {"arguments": lambda self: settings})
    with pytest.raises(ConfigError) as raised:
        kind(section())
    assert said in str(raised.value)


def test_another_adapter_is_refused(adapted):
    class Second(SftTrainer):
        def build(self, **given):
            return super().build(**given, peft_config=LoraConfig(target_modules=["q_proj"]))

    with pytest.raises(ConfigError, match=r"Second\.build: .*PeftModel"):
        Second(section()).train(adapted.model, windows(), 1)


def test_classes_are_refused(adapted):
    data = windows()
    labelled = Examples(data.input_ids, data.attention_mask, np.zeros(len(data), dtype=np.int64))
    with pytest.raises(ConfigError, match="hf_trainer:HfTrainer to classify"):
        SftTrainer(section()).train(adapted.model, labelled, 1)


def test_a_run_trains_with_it(tmp_path):
    path = write_run(
        tmp_path,
        data={"clients": ["site-0", "site-1", "site-2"]},
        privacy={"unit": "client", "expected_batch": None, "clip_norm": 1.0},
        training={"rounds": 1, "trainer": "securefed.training.trl_trainer:SftTrainer"},
    )
    assert Federation.from_config(path).run(tmp_path / "out").rounds == 1
