"""What is open comes first, and nothing that is off is silently green."""

import dataclasses

import pytest
from reported import document

from securefed.config import parse_config
from securefed.evidence.results import Metric
from securefed.privacy.policy import PrivacyPolicy
from securefed.reports.build import build
from securefed.reports.material import AttackFile
from securefed.reports.pages.measured import _results
from securefed.reports.parts.opening import open_items
from securefed.reports.parts.threats import threat_models
from securefed.reports.wording import Wording, plain

ENGLISH = Wording("en")
ORDER = ["refuted", "void", "stale", "inconclusive", "not_run"]


def changed(known, **changes):
    return dataclasses.replace(known, **changes)


def configured(known, **sections):
    values = known.config.model_dump(mode="json", exclude_none=True)
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return changed(known, config=parse_config(values))


def opened(known):
    return open_items(known, threat_models(known))


def words(items):
    return [ENGLISH.text(item.what) for item in items]


def test_the_parts_come_in_their_order_and_open_items_first(report):
    names = list(type(report).model_fields)
    assert names[:4] == ["format", "identity", "open_items", "summary"]
    kinds = [item.kind for item in report.open_items]
    assert kinds[-1] == "unanswered"
    first_unanswered = kinds.index("unanswered")
    assert set(kinds[first_unanswered:]) == {"unanswered"}
    assert set(kinds[:first_unanswered]) <= {
        "unmet",
        "void",
        "stale",
        "unshown",
        "unfinished",
        "unanchored",
    }


def test_every_claim_that_is_open_is_named_first_and_worst_first(known, report):
    open_ids = {
        claim.id for part in report.threat_models for claim in part.claims if claim.verdict in ORDER
    }
    text = " ".join(words(report.open_items))
    assert open_ids
    assert all(claim in text for claim in open_ids)
    verdicts = {
        (part.id, claim.id): claim.verdict for part in report.threat_models for claim in part.claims
    }
    found = [
        ORDER.index(verdicts[item.model, item.claim])
        for item in report.open_items
        if item.claim is not None and item.kind != "unanswered"
    ]
    assert found == sorted(found)


def test_a_run_that_is_not_finished_says_so_first(known):
    records = [record for record in known.records if record.kind != "closed"]
    report = build(changed(known, records=records, finished=False, costs=None))
    assert report.open_items[0].kind == "unfinished"
    assert not report.identity.finished
    labels = [fact.label.key for fact in report.summary]
    assert "summary.label.spent" in labels
    assert "summary.label.training" not in labels
    assert report.privacy.statements[0].epsilon.references == []


def test_keys_that_nobody_checked_are_said_first(known):
    report = build(changed(known, anchored=False))
    assert report.open_items[0].kind == "unanchored"
    assert ENGLISH.text(report.open_items[0].who) == "The reader, with the parties"


def test_plaintext_and_no_noise_are_open_before_all_claims(known):
    items = opened(configured(known, aggregation={"kind": "plaintext"}))
    assert "plaintext" in words(items)[0]
    assert items[0].kind == "unmet"


def test_a_statement_that_holds_nothing_is_an_open_item_and_a_hazard(known):
    bare = dataclasses.replace(known.guarantees[0], epsilon=float("inf"))
    unsafe = changed(known, guarantees=[bare, *known.guarantees[1:]])
    report = build(unsafe)
    assert "There is no differential privacy against the server." in words(report.open_items)
    first = report.privacy.statements[0]
    assert not first.protected
    assert first.epsilon.value == "unprotected"
    hazards = [said.key for said in report.privacy.hazards]
    assert hazards[0] == "hazard.unprotected"
    labels = {fact.value.key for fact in report.summary if fact.label.key.endswith("training")}
    assert labels == {"summary.privacy", "summary.no_privacy"}


def test_without_noise_no_other_hazard_is_told(known):
    quiet = PrivacyPolicy(clip_norm=1.0, mechanism="none")
    report = build(changed(known, policy=quiet))
    assert [said.key for said in report.privacy.hazards] == ["hazard.no_noise"]


def test_a_run_without_attacks_or_judgement_says_so(known):
    items = opened(changed(known, attacks=[], judgement=None))
    found = " ".join(words(items[:2]))
    assert "No claim of the threat models was judged" in found
    assert "No attack was tried on this run" in found
    report = build(changed(known, attacks=[], judgement=None))
    assert {c.verdict for part in report.threat_models for c in part.claims} == {"not_run"}
    assert [said.key for said in report.leakage.notes] == ["leakage.no_attack"]


def test_attacks_that_show_nothing_are_not_counted_as_evidence(known):
    void = [one for one in known.attacks if one.document.measurement.verdict == "void"]
    items = opened(changed(known, attacks=void))
    assert "void" in [item.kind for item in items]
    report = build(changed(known, attacks=void))
    assert "summary.no_attack_worked" in [fact.value.key for fact in report.summary]


def test_what_only_people_can_answer_names_who_must(report):
    asked = {
        ENGLISH.text(item.what): ENGLISH.text(item.who)
        for item in report.open_items
        if item.kind == "unanswered"
    }
    assert len(asked) >= 8
    basis = [who for what, who in asked.items() if "basis" in what]
    assert basis == ["the data-protection officer of each data owner"]
    assert all(asked.values())


def test_questions_about_parties_that_the_run_does_not_have_are_not_asked(report):
    assert not any("decryptor, who runs" in text for text in words(report.open_items))


