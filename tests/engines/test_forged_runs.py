"""Every kind of tampering with a run folder, by someone who can rebuild every hash chain.

Where it is the signatures that give an alteration away, the same folder is verified with that
check taken out too, and passes.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from forging import LEDGER, SITES, forge, keys_of, roster_of, run_with_dropouts, setting, tampered
from ledgers import charged, copy_run, cut, cut_run, place_of
from tiny import write_run

from securefed import Federation
from securefed.engines import verified
from securefed.engines.releases import release_records
from securefed.engines.verify import verified_run, verify_run
from securefed.engines.workbench import Workbench
from securefed.evidence.ledger import Ledger, read_ledger
from securefed.privacy import accounting
from securefed.privacy.accounting import ADVERSARIES


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return run_with_dropouts(tmp_path_factory.mktemp("witnessed"))


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


def passes_without_witnesses(folder: Path, monkeypatch) -> int:
    """The charges that verify finds where nobody looks at signatures."""
    with monkeypatch.context() as patch:
        patch.setattr(verified, "check_witnesses", lambda *_: [])
        verdict = verify_run(folder)
    assert verdict.finished
    assert not verdict.incomplete
    return verdict.charges


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


def test_old_signatures_are_over_no_line_that_was_written_anew(copy):
    """The first record stands, and accounts name the new lines: signatures alone tell."""
    before = read_ledger(copy / LEDGER)
    forge(copy, same_first=True)
    after = read_ledger(copy / LEDGER)
    assert (after[0], [r.body for r in after]) == (before[0], [r.body for r in before])
    tampered(copy, r"the signatures are over another head than line \d+ \(round_applied\)")


def test_a_closing_record_counts_the_charges_that_the_accounts_hold(copy):
    keys = keys_of(copy)
    forge(copy, setting("closed", charges=9), server=keys, clients=keys)
    tampered(copy, "closes with 9 charges, the accounts hold 2")


def test_no_other_version_states_another_unit(copy):
    """Its words may differ, but not whom an epsilon is for."""
    keys = keys_of(copy)

    def said(records):
        records[0] = (records[0][0], records[0][1] | {"software": "securefed 0.0.1"})
        [kind, body] = records[-2]
        stated = [body["guarantees"][0] | {"unit": "one person"}, *body["guarantees"][1:]]
        records[-2] = (kind, body | {"guarantees": stated})
        return records

    forge(copy, said, server=keys, clients=keys)
    tampered(copy, "claim against server: unit = 'one person', recomputed 'one example")


def test_signatures_of_another_run_are_refused(copy, retried):
    other = next(r.body for r in read_ledger(retried / LEDGER) if r.kind == "witnessed")
    place = place_of(copy, "witnessed")
    forge(copy, setting("witnessed", **other), accounts=None)
    tampered(copy, "was begun for a ledger with another first record")
    forge(copy, setting("witnessed", **other))
    tampered(copy, f"line {place + 1}: envelope: a signature is by none of the keys that may sign")


def test_another_model_is_noticed(copy, monkeypatch):
    """In the ledger, in what lies with the adapter, and in the closing record's hash of that."""
    name = "adapter/securefed_adapter.json"
    text = json.dumps(json.loads((copy / name).read_text()) | {"base_fingerprint": "ab" * 32})
    (copy / name).write_text(text)

    def other(records):
        files = records[-2][1]["files"] | {name: hashlib.sha256(text.encode()).hexdigest()}
        records = setting("closed", files=files)(records)
        return setting("genesis", model_fingerprint="ab" * 32)(records)

    forge(copy, other)
    tampered(copy, "the signatures are over a head of another ledger")
    passes_without_witnesses(copy, monkeypatch)


def test_base_weights_must_be_those_of_the_adapter_also_where_all_keys_are_one_hand_s(copy):
    forge(copy, setting("genesis", model_fingerprint="ab" * 32), server=keys_of(copy))
    tampered(copy, r"securefed_adapter\.json: is of other base weights than the ledger's first")


def test_a_pinned_model_is_the_one_of_the_first_record(copy):
    text = (copy / "config.toml").read_text()
    pinned = text.replace("[model]", f'[model]\nfingerprint = "{"ab" * 32}"', 1)
    (copy / "config.toml").write_text(pinned)
    digest = hashlib.sha256(pinned.encode()).hexdigest()
    forge(copy, setting("genesis", config_sha256=digest), server=keys_of(copy))
    tampered(
        copy, f"model_fingerprint = .*, and the run file pins model.fingerprint = '{'ab' * 32}'"
    )


def test_clients_that_did_not_sign_the_end_are_named(copy):
    """A quorum shows one ledger; that all charges of a client are in it, its own signature."""
    keys = keys_of(copy)

    def silent(records):
        if records[0][1]["client"] in SITES[4:]:
            return [(kind, body) for kind, body in records if kind != "witnessed"]
        return records

    forge(copy, accounts=silent, server=keys)
    forge(copy, server=keys, clients=keys)
    run = verified_run(copy, roster_of(copy))
    assert run.incomplete == []
    assert [len(head.signers) for head in run.heads] == [3, 4, 4]
    assert any("closing record is not signed by site-4, site-5: no" in note for note in run.notes)


def test_a_run_that_was_begun_under_other_threat_models_says_so(copy, whole):
    assert not any("threat models" in note for note in verified_run(whole).notes)
    path = copy / "threat_models" / "decryptor.yaml"
    path.unlink()
    kept = {each.name for each in path.parent.iterdir()}
    recorded = read_ledger(copy / LEDGER)[0].body["threat_models"]
    fewer = {name: digest for name, digest in recorded.items() if name in kept}
    forge(copy, setting("genesis", threat_models=fewer), server=keys_of(copy))
    (note,) = (note for note in verified_run(copy).notes if "threat models" in note)
    assert note.endswith("its claims are judged by its own: decryptor.yaml")


def test_a_terminal_obeys_nothing_that_a_run_folder_says(copy, cli):
    name = "\x1b[2Jx\nverdict: verified; anchored: the keys are those of the roster file"
    other = {"software": name, "source_sha256": "ab" * 32}
    forge(copy, setting("genesis", **other), server=keys_of(copy))
    _, out, _ = cli("verify", copy)
    assert r"note: the run was begun by \x1b[2Jx\nverdict: verified; anchored" in out
    assert "\nverdict: verified" not in out
    (copy / "clients" / name.replace("/", "")).mkdir()
    code, _, err = cli("verify", copy)
    assert (code, err.count("\n")) == (1, 1)
    assert "\x1b" not in err


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
    tmp_path, monkeypatch
):
    """A faulty accountant wrote the run and recomputes it: both agree on half of the truth."""
    right = accounting.distributed_epsilon
    monkeypatch.setattr(
        accounting, "distributed_epsilon", lambda *args, **kwargs: right(*args, **kwargs) / 2
    )
    path = write_run(tmp_path, training={"rounds": 1})
    run = Federation.from_config(path).run(tmp_path / "out").folder
    tampered(run, "a second accountant finds that nothing below .* is true of the event on record")
    monkeypatch.setattr(verified, "second_opinions", lambda *_, **__: [])
    assert verify_run(run).incomplete == []


def test_charges_cut_from_accounts_are_missed_by_the_clients_signatures(copy):
    """An account keeps how many of its charges the signed lines settle."""
    from ledgers import rewrite

    for path in copy.glob("clients/*/budget.jsonl"):
        rewrite(path, charged(1))
    tampered(copy, "no charge for round 2")
