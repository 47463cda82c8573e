"""The run files and pilot files under examples/: they validate, and they run."""

import json
import math
import shutil
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import tomli_w
from tiny import write_model
from transformers import AutoTokenizer

from securefed import Federation
from securefed.config import load_config, load_pilot, run_file_schema
from securefed.engines.verify import verify_run
from securefed.evidence.ledger import read_ledger
from securefed.pilot.design import design
from securefed.privacy.accounting import epsilon_text

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PACKAGE = ROOT / "securefed"
PILOT_FILES = sorted(EXAMPLES.rglob("pilot.toml"))
# Whose clients are attacked; the script sets the privacy of its protected row itself.
UNPROTECTED = {EXAMPLES / "leakage" / "canaries.toml"}
RUN_FILES = sorted({*EXAMPLES.rglob("*.toml"), *PACKAGE.glob("*.toml")} - set(PILOT_FILES))


@pytest.fixture(scope="module")
def schema():
    found = json.loads((PACKAGE / "schemas" / "run.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_the_stored_schema_is_the_present_one():
    stored = (PACKAGE / "schemas" / "run.json").read_text(encoding="utf-8")
    assert stored == run_file_schema(), "python -m securefed schema > securefed/schemas/run.json"


def test_there_are_run_files_to_check():
    assert {path.name for path in RUN_FILES} >= {
        "demo.toml",
        "demo-all.toml",
        "mail_classification.toml",
        "mail.toml",
        "run.toml",
        "own_trainer.toml",
        "users.toml",
        "hf.toml",
        "trl.toml",
    }


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_run_file_validates_against_the_models_and_the_schema(path, schema):
    config = load_config(path)
    assert config.privacy.mechanism == ("none" if path in UNPROTECTED else "distributed")
    schema.validate(tomllib.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", PILOT_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_pilot_file_asks_about_a_run_file_beside_it_and_all_its_trials_validate(path):
    pilot = load_pilot(path)
    assert pilot.run in RUN_FILES
    run = load_config(pilot.run)
    for planned in design(pilot, run):
        planned.config(run, show_clients=pilot.data.public)


@pytest.mark.parametrize(
    "wrong",
    [
        {"training": {"round": 3}},
        {"privacy": {"clip_norm": 0}},
        {"privacy": {"unit": "person"}},
        {"extra": {}},
        {"cohort": {"simulated_dropouts": [{"round": 1, "client": "a", "stage": "late"}]}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_models_refuse(wrong, schema):
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(wrong)


def test_the_demo_among_the_examples_is_the_packaged_one():
    assert (EXAMPLES / "demo.toml").read_bytes() == (PACKAGE / "demo.toml").read_bytes()


# -- bring your own folder -----------------------------------------------------------------


def with_a_tiny_model(folder: Path, name: str, **sections) -> Path:
    """A run file of examples/own_folder, beside its data, with another model in it."""
    shutil.copytree(EXAMPLES / "own_folder", folder)
    values = tomllib.loads((folder / name).read_text(encoding="utf-8"))
    values["model"]["source"] = str(write_model(folder / "model"))
    values["training"] |= {"device": "cpu", "threads": 1}
    for section, changes in sections.items():
        values[section] |= changes
    path = folder / name
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    return path


@pytest.fixture
def own_trainer_importable(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "own")
    yield
    sys.modules.pop("my_trainer", None)


def test_the_own_folder_runs_as_it_is(tmp_path):
    path = with_a_tiny_model(tmp_path / "own", "run.toml")
    result = Federation.from_config(path).run(tmp_path / "out")
    assert result.rounds == 3
    genesis = read_ledger(result.folder / "ledger.jsonl")[0].body
    assert genesis["cohort"] == ["boiler-house", "cold-store", "packing-line", "water-works"]
    statement = result.guarantees["server"]
    assert statement.unit.startswith("one example")
    assert math.isfinite(statement.epsilon)
    assert verify_run(result.folder).finished


@pytest.mark.slow
def test_the_own_folder_runs_with_its_operators_as_users(tmp_path):
    path = with_a_tiny_model(tmp_path / "own", "users.toml")
    result = Federation.from_config(path).run(tmp_path / "out")
    genesis = read_ledger(result.folder / "ledger.jsonl")[0].body
    # Six operators a plant, one of them held out with all of its entries.
    assert set(genesis["client_sizes"].values()) == {5}
    statement = result.guarantees["server"]
    assert statement.unit.startswith("one user: one operator at one client")
    assert epsilon_text(statement.epsilon) == "1.84"  # as the file's head says: of the plan alone
    assert verify_run(result.folder).finished


def test_the_own_folder_runs_with_the_own_trainer(tmp_path, own_trainer_importable):
    path = with_a_tiny_model(tmp_path / "own", "own_trainer.toml")
    result = Federation.from_config(path).run(tmp_path / "out")
    statement = result.guarantees["server"]
    assert statement.unit == "one client's whole contribution"
    assert math.isfinite(statement.epsilon)
    assert verify_run(result.folder).finished


def test_the_own_trainer_trains(tmp_path, own_trainer_importable):
    path = with_a_tiny_model(
        tmp_path / "own",
        "own_trainer.toml",
        privacy={"mechanism": "none"},
        training={"local_steps": 10, "rounds": 2},
    )
    result = Federation.from_config(path).run(tmp_path / "out")
    assert result.after.nll < result.before.nll - 0.05
    assert "my_trainer" in sys.modules


# -- trainers of other libraries -----------------------------------------------------------


CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <eos> {% endfor %}"


def with_a_trainer(folder: Path, name: str, monkeypatch, **sections) -> Path:
    """A run file of examples/own_trainer, its folder importable, with a tiny chat model in it."""
    shutil.copytree(EXAMPLES / "own_trainer", folder)
    monkeypatch.syspath_prepend(folder)
    model = write_model(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)
    values = tomllib.loads((folder / name).read_text(encoding="utf-8"))
    values["model"]["source"] = str(model)
    values["data"]["window_tokens"] = 48
    values["training"] |= {"device": "cpu", "threads": 1}
    for section, changes in sections.items():
        values[section] |= changes
    path = folder / name
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("hf.toml", "trainer_hf"),
        pytest.param("trl.toml", "trainer_trl", marks=pytest.mark.slow),
    ],
)
def test_trainers_of_other_libraries_run(tmp_path, monkeypatch, name, module):
    path = with_a_trainer(tmp_path / "own", name, monkeypatch, training={"rounds": 1})
    result = Federation.from_config(path).run(tmp_path / "out")
    assert module in sys.modules
    sys.modules.pop(module)
    assert result.guarantees["server"].unit == "one client's whole contribution"
    assert verify_run(result.folder).finished


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module"), [("hf.toml", "trainer_hf"), ("trl.toml", "trainer_trl")]
)
def test_trainers_of_other_libraries_learn_where_nothing_is_noised(
    tmp_path, monkeypatch, name, module
):
    path = with_a_trainer(
        tmp_path / "own",
        name,
        monkeypatch,
        privacy={"mechanism": "none"},
        training={"rounds": 2, "local_steps": 8, "local_learning_rate": 0.05},
    )
    result = Federation.from_config(path).run(tmp_path / "out")
    sys.modules.pop(module)
    assert result.after.nll < result.before.nll - 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module"), [("hf.toml", "trainer_hf"), ("trl.toml", "trainer_trl")]
)
def test_trainers_of_other_libraries_run_as_they_are_on_the_real_model(
    tmp_path, monkeypatch, name, module
):
    monkeypatch.syspath_prepend(EXAMPLES / "own_trainer")
    result = Federation.from_config(EXAMPLES / "own_trainer" / name).run(tmp_path / "out")
    sys.modules.pop(module)
    assert result.rounds == 2
    assert verify_run(result.folder).finished


# -- mail ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_mail_classifier_runs_a_round_on_the_real_model_and_mails(tmp_path):
    values = tomllib.loads((EXAMPLES / "mail_classification.toml").read_text(encoding="utf-8"))
    values["training"]["rounds"] = 1
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    result = Federation.from_config(path).run(tmp_path / "out")
    assert result.rounds == 1
    assert len(list((result.folder / "clients").iterdir())) == 80
    assert result.before.accuracy is not None
    assert result.after.accuracy is not None
    saved = (result.folder / "adapter" / "adapter_model.safetensors").read_bytes()
    assert b"classifier" in saved
    assert verify_run(result.folder).finished
