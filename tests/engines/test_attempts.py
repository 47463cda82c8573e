"""Attempts at rounds: whoever may have sent something is charged, whatever the accounts say now."""

from pathlib import Path

import pytest
from ledgers import charged, copy_run, cut, place_of, rewrite
from tiny import write_run

from securefed import Federation
from securefed.config import load_config
from securefed.engines.events import Silent
from securefed.engines.verify import verify_run
from securefed.engines.workbench import Workbench
from securefed.errors import LedgerTampered, ThresholdNotMet
from securefed.evidence.budget import ClientBudget, read_charges
from securefed.evidence.ledger import read_ledger


def charges(out: Path) -> dict[str, int]:
    accounts = (out / "clients").glob("*/budget.jsonl")
    return {path.parent.name: len(read_charges(path)) for path in accounts}


def bodies(out: Path, kind: str) -> list[dict]:
    return [r.body for r in read_ledger(out / "ledger.jsonl") if r.kind == kind]


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A run whose second round failed after three clients had sent their inputs."""
    base = tmp_path_factory.mktemp("attempts")
    drops = [{"round": 2, "client": f"site-{i}", "stage": "masked_input"} for i in range(3)]
    path = write_run(base, training={"rounds": 2}, cohort={"simulated_dropouts": drops})
    with pytest.raises(ThresholdNotMet):
        Federation.from_config(path).run(base / "out")
    return base / "out"


@pytest.fixture
def failed(begun, tmp_path) -> Path:
    return copy_run(begun, tmp_path / "copy")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("attempts-whole")
    drops = [{"round": 1, "client": "site-4", "stage": "unmask"}]
    path = write_run(base, training={"rounds": 2}, cohort={"simulated_dropouts": drops})
    return Federation.from_config(path).run(base / "out").folder


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return copy_run(whole, tmp_path / "copy")


def cut_before_its_end(out: Path) -> None:
    """As a kill leaves it: the second attempt was opened, and nothing says how it ended."""
    cut(out / "ledger.jsonl", place_of(out, "round_opened", 1) + 1)


def test_a_failed_attempt_names_who_was_charged(failed):
    (body,) = bodies(failed, "round_failed")
    assert body["charged"] == ["site-3", "site-4", "site-5"]
    assert verify_run(failed).charges == 2


def test_a_resume_says_what_was_charged_for_nothing(failed):
    said = []

    class Listening(Silent):
        def message(self, text):
            said.append(text)

    federation = Federation(load_config(failed / "config.toml"), observer=Listening())
    for _ in range(2):
        with pytest.raises(ThresholdNotMet):
            federation.run(failed, resume=True)
    resumed = [line for line in said if line.startswith("resuming")]
    assert resumed == [
        "resuming after round 1; 1 earlier attempt at round 2 was charged by 3 of 6 clients and "
        "stays charged",
        "resuming after round 1; 2 earlier attempts at round 2 were charged by 3 and 3 of 6 "
        "clients and stay charged",
    ]
    cut_before_its_end(failed)
    for path in (failed / "clients").glob("*/budget.jsonl"):
        rewrite(path, charged(2))
    with pytest.raises(ThresholdNotMet):
        federation.run(failed, resume=True)
    assert "resuming after round 1" in said
    assert (
        "an attempt at round 2 was begun and not ended: 3 of 6 clients had charged it, and it "
        "counts as spent by all"
    ) in said


def test_an_account_rolled_back_to_before_a_failed_attempt_is_noticed(failed):
    rewrite(failed / "clients" / "site-5" / "budget.jsonl", lambda records: records[:-1])
    with pytest.raises(LedgerTampered, match=r"site-5.*no charge for round 2"):
        verify_run(failed)
    with pytest.raises(LedgerTampered, match=r"site-5.*no charge for round 2"):
        Federation.from_config(failed / "config.toml").run(failed, resume=True)


def test_an_attempt_without_an_end_counts_for_everybody_whatever_the_accounts_say(failed):
    cut_before_its_end(failed)
    assert verify_run(failed).charges == 2
    for path in (failed / "clients").glob("*/budget.jsonl"):
        rewrite(path, charged(1))
    assert set(charges(failed).values()) == {1}
    verdict = verify_run(failed)
    assert verdict.charges == 2
    assert "1 attempt has no recorded end and counts for every client" in "\n".join(verdict.lines)


def test_a_resumed_run_charges_everybody_for_an_attempt_without_an_end(tmp_path, monkeypatch):
    """Killed between the round's record and the first charge: it resumes, and one round is lost."""
    out = tmp_path / "out"
    path = write_run(tmp_path, training={"rounds": 2})
    encoder = Workbench.encoder

    def killed(self, settings, number, client_id):
        if number == 2:
            raise KeyboardInterrupt
        return encoder(self, settings, number, client_id)

    monkeypatch.setattr(Workbench, "encoder", killed)
    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(path).run(out)
    assert read_ledger(out / "ledger.jsonl")[-1].kind == "round_opened"
    assert set(charges(out).values()) == {1}
    assert verify_run(out).charges == 2

    monkeypatch.undo()
    result = Federation.from_config(out / "config.toml").run(out, resume=True)
    assert result.rounds == 2
    assert result.charges == 3
    assert set(charges(out).values()) == {3}
    (body,) = bodies(out, "round_abandoned")
    assert body["charged"] == [f"site-{i}" for i in range(6)]
    assert verify_run(out).charges == 3


