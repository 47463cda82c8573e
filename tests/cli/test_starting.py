"""`securefed init`: a run file that loads and says what settings cost; none is overwritten."""

import doctest
import json
import sys
from pathlib import Path

import pytest
from tiny import write_bert, write_clients, write_model, write_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from securefed.config import load_config, parse_config, starter
from securefed.config.starter import Starter
from securefed.engines.settings import Settings


@pytest.mark.slow
def test_flags_make_a_run_file_that_trains(cli, tmp_path):
    write_model(tmp_path / "here" / "model")
    write_clients(tmp_path / "here" / "data")
    code, out, err = cli("init", "--task", "causal-lm", "--model", "model", "--data", "data")
    assert code == 0, err
    assert "6 clients" in out
    assert "next: securefed plan run.toml" in out
    config = load_config(Path("run.toml"))
    assert config.model.source == str(Path("model").resolve())  # read beside the run file
    assert config.privacy.target_epsilon == 8.0
    assert config.lora.target_modules == ["v_proj"]
    code, out, err = cli("run", "run.toml", "--out", "out")
    assert code == 0, err
    assert cli("verify", "out")[0] == 0


@pytest.mark.slow
def test_from_a_folder_of_chats_to_a_merged_model_with_a_trainer_of_one_s_own(
    cli, tmp_path, monkeypatch
):
    here = tmp_path / "here"
    tokenizer = AutoTokenizer.from_pretrained(write_model(here / "model"))
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} <eos> {% endfor %}"
    tokenizer.save_pretrained(here / "model")
    (here / "talks").mkdir()
    for client in range(4):
        said = [
            [{"role": "user", "content": f"w{n} w2"}, {"role": "assistant", "content": "w3 w4"}]
            for n in range(12)
        ]
        lines = [json.dumps({"messages": talk}) for talk in said]
        (here / "talks" / f"site-{client}.jsonl").write_text("\n".join(lines))
    (here / "mine.py").write_text(
        "from securefed.training.hf_trainer import HfTrainer\n\n\n"
        "class Steps(HfTrainer):\n"
        "    def arguments(self):\n        return {'weight_decay': 0.1}\n\n\n"
        "def spoken(model, tokenizer, documents):\n"
        "    return [float(len(d.messages)) for d in documents]\n"
    )
    monkeypatch.syspath_prepend(here)
    words = ["--task", "chat", "--model", "model", "--data", "talks", "--trainer", "mine:Steps"]
    for command in (
        ["init", *words],
        ["plan", "run.toml", "--offline"],
        ["run", "run.toml", "--out", "out", "--offline"],
        ["verify", "out"],
        ["evaluate", "out", "--data", "talks", "--metric", "mine:spoken", "--offline"],
        ["merge", "out", "merged", "--offline"],
    ):
        code, out, err = cli(*command)
        assert code == 0, (command, out, err)
        if command[0] == "init":
            file = Path("run.toml")
            file.write_text(file.read_text().replace("rounds = 10 ", "rounds = 1 "))
    sys.modules.pop("mine")
    assert AutoModelForCausalLM.from_pretrained("merged").config.vocab_size == 62


def test_every_setting_that_costs_privacy_says_so(cli, tmp_path):
    write_clients(tmp_path / "here" / "data")
    cli("init", "--task", "causal-lm", "--data", "data", "--out", "mine.toml")
    text = Path("mine.toml").read_text()
    for words in (
        "Protected as one: one window of tokens; not a document and not a person",
        "more rounds need more noise",
        "half of it takes about twice the noise",
        "noise is in proportion to it",
        "cost less epsilon",
        "stand outside epsilon",
        "1 of 6 clients may help the server",
    ):
        assert words in text, words
    assert str(tmp_path) not in text


