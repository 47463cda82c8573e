"""The stored result of an attack."""

import json
from importlib import resources

import jsonschema
import pytest

from securefed.crypto.identity import IdentityKey
from securefed.errors import ConfigError, RemoteProtocolError
from securefed.evidence.results import (
    RESULT_TYPE,
    About,
    AttackDocument,
    Measurement,
    Metric,
    opened,
    read_result,
    result_schema,
)
from securefed.evidence.signing import sign


def measurement(**values):
    given = {
        "attack": "span-inversion",
        "attacks": "texts",
        "exposure": "plain",
        "defence": "off",
        "model": {"source": "tiny", "fingerprint": "0" * 64},
        "settings": {"rank": 8, "clip_norm": 0.5},
        "seeds": [0, 1],
        "n": 2,
        "metrics": {
            "token_recall": Metric(
                value=1.0,
                interval=(0.2, 1.0),
                prior=0.1,
                lift=0.9,
                lift_interval=(0.8, 1.0),
                method="exact",
            )
        },
        "headline": "token_recall",
        "verdict": "guessed",
    }
    return Measurement(**(given | values))


def document(**values):
    about = About(time="2026-01-31T12:00:00Z", seconds=1.5, version="0.1.0")
    return AttackDocument(measurement=measurement(**values), about=about)


def test_a_signed_result_comes_back_from_its_file(tmp_path):
    key, path = IdentityKey.generate(), tmp_path / "result.json"
    path.write_text(json.dumps(document().signed(key)))
    assert read_result(path, [key.public]) == document()
    with pytest.raises(RemoteProtocolError, match="no trusted key"):
        read_result(path, [IdentityKey.generate().public])
    path.write_text("{")
    with pytest.raises(RemoteProtocolError, match="not JSON"):
        read_result(path, [key.public])
    path.write_text("[]")
    with pytest.raises(RemoteProtocolError, match="no envelope"):
        read_result(path, [key.public])
    with pytest.raises(ConfigError, match="No such file"):
        read_result(tmp_path / "nothing.json", [key.public])


def test_a_document_with_other_fields_is_no_result_though_signed():
    key = IdentityKey.generate()
    for change in ({"texts": ["a"]}, {"measurement": {}}):
        values = document().model_dump(mode="json") | change
        with pytest.raises(RemoteProtocolError, match="attack result"):
            opened(sign(values, key, payload_type=RESULT_TYPE), [key.public])


def test_a_result_signed_as_something_else_is_no_result():
    key = IdentityKey.generate()
    values = document().model_dump(mode="json")
    with pytest.raises(RemoteProtocolError, match="payloadType"):
        opened(sign(values, key, payload_type=RESULT_TYPE + ";draft"), [key.public])


def test_the_digest_is_of_the_measurement_alone():
    one = document()
    other = one.model_copy(update={"about": About(time="now", seconds=9.0, version="9")})
    assert one.measurement.digest() == other.measurement.digest()
    assert measurement(seeds=[0, 2]).digest() != one.measurement.digest()


def test_lift_shows_only_where_its_interval_is_above_zero():
    found = measurement().main
    assert found.shows_lift
    assert not found.model_copy(update={"lift_interval": (0.0, 1.0)}).shows_lift
    assert not Metric(value=1.0).shows_lift
    assert measurement(headline=None).main is None


def test_the_published_schema_is_that_of_the_code_and_holds_of_a_result():
    published = (resources.files("securefed") / "schemas" / "attack-result.json").read_text()
    assert published == result_schema()
    validator = jsonschema.Draft202012Validator(json.loads(published))
    validator.validate(document().model_dump(mode="json"))
    for change in ({"verdict": "fine"}, {"n": -1}, {"texts": []}):
        values = document().model_dump(mode="json")
        values["measurement"] |= change
        assert not validator.is_valid(values)
