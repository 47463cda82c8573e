"""What a user reads who gives a command what it cannot use: what, where, why, and what to do."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tomli_w
from torch import nn

from securefed.config import parse_config
from securefed.config.allowed import allowed_at
from securefed.config.run import RunConfig
from securefed.engines.released import with_adapter
from securefed.engines.run_files import check_config
from securefed.engines.settings import Settings
from securefed.errors import ConfigError, LedgerError, LedgerTampered, OverflowBoundError
from securefed.evidence.anchoring import known_signers
from securefed.evidence.chain import head_path
from securefed.evidence.ledger import Ledger, read_ledger
from securefed.evidence.reading import read_bounded, read_regular
from securefed.training.metrics import load_metric, measured

ENDS_BADLY = 2


def is_a_clear_refusal(err: str, *words: str) -> bool:
    line = err.removesuffix("\n")
    return (
        line.startswith("error: ")
        and "\n" not in line
        and not any(sign in line for sign in ("Traceback", "Errno", "Input should", "literal["))
        and all(word in line for word in words)
    )


# -- run files -----------------------------------------------------------------------------

RUN_FILES = [
    ("training", {"rounds": "three"}, ["training.rounds = 'three'", "whole number from 1 to"]),
    ("training", {"rounds": 2.5}, ["training.rounds = 2.5", "a whole number"]),
    ("training", {"rounds": 0}, ["training.rounds = 0", "from 1 to 100000"]),
    ("training", {"rounds": True}, ["rounds = true", "not allowed"]),
    ("training", {"threads": -3}, ["training.threads = -3", "a whole number >= 1"]),
    ("training", {"server_optimizer": "krum"}, ["'krum'", "single clients' updates", "'adam'"]),
    ("training", {"class_weights": [1.0, -1.0]}, ["class_weights[1] = -1.0", "a number > 0"]),
    ("training", {"error_feedback": True}, ["error_feedback", "sparsify = 'random'"]),
    ("training", {"sparsify": "random"}, ["without keep_fraction", "> 0 and < 1"]),
    ("training", {"keep_fraction": 0.5}, ["keep_fraction = 0.5", "leave it out"]),
    ("privacy", {"clip_norm": "big"}, ["privacy.clip_norm = 'big'", "a number > 0"]),
    ("privacy", {"clip_norm": -1.0}, ["privacy.clip_norm = -1.0", "> 0"]),
    ("privacy", {"clip_norm": float("nan")}, ["privacy.clip_norm = nan", "finite"]),
    ("privacy", {"delta": 1.0}, ["privacy.delta = 1.0", "> 0 and < 1"]),
    ("privacy", {"mechanism": "gauss"}, ["privacy.mechanism = 'gauss'", "'central', 'local' or"]),
    ("privacy", {"clipnorm": 1.0}, ["privacy.clipnorm: no such key", "did you mean clip_norm?"]),
    (
        "privacy",
        {"noise_multiplier": 1.0, "target_epsilon": 3.0},
        ["privacy: noise_multiplier = 1", "target_epsilon = 3", "give one of them"],
    ),
    (
        "privacy",
        {"mechanism": "none", "target_epsilon": 3.0},
        ["target_epsilon = 3", "'none'", "leave it out"],
    ),
    ("privacy", {"adaptive_clip": {"target": 2}}, ["adaptive_clip.target", "target_quantile"]),
    ("aggregation", {"bits": 12}, ["aggregation.bits = 12: must be 'auto', or a whole number"]),
    ("aggregation", {"kind": "pairwize"}, ["aggregation.kind = 'pairwize'", "'pairwise'"]),
    ("lora", {"kind": "lorra"}, ["lora.kind = 'lorra'", "'lora', 'ia3'", "or a list"]),
    ("lora", {"target_modules": "v_proj"}, ["lora.target_modules = 'v_proj'", "a list in [ ]"]),
    ("lora", {"target_modules": []}, ["lora.target_modules = []", "1 item or more"]),
    ("lora", {"rank": 5000}, ["lora.rank = 5000", "from 1 to 1024"]),
    ("lora", {"sharing": "flora"}, ["lora.sharing", "individual updates", "'ffa'"]),
    ("model", {"fingerprint": "abc"}, ["model.fingerprint = 'abc'", "64 hexadecimal digits"]),
    ("model", {"labels": 2}, ["labels = 2", "only a classifier", "leave it out"]),
    (
        "model",
        {"task": "sequence-classification"},
        ["labels is missing", "number of classes"],
    ),
    ("data", {"source": ["a"]}, ["data.source = ['a']", "a text"]),
    ("data", {"clients": "site-0"}, ["data.clients = 'site-0'", "'all' or 'default', or a list"]),
    ("data", {"completion_only": True}, ["completion_only = true", "messages_field"]),
    ("output", {"name": "a/b"}, ["output.name = 'a/b'", "letters, digits, dots"]),
    ("cohort", {"ranks": [{"rank": 0}]}, ["cohort.ranks[0].clients: is missing", "from 1 to"]),
    (
        "cohort",
        {"simulated_dropouts": [{"round": 1, "client": "a", "stage": "mask"}]},
        ["cohort.simulated_dropouts[0].stage = 'mask'", "'masked_input'"],
    ),
    (
        "cohort",
        {"simulated_dropouts": [{"round": 99, "client": "a", "stage": "share"}]},
        ["round 99", "training.rounds = 10"],
    ),
    ("cohort", {"schedule": {"patience": 3.0}}, ["patience = 3.0", "deadline", "leave them out"]),
    ("cohort", {"schedule": {"carry_out": True}}, ["[[cohort.profiles]]", "memory_gib"]),
    (
        "evaluation",
        {"figures": "histogram", "histogram": {"noise_multiplier": 1.0, "perplexity_range": [3.0]}},
        ["perplexity_range[1]: is missing"],
    ),
    ("privcy", {"clip_norm": 1.0}, ["privcy: no such key", "did you mean privacy?"]),
]


@pytest.mark.parametrize(
    ("section", "values", "words"),
    RUN_FILES,
    ids=[f"{section}.{next(reversed(values))}" for section, values, _ in RUN_FILES],
)
def test_a_wrong_value_in_a_run_file_is_told_in_a_line(cli, tmp_path, section, values, words):
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps({section: values}))
    code, out, err = cli("plan", path)
    assert (code, out) == (ENDS_BADLY, "")
    assert is_a_clear_refusal(err, f"{path}: ", *words), err


def test_a_section_that_is_no_table_is_told_so(cli, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("privacy = 3\n")
    code, _, err = cli("plan", path)
    assert code == ENDS_BADLY
    assert is_a_clear_refusal(err, "privacy = 3: must be a table"), err


def test_only_the_first_complaints_are_told_and_the_rest_are_counted():
    with pytest.raises(ConfigError, match=r"and 3 more$") as refusal:
        parse_config({f"odd{i}": {} for i in range(8)})
    assert "odd4" in str(refusal.value)
    assert "odd5" not in str(refusal.value)


def test_a_long_value_is_cut_short():
    with pytest.raises(ConfigError) as refusal:
        parse_config({"privacy": {"mechanism": "x" * 10_000}})
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"privacy": {"clip_norm": 1e-300}}, "privacy: clip_norm = 1e-300: must be in"),
        (
            {
                "privacy": {
                    "mechanism": "central",
                    "sampling": "cyclic",
                    "noise_bands": 99,
                    "expected_batch": 100,
                }
            },
            "privacy.noise_bands = 99: must be in 1..6, the number of batches",
        ),
        ({"privacy": {"expected_batch": 1e6}}, "so it must be <= 600"),
        ({"cohort": {"min_clients": 7}}, "cohort.min_clients = 7: the run needs at least 7"),
        ({"privacy": {"dropout_fraction": 0.9}}, "add clients, or lower one of the fractions"),
        (
            {"privacy": {"noise_multiplier": 1e9, "expected_batch": 60}},
            "use less noise (noise_multiplier = 1e+09)",
        ),
        (
            {"privacy": {"noise_multiplier": 1e-6}, "aggregation": {"bits": 20}},
            "use more noise (noise_multiplier = 1e-06)",
        ),
        (
            {"cohort": {"simulated_dropouts": [{"round": 1, "client": "z", "stage": "share"}]}},
            "'z' is no client of this run; there are c0, c1, c2, c3, c4, c5",
        ),
    ],
)
def test_what_does_not_fit_the_cohort_is_told_by_the_run_files_own_key(sections, words):
    with pytest.raises((ConfigError, OverflowBoundError)) as refusal:
        Settings(parse_config(sections), sizes={f"c{i}": 100 for i in range(6)}, dimension=50)
    assert words in str(refusal.value)


def test_every_field_of_a_run_file_can_be_told_what_it_may_hold():
    def walk(node, place):
        node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        for name, inner in node.get("properties", {}).items():
            found, words = allowed_at(RunConfig, [*place, name])
            assert found == [*place, name]
            assert words, found
            walk(inner, [*place, name])

    schema = RunConfig.model_json_schema()
    walk(schema, [])


# -- files and folders that commands are given ------------------------------------------------


@pytest.fixture
def things(tmp_path):
    """Names of what is not as a command needs it, in the folder that commands run in."""
    here = tmp_path / "here"
    (here / "dir").mkdir(parents=True)
    (here / "text.txt").write_text("hello")
    (here / "binary").write_bytes(bytes(range(256)))
    (here / "latin.toml").write_bytes('[output]\nname = "Zür"'.encode("latin-1"))
    (here / "deep.toml").write_text("x = " + "[" * 50_000)
    (here / "long.toml").write_text("#" * 5_000_000)
    (here / "good.toml").write_text("[output]\nname = 'good'\n")
    (here / "data").mkdir()
    for name in ("a", "b"):
        (here / "data" / f"{name}.txt").write_text("w1 w2 w3 " * 100)
    return here


COMMANDS = [
    ("run no.toml", ["run file no.toml", "No such file"]),
    ("run dir", ["run file dir", "Is a directory"]),
    ("run binary", ["is not UTF-8 at byte 128", "save it as UTF-8"]),
    ("run latin.toml", ["is not UTF-8 at byte"]),
    ("run deep.toml", ["deep.toml: is not TOML"]),
    ("run long.toml", ["longer than", "bytes"]),
    ("run text.txt", ["text.txt: is not TOML"]),
    ("run good.toml --resume", ["--resume needs --out"]),
    ("run good.toml --resume --out dir", ["no run to go on with"]),
    ("run good.toml --out text.txt", ["text.txt is there already", "--out"]),
    ("run good.toml --out text.txt/x", ["cannot be made in", "Not a directory"]),
    ("run good.toml --out o --sink grafana", ["--sink 'grafana'", "tensorboard, mlflow, wandb"]),
    ("plan no.toml", ["run file no.toml"]),
    ("pilot no.toml", ["pilot file no.toml"]),
    ("pilot dir", ["pilot file dir", "Is a directory"]),
    ("demo --clients 3", ["--clients '3'", "default, all"]),
    ("demo --aggregation rsa", ["--aggregation 'rsa'", "pairwise, bfv, ckks, plaintext"]),
    ("demo --masked", ["with kind = 'pairwise'", "'bfv'"]),
    ("schema runn", ["schema 'runn'", "threat-model"]),
    ("verify dir", ["dir is not a run folder", "securefed run"]),
    ("verify nothing", ["nothing/ledger.jsonl is missing", "name the folder"]),
    ("verify text.txt", ["text.txt is not a run folder"]),
    ("threats dir", ["dir is not a run folder"]),
    ("status dir", ["dir is not a run folder", "name the folder"]),
    ("report dir --lang en --format md", ["dir is not a run folder"]),
    ("report dir --lang fr --format md", ["--lang 'fr'", "en, ja"]),
    ("report dir --lang en --format docx", ["--format 'docx'", "html"]),
    ("verify dir --signer text.txt", ["text.txt: holds no public key", "PEM"]),
    ("verify dir --signer dir", ["dir: cannot be read", "Is a directory"]),
    ("statement dir C-x --text a --role b --key k", ["dir is not a run folder"]),
    ("evaluate dir --data nothing", ["--data nothing", "one file or sub-folder a client"]),
    ("evaluate dir", ["dir/config.toml is missing", "name the one"]),
    ("merge dir out", ["dir/config.toml is missing"]),
    ("audit dir", ["dir is not a run folder; name a run file"]),
    ("audit good.toml --profile x", ["--profile 'x'", "'quick', 'full'"]),
    ("audit good.toml --seconds -3", ["--seconds -3", "> 0"]),
    ("audit good.toml --set x", ["--set 'x'", "SECTION.KEY=VALUE"]),
    ("audit good.toml --set lora.rankk=3", ["lora.rankk", "did you mean rank?"]),
    ("audit good.toml --texts nothing", ["--texts nothing", "one file or sub-folder a client"]),
    ("audit good.toml --key dir", ["identity file dir", "Is a directory"]),
    ("audit good.toml --key binary", ["mode 0644", "chmod 600"]),
    ("audit good.toml --key k --key-password no", ["--key-password no", "No such file"]),
    ("attack", ["attack: none is named", "--list"]),
    ("attack lampp", ["attack 'lampp' is unknown", "lamp"]),
    ("attack lamp --view nowhere", ["--view 'nowhere'", "'masked'"]),
    ("init --out text.txt", ["--out text.txt", "is there already", "name another"]),
    ("init --out x.json", ["--out x.json", ".toml"]),
    ("init --task x --data data", ["--task 'x'", "causal-lm"]),
    ("init --task causal-lm --data nothing", ["--data nothing", "no such folder"]),
    ("init --task causal-lm --data dir", ["dir holds no files"]),
    ("init --task causal-lm --data data --unit doc", ["--unit 'doc'", "example, user, client"]),
    ("init --task causal-lm --data data --epsilon -1", ["--epsilon -1.0", "> 0"]),
    ("init --task causal-lm --data data --clients z", ["no client 'z'", "a, b"]),
    ("init --task causal-lm --data data --clients a", ["holds 1 client", "at least 2"]),
]


@pytest.mark.parametrize(("command", "words"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_what_a_command_cannot_use_is_told_in_a_line(cli, things, command, words):
    (things / "binary").chmod(0o644)
    code, _, err = cli(*command.split())
    assert code == ENDS_BADLY, err
    assert is_a_clear_refusal(err, *words), err


def test_a_run_file_given_as_a_pilot_file_is_recognised(cli, things):
    Path("run.toml").write_text("[privacy]\nclip_norm = 1.0\n")
    code, _, err = cli("pilot", "run.toml")
    assert code == ENDS_BADLY
    assert is_a_clear_refusal(err, "run.toml: is a run file", "examples/pilot"), err


@pytest.mark.parametrize(
    ("content", "password", "words"),
    [("junk", None, "no private key in PEM"), ("junk", "pw", "the password is wrong, or")],
)
def test_a_key_file_that_is_none_is_told_so(cli, things, content, password, words):
    Path("k").write_text(content)
    Path("k").chmod(0o600)
    Path("pw").write_text("secret-of-mine\n")
    given = [] if password is None else ["--key-password", password]
    code, _, err = cli("audit", "good.toml", "--key", "k", *given)
    assert code == ENDS_BADLY
    assert is_a_clear_refusal(err, "identity file k", words), err
    assert "secret-of-mine" not in err


# -- what a machine lacks ----------------------------------------------------------------------

_BLOCKED = """
import importlib.abc, io, json, sys
from contextlib import redirect_stderr, redirect_stdout
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "peft", "opacus", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from securefed.cli import main
found = {}
for command in sys.stdin.read().splitlines():
    sys.argv = ["securefed", *command.split()]
    with redirect_stderr(io.StringIO()) as err, redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            found[command] = (end.code, err.getvalue())
