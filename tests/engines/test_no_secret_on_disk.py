"""Every secret of a run is recorded as it is made, then looked for in all that the run wrote."""

import base64
import logging
import os
from pathlib import Path

import pytest
from tiny import write_run

import securefed.crypto.shamir
import securefed.secagg.client_secrets
from securefed import Federation
from securefed.crypto import keys
from securefed.evidence.ledger import read_ledger
from securefed.secagg import round_secrets
from securefed.secagg.encrypting import SumKey


def written(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def holds(haystack: bytes, secret: bytes) -> bool:
    forms = (
        secret,
        secret.hex().encode(),
        base64.b64encode(secret).rstrip(b"="),
        repr(secret)[2:-1].encode(),
    )
    return any(form in haystack for form in forms)


def test_no_secret_reaches_ledger_logs_or_run_folder(tmp_path, monkeypatch, capfd, caplog):
    secrets: set[bytes] = set()
    real_random, real_derive, real_share = os.urandom, keys.derive, securefed.crypto.shamir.share

    def urandom(count):
        drawn = real_random(count)
        if count >= 16:
            secrets.add(drawn)
        return drawn

    def derive(*args, **kwargs):
        secrets.add(derived := real_derive(*args, **kwargs))
        return derived

    def share(secret, **kwargs):
        shares = real_share(secret, **kwargs)
        secrets.update({secret, *shares.values()})
        return shares

    monkeypatch.setattr(os, "urandom", urandom)
    monkeypatch.setattr(round_secrets, "derive", derive)
    monkeypatch.setattr(keys, "derive", derive)
    monkeypatch.setattr(securefed.secagg.client_secrets, "share", share)
    caplog.set_level(logging.DEBUG)
    path = write_run(
        tmp_path,
        training={"rounds": 2},
        cohort={"simulated_dropouts": [{"round": 1, "client": "site-2", "stage": "masked_input"}]},
    )
    out = tmp_path / "out"
    Federation.from_config(path).run(out)
    monkeypatch.undo()

    # 6 clients in two rounds and two evaluations: roots, seeds, keys, shares, noise keys.
    assert len(secrets) > 500
    captured = capfd.readouterr()
    everything = written(out) + captured.out.encode() + captured.err.encode() + caplog.text.encode()
    assert not [secret for secret in secrets if holds(everything, secret)]

    # The search does find what is there: a session's name is public and in the ledger.
    opened = next(r for r in read_ledger(out / "ledger.jsonl") if r.kind == "round_opened")
    assert holds(everything, bytes.fromhex(opened.body["session"]))


@pytest.mark.parametrize("holder", ["decryptor", "cohort"])
def test_no_key_of_an_encrypted_run_reaches_its_folder(tmp_path, monkeypatch, holder):
    secrets: set[bytes] = set()
    real_random, parts = os.urandom, SumKey.parts

    def urandom(count):
        drawn = real_random(count)
        if count >= 32:  # a session's name is 16, and public
            secrets.add(drawn)
        return drawn

    def kept(self):
        public, secret = parts(self)
        # Whole words of the key: its start alone might stand in many files.
        secrets.update(secret[start : start + 64] for start in (0, 1024, 4096))
        return public, secret

    monkeypatch.setattr(os, "urandom", urandom)
    monkeypatch.setattr(SumKey, "parts", kept)
    aggregation = {"kind": "bfv", "key_holder": holder}
    path = write_run(tmp_path, training={"rounds": 1}, aggregation=aggregation)
    Federation.from_config(path).run(tmp_path / "out")
    monkeypatch.undo()
    # Three sums: a key, a round secret and six clients' key pairs each.
    assert len([secret for secret in secrets if len(secret) == 64]) == 9
    assert len(secrets) > 9 + 3 * 7
    everything = written(tmp_path / "out")
    assert not [secret for secret in secrets if holds(everything, secret)]
