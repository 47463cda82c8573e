"""How a run file asks for an arrangement, and what follows from it for a cohort."""

from dataclasses import replace

import pytest

from securefed import HomomorphicAggregation, PairwiseAggregation, PlaintextAggregation
from securefed.config import dump_config, load_config, parse_config
from securefed.engines.arrangement import (
    check_key_holder,
    contribution_bytes,
    figures_aggregation,
    told,
)
from securefed.engines.settings import Settings, check_cohort
from securefed.errors import ConfigError
from securefed.federation.session import RoundSession
from securefed.privacy.accounting import ADVERSARIES
from securefed.secagg.ciphertexts import ciphertext_size

SIZES = {f"site-{i}": 100 for i in range(8)}
KINDS = [
    {"kind": "pairwise"},
    {"kind": "bfv"},
    {"kind": "bfv", "masked": True},
    {"kind": "bfv", "key_holder": "cohort"},
    {"kind": "ckks"},
    {"kind": "ckks", "key_holder": "cohort"},
    {"kind": "plaintext"},
]


def settings_of(aggregation=None, *, dimension=3000, sizes=SIZES, noise=None, **privacy):
    """Without a secret sample, which takes seconds to account for, unless it is asked for."""
    values = {"privacy": {"sample_is_secret": False} | privacy, "aggregation": aggregation or {}}
    if not {"noise_multiplier", "target_epsilon", "mechanism"} & privacy.keys():
        values["privacy"]["noise_multiplier"] = 2.0
    return Settings(parse_config(values), sizes=sizes, dimension=dimension, noise_multiplier=noise)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            {"kind": "pairwise", "key_holder": "decryptor"},
            ["key_holder = 'decryptor'", "is about encryption"],
        ),
        ({"key_holder": "cohort"}, ["key_holder = 'cohort' with kind = 'pairwise'"]),
        ({"kind": "plaintext", "masked": True}, ["masked = True with kind = 'plaintext'"]),
        ({"kind": "bfv", "key_holder": "server"}, ["aggregation.key_holder", "'server'"]),
        ({"kind": "bfv", "key_holder": ""}, ["aggregation.key_holder"]),
        ({"kind": "bfv", "key_holder": "cohort", "masked": True}, ["one decryptor"]),
        ({"kind": "ckks", "masked": True}, ["masks are modulo t"]),
        ({"kind": "rsa"}, ["aggregation.kind", "'rsa'"]),
        ({"kind": "bfv", "masked": "perhaps"}, ["aggregation.masked"]),
    ],
)
def test_what_is_no_arrangement_is_refused_when_the_run_file_is_read(section, words):
    with pytest.raises(ConfigError) as caught:
        parse_config({"aggregation": section})
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("section", "privacy", "words"),
    [
        ({"kind": "bfv"}, {"mechanism": "central"}, "before the server adds noise"),
        ({"kind": "bfv", "key_holder": "cohort"}, {"mechanism": "central"}, "before the server"),
        ({"kind": "ckks"}, {"mechanism": "none"}, "not released from CKKS"),
        ({"kind": "ckks"}, {"mechanism": "local"}, "not released from CKKS"),
        ({"kind": "bfv"}, {"remove_excess_noise": True}, "revealed in a masked round"),
        ({"kind": "plaintext"}, {"target_epsilon": 1.0}, "in the clear"),
    ],
)
def test_privacy_that_an_arrangement_would_undo_is_refused_when_it_is_read(section, privacy, words):
    with pytest.raises(ConfigError, match=words):
        parse_config({"aggregation": section, "privacy": privacy})


@pytest.mark.parametrize(
    ("section", "privacy"),
    [
        ({"kind": "bfv", "masked": True}, {"mechanism": "central"}),
        ({"kind": "bfv", "masked": True}, {"remove_excess_noise": True}),
        ({"kind": "bfv"}, {"mechanism": "none"}),
        ({"kind": "bfv", "key_holder": "cohort"}, {"mechanism": "local"}),
    ],
)
def test_privacy_that_an_arrangement_keeps_is_taken(section, privacy):
    assert settings_of(section, **privacy).encryption is not None


