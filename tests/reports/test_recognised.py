"""A report says the very sentences of a record, in English and in Japanese."""

import itertools

import pytest

from securefed.errors import ConfigError
from securefed.privacy.accounting import ADVERSARIES, PrivacyGuarantee, guarantee
from securefed.privacy.adaptive_clip import AdaptiveClip
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.policy import PrivacyPolicy
from securefed.reports.recognised import recognised, recognised_parts
from securefed.reports.values import Said, Verbatim
from securefed.reports.wording import Wording

POLICIES = {
    "example": {"unit": "example", "sampling_probability": 0.1, "max_examples": 9},
    "user": {"unit": "user", "sampling_probability": 0.1, "max_examples": 9},
    "client": {"unit": "client"},
    "drawn client": {"unit": "client", "sampling_probability": 0.5},
    "shown sample": {"unit": "user", "sampling_probability": 0.1, "sample_is_secret": False},
    "conditional": {"unit": "client", "rounding": "conditional"},
    "skellam": {"unit": "client", "noise": "skellam"},
    "layers": {"unit": "client", "remove_excess_noise": True},
    "central": {"unit": "client", "mechanism": "central"},
    "cyclic": {"unit": "example", "mechanism": "central", "separation": 4, "bands": 2},
    "local": {"unit": "example", "mechanism": "local", "sampling_probability": 0.1},
    "none": {"mechanism": "none", "noise_multiplier": 0.0},
    "adaptive": {
        "unit": "client",
        "adaptive_clip": AdaptiveClip(min_clip_norm=0.1, max_clip_norm=2.0),
    },
    "adaptive central": {
        "unit": "client",
        "mechanism": "central",
        "adaptive_clip": AdaptiveClip(min_clip_norm=0.1, max_clip_norm=2.0),
    },
}
HOW = {
    "pairwise": {},
    "ring": {"ring_sigma": 40},
    "plaintext": {"plaintext": True},
    "decryptor": {"key_holder": "decryptor"},
    "cohort": {"key_holder": "cohort"},
}


def statements() -> list[tuple[str, PrivacyGuarantee]]:
    found = []
    for (name, changes), (how, setting) in itertools.product(POLICIES.items(), HOW.items()):
        policy = PrivacyPolicy(**({"clip_norm": 0.5, "noise_multiplier": 0.6} | changes))
        plan = plan_round(policy, cohort_size=10, dimension=64)
        for who in ADVERSARIES:
            rounds = 0 if policy.mechanism != "local" else 1  # for the words alone
            try:
                held = guarantee(
                    policy, plan, cohort_size=10, against=who, rounds=rounds, **setting
                )
            except ConfigError:
                continue
            found.append((f"{name}, {how}, {who}", held))
    return found


def sentences(held: PrivacyGuarantee) -> list[str]:
    return [
        held.unit,
        held.adjacency,
        held.mechanism,
        held.sampling,
        held.accountant,
        *held.trust.split("; "),
        *held.assumptions,
    ]


def test_every_sentence_of_a_statement_is_known_and_said_in_the_very_words():
    english, japanese = Wording("en"), Wording("ja")
    found = statements()
    assert len(found) > 150
    for name, held in found:
        for sentence in sentences(held):
            said = recognised(sentence)
            assert isinstance(said, Said), (name, sentence)
            assert english.text(said) == sentence
            translated = japanese.text(said)
            assert translated != sentence
            assert all(run.language is None for run in japanese.line(said))


def test_sentences_that_engines_add_are_known():
    from securefed.engines import histogram_settings, settings
    from securefed.privacy import unlike_rounds

    beside = (
        f"{histogram_settings._BESIDE}for the data of one client the two statements "
        f"{histogram_settings._ADD}"
    )
    for sentence in (
        settings._WEIGHED,
        histogram_settings._UNIT,
        histogram_settings._ADJACENCY,
        unlike_rounds._SCHEDULED,
        beside,
        "one example: one window of 32 tokens (a longer document or record is several; not a "
        "document and not a person)",
        "slice 2: noise of 4 of them is unknown to the adversary",
        "rounds of 6 clients: noise of 4 of them is unknown to the adversary",
    ):
        said = recognised(sentence)
        assert isinstance(said, Said), sentence
        assert Wording("en").text(said) == sentence


def test_a_sentence_that_is_not_known_stays_english_and_is_marked_so():
    said = recognised("a sentence that no version of this package writes")
    assert said == Verbatim(verbatim="a sentence that no version of this package writes")
    [run] = Wording("ja").line(said)
    assert run.language == "en"
    assert Wording("en").line(said)[0].language is None


def test_parts_that_a_record_joins_are_said_one_by_one():
    parts = recognised_parts(
        "the server is not trusted with single contributions; at most 1 of 8 clients are corrupt"
    )
    assert [part.key for part in parts] == ["held.trust.server_none", "held.trust.corrupt"]
    assert parts[1].values == {"corrupt": "1", "clients": "8"}


@pytest.mark.parametrize(
    "reason",
    [
        "control is off: aggregation.kind = 'plaintext' (securefed.secagg.pairwise_client)",
        "control is not set: budget.epsilon is not set (securefed.evidence.budget)",
        "tests/a/test_b.py::test_c: there is no result of it (and 4 more)",
        "passed on 2026-11-29T10:00:00Z, 12 cases; the reader does not know the signer's key",
        "with the defence off: void (the attack says itself that it does not apply in 3 of 3 "
        "trials)",
        "2 is not <= 0",
        "3 tests and ledger values hold; 2 attacks did not refute it",
    ],
)
def test_reasons_of_verdicts_are_known(reason):
    said = recognised(reason)
    assert isinstance(said, Said)
    assert Wording("en").text(said) == reason
    assert Wording("ja").text(said) != reason
