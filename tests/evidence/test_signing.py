"""Signed documents: DSSE envelopes, against the specification's own vector and what is not one."""

import base64
import copy
import json
import stat

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from securefed.crypto.identity import IdentityKey, pre_authentication
from securefed.crypto.keys import labelled
from securefed.errors import ConfigError, RemoteProtocolError
from securefed.evidence.signing import key_id, sign, signing_key, verify

KIND = "application/vnd.securefed.test+json"
DOCUMENT = {"b": [1, 2.5, None], "a": "é", "nested": {"z": True}}


@pytest.fixture(scope="module", params=["ed25519", "ml-dsa-65"])
def key(request):
    return IdentityKey.generate(algorithm=request.param)


@pytest.fixture
def envelope(key):
    return sign(DOCUMENT, key, payload_type=KIND)


def refused(envelope, key, words, kind=KIND):
    with pytest.raises(RemoteProtocolError, match=words):
        verify(envelope, [key.public], payload_type=kind)


def test_the_encoding_that_is_signed_is_that_of_the_specification():
    encoded = pre_authentication("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    # The specification's example, signed by its own ECDSA key, verifies over our encoding.
    public = ec.EllipticCurvePublicNumbers(
        46950820868899156662930047687818585632848591499744589407958293238635476079160,
        5640078356564379163099075877009565129882514886557779369047442380624545832820,
        ec.SECP256R1(),
    ).public_key()
    raw = base64.b64decode(
        "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="
    )
    r, s = (int.from_bytes(half, "big") for half in (raw[:32], raw[32:]))
    public.verify(encode_dss_signature(r, s), encoded, ec.ECDSA(hashes.SHA256()))


def test_lengths_are_of_bytes_and_no_encoding_is_one_of_ours():
    assert pre_authentication("é", b"\x00") == b"DSSEv1 2 \xc3\xa9 1 \x00"
    assert pre_authentication("", b"") == b"DSSEv1 0  0 "
    assert labelled(b"securefed/1/x", b"DSSEv1")[:7] == bytes(7)


def test_what_was_signed_comes_back(key, envelope):
    assert verify(envelope, [key.public], payload_type=KIND) == DOCUMENT
    assert set(envelope) == {"payload", "payloadType", "signatures"}
    payload = base64.b64decode(envelope["payload"])
    assert payload == '{"a":"é","b":[1,2.5,null],"nested":{"z":true}}'.encode()
    (signature,) = envelope["signatures"]
    key.public.verify_enveloped(base64.b64decode(signature["sig"]), KIND, payload)


def test_url_safe_base64_and_a_second_signature_of_a_stranger_are_accepted(key, envelope):
    other = sign(DOCUMENT, IdentityKey.generate(), payload_type=KIND)
    both = envelope | {"signatures": other["signatures"] + envelope["signatures"]}
    for signature in both["signatures"]:
        signature["sig"] = signature["sig"].replace("+", "-").replace("/", "_").rstrip("=")
    assert verify(both, [key.public], payload_type=KIND) == DOCUMENT


def test_a_key_that_is_not_trusted_signs_nothing_whatever_it_is_called(key, envelope):
    stranger = IdentityKey.generate()
    refused(envelope, stranger, "no trusted key")
    forged = sign(DOCUMENT, stranger, payload_type=KIND)
    forged["signatures"][0]["keyid"] = key_id(key.public)
    refused(forged, key, "no trusted key")
    with pytest.raises(ConfigError, match="no key"):
        verify(envelope, [], payload_type=KIND)


def test_a_document_of_one_type_is_none_of_another(key, envelope):
    refused(envelope, key, "payloadType", kind=KIND + ";other")
    # Renamed, its signature does not hold any more.
    refused(envelope | {"payloadType": KIND + "x"}, key, "no trusted key", kind=KIND + "x")


def test_a_signature_of_the_protocol_is_none_of_an_envelope(key, envelope):
    payload = base64.b64decode(envelope["payload"])
    own = key.sign(payload, label=b"securefed/1/test")
    forged = copy.deepcopy(envelope)
    forged["signatures"][0]["sig"] = base64.b64encode(own).decode()
    refused(forged, key, "no trusted key")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"payload": "e30="}, "no trusted key"),
        ({"payload": "!!"}, "payload is not base64"),
        ({"payload": 5}, "needs payload"),
        ({"payloadType": "\ud800"}, "payloadType = "),  # a lone surrogate has no bytes to sign
        ({"signatures": []}, "0 signatures"),
        ({"signatures": [{}] * 17}, "17 signatures"),
        ({"signatures": [{"keyid": "a"}]}, "needs a sig"),
        ({"signatures": [{"sig": "AAAA"}]}, "no trusted key"),
        ({"signatures": {"sig": "AAAA"}}, "needs payload"),
    ],
)
def test_a_malformed_envelope_is_refused(key, envelope, change, words):
    refused(envelope | change, key, words)


@pytest.mark.parametrize(
    "payload", [b"[]", b'{"a": 1}', b'{"a":1,"a":1}', b"{", b'{"a":NaN}', b"\xff"]
)
def test_a_payload_that_is_not_one_canonical_object_is_refused_though_signed(key, payload):
    signature = key.sign_enveloped(KIND, payload)
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": KIND,
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    refused(envelope, key, "payload is not")


@pytest.mark.parametrize("value", [float("nan"), 2**60, {1: 2}, b"x"])
def test_what_json_cannot_hold_is_not_signed(key, value):
    with pytest.raises(ConfigError, match="canonical form"):
        sign({"a": value}, key, payload_type=KIND)


def test_a_name_that_is_not_unicode_is_not_signed_and_not_shown(key):
    with pytest.raises(ConfigError, match="canonical form") as caught:
        sign({"secret\ud800": 1}, key, payload_type=KIND)
    assert "secret" not in str(caught.value)


def test_the_key_file_is_its_owners_alone_and_can_be_encrypted(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        signing_key(tmp_path / "key.pem", make=False)
    made = signing_key(tmp_path / "key.pem", make=True)
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    assert signing_key(tmp_path / "key.pem", make=True).public == made.public
    locked = signing_key(tmp_path / "locked.pem", make=True, password=b"long and random")
    assert b"ENCRYPTED" in (tmp_path / "locked.pem").read_bytes()
    with pytest.raises(ConfigError):
        signing_key(tmp_path / "locked.pem", make=True)
    again = signing_key(tmp_path / "locked.pem", make=False, password=b"long and random")
    assert again.public == locked.public


def test_an_envelope_survives_a_file(key, envelope):
    read = json.loads(json.dumps(envelope, indent=1))
    assert verify(read, [key.public], payload_type=KIND) == DOCUMENT
