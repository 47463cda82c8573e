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

MOST_SIGNATURES = 16
"""Signatures of an envelope at most, where whoever reads it does not say how many."""


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
    return {
        "payload": base64.b64encode(canonical(document)).decode(),
        "payloadType": payload_type,
        "signatures": [signature(document, key, payload_type=payload_type)],
    }


def signature(
    document: Mapping[str, Any], key: IdentityKey, *, payload_type: str
) -> dict[str, str]:
    """One more signature for an envelope around the same document; arguments as of :func:`sign`."""
    raw = key.sign_enveloped(payload_type, canonical(document))
    return {"keyid": key_id(key.public), "sig": base64.b64encode(raw).decode()}


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
    payload, signatures = _parts(envelope, payload_type, MOST_SIGNATURES)
    if not any(_holds(each, trusted, payload_type, payload) for each in signatures):
        raise RemoteProtocolError("envelope: no trusted key has signed it")
    return _document(payload)


def signers(
    envelope: Mapping[str, Any],
    keys: Mapping[str, IdentityPublicKey],
    *,
    payload_type: str,
    most: int = MOST_SIGNATURES,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The document of an envelope, and all who signed it; each signature must be one of theirs.

    Args:
        envelope: as of :func:`verify`, but each signature needs its ``keyid``, which says which key
            to try it with.
        keys: who may sign, by name; no key of two names.
        payload_type: the only one that is accepted.
        most: signatures of the envelope at most, >= 1.

    Returns:
        The document, and names in the order of the signatures; at least one.

    Raises:
        RemoteProtocolError: as of :func:`verify`; or a signature is by none of the keys, does not
            verify, or is the second of one key.  The message names whose it is, where that is
            known.

    Guarantees:
        - Nothing of the payload is parsed before all signatures hold.
    """
    by_id = {key_id(key): name for name, key in keys.items()}
    payload, signatures = _parts(envelope, payload_type, most)
    found: list[str] = []
    for each in signatures:
        match each:
            case {"keyid": str(keyid), "sig": str(encoded)}:
                name = by_id.get(keyid)
            case _:
                raise RemoteProtocolError("envelope: a signature needs a keyid and a sig")
        if name is None:
            raise RemoteProtocolError("envelope: a signature is by none of the keys that may sign")
        if name in found:
            raise RemoteProtocolError(f"envelope: {name} has signed it twice")
        try:
            keys[name].verify_enveloped(_decoded(encoded, "sig"), payload_type, payload)
        except RemoteProtocolError:
            raise RemoteProtocolError(
                f"envelope: the signature of {name} does not verify"
            ) from None
        found.append(name)
    return _document(payload), tuple(found)


def _parts(envelope: Mapping[str, Any], payload_type: str, most: int) -> tuple[bytes, list[object]]:
    """Payload and signatures of an envelope of this type."""
    match envelope:
        case {"payload": str(encoded), "payloadType": str(kind), "signatures": list(signatures)}:
            pass
        case _:
            raise RemoteProtocolError("envelope: needs payload, payloadType and signatures")
    if not 1 <= len(signatures) <= most:
        raise RemoteProtocolError(
            f"envelope: {len(signatures)} signatures; 1 to {most} are allowed"
        )
    if kind != payload_type:
        raise RemoteProtocolError(
            f"envelope: payloadType = {kind[:80]!r}; it must be {payload_type!r}"
        )
    return _decoded(encoded, "payload"), signatures


def _document(payload: bytes) -> dict[str, Any]:
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
