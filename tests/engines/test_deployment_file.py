"""What a server reads of itself, and the log that it writes."""

import json
import urllib.request
from pathlib import Path

import pytest
import tomli_w
from deployed import DirectCourier, write_deployment
from deployment import free_port

from securefed.engines.deployment import ENVIRONMENT, Deployment
from securefed.engines.remote_federation import federate
from securefed.engines.server_log import logged
from securefed.errors import ConfigError, ThresholdNotMet

PLACES = {"run_file": "run.toml", "roster": "/r.json", "key": "k.pem", "out": "../runs/x"}


def read(folder, values=None, **places):
    path = folder / "deployment.toml"
    path.write_text(tomli_w.dumps(PLACES | places))
    return Deployment.of(values or {}, {ENVIRONMENT: str(path)})


def test_paths_are_taken_from_the_files_own_folder(tmp_path):
    found = read(tmp_path, {"resume": True, "stage-seconds": 5.0}, log="s.log")
    assert found.run_file == str(tmp_path / "run.toml")
    assert found.roster == "/r.json"
    assert Path(found.out).resolve() == tmp_path.parent / "runs" / "x"
    assert (found.log, found.metrics) == (str(tmp_path / "s.log"), "")
    assert (found.resume, found.stage_seconds) == (True, 5.0)


@pytest.mark.parametrize(
    ("values", "places", "named"),
    [
        ({"key": "other.pem"}, {}, "key: is in"),
        ({"run-file-sha256": "x"}, {}, "run_file_sha256"),
        ({"stage-seconds": 0}, {}, "stage_seconds"),
        ({"what": 1}, {}, "what"),
        ({}, {"out": ""}, "out"),
        ({}, {"plaec": ""}, "plaec"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, values, places, named):
    with pytest.raises(ConfigError, match=named):
        read(tmp_path, values, **places)


def test_without_the_file_nothing_begins(tmp_path):
    with pytest.raises(ConfigError, match=f"{ENVIRONMENT} is not set"):
        Deployment.of({}, {})
    with pytest.raises(ConfigError, match="No such file"):
        Deployment.of({}, {ENVIRONMENT: str(tmp_path / "none.toml")})


@pytest.mark.parametrize("mode", [0o664, 0o606])
def test_places_that_others_can_write_are_refused(tmp_path, mode):
    read(tmp_path)
    path = tmp_path / "deployment.toml"
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod go-w"):
        Deployment.of({}, {ENVIRONMENT: str(path)})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The server's log of one run; site-3 is silent once, and takes part in no figures."""
    world = write_deployment(tmp_path_factory.mktemp("logged"), training={"rounds": 1})
    agents = {100 + i: world.agent(name).handle for i, name in enumerate(sorted(world.identities))}

    def lost(node, what):
        return node == 103 and what == "masked_input"

    place = world.folder / "server.log"
    at = f"127.0.0.1:{free_port()}"
    settings = world.deployment.model_copy(update={"log": str(place), "metrics": at})
    with logged(settings, lambda: "2026-01-01T00:00:00Z") as observer:
        result = federate(settings, DirectCourier(agents, lost), observer=observer)
        with urllib.request.urlopen(f"http://{at}/metrics", timeout=60) as reply:
            (world.folder / "scraped").write_bytes(reply.read())
    return world, result, place


def test_each_exchange_is_a_line(told):
    _, _, place = told
    stages = [line for line in lines(place) if line["event"] == "stage"]
    round_stages = ["advertise", "share", "masked_input", "consistency", "unmask"]
    order = ["hello", *round_stages, *round_stages, "head", *round_stages, "head"]
    assert [line["stage"] for line in stages] == order
    masked = next(x for x in stages if (x["of"], x["stage"]) == ("updates", "masked_input"))
    assert (masked["asked"], masked["answered"], masked["silent"]) == (4, 3, ["site-3"])
    assert masked["bytes_up"] > 0
    assert masked["refused"] == {}
    assert [line["of"] for line in stages] == [
        "", *["figures"] * 5, *["updates"] * 5, "", *["figures"] * 5, "",
    ]  # fmt: skip
    assert masked["seconds"] >= 0


def test_a_round_is_a_line_with_what_is_spent_and_its_terms(told):
    _, result, place = told
    assert lines(place)[0]["event"] == "started"
    assert lines(place)[-1]["event"] == "finished"
    last = [line for line in lines(place) if line["event"] == "round"][-1]
    assert (last["round"], last["survivors"], last["cohort"]) == (1, 3, 4)
    assert last["epsilon"] == result.events[-1].epsilon
    assert (last["unit"], last["adjacency"], last["against"], last["delta"]) == (
        "example", "zero-out", "server", 1e-5,
    )  # fmt: skip


def test_metrics_are_answered_while_the_run_goes_on(told):
    world, result, _ = told
    text = (world.folder / "scraped").read_text()
    assert "securefed_server_last_round 1.0" in text
    assert "securefed_server_survivors 3.0" in text
    terms = 'adjacency="zero-out",against="server",delta="1e-05",unit="example"'
    assert f"securefed_server_epsilon_spent{{{terms}}} {result.events[-1].epsilon}" in text
    assert 'server_silent_total{of="updates",stage="masked_input"} 1.0' in text


def test_the_log_is_its_owners_and_holds_no_key(told):
    world, _, place = told
    assert place.stat().st_mode & 0o077 == 0
    text = place.read_text()
    for key in (world.server, *world.identities.values()):
        assert key._key.private_bytes_raw().hex() not in text


def test_a_run_that_fails_says_why(tmp_path):
    world = write_deployment(tmp_path, training={"rounds": 1})
    settings = world.deployment.model_copy(update={"log": str(tmp_path / "server.log")})
    with (
        pytest.raises(ThresholdNotMet),
        logged(settings, lambda: "2026-01-01T00:00:00Z") as observer,
    ):
        federate(settings, DirectCourier({}), observer=observer)
    assert [line["event"] for line in lines(tmp_path / "server.log")][-1] == "failed"
    assert lines(tmp_path / "server.log")[-1]["kind"] == "ThresholdNotMet"


def test_an_app_of_another_run_file_is_refused(tmp_path):
    world = write_deployment(tmp_path)
    settings = world.deployment.model_copy(update={"run_file_sha256": "0" * 64})
    with pytest.raises(ConfigError, match="the app was made for 0000"):
        federate(settings, DirectCourier({}))
