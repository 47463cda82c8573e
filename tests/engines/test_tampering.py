"""A run folder altered by someone who can rebuild hash chains: what verify and resume notice."""

import hashlib
import shutil
from pathlib import Path

import pytest
from ledgers import charged, copy_run, cut_run, place_of, rewrite
from tiny import write_run

from securefed import Federation
from securefed.engines.run_folder import RunFolder
from securefed.engines.verify import verify_run
from securefed.errors import ConfigError, LedgerTampered


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("tamper")
    return Federation.from_config(write_run(base)).run(base / "out").folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return copy_run(finished, tmp_path / "copy")


def test_an_untouched_copy_verifies(copy):
    assert verify_run(copy).finished


@pytest.mark.parametrize("field", ["epsilon", "delta", "rounds", "unit"])
def test_a_changed_claim_is_noticed(copy, field):
    wrong = {"epsilon": 0.1, "delta": 1e-12, "rounds": 1, "unit": "one person"}[field]

    def change(records):
        body = next(body for kind, body in records if kind == "closed")
        body["guarantees"] = [dict(g, **{field: wrong}) for g in body["guarantees"]]
        return records

    rewrite(copy / "ledger.jsonl", change)
    with pytest.raises(LedgerTampered, match=f"claim against server: {field}"):
        verify_run(copy)


def test_accounts_cut_back_are_noticed_finished_or_not(copy):
    for path in (copy / "clients").glob("*/budget.jsonl"):
        rewrite(path, charged(1))
    with pytest.raises(LedgerTampered, match="no charge for round 2"):
        verify_run(copy)
    unclosed(copy)
    with pytest.raises(LedgerTampered, match="no charge for round 2"):
        verify_run(copy)


def test_a_clock_that_the_run_did_not_have_is_noticed(copy):
    rewrite(copy / "ledger.jsonl", set_in("round_summed", 0, late={}))
    with pytest.raises(LedgerTampered, match="no round of this run is timed"):
        verify_run(copy)


def test_a_swapped_or_missing_account_is_noticed(copy):
    shutil.rmtree(copy / "clients" / "site-5")
    with pytest.raises(LedgerTampered, match=r"clients: no account of site-5$"):
        verify_run(copy)
    shutil.copytree(copy / "clients" / "site-0", copy / "clients" / "site-5")
    with pytest.raises(LedgerTampered, match=r"site-5.*first record: client"):
        verify_run(copy)


@pytest.mark.parametrize("name", ["ledger.jsonl", "clients/site-2/budget.jsonl"])
@pytest.mark.parametrize("tail", [b"rubbish\n", b'{"body": {"x'], ids=["rubbish", "torn"])
def test_a_tail_that_is_no_record_is_named_and_refused_once_the_run_is_closed(copy, name, tail):
    lines = len((copy / name).read_bytes().splitlines())
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole + tail)
    found = rf"{name}: line {lines + 1}: {len(tail)} bytes, no record"
    with pytest.raises(LedgerTampered, match=f"{found}; the run was closed"):
        verify_run(copy)
    with pytest.raises(LedgerTampered, match=found):
        Federation.from_config(copy / "config.toml").run(copy, resume=True)
    (copy / name).write_bytes(whole)
    unclosed(copy)
    lines = len((copy / name).read_bytes().splitlines())
    (copy / name).write_bytes((copy / name).read_bytes() + tail)
    verdict = verify_run(copy)
    assert not verdict.finished
    (line,) = [line for line in verdict.lines if line.startswith("ignored: ")]
    assert f"{name}: line {lines + 1}: {len(tail)} bytes, no record" in line


def test_a_weaker_event_is_noticed(copy):
    def change(records):
        return [
            (kind, body | ({"noise_multiplier": 9.0} if kind == "round_opened" else {}))
            for kind, body in records
        ]

    rewrite(copy / "ledger.jsonl", change)
    with pytest.raises(LedgerTampered, match=r"noise_multiplier = 9"):
        verify_run(copy)


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "metrics.jsonl"])
def test_another_adapter_or_other_metrics_are_noticed(copy, name):
    (copy / name).write_bytes(b"other")
    with pytest.raises(LedgerTampered, match=name.rpartition("/")[2]):
        verify_run(copy)


def test_other_settings_are_noticed(copy):
    text = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(
        text.replace("noise_multiplier = 0.8", "noise_multiplier = 8")
    )
    with pytest.raises(LedgerTampered, match="is not the file that the ledger names"):
        verify_run(copy)
    (copy / "config.toml").unlink()
    with pytest.raises(ConfigError, match="is missing"):
        verify_run(copy)


def test_a_record_without_its_fields_is_tampering_not_a_crash(copy):
    rewrite(copy / "ledger.jsonl", lambda records: [(records[0][0], {}), *records[1:]])
    with pytest.raises(LedgerTampered):
        verify_run(copy)


