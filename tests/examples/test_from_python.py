"""examples/from_python.py, and what a federation from Python objects accepts and refuses."""

import importlib.util
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from tiny import write_clients, write_model
from transformers import AutoModelForCausalLM

from securefed import Federation, evaluate_run
from securefed.config import PrivacySection, load_config
from securefed.engines.events import RoundEvent
from securefed.engines.verify import verify_run
from securefed.errors import ConfigError, DataError

EXAMPLE = Path(__file__).parents[2] / "examples" / "from_python.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("objects") / "model")


class Records:
    """What a dataset is: records in turn."""

    def __init__(self, texts):
        self._texts = texts

    def __iter__(self):
        return iter([{"body": text, "number": 3} for text in self._texts])


def words(seed: int, count: int = 320) -> str:
    return " ".join(f"w{(n * seed) % 17}" for n in range(count))


SECTIONS = {
    "data": {"window_tokens": 8, "text_field": "body"},
    "lora": {"rank": 2, "target_modules": ["v_proj"]},
    "training": {"rounds": 1, "device": "cpu", "threads": 1},
    "evaluation": {"max_windows": 4, "window_tokens": 8},
    "output": {"picture": False},
}


def test_the_example_runs(model, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("from_python", EXAMPLE)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    out = tmp_path / "out"
    arguments = ["--model", str(model), "--out", str(out), "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["from_python.py", *arguments])
    script.main()
    shown = capsys.readouterr().out
    assert "round 1 of 1: 4 clients in the sum" in shown
    assert "differential privacy for one example" in shown
    assert "note: " in shown
    assert re.search(r"base: perplexity [0-9.]+ of [0-9]+ tokens", shown)
    AutoModelForCausalLM.from_pretrained(out / "merged")
    measured = evaluate_run(out, data=script.texts(), device="cpu", offline=True)
    assert measured.source == "all of the texts given"
    with pytest.raises(ConfigError, match="give them again by"):
        evaluate_run(out, offline=True)


def test_lists_and_datasets_train_as_files_do_and_events_hold_nothing_individual(model, tmp_path):
    clients = {"north": [words(1), words(2)], "south": Records([words(3), words(5)])}
    clients |= {"west": ({"body": words(seed)} for seed in (7, 11))}
    events: list[RoundEvent] = []
    dropped = {"round": 1, "client": "west", "stage": "unmask"}
    federation = Federation(
        model=str(model),
        clients=clients,
        privacy=PrivacySection(noise_multiplier=0.8, expected_batch=30, dropout_fraction=0.34),
        cohort={"min_clients": 2, "simulated_dropouts": [dropped]},
        on_round_end=[events.append],
        **SECTIONS,
    )
    result = federation.run(tmp_path / "out")
    assert [event.round for event in events] == [0, 1]
    for event in events:
        for field in fields(event):
            value = getattr(event, field.name)
            assert value is None or isinstance(value, int | float | str)
            assert not any(name in str(value) for name in clients)
            # Measured seconds tell how large a secret sample was.
            if field.name.endswith("seconds") and field.name != "virtual_seconds":
                assert value == 0.0
        assert event.note == ""
    assert events[1].survivors == 3
    assert verify_run(result.folder).finished
    config = load_config(result.folder / "config.toml")
    assert config.data.source == "objects:"
    # The run file of the folder goes on with the same texts, and says so without them.
    again = Federation(config, clients={**clients, "west": [words(7), words(11)]})
    assert again.run(result.folder, resume=True).guarantees == result.guarantees
    with pytest.raises(ConfigError, match="must hand them over again"):
        Federation(config).prepare()


@pytest.mark.slow
def test_a_function_that_raises_stops_the_run_which_can_be_resumed(model, tmp_path):
    def failing(event):
        if event.round == 1:
            raise OverflowError("its own")

    given = {"clients": str(write_clients(tmp_path / "data", count=3)), "model": model, **SECTIONS}
    given["data"] = {"window_tokens": 8}
    given["privacy"] = {"noise_multiplier": 0.8, "expected_batch": 30}
    with pytest.raises(OverflowError, match="its own"):
        Federation(**given, on_round_end=failing).run(tmp_path / "out")
    result = Federation(**given).run(tmp_path / "out", resume=True)
    assert (result.rounds, result.charges) == (1, 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"clients": {"a": ["w1"]}, "secrecy": {}}, "Federation(secrecy=...): there is no such"),
        ({"model": "m"}, "no clients are given"),
        ({"clients": "here", "data": {"source": "there"}}, "both say whose texts"),
        ({"clients": "here", "privacy": "strong"}, "is a str; it must be a mapping of the section"),
        ({"clients": "here", "privacy": {"epsilon": 8.0}}, "privacy.epsilon: no such key"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given, said):
    with pytest.raises(ConfigError) as raised:
        Federation(**given)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("clients", "said"),
    [
        ({"a b": ["w1"]}, "clients['a b']: a client's name is"),
        ({"a": "w1 w2"}, "is one text; give a list"),
        ({"a": [3]}, "clients['a'][0]: is a int; it must be a text, or a mapping"),
        ({"a": ["w1", " "]}, "clients['a'][1]: field 'text' must be text, not blank"),
        (
            {"a": [{"body": "w1", "no name": "w2"}]},
            "clients['a'][0]: has no field 'text'; set data.text_field to the one that is meant: "
            "there are 'body'",
        ),
        ({"a": [{"text": None}]}, "clients['a'][0]: field 'text' is empty (null)"),
        ({"a": {"train": ["w1"]}}, "clients['a']: is a dict, not records in turn"),
        ({"a": 7}, "clients['a']: is a int; give a list"),
        ({"a": []}, "has no texts"),
    ],
)
def test_texts_that_are_none_are_refused_by_their_place(clients, said):
    with pytest.raises(DataError) as raised:
        Federation(clients=clients)
    assert said in str(raised.value)


def test_a_run_file_and_objects_are_not_mixed(tmp_path):
    config = Federation(clients=str(tmp_path)).config
    with pytest.raises(ConfigError, match="config holds every section"):
        Federation(config, privacy={})
    with pytest.raises(ConfigError, match="says whose texts are trained on"):
        Federation(config, clients={"a": ["w1"]})
