"""Runs whose heads are signed: what verify says of them, and every kind of tampering by name.

Whoever alters a folder here can rebuild every hash chain.  Where it is the signatures that give an
alteration away, the same folder is verified with that check taken out too, and passes.
"""

import json
import shutil
from pathlib import Path

import pytest
from forging import forge, keys_of, setting
from ledgers import charged, copy_run, cut, cut_run, place_of
from tiny import write_run

from securefed import Federation
from securefed.crypto.identity import IdentityKey
from securefed.engines import verified
from securefed.engines.identities import Identities
from securefed.engines.parties import Parties
from securefed.engines.releases import release_records
from securefed.engines.verify import verified_run, verify_run
from securefed.engines.witnessing import gather
from securefed.engines.workbench import Workbench
from securefed.errors import ConfigError, LedgerTampered
from securefed.evidence.budget import read_charges
from securefed.evidence.ledger import Ledger, read_ledger
from securefed.evidence.roster import read_roster
from securefed.evidence.software import dependencies_sha256, source_sha256
from securefed.privacy.accounting import ADVERSARIES

LEDGER = "ledger.jsonl"
SITES = [f"site-{number}" for number in range(6)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of two rounds; one client is silent in the first, another after its masked input."""
    base = tmp_path_factory.mktemp("witnessed")
    drops = [
        {"round": 1, "client": "site-1", "stage": "masked_input"},
        {"round": 2, "client": "site-4", "stage": "unmask"},
    ]
    path = write_run(base, training={"rounds": 2}, cohort={"simulated_dropouts": drops})
    return Federation.from_config(path).run(base / "out").folder


@pytest.fixture(scope="module")
def retried(tmp_path_factory) -> Path:
    """A run that was killed in its second round, before anybody sent anything, and resumed."""
    base = tmp_path_factory.mktemp("retried")
    path, encoder = write_run(base, training={"rounds": 2}), Workbench.encoder

    def killed(self, settings, number, client_id):
        if number == 2:
            raise KeyboardInterrupt
        return encoder(self, settings, number, client_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workbench, "encoder", killed)
        with pytest.raises(KeyboardInterrupt):
            Federation.from_config(path).run(base / "out")
    return Federation.from_config(path).run(base / "out", resume=True).folder


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return copy_run(whole, tmp_path / "copy")


def roster_of(run: Path) -> Path:
    return run.with_name(run.name + ".keys") / "roster.json"


def tampered(folder: Path, words: str, roster: Path | None = None) -> None:
    with pytest.raises(LedgerTampered, match=words):
        verify_run(folder, roster)


def passes_without_witnesses(folder: Path, monkeypatch) -> int:
    """The charges that verify finds where nobody looks at signatures."""
    with monkeypatch.context() as patch:
        patch.setattr(verified, "check_witnesses", lambda *_: [])
        verdict = verify_run(folder)
    assert verdict.finished
    assert not verdict.incomplete
    return verdict.charges


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


def test_no_figure_of_a_single_client_is_in_the_ledger_but_its_public_size(whole, retried):
    for run in (whole, retried):
        found = {
            (record.kind, *where)
            for record in read_ledger(run / LEDGER)
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


def test_a_roster_of_another_run_or_none_at_all_is_named(whole, retried, tmp_path, cli):
    tampered(whole, r"ledger\.jsonl: line 1: the key of server", roster_of(retried))
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


# -- tampering -------------------------------------------------------------------------------------


def lines_of(folder: Path) -> list[bytes]:
    return (folder / LEDGER).read_bytes().splitlines(keepends=True)


def test_an_edited_value_a_removed_line_and_a_swapped_order_break_the_chain(copy):
    lines = lines_of(copy)
    place = place_of(copy, "round_summed")
    edited = lines[place].replace(b'"refused":0', b'"refused":1')
    before, after = lines[:place], lines[place + 1 :]
    for changed, words in [
        ([*before, edited, *after], f"line {place + 1}: .*a value was edited"),
        ([*before, *after], f"line {place + 1}: a line was removed"),
        ([*before, after[0], lines[place], *after[1:]], f"line {place + 1}: the order was changed"),
    ]:
        (copy / LEDGER).write_bytes(b"".join(changed))
        tampered(copy, words)


def test_a_ledger_whose_chain_was_rebuilt_is_not_the_one_that_clients_signed(copy, monkeypatch):
    """Not a value is changed but the times; accounts are in the clients' hands."""
    forge(copy, accounts=None)
    tampered(copy, r"budget\.jsonl: was begun for a ledger with another first record: line 1")
    passes_without_witnesses(copy, monkeypatch)


def test_the_lines_that_were_rewritten_are_named(copy, monkeypatch):
    """The first lines stay; an evaluation is written anew, and the chain from there on."""
    place = place_of(copy, "evaluated", 1)
    records = read_ledger(copy / LEDGER)
    cut(copy / LEDGER, place)
    with Ledger.open(copy / LEDGER, clock=lambda: "2026-01-01T00:00:00Z") as ledger:
        for record in records[place:]:
            ledger.append(record.kind, record.body)
    closing = place_of(copy, "closed")
    applied = place_of(copy, "round_applied", -1)
    tampered(copy, f"its lines {applied + 2} to {closing + 1} were rewritten, or it is a fork")
    passes_without_witnesses(copy, monkeypatch)


def test_a_tail_cut_off_with_a_head_that_fits_is_missed(copy, monkeypatch):
    lines = len(lines_of(copy))
    closing = place_of(copy, "closed")
    cut(copy / LEDGER, closing)
    tampered(copy, f"signed line {closing + 1} of the ledger, which has {closing}: its tail")
    cut_run(copy, closing)  # from the accounts as well: a run that is not finished, to all eyes
    verdict = verify_run(copy)
    assert verdict.incomplete == ["the run is not finished"]
    assert closing < lines


def test_signatures_cut_from_the_end_leave_it_without_a_quorum(copy, cli):
    cut(copy / LEDGER, place_of(copy, "closed") + 1)
    code, out, _ = cli("verify", copy)
    assert code == 3
    assert "quorum missing: line" in out
    assert "not even the server has signed it" in out


def test_an_account_whose_record_of_a_head_was_cut_off_is_noticed(copy):
    cut(copy / "clients/site-2/budget.jsonl", 5)
    tampered(copy, r"site-2/budget\.jsonl: holds no record of line \d+ of the ledger, which site-2")


def test_a_fork_under_the_servers_key_has_no_signatures_of_clients(copy, monkeypatch, cli):
    """Everything is written anew, accounts too, and the server signs it; clients have not."""
    forge(copy, setting("genesis", model="another"), server=keys_of(copy))
    code, out, _ = cli("verify", copy, "--roster", roster_of(copy))
    assert code == 3
    assert "signed by the server and 0 of 6 clients, 4 are needed" in out
    passes_without_witnesses(copy, monkeypatch)


def test_a_fork_with_the_old_signatures_is_named(copy, monkeypatch):
    forge(copy, setting("genesis", model="another"))
    place = place_of(copy, "witnessed")
    tampered(copy, f"line {place + 1}: the signatures are over a head of another ledger")
    passes_without_witnesses(copy, monkeypatch)


def test_old_signatures_under_a_new_head_do_not_verify(copy):
    old = [r.body for r in read_ledger(copy / LEDGER) if r.kind == "witnessed"]
    forge(copy, server=keys_of(copy))
    new = [r.body for r in read_ledger(copy / LEDGER) if r.kind == "witnessed"]
    bodies = iter(
        [
            n | {"signatures": [*n["signatures"], *o["signatures"][1:]]}
            for n, o in zip(new, old, strict=True)
        ]
    )

    def mixed(records):
        return [(k, next(bodies) if k == "witnessed" else b) for k, b in records]

    # The chain up to the first signatures is as it was signed: times are the same.
    forge(copy, mixed)
    tampered(copy, r"line \d+: envelope: the signature of site-0 does not verify")


def test_signatures_of_another_run_are_refused(copy, retried):
    other = next(r.body for r in read_ledger(retried / LEDGER) if r.kind == "witnessed")
    place = place_of(copy, "witnessed")
    forge(copy, setting("witnessed", **other), accounts=None)
    tampered(copy, "was begun for a ledger with another first record")
    forge(copy, setting("witnessed", **other))
    tampered(copy, f"line {place + 1}: envelope: a signature is by none of the keys that may sign")


def test_another_model_is_noticed(copy, monkeypatch):
    forge(copy, setting("genesis", model_fingerprint="ab" * 32))
    tampered(copy, "the signatures are over a head of another ledger")
    passes_without_witnesses(copy, monkeypatch)


def test_other_sizes_of_clients_are_noticed(copy, monkeypatch):
    """With all that follows from them: the sampling probability, the plan, every charge."""
    settings = verified_run(copy).settings
    sizes = {name: 2 * size for name, size in settings.sizes.items()}
    other = type(settings)(settings.config, sizes=sizes, dimension=settings.dimension)
    spent = other.round_event(other.sum_policy)

    def ledger(records):
        records = setting(
            "genesis",
            client_sizes=sizes,
            privacy=json.loads(json.dumps(other.record())),
            releases=release_records(other, other.stated.rounds),
        )(records)
        records = [(k, b | spent if k == "round_opened" else b) for k, b in records]
        return cheaper(other, 2)(records)

    def account(records):
        name = records[0][1]["client"]
        own = {"size": sizes[name], "privacy": json.loads(json.dumps(other.record()))}
        records[0] = ("genesis", records[0][1] | own)
        return [(k, b | spent if k == "charge" else b) for k, b in records]

    forge(copy, ledger, accounts=None)
    tampered(copy, r"budget\.jsonl: first record: (privacy|size)")
    forge(copy, accounts=account)
    show_again(copy)
    tampered(copy, "the signatures are over a head of another ledger")
    assert passes_without_witnesses(copy, monkeypatch) == 2


def cheaper(settings, charges):
    """A change of the closing record: what follows from that many charges, with these settings."""
    return setting(
        "closed",
        charges=charges,
        guarantees=[settings.guarantee(who, charges).to_record() for who in ADVERSARIES],
        releases=release_records(settings, charges),
    )


def show_again(folder: Path) -> None:
    """Make metrics.jsonl from the ledger again, and its hash in the ledger."""
    import hashlib

    from securefed.engines.recorded import recorded_event

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verified, "check_witnesses", lambda *_: [])
        for name in ("check_files", "check_shown", "check_measured"):
            patch.setattr(verified, name, lambda *_: None)
        run = verified_run(folder)
    events = [recorded_event(run.records, n, run.settings).to_record() for n in range(3)]
    text = "".join(json.dumps(event, sort_keys=True) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(text)
    files = run.history.closed["files"] | {
        "metrics.jsonl": hashlib.sha256(text.encode()).hexdigest()
    }
    forge(folder, setting("closed", files=dict(files)))


def test_an_attempt_taken_out_of_every_file_makes_a_run_cheaper_and_is_missed(
    retried, tmp_path, monkeypatch
):
    """The ledger, the accounts, the claims and the metrics all agree on one charge less."""
    copy = copy_run(retried, tmp_path / "copy")
    records = read_ledger(copy / LEDGER)
    session = next(r.body["session"] for r in records if r.kind == "round_abandoned")
    settings, spent = verified_run(copy).settings, verified_run(copy).charges

    def ledger(found):
        kept = [(k, b) for k, b in found if b.get("session") != session]
        kept = [(k, b | {"charges": b["round"]} if k == "round_summed" else b) for k, b in kept]
        return cheaper(settings, 2)(kept)

    def account(found):
        return [(k, b) for k, b in found if k != "charge" or b["session"] != session]

    forge(copy, ledger, accounts=account)
    show_again(copy)
    tampered(copy, "the signatures are over a head of another ledger")
    assert passes_without_witnesses(copy, monkeypatch) == 2 < spent == 3
    # With the server's key no client has signed it; with the clients' accounts in their own hands
    # it is theirs that tell.
    forge(copy, server=keys_of(retried))
    assert "quorum missing" in verify_run(copy, roster_of(retried)).incomplete[0]
    for name in SITES:
        shutil.copy(retried / "clients" / name / "budget.jsonl", copy / "clients" / name)
        shutil.copy(retried / "clients" / name / "budget.head.json", copy / "clients" / name)
    tampered(copy, r"budget\.jsonl: charges a session twice, or one that was never opened")


def test_a_threat_model_that_was_edited_added_or_taken_away_is_named(copy):
    path = sorted((copy / "threat_models").iterdir())[0]
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n")
    tampered(copy, f"{path.name}: is not the threat model that the run was begun under")
    path.unlink()
    tampered(copy, f"{path.name}: is missing; the run was begun under it")
    path.write_bytes(whole)
    path.with_name("more.yaml").write_bytes(whole)
    tampered(copy, "more.yaml: is none of those that the run was begun under")


def test_what_the_first_record_says_of_code_and_releases_must_fit_itself(copy):
    forge(copy, setting("genesis", dependencies={"numpy": "9"}), server=keys_of(copy))
    tampered(copy, "line 1: dependencies_sha256")


@pytest.mark.parametrize("kind", ["genesis", "closed"])
def test_a_release_that_does_not_follow_from_the_figures_is_noticed(copy, kind):
    body = next(r.body for r in read_ledger(copy / LEDGER) if r.kind == kind)
    releases = json.loads(json.dumps(body["releases"]))
    releases["server"]["dp_event"]["event"]["event"]["noise_multiplier"] *= 2
    forge(copy, setting(kind, releases=releases), server=keys_of(copy))
    tampered(copy, r"releases\.server: dp_event")


def test_a_statement_that_this_package_gets_wrong_is_refuted_by_another_accountant(
    copy, monkeypatch
):
    """The stated epsilon and the recomputed one come from one faulty accountant, and agree."""
    from securefed.privacy import accounting

    right = accounting.distributed_epsilon

    def halved(*args, **kwargs):
        return right(*args, **kwargs) / 2

    monkeypatch.setattr(accounting, "distributed_epsilon", halved)
    with monkeypatch.context() as patch:
        patch.setattr(verified, "second_opinions", lambda *_, **__: [])
        for name in ("check_files", "check_shown"):
            patch.setattr(verified, name, lambda *_: None)
        settings = verified_claims_of(copy, patch)
    forge(copy, cheaper(settings, 2), server=keys_of(copy), clients=keys_of(copy))
    show_again_wrongly(copy, monkeypatch)
    tampered(copy, "a second accountant finds that nothing below .* is true of the event")


def verified_claims_of(folder: Path, patch) -> object:
    patch.setattr(verified, "_check_claims", lambda *_: None)
    return verified_run(folder).settings


def show_again_wrongly(folder: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(verified, "second_opinions", lambda *_, **__: [])
        show_again(folder)


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


def test_a_resume_without_the_keys_is_refused_and_says_what_is_missing(unfinished, retried):
    keys = unfinished.with_name("copy.keys")
    away = keys.rename(keys.with_name("away"))
    with pytest.raises(ConfigError, match=r"copy\.keys is missing: it holds the identity keys"):
        run_of(unfinished).run(unfinished, resume=True)
    shutil.copytree(retried.with_name("out.keys"), keys)
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
    with pytest.raises(LedgerTampered, match="another first record"):
        run_of(unfinished).run(unfinished, resume=True)
    assert {len(read_charges(p)) for p in unfinished.glob("clients/*/budget.jsonl")} == {2}


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


def test_charges_cut_from_accounts_are_missed_by_the_clients_signatures(copy):
    """An account keeps how many of its charges the signed lines settle."""
    from ledgers import rewrite

    for path in copy.glob("clients/*/budget.jsonl"):
        rewrite(path, charged(1))
    tampered(copy, "no charge for round 2")
