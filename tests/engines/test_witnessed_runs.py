"""Runs whose heads are signed: what they write, what verify says of them, and how they resume."""

import json
import shutil
from pathlib import Path

import pytest
from forging import LEDGER, SITES, forge, keys_of, roster_of, run_with_dropouts, setting, tampered
from ledgers import copy_run, cut, cut_run, place_of
from tiny import write_run

from securefed import Federation
from securefed.crypto.identity import IdentityKey
from securefed.engines import verified
from securefed.engines.identities import Identities
from securefed.engines.parties import Parties
from securefed.engines.verify import verified_run, verify_run
from securefed.engines.witnessing import gather
from securefed.errors import ConfigError, LedgerTampered
from securefed.evidence.budget import read_charges
from securefed.evidence.ledger import Ledger, read_ledger
from securefed.evidence.roster import read_roster
from securefed.evidence.software import dependencies_sha256, source_sha256


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return run_with_dropouts(tmp_path_factory.mktemp("witnessed"))


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return copy_run(whole, tmp_path / "copy")


# -- what a run writes -----------------------------------------------------------------------------


def test_the_server_signs_each_head_and_all_clients_that_are_there_sign_with_it(whole):
    run = verified_run(whole)
    assert [(head.kind, head.round) for head in run.heads] == [
        ("round_applied", 1),
        ("round_applied", 2),
        ("closed", 2),
    ]
    absent = [set(SITES) - set(head.signers) for head in run.heads]
    assert absent == [{"site-1"}, {"site-4"}, set()]
    assert all(head.witnessed and head.quorum == 4 for head in run.heads)
    kinds = [record.kind for record in run.records]
    for place, kind in enumerate(kinds):
        assert (kind == "witnessed") == (kinds[place - 1] in ("round_applied", "closed"))


def test_the_first_record_binds_code_dependencies_model_settings_threat_models_and_keys(whole):
    genesis = read_ledger(whole / LEDGER)[0].body
    assert genesis["source_sha256"] == source_sha256()
    assert genesis["dependencies"]["cryptography"].count(".") == 2
    assert genesis["dependencies_sha256"] == dependencies_sha256(genesis["dependencies"])
    assert {len(genesis[name]) for name in ("config_sha256", "model_fingerprint")} == {64}
    models = sorted(path.name for path in (whole / "threat_models").iterdir())
    assert models == sorted(genesis["threat_models"])
    assert len(models) > 0
    assert genesis["roster"] == read_roster(roster_of(whole)).to_record()
    for name in SITES:
        begun = read_ledger(whole / "clients" / name / "budget.jsonl")[0].body
        assert begun["ledger"] == read_ledger(whole / LEDGER)[0].hash
        assert begun["size"] == genesis["client_sizes"][name]


def test_keys_lie_beside_the_run_folder_for_their_owner_alone(whole):
    keys = whole.with_name("out.keys")
    assert (keys.stat().st_mode & 0o777, (keys / "clients").stat().st_mode & 0o777) == (0o700,) * 2
    files = sorted(path.relative_to(keys).as_posix() for path in keys.rglob("*.pem"))
    assert files == [*(f"clients/{name}.pem" for name in SITES), "server.pem"]
    assert {path.stat().st_mode & 0o777 for path in keys.rglob("*.pem")} == {0o600}
    secrets = [path.read_bytes().splitlines()[1] for path in keys.rglob("*.pem")]
    handed_on = b"".join(path.read_bytes() for path in whole.rglob("*") if path.is_file())
    assert not [secret for secret in secrets if secret in handed_on]


def figures_by_client(value, found=()):
    """Objects in a record that hold a number for each of several clients, by the keys above."""
    if isinstance(value, dict):
        if set(SITES) & value.keys() and any(isinstance(v, int | float) for v in value.values()):
            yield found
        for key, item in value.items():
            yield from figures_by_client(item, (*found, key))
    elif isinstance(value, list):
        numbers = [item for item in value if isinstance(item, int | float)]
        if len(numbers) >= len(SITES) - 1:
            yield found
        for item in value:
            yield from figures_by_client(item, found)


def test_no_figure_of_a_single_client_is_in_the_ledger_but_its_public_size(whole):
    found = {
        (record.kind, *where)
        for record in read_ledger(whole / LEDGER)
        for where in figures_by_client(record.body)
    }
    assert found == {("genesis", "client_sizes")}
    # The search does find such figures.
    assert list(figures_by_client({"norms": dict.fromkeys(SITES, 1.5)})) == [("norms",)]
    assert list(figures_by_client({"losses": [0.5] * 6})) == [("losses",)]


# -- verdicts --------------------------------------------------------------------------------------