print(json.dumps(found))
"""


def test_a_missing_extra_is_named_with_the_command_that_installs_it(things):
    commands = [
        "plan good.toml",
        "run good.toml --out o",
        "evaluate dir",
        "merge dir o",
        "attack --list",
        "audit good.toml --key k",
    ]
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKED],
        input="\n".join(commands),
        cwd=things,
        env={**os.environ, "COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = json.loads(done.stdout)
    assert set(found) == set(commands)
    for command, (code, err) in found.items():
        assert code == ENDS_BADLY, command
        assert is_a_clear_refusal(err, "not installed", "pip install", "'.[train]'"), err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_behind_the_output_ends_in_a_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "securefed", "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
        )
    assert done.returncode == 1
    assert is_a_clear_refusal(done.stderr, "No space left on device"), done.stderr


# -- what a folder of others may hold ---------------------------------------------------------


def ended(call):
    """What a call raised; fails if it waits for ever."""
    raised: list[BaseException] = []

    def run():
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive(), "it waits for what a pipe will never say"
    return raised[0] if raised else None


needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger.create(path, {"a": 1}, clock=lambda: "2026-01-31T12:00:00Z").close()
    return path


@needs_pipes
@pytest.mark.parametrize("name", ["ledger.jsonl", "ledger.head.json"])
def test_no_pipe_in_place_of_a_ledger_or_its_head_is_waited_for(ledger, name):
    path = ledger.with_name(name)
    path.unlink()
    os.mkfifo(path)
    error = ended(lambda: read_ledger(ledger))
    assert isinstance(error, LedgerError)
    assert f"{path}: cannot be read (not a regular file)" in str(error)


@needs_pipes
def test_no_pipe_in_place_of_another_file_of_a_folder_is_waited_for(tmp_path):
    for name in ("config.toml", "signer-x.json"):
        os.mkfifo(tmp_path / name)
    error = ended(lambda: check_config(tmp_path, {"config_sha256": ""}))
    assert isinstance(error, LedgerTampered)
    assert "not a regular file" in str(error)
    error = ended(lambda: known_signers(tmp_path))
    assert isinstance(error, ConfigError)
    assert "signer-x.json: cannot be read (not a regular file)" in str(error)


@needs_pipes
def test_a_pipe_that_a_user_names_is_read(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(b"keys"), daemon=True)
    writer.start()
    assert read_bounded(path, 100, pipe=True) == b"keys"
    writer.join(timeout=60)


def test_a_head_is_read_up_to_a_length_and_no_further(ledger):
    assert read_ledger(ledger)
    with head_path(ledger).open("ab") as file:
        file.truncate(1 << 33)  # a hole of 8 GiB, which takes no disk
    with pytest.raises(LedgerError, match="longer than 4096 bytes"):
        read_ledger(ledger)


def test_a_length_that_is_allowed_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    assert read_regular(path, 10) == b"x" * 10
    with pytest.raises(OSError, match="longer than 9 bytes"):
        read_regular(path, 9)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path, 9)


def test_a_line_that_is_no_json_is_told_in_our_words(ledger):
    ledger.write_bytes(b"\x00\xff\n" + ledger.read_bytes())
    with pytest.raises(LedgerTampered, match="line 1: is not JSON: it was edited"):
        read_ledger(ledger)


# -- adapters and metrics ----------------------------------------------------------------------


def test_a_folder_without_an_adapter_is_not_measured_as_one(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no adapter_config\.json"):
        with_adapter(nn.Linear(1, 1), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors is missing"):
        with_adapter(nn.Linear(1, 1), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    for content in ("[1]", "{}", "[" * 50_000):
        (tmp_path / "adapter_config.json").write_text(content)
        with pytest.raises(ConfigError, match="does not fit the model, or is not as a run"):
            with_adapter(nn.Linear(1, 1), tmp_path)


@needs_pipes
def test_no_pipe_in_place_of_an_adapter_is_waited_for(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    os.mkfifo(tmp_path / "adapter_model.safetensors")
    error = ended(lambda: with_adapter(nn.Linear(1, 1), tmp_path))
    assert isinstance(error, ConfigError)
    assert "adapter_model.safetensors is missing, or is no file" in str(error)


def test_a_metric_that_cannot_be_called_or_gives_no_numbers_is_refused():
    with pytest.raises(
        ConfigError, match=r"is called as metric\(model, tokenizer, documents\) and cannot be"
    ):
        load_metric("json:dumps")
    with pytest.raises(ConfigError, match="it gave a str that is no sequence of numbers"):
        measured(lambda *_: "good", "mine", nn.Linear(1, 1), None, [object()])
