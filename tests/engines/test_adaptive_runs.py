"""Runs whose clip adapts: computed by every party, on record, the same after a kill."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import write_run

from securefed import Federation
from securefed.cli.watching import round_line
from securefed.config import load_config, parse_config
from securefed.engines.compare import clients_alone, unprotected
from securefed.engines.events import Silent
from securefed.engines.run import Run
from securefed.engines.verify import verify_run
from securefed.errors import ConfigError, LedgerTampered, ThresholdNotMet
from securefed.evidence.budget import read_charges
from securefed.evidence.ledger import Ledger, read_ledger

FAR = {"example": 5.0, "user": 5.0, "client": 0.01}
BATCH = {"example": 60, "user": 6, "client": 60}
ADAPTIVE = {"learning_rate": 1.0, "target_quantile": 0.6}


def run_file(base: Path, unit: str = "example", **sections) -> Path:
    privacy = {"unit": unit, "clip_norm": FAR[unit], "expected_batch": BATCH[unit]}
    privacy |= {
        "adaptive_clip": ADAPTIVE,
        "noise_multiplier": 4.0,
        "remove_excess_noise": unit == "user",
    }
    return write_run(base, privacy=privacy, **sections)


def bodies(out: Path, kind: str) -> list[dict]:
    return [r.body for r in read_ledger(out / "ledger.jsonl") if r.kind == kind]


def rewrite(path: Path, kind: str, which: int, change) -> None:
    """Change one record's body and rebuild a chain that holds."""
    records = [(r.kind, dict(r.body)) for r in read_ledger(path)]
    change([body for found, body in records if found == kind][which])
    path.unlink()
    path.with_name(f"{path.stem}.head.json").unlink()
    with Ledger.create(path, records[0][1], clock=lambda: "2026-01-01T00:00:00Z") as ledger:
        for found, body in records[1:]:
            ledger.append(found, body)


@pytest.fixture(
    scope="module", params=["example", pytest.param("user", marks=pytest.mark.slow), "client"]
)
def finished(request, tmp_path_factory):
    base = tmp_path_factory.mktemp(f"adaptive-{request.param}")
    return Federation.from_config(run_file(base, request.param)).run(base / "out")


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished.folder, tmp_path / "copy"))


def test_every_clip_follows_from_the_fractions_on_record_and_every_account_holds_it(finished):
    out = finished.folder
    opened, summed, applied = (
        bodies(out, f"round_{kind}") for kind in ("opened", "summed", "applied")
    )
    clips = [body["clip_norm"] for body in opened]
    policy = Federation(load_config(out / "config.toml")).prepare()[1].sum_policy
    for number in range(3):
        assert clips[number] == policy.clip_norm
        policy = policy.after(summed[number]["unclipped_fraction"])
        assert applied[number]["next_clip_norm"] == policy.clip_norm
    assert len(set(clips)) == 3
    for path in (out / "clients").glob("*/budget.jsonl"):
        assert [record.body["clip_norm"] for record in read_charges(path)] == clips
    assert verify_run(out).finished
    for event, clip in zip(finished.events[1:], clips, strict=True):
        assert event.clip_norm == clip
        share = 100 * event.unclipped_fraction
        said = f"{share:.0f} % within it" if 0 <= share <= 100 else "the share within it is lost"
        assert f"clip {clip:g}, {said}" in round_line(event)
    assert finished.events[0].clip_norm is None


def test_it_costs_what_the_same_run_without_adaptation_costs(finished):
    config = load_config(finished.folder / "config.toml")
    values = config.model_dump(mode="json", exclude_none=True)
    del values["privacy"]["adaptive_clip"]
    _, settings = Federation(parse_config(values)).prepare()
    # 513 values pad to more than 512: rounding adds that little.
    same = pytest.approx(settings.epsilon_after(3), rel=1e-5)
    assert finished.guarantees["server"].epsilon == same
    assert "paid for in this epsilon" in finished.guarantees["server"].mechanism


def test_the_optimiser_sees_no_bit(finished):
    bench = Federation(load_config(finished.folder / "config.toml")).prepare()[0]
    genesis = read_ledger(finished.folder / "ledger.jsonl")[0].body["privacy"]
    assert genesis["dimension"] == bench.dimension


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("round_opened", {"clip_norm": 0.7}, r"clip_norm = 0\.7, recomputed"),
        ("round_summed", {"unclipped_fraction": 0.123}, "next_clip_norm"),
        ("round_summed", {"unclipped_fraction": 7.0}, "unclipped_fraction = 7: must be in"),
        ("round_summed", {"unclipped_fraction": "most"}, "unclipped_fraction|not supported"),
        ("round_applied", {"next_clip_norm": 0.7}, r"next_clip_norm = 0\.7, recomputed"),
    ],
)
@pytest.mark.parametrize("which", [1, 2])
def test_an_edited_clip_or_fraction_is_noticed(copy, kind, change, words, which):
    rewrite(copy / "ledger.jsonl", kind, which, lambda body: body.update(change))
    with pytest.raises(LedgerTampered, match=words):
        verify_run(copy)