def test_keys_in_the_ledger_anchor_nothing(whole, cli):
    code, out, _ = cli("verify", whole)
    assert code == 0
    assert "verdict: self-consistent, not anchored" in out
    assert "witnesses: 3 of 3 heads are signed by the server and by clients enough" in out
    code, out, _ = cli("verify", whole, "--roster", roster_of(whole))
    assert code == 0
    assert "verdict: verified; anchored" in out


def test_a_whole_other_run_under_other_keys_is_consistent_and_not_anchored(copy, whole):
    """Whoever makes keys of their own can sign anything; the roster alone tells."""
    own = Identities.make(SITES, decryptor=False)
    change = setting("genesis", roster=own.roster.to_record(), model="another")
    forge(copy, change, server=own, clients=own)
    verdict = verify_run(copy)
    assert (verdict.anchored, verdict.incomplete) == (False, [])
    tampered(copy, "key of server is not the one in the roster file: 7 of 7", roster_of(whole))


def test_a_roster_of_another_run_or_none_at_all_is_named(whole, tmp_path, cli):
    other = tmp_path / "other.json"
    other.write_text(Identities.make(SITES, decryptor=False).roster.to_text())
    tampered(whole, r"ledger\.jsonl: line 1: the key of server", other)
    fields = json.loads(roster_of(whole).read_text())
    fields["clients"]["site-3"] = IdentityKey.generate().public.raw.hex()
    path = tmp_path / "roster.json"
    path.write_text(json.dumps(fields))
    tampered(whole, "the key of client 'site-3'", path)
    path.write_text("{}")
    code, _, err = cli("verify", whole, "--roster", path)
    assert code == 2
    assert "format must be 'securefed/roster/1'" in err


def test_a_folder_of_an_earlier_version_is_incomplete_and_says_why(copy, cli):
    def early(records):
        body = {k: v for k, v in records[0][1].items() if k not in ("roster", "releases")}
        return [("genesis", body), *(r for r in records[1:] if r[0] != "witnessed")]

    def without(records):
        body = {k: v for k, v in records[0][1].items() if k not in ("ledger", "size")}
        return [("genesis", body), *(r for r in records[1:] if r[0] != "witnessed")]

    forge(copy, early, accounts=None)
    tampered(copy, r"first record: lacks size|lacks roster|first record: size")
    forge(copy, accounts=without)
    for path in copy.glob("clients/*/budget.jsonl"):
        records = read_ledger(path)
        path.unlink()
        path.with_name("budget.head.json").unlink()
        genesis = {k: v for k, v in records[0].body.items() if k not in ("ledger", "size")}
        with Ledger.create(path, genesis, clock=lambda: "2026-01-01T00:00:00Z") as account:
            for record in records[1:]:
                account.append(record.kind, record.body)
    code, out, _ = cli("verify", copy)
    assert code == 3
    assert "INCOMPLETE: written by an earlier version: no witnesses" in out
    cut(copy / LEDGER, place_of(copy, "closed"))
    with pytest.raises(ConfigError, match="begun by an earlier version"):
        Federation.from_config(copy / "config.toml").run(copy, resume=True)


def test_other_sources_than_the_installed_ones_are_a_note(whole, monkeypatch):
    monkeypatch.setattr(verified, "source_sha256", lambda: "00" * 32)
    verdict = verify_run(whole)
    assert verdict.incomplete == []
    (note,) = [line for line in verdict.lines if line.startswith("note: ")]
    assert f"with sources {source_sha256()}" in note


# -- resuming --------------------------------------------------------------------------------------


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def run_of(folder: Path):
    return Federation.from_config(folder / "config.toml")


@pytest.mark.parametrize("number", [0, -1], ids=["round", "closing"])
def test_a_kill_between_a_head_and_its_signatures_is_made_good_by_resume(
    tmp_path, monkeypatch, number
):
    out, done = tmp_path / "out", []
    witness = Parties.witness

    def killed(self, ledger, record, **options):
        done.append(record.kind)
        if (record.kind == "closed") == (number == -1):
            raise KeyboardInterrupt
        witness(self, ledger, record, **options)

    path = write_run(tmp_path, training={"rounds": 1})
    monkeypatch.setattr(Parties, "witness", killed)
    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(path).run(out)
    monkeypatch.undo()
    assert "quorum missing" in verify_run(out).incomplete[-1]
    result = run_of(out).run(out, resume=True)
    assert (result.rounds, result.charges) == (1, 1)
    verdict = verify_run(out, roster_of(out))
    assert (verdict.anchored, verdict.incomplete) == (True, [])
    before = (out / LEDGER).read_bytes()
    run_of(out).run(out, resume=True)
    assert (out / LEDGER).read_bytes() == before


