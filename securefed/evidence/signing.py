"""Signed JSON documents: DSSE envelopes around canonical JSON (RFC 8785).

    {"payload": base64, "payloadType": text, "signatures": [{"keyid": hex, "sig": base64}]}

The signature is over type and payload together, so that a document of one type is never taken for
one of another.  ``keyid`` is SHA-256 of the public key and a hint only: whoever verifies brings the
keys that it trusts.

Source: DSSE 1.0.0 (secure-systems-lab/dsse), protocol and envelope.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import rfc8785

from securefed.crypto.identity import IdentityKey, IdentityPublicKey
from securefed.errors import ConfigError, RemoteProtocolError

PAYLOAD_LIMIT = 1 << 24
"""Bytes of a payload at most."""

_MOST_SIGNATURES = 16


def key_id(key: IdentityPublicKey) -> str:
    """The hint that names a key: SHA-256 of its encoding, hexadecimal."""
    return hashlib.sha256(key.raw).hexdigest()


def canonical(document: Mapping[str, Any]) -> bytes:
    """The one encoding of a document.

    Raises:
        ConfigError: it holds what JSON cannot hold exactly, or is too long.
    """
    try:
        encoded = rfc8785.dumps(dict(document))
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise ConfigError(f"document: has no canonical form: {error}") from None
    except UnicodeEncodeError:  # whose message would hold the text
        raise ConfigError("document: has no canonical form: a name is not Unicode text") from None
    if len(encoded) > PAYLOAD_LIMIT:
        raise ConfigError(f"document: {len(encoded)} bytes; at most {PAYLOAD_LIMIT} are allowed")
    return encoded


def sign(document: Mapping[str, Any], key: IdentityKey, *, payload_type: str) -> dict[str, Any]:
    """An envelope around a document.

    Args:
        document: JSON values.
        key: whose signature it is.
        payload_type: what the document is, a media type of its own.

    Raises:
        ConfigError: the document has no canonical form, or the type is empty.
    """
    if not payload_type:
        raise ConfigError("payload_type is empty; it must say what the document is")
    payload = canonical(document)
    signature = key.sign_enveloped(payload_type, payload)
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": key_id(key.public), "sig": base64.b64encode(signature).decode()}],
    }


def verify(
    envelope: Mapping[str, Any], trusted: Collection[IdentityPublicKey], *, payload_type: str
) -> dict[str, Any]:
    """The document of an envelope that one of the trusted keys has signed.

    Args:
        envelope: as :func:`sign` makes it; base64 may be the URL-safe kind too.
        trusted: keys whose word counts; no other key and no ``keyid`` is believed.
        payload_type: the only one that is accepted.

    Raises:
        RemoteProtocolError: the envelope is malformed, is of another type, no trusted key has
            signed it, or its payload is not canonical JSON.
        ConfigError: there is no trusted key.

    Guarantees:
        - Nothing of the payload is parsed before its signature holds.
    """
    if not trusted:
        raise ConfigError("trusted: no key; at least one is needed to verify against")
    match envelope:
        case {"payload": str(encoded), "payloadType": str(kind), "signatures": list(signatures)}:
            pass
        case _:
            raise RemoteProtocolError("envelope: needs payload, payloadType and signatures")
    if not 1 <= len(signatures) <= _MOST_SIGNATURES:
        raise RemoteProtocolError(
            f"envelope: {len(signatures)} signatures; 1 to {_MOST_SIGNATURES} are allowed"
        )
    if kind != payload_type:
        raise RemoteProtocolError(
            f"envelope: payloadType = {kind[:80]!r}; it must be {payload_type!r}"
        )
    payload = _decoded(encoded, "payload")
    if not any(_holds(each, trusted, payload_type, payload) for each in signatures):
        raise RemoteProtocolError("envelope: no trusted key has signed it")
    try:
        document = json.loads(payload)
        again = rfc8785.dumps(document)
    except (ValueError, RecursionError):  # no JSON, or values that have no canonical form
        raise RemoteProtocolError("envelope: its payload is not JSON") from None
    if not isinstance(document, dict) or again != payload:
        raise RemoteProtocolError("envelope: its payload is not one canonical JSON object")
    return document


def signing_key(path: Path, *, make: bool, password: bytes | None = None) -> IdentityKey:
    """The key that documents are signed with, from its file.

    Args:
        path: the file, mode 0600.
        make: make it, where it is not there.
        password: encrypts the file.

    Raises:
        ConfigError: the file is missing, open to others, or not such a key.
    """
    if make and not path.exists():
        key = IdentityKey.generate()
        key.save(path, password=password)
        return key
    return IdentityKey.load(path, password=password)


def _holds(
    signature: object, trusted: Collection[IdentityPublicKey], kind: str, payload: bytes
) -> bool:
    match signature:
        case {"sig": str(encoded)}:
            raw = _decoded(encoded, "sig")
        case _:
            raise RemoteProtocolError("envelope: a signature needs a sig")
    for key in trusted:
        try:
            key.verify_enveloped(raw, kind, payload)
        except RemoteProtocolError:
            continue
        return True
    return False


def _decoded(text: str, field: str) -> bytes:
    if len(text) > 2 * PAYLOAD_LIMIT:
        raise RemoteProtocolError(f"envelope: {field} is too long")
    try:
        plain = text.replace("-", "+").replace("_", "/")
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise RemoteProtocolError(f"envelope: {field} is not base64") from None
