"""Sign a Flower app, so that SuperNodes with --trusted-entities run it and no other.

Whoever has read the app signs it.  The signature is over the time and the SHA-256 of the bundle, as
Flower 1.42 checks it; FOLDER gets the bundle and the answer that a SuperLink takes from a registry.
"""

import argparse
import base64
import hashlib
import json
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle", type=Path, help="what `flwr build` made (.fab)")
parser.add_argument("--key", type=Path, required=True, help="made by `ssh-keygen -t ed25519`")
parser.add_argument("--name", required=True, help="of the key in owners' --trusted-entities")
parser.add_argument("--url", required=True, help="where the SuperLink finds FOLDER")
parser.add_argument("--folder", type=Path, required=True)
given = parser.parse_args()

key = load_ssh_private_key(given.key.read_bytes(), password=None)
if not isinstance(key, Ed25519PrivateKey):
    parser.error(f"--key {given.key}: not an Ed25519 key")
bundle, now = given.bundle.read_bytes(), int(time.time())
signature = key.sign(now.to_bytes(8, "big") + hashlib.sha256(bundle).digest())
verification = {
    "public_key_id": given.name,
    "signed_at": now,
    "signature": base64.urlsafe_b64encode(signature).decode(),
}
given.folder.mkdir(parents=True, exist_ok=True)
(given.folder / "app.fab").write_bytes(bundle)
answer = {"fab_url": f"{given.url}/app.fab", "verifications": [verification]}
(given.folder / "fetch-fab.json").write_text(json.dumps(answer), encoding="utf-8")
print(f"signed {hashlib.sha256(bundle).hexdigest()}")