def test_a_resume_killed_while_it_charges_an_abandoned_attempt_charges_nobody_twice(
    failed, monkeypatch
):
    cut_before_its_end(failed)
    charge, done = ClientBudget.charge, []

    def killed(self, event):
        if done:
            raise KeyboardInterrupt
        done.append(event["session"])
        charge(self, event)

    monkeypatch.setattr(ClientBudget, "charge", killed)
    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(failed / "config.toml").run(failed, resume=True)
    monkeypatch.undo()
    # Three were charged before the first kill, and one of the others before the second.
    assert sorted(charges(failed).values()) == [1, 1, 2, 2, 2, 2]
    assert verify_run(failed).charges == 2

    with pytest.raises(ThresholdNotMet):
        Federation.from_config(failed / "config.toml").run(failed, resume=True)
    # Round 1, the abandoned attempt, and for half of them the new one, which fails again.
    assert charges(failed) == {f"site-{i}": 2 if i < 3 else 3 for i in range(6)}
    assert verify_run(failed).charges == 3


# -- records that cannot be, though their chain holds --------------------------------------


def edit(kind, change, which=0):
    def changed(records):
        places = [i for i, (found, _) in enumerate(records) if found == kind]
        body = dict(records[places[which]][1])
        change(body)
        records[places[which]] = (kind, body)
        return records

    return changed


def doubled(kind):
    def changed(records):
        place = next(i for i, (found, _) in enumerate(records) if found == kind)
        return [*records[: place + 1], records[place], *records[place + 1 :]]

    return changed