def test_each_attack_is_set_beside_the_same_one_with_the_defence_off(report):
    rows = {row.file: row for row in report.leakage.attacks}
    assert rows["attacks/on.json"].baseline == "attacks/off.json"
    assert rows["attacks/off.json"].baseline is None
    assert rows["attacks/void.json"].baseline is None
    assert not rows["attacks/off.json"].defended
    assert rows["attacks/on.json"].worst.value == 0.21
    assert rows["attacks/on.json"].average.value == 0.04
    assert rows["attacks/on.json"].bound == (3.5, 1e-5)


def test_the_first_page_tells_of_the_run_s_own_defences(finished, known):
    far = {"auc": Metric(value=1.0, prior=0.5, lift=0.5, lift_interval=(0.49, 0.5))}
    masks = document(finished, defence="masks", metrics=far)
    both = AttackFile("attacks/both.json", document(finished), anchored=True)
    report = build(
        changed(known, attacks=[AttackFile("attacks/masks.json", masks, anchored=True), both])
    )
    [told] = [fact for fact in report.summary if fact.value.key == "summary.attack"]
    assert told.value.values["lift"].value == 0.03
    places = told.value.values["lift"].references
    assert {place.path for place in places} == {"attacks/both.json"}


def test_bounds_on_epsilon_stand_apart_from_lifts(finished, known):
    metrics = {
        name: Metric(value=value, prior=8.0, lift=value - 8.0, lift_interval=(value - 8.0, 1e6))
        for name, value in (("epsilon_lower_server_round", 51.0), ("epsilon_lower_release_run", 0))
    }
    metrics["epsilon_lower"] = metrics["epsilon_lower_server_round"]
    made = document(
        finished,
        attack="canary-epsilon",
        attacks="epsilon",
        exposure="canaries",
        metrics=metrics,
        headline="epsilon_lower",
        curve=[],
        predicted=None,
    )
    report = build(changed(known, attacks=[AttackFile("attacks/e.json", made, anchored=True)]))
    bounds = {bound.of: bound for bound in report.leakage.bounds}
    assert bounds["server_round"].exceeded
    assert not bounds["release_run"].exceeded
    assert bounds["server_round"].promised.value == 8.0
    first = next(
        i for i in report.open_items if getattr(i.what, "key", "") == "open.bound_exceeded"
    )
    assert "(server, one round) shows at least 51, and 8.00 is promised" in ENGLISH.text(first.what)
    row = _results(report.leakage.attacks, ENGLISH).rows[0]
    assert plain(row[3][0]) == ""  # a promise is no score of whoever sees nothing
    off = AttackFile(
        "attacks/off.json",
        made.model_copy(
            update={"measurement": made.measurement.model_copy(update={"defence": "off"})}
        ),
        anchored=True,
    )
    without = build(changed(known, attacks=[off]))
    assert "open.bound_exceeded" not in [getattr(i.what, "key", "") for i in without.open_items]
    assert len(without.leakage.bounds) == 2
    assert "summary.no_attack_worked" in [fact.value.key for fact in report.summary]


def test_a_result_of_other_weights_or_an_unknown_signer_is_marked(finished, known):
    other = document(finished, model={"source": "model", "fingerprint": "ab" * 32})
    stranger = AttackFile("attacks/other.json", other, anchored=False)
    report = build(changed(known, attacks=[stranger]))
    [row] = report.leakage.attacks
    assert row.fits is False
    assert not row.anchored
    notes = {said.key for said in report.leakage.notes}
    assert {"leakage.unanchored", "leakage.other_model", "leakage.no_baseline"} <= notes


def test_adversaries_and_what_they_see_are_those_of_the_threat_models(known, report):
    named = {one.name for one in report.system.adversaries}
    assert any(name.startswith("TM-honest-but-curious-server/") for name in named)
    assert not any(name.startswith("TM-decryptor/") for name in named)  # there is no decryptor
    contribution = report.system.flows[1]
    assert "masked-updates" in contribution.views
    eavesdroppers = [n for n in contribution.seen_by if n.startswith("TM-network-eavesdropper/")]
    assert eavesdroppers


def test_a_folder_of_somebody_s_machine_is_not_in_the_report(known, report):
    folder = known.config.data.source
    assert folder.startswith("/")
    system = report.system.model_dump_json()
    assert folder not in system
    assert folder not in report.identity.model_dump_json()


@pytest.mark.parametrize("kind", ["bfv", "ckks"])
def test_an_encrypted_run_shows_its_decryptor(known, kind):
    report = build(configured(known, aggregation={"kind": kind, "key_holder": "decryptor"}))
    assert "decryptor" in [node.id for node in report.system.nodes]
    assert [said.key for said in report.aggregation.statement] == [
        "aggregation.is.encrypted_decryptor"
    ]
    for language in ("en", "ja"):
        word = Wording(language)
        for part in (*report.system.roles, *report.system.flows):
            assert word.text(getattr(part, "name", getattr(part, "what", None)))


def test_what_was_never_tried_is_not_called_unmet_and_what_is_not_there_says_what_it_leaves(report):
    kinds = {item.claim: item.kind for item in report.open_items if item.claim is not None}
    kinds.update({item.what.key: item.kind for item in report.open_items if item.claim is None})
    assert kinds["open.claims_not_run"] == "unshown"
    for part in report.threat_models:
        for claim in part.claims:
            found = [i for i in report.open_items if (i.model, i.claim) == (part.id, claim.id)]
            if claim.verdict in ("refuted", "void"):
                told = ENGLISH.text(found[0].detail[-1])
                assert told == f"What this leaves: {claim.residual.en}"
