"""Signed documents in a folder, and whether the reader knows whose signatures they are.

Beside documents lie the public keys that signed them (``signer*.json``).  Such a key shows that a
document is as its signer left it, and nothing about who that is: whoever can write the folder can
write another key.  A document is *anchored* when a key that the reader brought has signed it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from securefed.crypto.identity import IdentityPublicKey
from securefed.errors import ConfigError, RemoteProtocolError
from securefed.evidence.reading import read_bounded
from securefed.evidence.signing import key_id, verify

FILE_LIMIT = 1 << 25
"""Bytes of a signed document's file at most."""

SIGNERS = "signer*.json"


@dataclass(frozen=True)
class SignedFile:
    """A document whose signature holds.

    Attributes:
        name: of its file.
        sha256: of the file's bytes.
        document: the payload.
        anchored: whether a key of the reader's has signed it.
    """

    name: str
    sha256: str
    document: dict[str, Any]
    anchored: bool


def signer_record(key: IdentityPublicKey) -> str:
    """The content of a signer's file."""
    fields = {"algorithm": key.algorithm, "keyid": key_id(key), "public": key.raw.hex()}
    return json.dumps(fields, sort_keys=True) + "\n"


def read_public_key(path: Path) -> IdentityPublicKey:
    """A public key: PEM, hexadecimal, or the file of a signer (``signer.json``).

    Raises:
        ConfigError: the file cannot be read, or holds no such key.
    """
    return _public_key(path, read_bounded(path, FILE_LIMIT, pipe=True))


def _public_key(path: Path, data: bytes) -> IdentityPublicKey:
    try:
        if data.lstrip().startswith(b"-----BEGIN PUBLIC KEY"):
            loaded = load_pem_public_key(data)
            return IdentityPublicKey.from_bytes(loaded.public_bytes(Encoding.Raw, PublicFormat.Raw))
        text = data.decode("ascii").strip()
        if text.startswith("{"):
            text = str(json.loads(text).get("public", ""))
        return IdentityPublicKey.from_bytes(bytes.fromhex(text))
    except (ValueError, RecursionError, RemoteProtocolError):
        raise ConfigError(
            f"{path}: holds no public key of an identity; PEM, hexadecimal or a signer.json is "
            "allowed"
        ) from None


def known_signers(folder: Path) -> list[IdentityPublicKey]:
    """The keys that lie beside the documents of a folder; they anchor nothing.

    Raises:
        ConfigError: one is no key.
    """
    return [
        _public_key(path, read_bounded(path, FILE_LIMIT)) for path in sorted(folder.glob(SIGNERS))
    ]


def read_signed(
    folder: Path, trusted: Collection[IdentityPublicKey], *, payload_type: str
) -> Iterator[SignedFile]:
    """The signed documents of one type among the ``*.json`` of a folder, by name.

    Args:
        folder: need not be there; others' folders inside it are not read.
        trusted: the reader's keys; there may be none.
        payload_type: documents of other types, and files that are no envelope, are passed over.

    Raises:
        ConfigError: a file cannot be read or is longer than ``FILE_LIMIT``, or a signer's key is
            none.
        RemoteProtocolError: a document's signature is neither by a trusted key nor by one that lies
            beside it, or does not hold.
    """
    beside = known_signers(folder)
    for path in sorted(folder.glob("*.json")):
        data = read_bounded(path, FILE_LIMIT)
        envelope = _envelope(data)
        if envelope is None or envelope.get("payloadType") != payload_type:
            continue
        digest = hashlib.sha256(data).hexdigest()
        document, anchored = _verified(path, envelope, trusted, beside, payload_type)
        yield SignedFile(path.name, digest, document, anchored)


def _verified(
    path: Path,
    envelope: dict[str, Any],
    trusted: Collection[IdentityPublicKey],
    beside: Collection[IdentityPublicKey],
    payload_type: str,
) -> tuple[dict[str, Any], bool]:
    for keys, anchored in ((trusted, True), (beside, False)):
        if not keys:
            continue
        try:
            return verify(envelope, keys, payload_type=payload_type), anchored
        except RemoteProtocolError as error:
            refused = str(error)
    if not trusted and not beside:
        refused = "no key is known that could have signed it: there is no signer.json beside it"
    raise RemoteProtocolError(f"{path}: {refused}")


def _envelope(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