def test_a_classifier_counts_its_labels_and_lets_its_head_travel(cli, tmp_path):
    write_bert(tmp_path / "here" / "bert", layers=1)
    folder = tmp_path / "here" / "mails"
    folder.mkdir(parents=True)
    for client in range(3):
        rows = [{"body": f"w{n} w{client}", "kind": n % 3} for n in range(12)]
        (folder / f"site-{client}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["init", "--task", "classification", "--model", "bert", "--data", "mails"]
    code, _, err = cli(*words, "--text-field", "body", "--label-field", "kind", "--unit", "user")
    assert code == 0, err
    config = load_config(Path("run.toml"))
    assert (config.model.labels, config.data.text_field) == (3, "body")
    assert config.lora.target_modules == ["value"]
    assert config.lora.modules_to_save == ["classifier"]
    assert config.privacy.expected_batch == 8  # of 30 records that train
    assert config.data.window_tokens == 16


def test_conversations_are_learnt_by_their_answers(cli, tmp_path):
    folder = tmp_path / "here" / "talks"
    folder.mkdir(parents=True)
    said = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
    for client in range(3):
        lines = [json.dumps({"chat": said})] * 10
        (folder / f"site-{client}.jsonl").write_text("\n".join(lines))
    words = ["init", "--task", "causal-lm", "--data", "talks", "--messages-field", "chat"]
    code, _, err = cli(*words)
    assert code == 0, err
    config = load_config(Path("run.toml"))
    assert (config.data.messages_field, config.data.completion_only) == ("chat", True)
    assert config.data.window_tokens == 32
    assert "Protected as one: one conversation" in Path("run.toml").read_text()


def test_a_chat_with_a_trainer_of_one_s_own_protects_clients_and_averages(cli, tmp_path):
    folder = tmp_path / "here" / "talks"
    folder.mkdir(parents=True)
    said = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
    for client in range(3):
        lines = [json.dumps({"messages": said})] * 10
        (folder / f"site-{client}.jsonl").write_text("\n".join(lines))
    named = "securefed.training.hf_trainer:HfTrainer"
    code, out, err = cli("init", "--task", "chat", "--data", "talks", "--trainer", named)
    assert code == 0, err
    assert "goes on PYTHONPATH" in out
    config = load_config(Path("run.toml"))
    assert (config.data.messages_field, config.data.completion_only) == ("messages", True)
    assert (config.training.trainer, config.privacy.unit) == (named, "client")
    assert config.training.server_optimizer == "sgd"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "data"], ["--task is not given", "no terminal", "classification"]),
        (["--task", "causal-lm"], ["--data is not given", "a folder"]),
        (["--task", "poems", "--data", "data"], ["--task 'poems'", "causal-lm, classification"]),
        (["--task", "causal-lm", "--data", "no"], ["--data no", "no such folder"]),
        (
            ["--task", "causal-lm", "--data", "data", "--clients", "site-9"],
            ["--clients", "'site-9'", "site-0"],
        ),
        (
            ["--task", "causal-lm", "--data", "data", "--clients", "site-1"],
            ["holds 1 client", "at least 2"],
        ),
        (
            ["--task", "causal-lm", "--data", "data", "--epsilon", "0"],
            ["--epsilon 0", "> 0"],
        ),
        (["--task", "causal-lm", "--data", "data", "--unit", "token"], ["--unit", "example, user"]),
        (["--task", "classification", "--data", "data"], ["has no labels", "jsonl or csv"]),
        (
            ["--task", "causal-lm", "--data", "data", "--user-field", "who"],
            ["--user-field who", "--unit user"],
        ),
        (["--task", "causal-lm", "--data", "data", "--out", "run.txt"], ["ends in .toml"]),
        (
            ["--task", "chat", "--data", "data", "--trainer", "m:T", "--unit", "example"],
            ["--trainer m:T with --unit example", "whole update", "use --unit client"],
        ),
        (
            ["--task", "causal-lm", "--data", "data", "--trainer", "my_steps"],
            ["training.trainer", "my_steps"],
        ),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_what_is_wrong_is_one_line_and_writes_nothing(cli, tmp_path, words, said):
    write_clients(tmp_path / "here" / "data")
    code, _, err = cli("init", *words)
    assert code == 2
    assert err.count("\n") == 1
    assert all(word in err for word in said), err
    assert [path.name for path in Path.cwd().iterdir()] == ["data"]


def test_a_run_file_is_not_written_over(cli, tmp_path):
    write_clients(tmp_path / "here" / "data")
    Path("run.toml").write_text("mine")
    code, _, err = cli("init", "--task", "causal-lm", "--data", "data")
    assert code == 2
    assert "run.toml" in err
    assert "not written over" in err
    assert Path("run.toml").read_text() == "mine"


def test_a_terminal_is_asked_for_what_no_flag_gave(cli, tmp_path, monkeypatch):
    write_clients(tmp_path / "here" / "data")
    asked = []

    def answer(what, default):
        asked.append(what)
        return {"folder of the clients' texts": "data", "epsilon of the whole run": "3"}.get(
            what, default
        )

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("securefed.cli.starting.typer.prompt", answer)
    code, _, err = cli("init", "--task", "causal-lm")
    assert code == 0, err
    assert len(asked) == 4
    assert load_config(Path("run.toml")).privacy.target_epsilon == 3.0


@pytest.mark.parametrize("cohort", [2, 3, 4, 5, 8, 19, 20, 41, 250])
def test_what_is_written_suits_a_cohort_of_any_size(tmp_path, cohort):
    """Thresholds exist and noise can be sized, whatever the cohort."""
    written = Starter(
        name="any",
        task="causal-lm",
        model="m",
        data="d",
        unit="example",
        epsilon=8.0,
        targets=("v_proj",),
        cohort=cohort,
        units=50 * cohort,
    )
    (tmp_path / "any.toml").write_text(written.text())
    values = load_config(tmp_path / "any.toml").model_dump(mode="json", exclude_none=True)
    del values["privacy"]["target_epsilon"]  # how much noise it takes is another test's
    config = parse_config(values | {"privacy": values["privacy"] | {"noise_multiplier": 1.0}})
    sizes = dict.fromkeys((f"c{n}" for n in range(cohort)), 50)
    bounds = Settings(config, sizes=sizes, dimension=100).bounds
    assert bounds.corrupt == written.corrupt
    assert cohort - bounds.survivor_floor == written.missing


def test_the_example_in_the_docstring_runs():
    assert doctest.testmod(starter).failed == 0


def test_a_folder_beside_the_run_file_is_written_as_seen_from_it(tmp_path, monkeypatch):
    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert starter.relative_source("data", Path("files/run.toml")) == "../data"
    assert starter.relative_source("owner/model", Path("run.toml")) == "owner/model"
    assert starter.relative_source(str(tmp_path), Path("run.toml")) == str(tmp_path)
