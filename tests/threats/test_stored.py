"""Stored results of tests, and statements: what is read, and what is refused."""

import json

import pytest
from threat_files import CODE, TEST, passed

from securefed.crypto.identity import IdentityKey
from securefed.errors import RemoteProtocolError
from securefed.evidence.anchoring import signer_record
from securefed.evidence.signing import sign
from securefed.threats.statements import STATEMENT_TYPE, STATEMENTS, read_statements
from securefed.threats.stored import EVIDENCE_TYPE, StoredTests, TestResults, read_stored, to_text


@pytest.fixture
def key():
    return IdentityKey.generate()


def written(folder, key, *results, name="quick.json"):
    document = TestResults(software="securefed 0.1.0", results=[each.result for each in results])
    (folder / name).write_text(to_text(document.signed(key)))
    (folder / "signer.json").write_text(signer_record(key.public))


def test_results_come_back_with_the_place_where_they_stand(tmp_path, key):
    written(tmp_path, key, passed(), passed("tests/test_it.py::test_b"))
    stored = read_stored(tmp_path, [key.public], shown="threat_models/evidence")
    found = stored.of("tests/test_it.py::test_b", CODE)
    assert found.anchored
    assert (found.reference.path, found.reference.pointer) == (
        "threat_models/evidence/quick.json",
        "/results/1",
    )
    assert not read_stored(tmp_path).of(TEST, CODE).anchored
    assert list(read_stored(tmp_path / "nowhere")) == []


def test_the_last_of_several_files_counts_by_date_and_not_by_name(tmp_path, key):
    written(tmp_path, key, passed(outcome="failed"), name="z.json")
    written(tmp_path, key, passed(date="2026-11-29T00:00:00+09:00"), name="a.json")
    assert read_stored(tmp_path).of(TEST, CODE).result.outcome == "passed"
    later = passed(outcome="failed", date="2026-11-28T16:00:00Z")
    earlier = passed(date="2026-11-29T00:30:00+09:00")
    assert StoredTests([later, earlier]).of(TEST, CODE).result.outcome == "failed"


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"format": "securefed/test-results/2", "software": "x", "results": []},
        {"format": "securefed/test-results/1", "software": "x", "results": [{"test": TEST}]},
        {
            "format": "securefed/test-results/1",
            "software": "x",
            "results": [passed().result.model_dump() | {"outcome": "fine"}],
        },
        {
            "format": "securefed/test-results/1",
            "software": "x",
            "results": [passed().result.model_dump() | {"date": "yesterday"}],
        },
    ],
)
def test_a_signed_document_that_is_no_list_of_results_is_refused(tmp_path, key, document):
    envelope = sign(document, key, payload_type=EVIDENCE_TYPE)
    (tmp_path / "a.json").write_text(json.dumps(envelope))
    (tmp_path / "signer.json").write_text(signer_record(key.public))
    with pytest.raises(RemoteProtocolError, match=r"is not as must be|is not RFC 3339"):
        read_stored(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [{"statement": ""}, {"signed_off": "soon"}, {"by": None}, {"run": "x"}, {"more": 1}],
)
def test_a_signed_document_that_is_no_statement_is_refused(tmp_path, key, changed):
    document = {
        "format": "securefed/statement/1",
        "run": "0" * 64,
        "model": "TM-small",
        "claim": "C-one",
        "manual": "retention",
        "statement": "Two years.",
        "by": "controller",
        "signed_off": "2026-11-01",
        "expires": None,
    }
    folder = tmp_path / STATEMENTS
    folder.mkdir()
    (folder / "signer-a.json").write_text(signer_record(key.public))
    path = folder / "a.json"
    path.write_text(json.dumps(sign(document, key, payload_type=STATEMENT_TYPE)))
    (found,) = read_statements(tmp_path)
    assert found.reference.path == "statements/a.json"
    path.write_text(json.dumps(sign(document | changed, key, payload_type=STATEMENT_TYPE)))
    with pytest.raises(RemoteProtocolError, match="is not as must be"):
        read_statements(tmp_path)