def test_a_kill_among_the_clients_signatures_signs_no_head_twice(tmp_path, monkeypatch):
    from securefed.evidence.witness import Witness

    out, sign, done = tmp_path / "out", Witness.sign, []

    def killed(self, *args):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return sign(self, *args)

    path = write_run(tmp_path, training={"rounds": 1})
    monkeypatch.setattr(Witness, "sign", killed)
    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(path).run(out)
    monkeypatch.undo()
    run_of(out).run(out, resume=True)
    for account in out.glob("clients/*/budget.jsonl"):
        heads = [r.body["seq"] for r in read_ledger(account) if r.kind == "witnessed"]
        assert len(heads) == len(set(heads)) == 2
    assert verify_run(out).incomplete == []


@pytest.fixture
def unfinished(copy) -> Path:
    cut_run(copy, place_of(copy, "closed"))
    return copy


def test_a_resume_without_the_keys_is_refused_and_says_what_is_missing(unfinished):
    keys = unfinished.with_name("copy.keys")
    away = keys.rename(keys.with_name("away"))
    with pytest.raises(ConfigError, match=r"copy\.keys is missing: it holds the identity keys"):
        run_of(unfinished).run(unfinished, resume=True)
    Identities.make(SITES, decryptor=False).save(keys)
    with pytest.raises(ConfigError, match=r"holds another key of server .* it is another run's"):
        run_of(unfinished).run(unfinished, resume=True)
    shutil.rmtree(keys)
    away.rename(keys)
    (keys / "clients" / "site-3.pem").chmod(0o644)
    with pytest.raises(ConfigError, match=r"site-3\.pem has mode 0644"):
        run_of(unfinished).run(unfinished, resume=True)
    (keys / "clients" / "site-3.pem").chmod(0o600)
    assert run_of(unfinished).run(unfinished, resume=True).rounds == 2
    assert verify_run(unfinished, roster_of(unfinished)).incomplete == []


def test_keys_that_a_kill_left_unmoved_are_taken_by_resume(unfinished):
    """The run folder had been moved to its place, and its keys not yet."""
    keys = unfinished.with_name("copy.keys")
    keys.rename(keys.with_name(".copy.partial.keys"))
    assert run_of(unfinished).run(unfinished, resume=True).rounds == 2
    assert keys.is_dir()


def test_a_new_run_does_not_take_the_place_of_anothers_keys(tmp_path):
    path = write_run(tmp_path)
    (tmp_path / "out.keys").mkdir()
    with pytest.raises(ConfigError, match=r"out\.keys is there already"):
        Federation.from_config(path).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "out.keys").iterdir()) == []


def test_a_run_that_cannot_be_made_leaves_no_keys(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("securefed.engines.opening.begin_accounts", full)
    with pytest.raises(ConfigError, match="cannot be made"):
        Federation.from_config(write_run(tmp_path)).run(tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == []


def test_a_resume_of_a_forged_ledger_is_refused(unfinished):
    forge(unfinished, accounts=None)
    before = [len(read_charges(p)) for p in unfinished.glob("clients/*/budget.jsonl")]
    with pytest.raises(LedgerTampered, match="another first record"):
        run_of(unfinished).run(unfinished, resume=True)
    after = [len(read_charges(p)) for p in unfinished.glob("clients/*/budget.jsonl")]
    assert before == after


def test_a_client_that_is_shown_a_fork_stops_the_run(unfinished):
    """The server's files are written anew and signed; the clients' accounts are their own."""
    keys = keys_of(unfinished)
    forge(unfinished, accounts=None, server=keys)
    from securefed.engines.witnessing import witnesses_of

    accounts = {
        name: Ledger.open(
            unfinished / "clients" / name / "budget.jsonl", clock=lambda: "2026-01-01T00:00:00Z"
        )
        for name in SITES
    }
    config = read_ledger(unfinished / LEDGER)[0].body["config_sha256"]
    with Ledger.open(unfinished / LEDGER, clock=lambda: "2026-01-01T00:00:00Z") as ledger:
        applied = ledger.records[place_of(unfinished, "round_applied", -1)]
        lines, witnesses = len(ledger.records), witnesses_of(keys, accounts, {}, config)
        with pytest.raises(LedgerTampered, match="client 'site-0' does not sign the head"):
            gather(ledger, applied, keys.server, witnesses, keys.roster)
        assert len(ledger.records) == lines


def test_many_signatures_are_spread_over_several_records(unfinished, monkeypatch):
    monkeypatch.setattr("securefed.engines.witnessing.MOST_SIGNATURES", 4)
    run_of(unfinished).run(unfinished, resume=True)
    records = read_ledger(unfinished / LEDGER)
    closing = place_of(unfinished, "closed")
    sizes = [len(r.body["signatures"]) for r in records[closing + 1 :]]
    assert sizes == [4, 4]
    head = verified_run(unfinished).heads[-1]
    assert (head.signers, head.witnessed) == (tuple(SITES), True)
