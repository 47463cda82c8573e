"""``securefed attack`` and ``securefed audit``: what they print, write and exit with."""

import json
import os
import re
from pathlib import Path

import pytest
from run_audits import run_file, write_texts

from securefed.auditing.matrix import Matrix
from securefed.crypto.identity import IdentityPublicKey
from securefed.evidence.results import read_result

KEY = ("--key", "key.pem")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return run_file(tmp_path_factory.mktemp("audits"), lora={"rank": 8})


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def trusted(folder: str) -> list[IdentityPublicKey]:
    signer = json.loads((Path(folder) / "signer.json").read_text())
    return [IdentityPublicKey.from_bytes(bytes.fromhex(signer["public"]))]


def is_one_clear_line(err: str, *words: str) -> bool:
    line = err.removesuffix("\n")
    return "\n" not in line and line.startswith("error: ") and all(word in line for word in words)


def test_the_attacks_are_listed_with_what_they_can_be_tried_on(cli):
    code, out, err = cli("attack", "--list")
    assert (code, err) == (0, "")
    assert "span-inversion" in out
    assert "texts" in out


def test_one_attack_shows_a_table_and_leaves_a_signed_result(cli, config):
    options = ("--config", config, "--trials", "2", "--out", "out", *KEY)
    code, out, err = cli("attack", "span-inversion", "--view", "plain", *options)
    assert code == 0, err
    row = re.search(r"token recall +(\S+) \[(\S+), (\S+)\] +(\S+) +\+(\S+) \[", out)
    assert row, out
    assert "no budget is charged" in out  # the texts are nobody else's
    assert all(f" {name} " in out for name in ("exact match", "rouge 1", "token precision"))
    (path,) = (p for p in Path("out").glob("*.json") if p.name != "signer.json")
    found = read_result(path, trusted("out")).measurement
    assert float(row[1]) == pytest.approx(found.metrics["token_recall"].value, abs=5e-4)
    assert found.seeds == [0, 1]
    assert oct(Path("key.pem").stat().st_mode)[-3:] == "600"


def test_a_masked_view_is_tried_after_the_plain_one(cli, config):
    options = ("--config", config, "--trials", "2", "--out", "out", *KEY)
    code, out, err = cli("attack", "span-inversion", "--view", "masked", *options)
    assert code == 0, err
    assert out.index("on plain, off") < out.index("on masked, masks")
    assert len([p for p in Path("out").glob("*.json") if p.name != "signer.json"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["--list"]),
        (("nothing",), ["nothing", "span-inversion"]),
        (("span-inversion", "--view", "everything"), ["--view 'everything'", "'masked'"]),
        (("span-inversion", "--defence", "luck"), ["defence = 'luck'", "'noise-Z'"]),
        (("span-inversion", "--defence", "masks"), ["no plain update"]),
        (("span-inversion", "--defence", "protocol"), ["defence = 'protocol'", "'off'"]),
        (("retry", "--batch", "4"), ["batch = 4"]),
        (("span-inversion", "--config", "no.toml"), ["no.toml"]),
        (("span-inversion", "--texts", "nowhere"), ["--texts nowhere"]),
        (("span-inversion", "--set", "rank=3"), ["--set 'rank=3'", "SECTION.KEY=VALUE"]),
        (("span-inversion", "--set", "lora.rnk=3"), ["lora.rnk", "did you mean rank"]),
        (("span-inversion", "--seconds", "0"), ["seconds = 0"]),
        (("span-inversion", "--key-password", "no"), ["--key-password no"]),
    ],
)
def test_wrong_options_end_in_one_line_and_leave_nothing(cli, config, home, arguments, words):
    given = () if "--config" in arguments else ("--config", config)
    code, _, err = cli("attack", *arguments, *given)
    assert code == 2
    assert is_one_clear_line(err, *words), err
    assert os.listdir() == []
    assert not list(home.iterdir())


def test_the_usual_key_is_made_once_in_the_home_folder_and_said(cli, config, home):
    arguments = ("attack", "span-inversion", "--config", config, "--trials", "1", "--out", "out")
    made = home / ".config" / "securefed" / "signing.pem"
    code, out, err = cli(*arguments)
    assert code == 0, err
    assert f"made a key to sign results with: {made}" in out
    code, out, err = cli(*arguments)
    assert code == 0, err
    assert "made a key" not in out
    assert "| kept" in out


def test_an_audit_leaves_results_summary_and_pictures_and_keeps_them(cli, config):
    options = ("--trials", "2", "--attack", "span-inversion", "--out", "out", *KEY)
    code, out, err = cli("audit", config, *options)
    assert code == 0, err
    summary = json.loads(Path("out/summary.json").read_text())
    assert len(summary["cells"]) == 8
    for row in summary["cells"]:
        found = read_result(Path("out") / row["file"], trusted("out"))
        assert found.measurement.digest() == row["measurement_sha256"]
    assert Path("out/matrix.svg").stat().st_size > 5000
    assert "| kept" not in out
    before = Path("out/summary.json").read_bytes()
    code, out, err = cli("audit", config, *options)
    assert code == 0, err
    assert out.count("| kept") == 8
    assert Path("out/summary.json").read_bytes() == before


def test_another_rank_and_texts_of_ones_own(cli, config, tmp_path):
    texts = write_texts(tmp_path / "own", clients=6)
    code, out, err = cli(
        "audit", config, "--trials", "1", "--set", "lora.rank=2", "--texts", texts,
        "--attack", "span-inversion", "--out", "out", *KEY,
    )  # fmt: skip
    assert code == 0, err
    found = read_result(Path("out/span-inversion--plain--off--b1.json"), trusted("out"))
    assert found.measurement.settings["config"]["lora"]["rank"] == 2
    assert found.measurement.settings["config"]["data"]["source"] == "own"
    # Where the attack cannot work with the defence off, nothing is said for the defence.
    assert found.measurement.verdict == "void"
    assert "VOID: with the defence off: void" in out


def test_time_that_is_over_is_said_and_an_interrupt_ends_in_a_line(cli, config, monkeypatch):
    options = ("--attack", "span-inversion", "--out", "out", *KEY)
    code, out, err = cli("audit", config, "--seconds", "1e-6", *options)
    assert code == 0, err
    assert out.count("OUT OF TIME") == 8
    code, out, err = cli("audit", config, "--cell-seconds", "0", *options)
    assert code == 2
    assert is_one_clear_line(err, "--cell-seconds 0", "must be > 0")

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Matrix, "measure", interrupted)
    code, _, err = cli("audit", config, *options)
    assert (code, err) == (130, "stopped; finished cells are in out\n")


def test_an_encrypted_key_needs_its_password(cli, config):
    Path("password").write_text("long and random\n")
    options = ("--config", config, "--trials", "1", *KEY)
    locked = ("--key-password", "password")
    code, _, err = cli("attack", "span-inversion", *options, "--out", "one", *locked)
    assert code == 0, err
    code, _, err = cli("attack", "span-inversion", *options, "--out", "other")
    assert code == 2
    assert is_one_clear_line(err, "key.pem"), err