def test_every_path_that_no_check_covers_is_listed(copy):
    def loose():
        (line,) = [x for x in verify_run(copy).lines if x.startswith("paths that no check covers")]
        return line.partition(": ")[2].split(", ")

    costs = [f"clients/site-{n}/costs.json" for n in range(6)]
    assert loose() == ["checkpoints/", *costs, "costs.json"]
    (copy / "compare" / "unprotected" / "adapter").mkdir(parents=True)
    (copy / "compare" / "unprotected" / "adapter" / "adapter_model.safetensors").write_bytes(b"x")
    (copy / "clients" / "site-0" / "notes.txt").write_text("x")
    (copy / ".hidden").write_text("x")
    (copy / "odd\nname").write_text("x")
    (copy / "rounds.svg").symlink_to(copy / "config.toml")
    assert loose() == [
        ".hidden",
        "checkpoints/",
        costs[0],
        "clients/site-0/notes.txt",
        *costs[1:],
        "compare/",
        "costs.json",
        "'odd\\nname'",
        "rounds.svg",
    ]


def unclosed(copy: Path) -> None:
    """As a kill before the closing record leaves it."""
    cut_run(copy, place_of(copy, "closed"))


def test_resume_leaves_a_finished_run_as_it_is(copy):
    before = (copy / "ledger.jsonl").read_bytes(), (copy / "costs.json").read_bytes()
    Federation.from_config(copy / "config.toml").run(copy, resume=True)
    assert before == ((copy / "ledger.jsonl").read_bytes(), (copy / "costs.json").read_bytes())


def test_resume_refuses_accounts_rolled_back_to_buy_more_rounds(copy):
    unclosed(copy)
    for path in (copy / "clients").glob("*/budget.jsonl"):
        rewrite(path, charged(1))
    with pytest.raises(LedgerTampered, match="no charge for round 2"):
        Federation.from_config(copy / "config.toml").run(copy, resume=True)


def test_resume_refuses_another_checkpoint(copy):
    unclosed(copy)
    folder = RunFolder(copy)
    state = folder.load_checkpoint(3)
    state["parameters"] += 1.0
    folder.save_checkpoint(3, state)
    with pytest.raises(LedgerTampered, match="is not the one that the ledger names"):
        Federation.from_config(copy / "config.toml").run(copy, resume=True)


def set_in(kind, at, **changes):
    """Change fields in the body of the record of a kind that stands at a place among its like."""

    def change(records):
        places = [i for i, (k, _) in enumerate(records) if k == kind]
        place = places[at]
        records[place] = (kind, records[place][1] | changes)
        return records

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: [x for x in r if not x[0].startswith("eval")], "without held-out figures"),
        (set_in("evaluated", 0, guaranteed=True), "guaranteed: must be false"),
        (set_in("evaluation_opened", 0, guaranteed=True), "guaranteed: must be false"),
        (set_in("round_summed", 1, bytes_up=1), r"metrics\.jsonl: line 3: bytes_up"),
        (set_in("round_summed", 1, refused=1), r"metrics\.jsonl: line 3: note"),
        (set_in("round_applied", -1, adapter_sha256="0" * 64), "not of the adapter"),
        (set_in("genesis", 0, roster={}), "line 1: roster: must hold server and clients"),
    ],
    ids=["no figures", "figures", "opened", "bytes", "refused", "adapter", "roster"],
)
def test_what_the_ledger_says_besides_charges_is_compared_with_what_is_shown(copy, change, words):
    rewrite(copy / "ledger.jsonl", change)
    with pytest.raises(LedgerTampered, match=words):
        verify_run(copy)


@pytest.mark.parametrize("size", [16, 512])
def test_another_unit_than_the_clients_accounts_were_begun_for_is_noticed(copy, size):
    """Only the server's files are changed; the clients' own stay as they are."""
    path = copy / "config.toml"
    path.write_text(path.read_text().replace("window_tokens = 8", f"window_tokens = {size}", 1))
    found = hashlib.sha256(path.read_bytes()).hexdigest()

    def change(records):
        records[0][1]["config_sha256"] = found
        records[0][1]["privacy"] = records[0][1]["privacy"] | {"window_tokens": size}
        return records

    rewrite(copy / "ledger.jsonl", change)
    with pytest.raises(LedgerTampered, match=r"budget\.jsonl: first record: privacy"):
        verify_run(copy)


def test_a_first_record_of_another_version_is_called_that(copy):
    def change(records):
        records[0][1]["privacy"] = {
            key: value for key, value in records[0][1]["privacy"].items() if key != "bands"
        }
        return records

    rewrite(copy / "ledger.jsonl", change)
    with pytest.raises(LedgerTampered, match=r"lacks bands.* written by another version"):
        verify_run(copy)
    rewrite(copy / "ledger.jsonl", set_in("genesis", 0, privacy={"noise_multiplier": "abc"}))
    with pytest.raises(LedgerTampered):
        verify_run(copy)


@pytest.mark.parametrize("name", ["metrics.jsonl", "adapter/securefed_adapter.json"])
def test_a_file_taken_from_the_folder_and_from_the_ledger_is_missed(copy, name):
    (copy / name).unlink()

    def change(records):
        return [
            (kind, body | {"files": {p: f for p, f in body["files"].items() if p != name}})
            if kind == "closed"
            else (kind, body)
            for kind, body in records
        ]

    rewrite(copy / "ledger.jsonl", change)
    with pytest.raises(LedgerTampered, match=f"{name}: a finished run has it"):
        verify_run(copy)
