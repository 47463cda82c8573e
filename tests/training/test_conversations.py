"""Conversations as examples, the loss of completions alone, and weights of classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import WORDS, write_bert, write_model, write_run
from transformers import AutoTokenizer

from securefed import Federation
from securefed.auditing.from_config import AuditedRun
from securefed.config import DataSection, LoraSection, ModelSection, parse_config
from securefed.engines.verify import verify_run
from securefed.errors import ConfigError, DataError
from securefed.lora.adapter import build_adapter
from securefed.lora.parts import AdapterParts
from securefed.training.conversations import conversation_tokens
from securefed.training.corpora import Corpus
from securefed.training.data import Examples, tokenize_clients
from securefed.training.dp_sgd import PerExampleGradients
from securefed.training.folder import read_folder
from securefed.training.models import load_model
from securefed.training.records import Document, Message, document_of

CPU = torch.device("cpu")
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}"
    "<unk> {{ m['role'] }} {{ m['content'] }} <eos> "
    "{% endfor %}{% if add_generation_prompt %}<unk> assistant {% endif %}"
)
FORGETFUL = "{% for m in messages %}{% if loop.last %}w1 {% endif %}{{ m['content'] }} {% endfor %}"
TALK = [
    {"role": "user", "content": "w1 w2 w3"},
    {"role": "assistant", "content": "w4 w5"},
    {"role": "user", "content": "w6"},
    {"role": "assistant", "content": "w7"},
]


def chat_model(folder: Path, template: str | None = TEMPLATE) -> Path:
    write_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return chat_model(tmp_path_factory.mktemp("chat") / "model")


def talk(messages=TALK) -> Document:
    section = DataSection(messages_field="messages")
    return document_of({"messages": messages}, where="a:1", key="a:1", section=section, labels=None)


def section(**values) -> DataSection:
    return DataSection(messages_field="messages", completion_only=True, **values)


def write_talks(folder: Path, clients: int = 4, talks: int = 20) -> Path:
    folder.mkdir(parents=True)
    for client in range(clients):
        rng = np.random.default_rng(client)
        lines = []
        for _ in range(talks):
            first, second = rng.choice(WORDS, 2)
            said = [
                {"role": "user", "content": f"{first} {second}"},
                {"role": "assistant", "content": f"{second} {first}"},
            ]
            lines.append(json.dumps({"messages": said}))
        (folder / f"site-{client}.jsonl").write_text("\n".join(lines))
    return folder


# -- what counts ---------------------------------------------------------------------------


def test_only_what_the_assistant_says_counts(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids, counted = conversation_tokens("c", talk(), tokenizer, section())
    words = tokenizer.convert_ids_to_tokens(ids)
    assert [w for w, c in zip(words, counted, strict=True) if c] == [
        "w4",
        "w5",
        "<eos>",
        "w7",
        "<eos>",
    ]
    ids, counted = conversation_tokens("c", talk(), tokenizer, DataSection(messages_field="m"))
    assert all(counted)
    assert len(ids) == 4 * 3 + 7  # mark, role and end around seven words


def test_an_example_of_the_cohort_is_a_conversation_and_those_without_a_target_are_lost(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    late = [{"role": "user", "content": "w1 " * 20}, {"role": "assistant", "content": "w2"}]
    talks = [Document("x", None, f"a:{n}", None, None, talk().messages) for n in range(8)]
    long = tuple(Message(**message) for message in late)
    talks.append(Document("x", None, "a:late", None, None, long))
    corpus = Corpus("mine", {"c": talks}, [], ("c",), "", False)
    found = tokenize_clients(
        corpus,
        section(window_tokens=12),
        tokenizer=tokenizer,
        task="causal-lm",
        labels=None,
        held_out_windows=4,
        held_out_tokens=12,
    )["c"]
    assert found.train.input_ids.shape == (7, 12)
    assert len(found.held_out) == 1
    assert (found.documents, found.lost) == (8, 1)
    assert found.train.targets.sum() == 7 * 3  # w4 w5 <eos>; the second answer is cut off


@pytest.mark.parametrize(
    ("messages", "template", "error", "said"),
    [
        (TALK, None, ConfigError, "has no chat template"),
        (TALK, FORGETFUL, DataError, "writes earlier messages otherwise"),
        ([*TALK, {"role": "system", "content": "w1"}], TEMPLATE, DataError, "refuses the conv"),
    ],
)
def test_a_template_that_cannot_be_used_is_named_and_nothing_of_what_was_said(
    tmp_path, messages, template, error, said
):
    tokenizer = AutoTokenizer.from_pretrained(chat_model(tmp_path / "model", template))
    with pytest.raises(error, match=said) as raised:
        conversation_tokens("c", talk(messages), tokenizer, section())
    assert "w1" not in str(raised.value).replace(str(tmp_path), "")  # a worker may be gw1


@pytest.mark.parametrize(
    "messages",
    [
        "w1",
        [],
        [{"role": "user"}],
        [{"role": "user", "content": " "}],
        [{"role": 3, "content": "w1"}],
        ["w1"],
    ],
)
def test_what_is_no_conversation_is_refused_by_its_place(tmp_path, messages):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    with pytest.raises(DataError, match=r"a.jsonl:1: field 'messages' must be a list") as raised:
        read_folder(tmp_path, section=DataSection(messages_field="messages"))
    assert "w1" not in str(raised.value).replace(str(tmp_path), "")  # a worker may be gw1


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"data": {"completion_only": True}}, "completion_only = true without messages_field"),
        (
            {
                "data": {"messages_field": "m"},
                "model": {"task": "sequence-classification", "labels": 2},
            },
            "conversations are for 'causal-lm'",
        ),
        ({"training": {"class_weights": [1.0, 2.0]}}, "one for each class of a classifier"),
        (
            {
                "training": {"class_weights": [1.0, 2.0, 3.0]},
                "model": {"task": "sequence-classification", "labels": 2},
            },
            "has 3 weights with model.labels = 2",
        ),
        (
            {"training": {"class_weights": [1.0, 0.0]}},
            r"class_weights\[1\] = 0.0: must be a number > 0",
        ),
    ],
)
def test_settings_without_effect_or_sense_are_refused(sections, said):
    with pytest.raises(ConfigError, match=said):
        parse_config(sections)


# -- gradients -----------------------------------------------------------------------------


def gradients(model: Path, task="causal-lm", labels=None, micro_batch=4, **lora):
    source = ModelSection(source=str(model), task=task, labels=labels)
    base = load_model(source, cache=model, offline=True, device=CPU)
    adapted = build_adapter(base.model, LoraSection(rank=2, **lora), task=task)
    parts = AdapterParts(adapted, "ffa")
    parts.begin(1)
    made = PerExampleGradients(
        adapted, parts.layout, task=task, micro_batch=micro_batch, device=CPU
    )
    return adapted, parts, made


def conversations(count=6, width=12, seed=0) -> Examples:
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, 60, (count, width))
    mask, targets = np.ones_like(ids), np.zeros_like(ids)
    for row in range(count):
        mask[row, width - row :] = 0
        targets[row, 3:6] = 1
    return Examples(ids, mask, None, None, targets)


def test_a_completions_gradient_is_that_of_its_own_tokens_loss_alone(model):
    adapted, parts, made = gradients(model)
    examples = conversations()
    assert made.check(examples) is None or made.micro_batch < 4
    rows = np.concatenate(list(made.flat_rows(examples)))
    parameters = dict(adapted.named_parameters())
    for row in (0, 3):
        ids = torch.from_numpy(examples.input_ids[row : row + 1])
        kept = int(examples.attention_mask[row].sum())
        logits = adapted(input_ids=ids[:, :kept]).logits[0, 2:5]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 3:6])
        expected = torch.autograd.grad(loss, [parameters[name] for name in parts.layout.names])
        flat = torch.cat([g.flatten() for g in expected]).numpy()
        np.testing.assert_allclose(rows[row][: len(flat)], flat, rtol=1e-4, atol=1e-6)


def test_what_stands_outside_the_completion_changes_only_its_own_examples_gradient(model):
    _, _, made = gradients(model)
    examples = conversations()
    before = np.concatenate(list(made.flat_rows(examples)))
    ids = examples.input_ids.copy()
    ids[2] = (ids[2] + 7) % 58 + 2
    targets = examples.targets.copy()
    targets[2] = 1
    other = Examples(ids, examples.attention_mask, None, None, targets)
    after = np.concatenate(list(made.flat_rows(other)))
    changed = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [False, False, True, False, False, False]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert") / "model", layers=1)


def labelled(count=6) -> Examples:
    ids = np.random.default_rng(0).integers(2, 60, (count, 8))
    return Examples(ids, np.ones_like(ids), np.arange(count, dtype=np.int64) % 2)


def test_a_class_weight_scales_a_gradient_and_the_clip_bounds_it_as_before(bert):
    lora = {"target_modules": ["value"], "modules_to_save": ["classifier"]}
    _, _, made = gradients(bert, "sequence-classification", 2, **lora)
    plain = labelled()
    weighed = plain.weighed([1.0, 1000.0])
    before = np.concatenate(list(made.flat_rows(plain)))
    after = np.concatenate(list(made.flat_rows(weighed)))
    np.testing.assert_array_equal(after[::2], before[::2])
    np.testing.assert_allclose(after[1::2], 1000.0 * before[1::2], rtol=1e-4)
    made.check(weighed)
    # One example, whatever its weight, moves the sum by no more than the clip.
    clip = 0.1
    whole = made.clipped_sum(weighed, clip)
    for row in range(len(weighed)):
        rest = made.clipped_sum(weighed.take([r for r in range(6) if r != row]), clip)
        assert np.linalg.norm(whole - rest) <= clip * (1 + 1e-6)


# -- whole runs ----------------------------------------------------------------------------


def test_a_run_on_conversations_learns_the_answers_and_states_its_unit(tmp_path):
    path = write_run(
        tmp_path,
        data={
            "source": str(write_talks(tmp_path / "talks")),
            "messages_field": "messages",
            "completion_only": True,
            "window_tokens": 12,
        },
        training={"rounds": 2},
        privacy={"expected_batch": 30},
    )
    chat_model(tmp_path / "model")
    result = Federation.from_config(path).run(tmp_path / "out")
    assert result.guarantees["server"].unit.startswith(
        "one example: one conversation, cut off at 12"
    )
    assert result.after.perplexity != result.before.perplexity
    assert verify_run(tmp_path / "out").finished


@pytest.mark.slow
def test_a_run_with_class_weights_counts_them_in_its_loss_and_not_in_its_epsilon(tmp_path):
    folder = tmp_path / "mails"
    folder.mkdir()
    for client in range(4):
        rows = [{"text": f"w{n} w{n + client}", "label": n % 2} for n in range(20)]
        (folder / f"site-{client}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    results = []
    for weights in ([1.0, 1.0], [1.0, 8.0]):
        path = write_run(
            tmp_path,
            model={"task": "sequence-classification", "labels": 2},
            data={"source": str(folder), "window_tokens": 8},
            lora={"target_modules": ["value"], "modules_to_save": ["classifier"]},
            training={"rounds": 1, "class_weights": weights},
            privacy={"expected_batch": 30},
        )
        write_bert(tmp_path / "model", layers=1)
        results.append(Federation.from_config(path).run(tmp_path / f"out-{weights[1]:g}"))
    first, second = results
    assert first.guarantees == second.guarantees


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"messages_field": "m"}},
        {
            "model": {"task": "sequence-classification", "labels": 2},
            "training": {"class_weights": [1.0, 2.0]},
        },
    ],
    ids=["conversations", "weights"],
)
def test_an_audit_refuses_examples_whose_loss_it_would_not_reproduce(sections):
    with pytest.raises(ConfigError, match="cannot be audited from its file yet"):
        AuditedRun.load(parse_config(sections), offline=True)