def removed(kind, which=0):
    def changed(records):
        places = [i for i, (found, _) in enumerate(records) if found == kind]
        return [*records[: places[which]], *records[places[which] + 1 :]]

    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit("round_summed", lambda b: b["survivors"].append("site-0")), "survivors.*twice"),
        (edit("round_summed", lambda b: b["survivors"].append("site-9")), "survivors.*site-9"),
        (edit("round_summed", lambda b: b.update(survivors=["site-0"])), "1 survivor.*at least 5"),
        (edit("round_summed", lambda b: b.update(round=2)), "round 2"),
        (edit("round_summed", lambda b: b.update(charges=7)), "charges = 7"),
        (edit("round_summed", lambda b: b["charged"].remove("site-0")), "charged.*site-0"),
        (edit("round_summed", lambda b: b.update(session="00")), "never opened"),
        (doubled("round_summed"), "ended twice"),
        (doubled("round_applied"), "applies"),
        (removed("round_applied"), "signs a head before a round was applied"),
        (edit("round_applied", lambda b: b.update(round=2)), "applies"),
        (edit("closed", lambda b: b.update(rounds=1)), "rounds"),
        (removed("round_applied", 1), "after round 2, 1 having been applied"),
        (removed("evaluation_opened"), "never opened"),
        (doubled("evaluated"), "evaluat"),
        (edit("evaluated", lambda b: b.update(survivors=["site-1"])), "1 survivor.*at least 5"),
        (lambda records: [*records, ("software_changed", {"software": "x"})], "after the run was"),
        (lambda records: [records[0], ("odd", {}), *records[1:]], "'odd'"),
        (doubled("round_opened"), "names a session again"),
        (edit("round_summed", lambda b: b.pop("bytes_up")), "bytes_up"),
        (edit("round_summed", lambda b: b.update(charged=3)), "lacks what it must hold"),
        (edit("evaluated", lambda b: b.update(figures={})), "lacks what it must hold"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_ledger_that_no_run_writes_is_refused(copy, change, words):
    rewrite(copy / "ledger.jsonl", change)
    with pytest.raises(LedgerTampered, match=words):
        verify_run(copy)


def test_fewer_rounds_than_the_settings_ask_for_are_refused_unless_the_budget_ended_them(copy):
    def shortened(records):
        places = [i for i, (kind, _) in enumerate(records) if kind == "round_opened"]
        ends = [i for i, (kind, _) in enumerate(records) if kind == "round_applied"]
        kept = [*records[: places[1]], *records[ends[1] + 1 :]]
        kept = [(k, b) for k, b in kept if k != "evaluation_opened" or b["round"] == 0]
        kept = [(k, b) for k, b in kept if k != "evaluated" or b["round"] == 0]
        return edit("closed", lambda b: b.update(rounds=1))(kept)

    for path in (copy / "clients").glob("*/budget.jsonl"):
        rewrite(path, charged(1))
    rewrite(copy / "ledger.jsonl", shortened)
    with pytest.raises(LedgerTampered, match=r"rounds = 1.*training\.rounds = 2"):
        verify_run(copy)


# -- sums without noise --------------------------------------------------------------------


def test_an_unnoised_sum_is_on_record_before_its_first_message(copy):
    records = read_ledger(copy / "ledger.jsonl")
    kinds = [r.kind for r in records]
    assert kinds.count("evaluation_opened") == kinds.count("evaluated") == 2
    for opened, closed in zip(
        [r for r in records if r.kind == "evaluation_opened"],
        [r for r in records if r.kind == "evaluated"],
        strict=True,
    ):
        assert opened.seq < closed.seq
        assert opened.body["session"] == closed.body["session"]
        assert opened.body["guaranteed"] is False
        assert len(closed.body["survivors"]) == 6
    found = "\n".join(verify_run(copy).lines)
    assert "held-out figures: 2 sums without noise" in found


def test_an_evaluation_that_was_killed_stays_on_record(tmp_path, monkeypatch):
    from securefed.engines import run as engine

    out = tmp_path / "out"

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "carry", killed)
    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(write_run(tmp_path)).run(out)
    assert read_ledger(out / "ledger.jsonl")[-1].kind == "evaluation_opened"


@pytest.mark.parametrize("figures", ["sum", "histogram"])
def test_clients_keep_their_own_floor_in_an_evaluation(tmp_path, monkeypatch, figures):
    from securefed.engines import evaluations, histograms, round_halves

    floors = []
    real = round_halves.ClientRound

    def recorded(*args, **kwargs):
        floors.append(kwargs["floors"].min_clients)
        return real(*args, **kwargs)

    for engine in (round_halves, evaluations, histograms):
        monkeypatch.setattr(engine, "ClientRound", recorded)
    evaluation = {"figures": figures}
    if figures == "histogram":
        evaluation["histogram"] = {"noise_multiplier": 2.0}
    path = write_run(
        tmp_path, training={"rounds": 1}, cohort={"min_clients": 4}, evaluation=evaluation
    )
    Federation.from_config(path).run(tmp_path / "out")
    assert floors == [4] * 18  # before, the round, after
