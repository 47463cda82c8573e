"""Data sets of the library `datasets` as clients: what is read of them, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from tiny import write_bert, write_model
from transformers import AutoTokenizer

from securefed import Federation, evaluate_run
from securefed.config import DataSection
from securefed.engines.from_objects import corpus_from
from securefed.errors import ConfigError, DataError
from securefed.training.folder import read_folder

ROOT = Path(__file__).parents[2]
TEXTS = [f"w{n} w{n + 1} w{n + 2}" for n in range(6)]
TALK = [[{"role": "user", "content": t}, {"role": "assistant", "content": "w1"}] for t in TEXTS]


def a_dataset() -> Dataset:
    found = Dataset.from_dict(
        {"text": TEXTS, "talk": TALK, "mood": [0, 1] * 3, "who": list("aabbcc")}
    )
    return found.cast_column("mood", ClassLabel(names=["low", "high"]))


@pytest.mark.parametrize(
    ("given", "settings", "labels"),
    [
        (a_dataset, {}, None),
        (lambda: a_dataset()["text"], {}, None),
        (lambda: a_dataset().to_iterable_dataset(), {}, None),
        (a_dataset, {"label_field": "mood", "user_field": "who"}, 2),
        (lambda: a_dataset().with_format("numpy"), {"label_field": "mood"}, 2),
        (lambda: a_dataset().to_pandas().drop(columns="talk").to_dict("records"), {}, None),
        (a_dataset, {"messages_field": "talk"}, None),
    ],
    ids=["records", "column", "stream", "labels", "numpy", "pandas records", "messages"],
)
def test_a_data_set_gives_the_documents_that_its_lines_in_a_file_give(
    given, settings, labels, tmp_path
):
    section = DataSection(**settings)
    lines = [json.dumps(row) for row in a_dataset()]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    wanted = read_folder(tmp_path, section=section, labels=labels)["a"]
    found = corpus_from({"a": given()}, section, labels).clients["a"]

    def content(documents):
        return [(d.text, d.label, d.user, d.messages) for d in documents]

    assert content(found) == content(wanted)
    assert len(found) == 6


@pytest.mark.parametrize(
    ("clients", "said"),
    [
        (lambda: DatasetDict(train=a_dataset(), test=a_dataset()), "parts are splits and not"),
        (lambda: {"a": DatasetDict(train=a_dataset())}, "one split of a DatasetDict"),
        (lambda: {"a": pd.DataFrame({"text": TEXTS})}, "give frame.to_dict('records')"),
        (lambda: {"a": pd.Series(TEXTS)}, "is a Series of pandas"),
        (lambda: {"a": np.array([[1.0, 2.0]])}, "is a ndarray; it must be a text"),
        (lambda: {"a": Dataset.from_dict({"body": TEXTS})}, "there are 'body'"),
    ],
    ids=["splits as clients", "splits in a client", "frame", "series", "array", "column"],
)
def test_what_gives_no_records_is_refused_and_said_how_it_does(clients, said):
    with pytest.raises(DataError) as raised:
        Federation(clients=clients())
    assert said in str(raised.value)


def test_one_data_set_alone_is_one_client():
    with pytest.raises(ConfigError, match=r"is a Dataset; it must be a mapping.*clients=\{'a'"):
        Federation(clients=a_dataset())


TEMPLATE = "{% for m in messages %}{{ m['content'] + ' w9 ' }}{% endfor %}"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text", "messages", "labels"])
def test_a_federation_of_data_sets_trains_and_is_measured(task, tmp_path):
    data, model = {"window_tokens": 8}, {"source": str(tmp_path / "model")}
    lora = {"rank": 2, "target_modules": ["v_proj"]}
    if task == "labels":
        write_bert(tmp_path / "model", layers=1)
        data["label_field"] = "mood"
        model |= {"task": "sequence-classification", "labels": 2}
        lora = {"rank": 2, "target_modules": ["value"], "modules_to_save": ["classifier"]}
    else:
        write_model(tmp_path / "model")
    if task == "messages":
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(tmp_path / "model")
        data |= {"messages_field": "talk", "completion_only": True}

    def clients():
        long = " ".join(TEXTS * 2)
        rows = Dataset.from_dict({"text": [long] * 6, "talk": TALK, "mood": [0, 1, 0, 1, 0, 1]})
        return {name: rows for name in ("a", "b", "c")}

    federation = Federation(
        model=model,
        clients=clients(),
        data=data,
        lora=lora,
        training={"rounds": 1, "device": "cpu", "threads": 1},
        privacy={"expected_batch": 8, "noise_multiplier": 1.0, "corrupt_fraction": 0.0,
                 "dropout_fraction": 0.0},
        evaluation={"max_windows": 4, "window_tokens": 8},
        output={"picture": False},
    )  # fmt: skip
    result = federation.run(tmp_path / "out")
    assert result.rounds == 1
    own = evaluate_run(result.folder, clients=clients(), offline=True, device="cpu")
    other = evaluate_run(result.folder, data=clients(), offline=True, device="cpu")
    assert own.rows[0].figure.n > 0
    assert other.rows[0].figure.n > own.rows[0].figure.n


def test_the_data_sets_of_the_readme_are_clients(tmp_path, monkeypatch):
    """As printed, from the repository; `load_dataset` keeps a copy, as is said there."""
    page = (ROOT / "examples" / "own_trainer" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```py\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "kept")
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    exec(block, names)
    corpus = names["federation"]._corpus
    assert [len(corpus.clients[name]) for name in ("north", "south")] == [4, 4]
    assert corpus.clients["north"][0].messages[0].role == "user"
    assert list((tmp_path / "kept").rglob("*.arrow"))
