import json

import pytest

from securefed.crypto.identity import IdentityKey
from securefed.errors import ConfigError
from securefed.evidence.roster import Roster, read_roster
from securefed.evidence.signed_roster import ROSTER_TYPE, SignedRoster, read_signed_roster
from securefed.evidence.signing import sign

SERVER = IdentityKey.generate()
ROSTER = Roster(SERVER.public, {"site-0": IdentityKey.generate().public})


def saved(path, roster=ROSTER, serial=3, server=SERVER):
    SignedRoster(roster, serial).save(path, server)
    return path


def test_it_comes_back_signed_and_plain(tmp_path):
    path = saved(tmp_path / "roster.json")
    assert read_signed_roster(path, SERVER.public) == SignedRoster(ROSTER, 3)
    assert not ROSTER.differing(read_roster(tmp_path / "roster.public.json"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["roster.json", "roster.public.json"]


def test_another_servers_signature_is_refused(tmp_path):
    path = saved(tmp_path / "roster.json")
    with pytest.raises(ConfigError, match="no trusted key has signed it"):
        read_signed_roster(path, IdentityKey.generate().public)


def test_a_key_that_the_roster_does_not_name_signs_nothing():
    with pytest.raises(ConfigError, match="another key"):
        SignedRoster(ROSTER, 1).to_text(IdentityKey.generate())


def test_an_older_roster_is_refused(tmp_path):
    path = saved(tmp_path / "roster.json")
    with pytest.raises(ConfigError, match="serial = 3"):
        read_signed_roster(path, SERVER.public, least_serial=4)


def test_a_changed_key_is_found(tmp_path):
    path = saved(tmp_path / "roster.json")
    text = path.read_text()
    envelope = json.loads(text)
    envelope["payload"] = envelope["payload"][:-8] + "AAAAAAA="
    path.write_text(json.dumps(envelope))
    with pytest.raises(ConfigError):
        read_signed_roster(path, SERVER.public)


@pytest.mark.parametrize(
    "document",
    [
        {"format": "other", "serial": 1} | ROSTER.to_record(),
        {"format": "securefed/roster/1", "serial": 0} | ROSTER.to_record(),
        {"format": "securefed/roster/1", "serial": True} | ROSTER.to_record(),
        {"format": "securefed/roster/1"} | ROSTER.to_record(),
        {"format": "securefed/roster/1", "serial": 1, "clients": {}},
    ],
)
def test_a_signed_document_that_is_no_roster_is_refused(tmp_path, document):
    path = tmp_path / "roster.json"
    path.write_text(json.dumps(sign(document, SERVER, payload_type=ROSTER_TYPE)))
    with pytest.raises(ConfigError):
        read_signed_roster(path, SERVER.public)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"{}"])
def test_garbage_is_refused(tmp_path, content):
    (tmp_path / "roster.json").write_bytes(content)
    with pytest.raises(ConfigError):
        read_signed_roster(tmp_path / "roster.json", SERVER.public)


def test_a_roster_that_names_another_server_than_its_signer_is_refused(tmp_path):
    other = IdentityKey.generate()
    record = Roster(other.public, dict(ROSTER.clients)).to_record()
    document = {"format": "securefed/roster/1", "serial": 1} | record
    path = tmp_path / "roster.json"
    path.write_text(json.dumps(sign(document, SERVER, payload_type=ROSTER_TYPE)))
    with pytest.raises(ConfigError, match="another server"):
        read_signed_roster(path, SERVER.public)
