"""What Prometheus is told, asked for over HTTP as it asks."""

import re
import socket
import urllib.request

import psutil
import pytest
from deployment import free_port
from owners import NAMES, SAMPLED, Owner, carried, invitation

from securefed.config import RunConfig
from securefed.engines.events import Lines, RoundEvent, StageEvent
from securefed.engines.server_log import Logged
from securefed.errors import ConfigError, RemoteProtocolError
from securefed.operations.log import Log
from securefed.operations.metrics import AgentMetrics, ServerMetrics, address, answering

AGENT = {
    "agent_invitations_total": {"of"},
    "agent_charges_total": set(),
    "agent_refusals_total": {"request", "kind"},
    "agent_turned_away_total": set(),
    "agent_heads_signed_total": set(),
    "agent_last_round": set(),
    "agent_roster_serial": set(),
    "agent_epsilon_spent": {"unit", "adjacency", "delta", "against"},
    "agent_epsilon_budget": {"unit", "adjacency", "delta", "against"},
    "agent_received_bytes_total": set(),
    "agent_sent_bytes_total": set(),
}
SERVER = {
    "server_rounds_planned": set(),
    "server_last_round": set(),
    "server_cohort": set(),
    "server_survivors": set(),
    "server_epsilon_spent": {"unit", "adjacency", "delta", "against"},
    "server_asked_total": {"stage", "of"},
    "server_answered_total": {"stage", "of"},
    "server_silent_total": {"stage", "of"},
    "server_refusals_total": {"stage", "of", "kind"},
    "server_stage_seconds_count": {"stage", "of"},
    "server_stage_seconds_sum": {"stage", "of"},
    "server_received_bytes_total": set(),
    "server_sent_bytes_total": set(),
}


def scraped(metrics):
    """Each sample's value, by name and labels, as an HTTP client gets them."""
    place = f"127.0.0.1:{free_port()}"
    with answering(place, metrics.registry):
        listening = [
            each.laddr
            for each in psutil.Process().net_connections("inet")
            if each.status == psutil.CONN_LISTEN
        ]
        assert [f"{each.ip}:{each.port}" for each in listening] == [place]
        with urllib.request.urlopen(f"http://{place}/metrics", timeout=30) as reply:
            text = reply.read().decode()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{place}/metrics", timeout=5)
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, labels, value = re.fullmatch(r"securefed_(\w+)(?:\{(.*)\})? (\S+)", line).groups()
            pairs = frozenset(re.findall(r'(\w+)="([^"]*)"', labels or ""))
            found[name, pairs] = float(value)
    return found


def labelled(**labels):
    return frozenset(labels.items())


def names_and_labels(found):
    return {name: {key for key, _ in labels} for name, labels in found}


def test_an_owner_sees_what_was_spent_and_refused_and_nothing_else(tmp_path):
    metrics = AgentMetrics()
    owners = {name: Owner(tmp_path, name) for name in NAMES[1:]}
    owners["site-0"] = own = Owner(tmp_path, "site-0", count=metrics.count)
    metrics.count("spent", own.spending.terms())
    metrics.count("roster", {"serial": 3})
    carried(owners)
    with pytest.raises(RemoteProtocolError):
        own.asked(invitation(b"t" * 16, sizes={"site-1": 1}))
    metrics.carried(10, 20)
    found = scraped(metrics)
    assert names_and_labels(found) == AGENT
    none = labelled()
    assert found["agent_charges_total", none] == 1
    assert found["agent_last_round", none] == 1
    assert found["agent_roster_serial", none] == 3
    assert found["agent_invitations_total", labelled(of="updates")] == 1
    kind = labelled(request="invitation", kind="LocalProtocolError")
    assert found["agent_refusals_total", kind] == 1
    (spent,) = [value for (name, _), value in found.items() if name == "agent_epsilon_spent"]
    assert spent == float("inf")  # these rounds carry no noise
    (terms,) = [labels for name, labels in found if name == "agent_epsilon_budget"]
    assert dict(terms) == {
        "unit": "client", "adjacency": "zero-out", "delta": "0.0001", "against": "server",
    }  # fmt: skip