def test_a_missing_fraction_is_noticed(copy):
    path = copy / "ledger.jsonl"
    rewrite(path, "round_summed", 1, lambda body: body.pop("unclipped_fraction"))
    with pytest.raises(LedgerTampered, match="unclipped_fraction = None"):
        verify_run(copy)


def test_an_account_that_charged_another_clip_is_noticed(copy):
    path = copy / "clients" / "site-3" / "budget.jsonl"
    rewrite(path, "charge", 1, lambda body: body.update(clip_norm=0.7))
    with pytest.raises(LedgerTampered, match=r"site-3.*round 2: clip_norm = 0\.7"):
        verify_run(copy)


@pytest.mark.parametrize(
    "when", [pytest.param("before the sum", marks=pytest.mark.slow), "before the adapter"]
)
def test_a_killed_run_goes_on_with_the_clip_that_follows_from_its_record(
    tmp_path, monkeypatch, when
):
    out, round_of = tmp_path / "out", Run._round

    def killed(self, ledger, number):
        if number == 3:
            if when == "before the adapter":
                monkeypatch.setattr(self.step, "step", lambda *_, **options: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    round_of(self, ledger, number)
            raise KeyboardInterrupt
        round_of(self, ledger, number)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_round", killed)
        with pytest.raises(KeyboardInterrupt):
            Federation.from_config(run_file(tmp_path)).run(out)
    wanted = bodies(out, "round_applied")[-1]["next_clip_norm"]
    assert wanted != FAR["example"]
    result = Federation.from_config(out / "config.toml").run(out, resume=True)
    clips = [body["clip_norm"] for body in bodies(out, "round_opened") if body["round"] == 3]
    # A sum that never reached the adapter moves no clip either: the round is tried again.
    assert set(clips) == {wanted}
    assert len(clips) == (2 if when == "before the adapter" else 1)
    assert result.rounds == 3
    assert verify_run(out).finished


@pytest.mark.parametrize("lied_to", [1, 2])
def test_a_server_that_shows_some_clients_another_fraction_loses_them(
    tmp_path, monkeypatch, lied_to
):
    """Five of six must be in a sum: one can be lost, two cannot."""
    round_of = Run._round

    def lying(self, ledger, number):
        round_of(self, ledger, number)
        for client in list(self.parties.clients.values())[:lied_to]:
            client.policy = replace(client.policy, clip_norm=2.0 * client.policy.clip_norm)

    monkeypatch.setattr(Run, "_round", lying)
    path, out = run_file(tmp_path, training={"rounds": 2}), tmp_path / "out"
    if lied_to == 1:
        result = Federation.from_config(path).run(out)
        assert [event.survivors for event in result.events] == [6, 6, 5]
        assert bodies(out, "round_summed")[1]["refused"] == 1
    else:
        with pytest.raises(ThresholdNotMet):
            Federation.from_config(path).run(out)
        assert len(bodies(out, "round_summed")) == 1


@pytest.mark.parametrize("unit", ["example", pytest.param("client", marks=pytest.mark.slow)])
def test_what_it_is_compared_with_adapts_too(tmp_path, unit):
    federation = Federation.from_config(run_file(tmp_path, unit, training={"rounds": 2}))
    assert unprotected(federation, Silent()).perplexity > 1.0
    assert clients_alone(federation, Silent()).perplexity > 1.0


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        ({"mechanism": "local", "adaptive_clip": {}}, "adaptive_clip with mechanism = 'local'"),
        (
            {"clip_norm": 3.0, "adaptive_clip": {"max_clip_norm": 2.0}},
            r"clip_norm = 3: .* \[0, 2\]",
        ),
        ({"adaptive_clip": {"min_clip_norm": 2.0}}, r"clip_norm = 0\.5: .* \[2, inf\]"),
        ({"adaptive_clip": {"target_quantile": 1.0}}, r"adaptive_clip\.target_quantile"),
        ({"adaptive_clip": {"count_weight": 9.0}}, r"adaptive_clip\.count_weight"),
        (
            {"mechanism": "central", "sampling": "cyclic", "adaptive_clip": {}},
            r"adaptive_clip with sampling = 'cyclic'",
        ),
        ({"adaptive_clip": {"quantile": 0.5}}, "did you mean target_quantile"),
    ],
)
def test_settings_that_make_no_sense_are_refused(privacy, words):
    with pytest.raises(ConfigError, match=words):
        parse_config({"privacy": privacy})