@pytest.mark.parametrize("section", KINDS, ids=str)
def test_a_resolved_run_file_names_the_arrangement_and_reads_back(section, tmp_path):
    config = parse_config({"aggregation": section})
    path = tmp_path / "run.toml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    encrypted = section["kind"] in ("bfv", "ckks")
    assert config.aggregation.encrypted is encrypted
    assert config.aggregation.key_holder == (
        section.get("key_holder", "decryptor") if encrypted else None
    )


@pytest.mark.parametrize("section", KINDS, ids=str)
def test_ledger_and_accounts_begin_with_the_arrangement(section):
    record = settings_of(section).record()
    assert record["aggregation"] == section["kind"]
    named = {key: record[key] for key in ("key_holder", "masked") if key in record}
    assert named == (
        {}
        if section["kind"] in ("pairwise", "plaintext")
        else {"key_holder": section.get("key_holder", "decryptor")}
        | {"masked": section.get("masked", False)}
    )


def test_only_statements_of_unmasked_encrypted_rounds_speak_of_a_key_holder():
    for section in KINDS:
        found = settings_of(section)
        text = "".join(str(found.guarantee(who, 3)) for who in ADVERSARIES)
        unmasked = section["kind"] in ("bfv", "ckks") and not section.get("masked")
        assert ("ring learning with errors" in text) is unmasked, section
        assert ("holds the key" in text) is (section.get("key_holder") == "cohort"), section
        assert ("decryptor" in text) is (unmasked and "key_holder" not in section), section


@pytest.mark.parametrize("section", [s for s in KINDS if s["kind"] != "plaintext"], ids=str)
def test_encryption_changes_nothing_of_epsilon_but_what_a_narrower_ring_costs(section):
    usual, found = settings_of(), settings_of(section)
    assert found.epsilon_after(3) == pytest.approx(usual.epsilon_after(3), rel=0.03)
    if found.plan.bits != 20:
        assert found.plan.sensitivity == usual.plan.sensitivity


def test_the_ring_of_a_bfv_run_does_not_depend_on_the_noise_that_meets_its_target():
    """A resumed run reads the noise from its ledger; at that noise alone another ring is chosen."""
    asked = {"target_epsilon": 0.2, "expected_batch": 80.0, "dimension": 200_000}
    asked["sample_is_secret"] = True
    found = settings_of({"kind": "bfv"}, **asked)
    assert 0.99 * 0.2 < found.epsilon_after(10) <= 0.2
    again = settings_of({"kind": "bfv"}, noise=found.stated.noise_multiplier, **asked)
    assert again.record() == found.record()
    free = HomomorphicAggregation(scheme="bfv")
    assert found.plan.bits == 20
    assert free.ring_bits(found.sum_policy, cohort_size=8, dimension=200_000) == "auto"


def test_no_ring_is_chosen_on_which_nothing_can_be_stated():
    asked = {"noise_multiplier": 0.6}
    narrow = settings_of({"kind": "bfv", "bits": 20}, **asked)
    assert narrow.plan.sensitivity <= HomomorphicAggregation.COARSEST * narrow.plan.clip_units
    assert not narrow.guarantee("server", 3).protected
    found = settings_of({"kind": "bfv"}, **asked)
    assert found.plan.bits == 32
    assert found.epsilon_after(3) == settings_of(**asked).epsilon_after(3)


@pytest.mark.parametrize("noise", [0.6, 2.0], ids=["32 bits", "20 bits"])
def test_every_session_of_a_run_plans_what_the_run_planned(noise):
    found = settings_of({"kind": "bfv"}, noise_multiplier=noise)
    told = RoundSession(
        session=bytes(16),
        round=1,
        cohort=tuple(SIZES),
        roster={},
        dimension=3000,
        policy=found.sum_policy,
        aggregation=found.aggregation,
        model=bytes(32),
    )
    assert told.plan == found.plan
    assert told.plan.bits == (32 if noise < 1 else 20)
    assert str(told.guarantee(rounds=3).trust) == found.guarantee("server", 3).trust


def test_a_narrow_ring_is_taken_where_it_costs_little_and_puts_three_values_in_a_slot():
    coarse = settings_of({"kind": "bfv"}, noise_multiplier=8.0)
    fine = settings_of({"kind": "bfv"}, noise_multiplier=0.2, dimension=200_000)
    assert coarse.plan.bits == 20
    assert coarse.encryption.packing.fields == 3
    assert fine.plan.bits == 32
    assert fine.encryption.packing.fields <= 2
    assert settings_of({"kind": "bfv", "bits": 24}).plan.bits == 24