def test_a_kind_that_is_not_ours_makes_no_series_of_its_own(tmp_path):
    """What others name must not grow what a scrape holds."""
    agent, server = AgentMetrics(), ServerMetrics()
    stage = {"asked": 9, "answered": 0, "silent": (), "seconds": 1.0}
    carried = {"bytes_up": 0, "bytes_down": 0}
    for number in range(9):
        agent.count("refused", {"request": "step", "kind": f"Kind{number}"})
        refused = {"site-0": f"Kind{number}"}
        server.count(
            "stage", {"stage": "share", "of": "updates", "refused": refused} | stage | carried
        )
    for found, name in ((scraped(agent), "agent"), (scraped(server), "server")):
        series = [dict(labels)["kind"] for n, labels in found if n == f"{name}_refusals_total"]
        assert series == ["other"]


def test_epsilon_is_the_account_s_own(tmp_path):
    metrics = AgentMetrics()
    owners = {
        name: Owner(
            tmp_path,
            name,
            policy=SAMPLED,
            answers={"hold_seconds": 10.0},
            count=metrics.count if name == "site-0" else None,
        )
        for name in NAMES
    }
    carried(owners, policy=SAMPLED)
    epsilon, delta = owners["site-0"].spending.spent()
    spent = {labels: v for (name, labels), v in scraped(metrics).items() if "spent" in name}
    expected = labelled(unit="example", adjacency="zero-out", delta=f"{delta:g}", against="server")
    assert spent == {expected: epsilon}
    assert 0.0 < epsilon < float("inf")


def test_how_long_an_owner_works_changes_nothing_that_is_told(tmp_path):
    told = []
    for number, work in enumerate((0.0, 9.5)):
        metrics = AgentMetrics()
        owner = Owner(
            tmp_path / str(number),
            policy=SAMPLED,
            work=work,
            answers={"hold_seconds": 10.0},
            count=metrics.count,
        )
        owner.asked(invitation())
        told.append(scraped(metrics))
    assert told[0] == told[1]


def test_a_server_tells_what_its_log_says_and_nothing_else(tmp_path):
    metrics = ServerMetrics()
    observer = Logged(Lines(), Log(None, lambda: "", count=metrics.count), RunConfig())
    observer.stage_end(
        StageEvent(
            round=1,
            stage="share",
            of="updates",
            asked=4,
            answered=1,
            refused={"a": "BudgetExceeded", "b": "../" * 9},
            silent=("c",),
            seconds=1.5,
            bytes_up=10,
            bytes_down=20,
        )
    )
    observer.round_end(
        RoundEvent(
            round=1, rounds=3, survivors=3, cohort=4, epsilon=0.5, against="server", delta=1e-5,
            perplexity=12.0, accuracy=None, bytes_up=7.0, bytes_down=8.0, client_seconds=9.0,
            seconds=11.0,
        )
    )  # fmt: skip
    found = scraped(metrics)
    assert names_and_labels(found) == SERVER
    at, none = labelled(stage="share", of="updates"), labelled()
    assert found["server_asked_total", at] == 4
    assert found["server_answered_total", at] == 1
    assert found["server_silent_total", at] == 1
    assert found["server_stage_seconds_sum", at] == 1.5
    assert (
        found["server_refusals_total", labelled(stage="share", of="updates", kind="BudgetExceeded")]
        == 1
    )
    assert found["server_refusals_total", labelled(stage="share", of="updates", kind="other")] == 1
    assert (found["server_received_bytes_total", none], found["server_sent_bytes_total", none]) == (
        10, 20,
    )  # fmt: skip
    assert (found["server_survivors", none], found["server_rounds_planned", none]) == (3, 3)
    terms = labelled(unit="example", adjacency="zero-out", delta="1e-05", against="server")
    assert found["server_epsilon_spent", terms] == 0.5


@pytest.mark.parametrize(
    "text", ["9464", ":9464", "host", "host:0", "host:x", "::1:9464", "h:70000"]
)
def test_an_address_needs_host_and_port(text):
    with pytest.raises(ConfigError, match="metrics"):
        address(text)


def test_an_address_in_use_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(ConfigError, match="cannot listen"),
            answering(place, AgentMetrics().registry),
        ):
            pass