def test_a_key_of_the_whole_cohort_is_refused_where_one_client_may_help_the_server():
    with pytest.raises(ConfigError, match=r"1 corrupt clients of 8 \(corrupt_fraction\)"):
        settings_of({"kind": "bfv", "key_holder": "cohort"}, corrupt_fraction=0.125)
    settings_of({"kind": "bfv"}, corrupt_fraction=0.125)
    # Seen from the clients' names, before a model is loaded.
    config = parse_config({"aggregation": {"kind": "bfv", "key_holder": "cohort"}})
    with pytest.raises(ConfigError, match=r"1 corrupt clients of 10"):
        check_cohort(config, [f"site-{i}" for i in range(10)])
    check_cohort(config, SIZES)


def test_no_client_has_the_decryptors_name():
    names = [*SIZES, "decryptor"]
    config = parse_config({"aggregation": {"kind": "bfv"}})
    with pytest.raises(ConfigError, match="no client may be called 'decryptor'"):
        check_cohort(config, names)
    for section in ({"kind": "pairwise"}, {"kind": "bfv", "key_holder": "cohort"}):
        check_cohort(parse_config({"aggregation": section}), names[1:])


@pytest.mark.parametrize("section", KINDS, ids=str)
def test_figures_are_summed_under_the_same_key_holder_and_never_in_ckks(section):
    found = settings_of(section)
    figures = figures_aggregation(found.config.aggregation, found.aggregation)
    if not isinstance(found.aggregation, HomomorphicAggregation):
        assert figures == found.aggregation
        planned = replace(found.aggregation, bits=20)  # a plan's ring is for vectors with noise
        assert figures_aggregation(found.config.aggregation, planned) == found.aggregation
        return
    assert figures.scheme == "bfv"
    assert figures.key_holder == found.aggregation.key_holder
    assert figures.masked == found.aggregation.masked
    assert figures.bits == 32


def test_a_run_says_what_a_contribution_costs_and_what_it_protects_against():
    lines = {}
    for section in KINDS:
        found = settings_of(section, corrupt_fraction=0.0)
        line = told(found.aggregation, found.plan, found.bounds)
        size = contribution_bytes(found.aggregation, found.plan, found.bounds)
        assert f"{size:,} bytes" in line
        assert f"{size / 3000:.1f} a value" in line
        lines[str(section)] = line
    assert len({line.rpartition("; ")[2] for line in lines.values()}) == 5
    assert " in 1 ciphertext, " in lines[str({"kind": "bfv"})]
    for section in KINDS[-1:]:
        assert "UNPROTECTED" in lines[str(section)]
        assert "nothing is protected" in lines[str(section)]
    assert "one client that does opens every" in lines[str(KINDS[3])]
    some = settings_of({"kind": "bfv", "masked": True}, corrupt_fraction=0.25)
    assert "decryptor together with up to 2 of 8 clients" in told(
        some.aggregation, some.plan, some.bounds
    )


def test_the_bytes_of_a_contribution_are_those_that_are_sent():
    for kind in (PairwiseAggregation(bits=24), PlaintextAggregation(bits=24)):
        found = settings_of({"bits": 24})
        assert contribution_bytes(kind, found.plan, found.bounds) == 3 * found.plan.padded
    found = settings_of({"kind": "bfv"})
    encryption = found.encryption
    assert contribution_bytes(found.aggregation, found.plan, found.bounds) == (
        encryption.count * ciphertext_size(encryption.parameters)
    )


def test_clients_with_a_higher_floor_than_the_decryptor_are_refused_before_anything_is_made():
    values = {
        "aggregation": {"kind": "bfv"},
        "cohort": {"min_clients": 6},
        "privacy": {"noise_multiplier": 1.0, "dropout_fraction": 0.25},
    }
    clients = [f"site-{number}" for number in range(6)]
    with pytest.raises(ConfigError, match=r"cohort.min_clients = 6: .* sums of 5 of 6 clients on"):
        check_key_holder(parse_config(values), clients)
    check_key_holder(parse_config(values | {"cohort": {"min_clients": 5}}), clients)
    masked = values | {"aggregation": {"kind": "bfv", "masked": True}}
    check_key_holder(parse_config(masked), clients)
