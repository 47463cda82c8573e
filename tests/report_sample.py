"""A report made by hand, small but with something in every part, for tests of its renderings."""

from __future__ import annotations

from typing import Any

from securefed.reports.document import (
    Aggregation,
    AttackRow,
    Command,
    CostRow,
    Curve,
    Flow,
    Identity,
    Leakage,
    Node,
    OpenItem,
    Privacy,
    Report,
    Reproduce,
    Role,
    RoundRow,
    Statement,
    System,
    Utility,
    UtilityRow,
)
from securefed.reports.judged import (
    Actor,
    Asset,
    ClaimRow,
    EvidenceRow,
    OutOfScope,
    ThreatModelPart,
    ThreatRow,
)
from securefed.reports.values import Fact, Figure, Said, Text, Verbatim
from securefed.threats.verdicts import Reference, Verdict

LEDGER = "ledger.jsonl"


def ledger(line: int, pointer: str = "/epsilon") -> Reference:
    return Reference(kind="ledger", path=LEDGER, line=line, pointer=pointer, sha256="ab" * 32)


def figure(value: Any, kind: Any = "count", line: int | None = 3) -> Figure:
    return Figure(value=value, kind=kind, references=[] if line is None else [ledger(line)])


def verbatim(text: str) -> Verbatim:
    return Verbatim(verbatim=text)


def claim(id: str, verdict: Verdict = "verified") -> ClaimRow:
    return ClaimRow(
        id=id,
        threats=["T-one"],
        statement=Text(en=f"What {id} says.", ja=f"{id} の主張。"),
        kind="cryptographic",
        assumptions=[
            Text(en="AES-256 is a pseudorandom generator", ja="AES-256は擬似乱数生成器である")
        ],
        controls=["securefed.secagg.pairwise_client"],
        evidence=[
            EvidenceRow(
                type="test",
                cites="tests/secagg/test_pairwise.py::test_a_masked_input_is_uniform",
                verdict=verdict,
                reason=verbatim("passed on this code"),
                references=[Reference(kind="file", path="threat_models/evidence/a.json")],
            )
        ],
        verdict=verdict,
        residual_level="low",
        residual=Text(en="The sum itself may leak.", ja="合計そのものから漏れることがある。"),
    )


def threat_model(id: str, claims: list[ClaimRow]) -> ThreatModelPart:
    return ThreatModelPart(
        id=id,
        file=f"{id[3:]}.yaml",
        sha256="cd" * 32,
        title=Text(en="Honest-but-curious server", ja="手順には従うが詮索するサーバー"),
        assets=[
            Asset(id="AS-update", words=Text(en="One contribution", ja="一つの更新"), unit="client")
        ],
        actors=[
            Actor(
                id="AC-server", role="server", corruption="honest-but-curious", view=["aggregate"]
            )
        ],
        threats=[
            ThreatRow(
                id="T-one",
                title=Text(en="Reading one contribution", ja="一つの更新を読む"),
                actor="AC-server",
                asset="AS-update",
                severity="high",
                mapped=[],
            )
        ],
        claims=claims,
        out_of_scope=[
            OutOfScope(
                threat=Text(en="Timing of the network", ja="通信の時刻"),
                reason=Text(en="not modelled", ja="モデル化していない"),
            )
        ],
    )


def statement(**changes: Any) -> Statement:
    values: dict[str, Any] = {
        "subject": "training",
        "against": "release",
        "protected": True,
        "epsilon": figure(3.21, "epsilon", 9),
        "delta": figure(1e-5, "probability", 1),
        "rounds": figure(6, "count", 9),
        "unit": Said(key="held.unit.example"),
        "adjacency": verbatim("add or remove one example"),
        "mechanism": verbatim("distributed discrete Gaussian"),
        "sampling": verbatim("secret Poisson sample, q = 0.02"),
        "accountant": verbatim("PLD"),
        "trust": [verbatim("at most 1 of 8 clients colludes")],
        "assumptions": [verbatim("AES-256-CTR is a pseudorandom generator")],
        "second": figure(3.4, "epsilon", 9),
        "second_accountant": verbatim("RDP"),
    }
    return Statement(**(values | changes))


def attack(**changes: Any) -> AttackRow:
    values: dict[str, Any] = {
        "file": "attacks/membership-masked.json",
        "attack": "membership",
        "kind": "membership",
        "exposure": "released",
        "defence": "noise",
        "anchored": True,
        "fits": True,
        "verdict": "guessed",
        "metric": "tpr_at_fpr_0.01",
        "value": figure(0.02, "probability", None),
        "prior": figure(0.01, "probability", None),
        "lift": figure(0.01, "probability", None),
        "worst": figure(0.2, "probability", None),
        "average": figure(0.02, "probability", None),
        "n": figure(512, "count", None),
        "confidence": 0.95,
        "time": "2026-11-29T10:00:00Z",
        "defended": True,
        "baseline": "attacks/membership-off.json",
        "bound": (3.21, 1e-5),
    }
    return AttackRow(**(values | changes))


def report(**changes: Any) -> Report:
    """All of it; ``changes`` replace parts."""
    empty = figure(None, "figure", None)
    values: dict[str, Any] = {
        "identity": Identity(
            name="demo",
            finished=True,
            anchored=True,
            model="builtin:smollm2-135m-instruct",
            weights="12" * 32,
            software="securefed 0.1.0",
            source_sha256="34" * 32,
            dependencies={"numpy": "2.4.6", "cryptography": "50.0.2"},
            genesis="56" * 32,
            head="78" * 32,
            records=42,
            begun="2026-11-29T10:00:00Z",
            closed="2026-11-29T10:05:00Z",
            task="causal-lm",
            lora={"rank": 4, "alpha": 8.0, "target_modules": ["v_proj"], "sharing": "ffa"},
            facts=[Fact(label=Said(key="held.drawn.users"), value=verbatim("demo"))],
        ),
        "open_items": [
            OpenItem(
                kind="unanswered",
                what=verbatim("On what lawful basis are the data processed?"),
                who=verbatim("the controller"),
            )
        ],
        "summary": [],
        "not_this": [],
        "system": System(
            purpose=verbatim("Fine-tuning of a language model by eight data owners"),
            roles=[
                Role(
                    name=verbatim("server"),
                    sees=[verbatim("masked updates"), verbatim("sums")],
                    trusted=verbatim("not with single updates"),
                )
            ],
            nodes=[
                Node(id="client", label=verbatim("Client"), column=0),
                Node(id="server", label=verbatim("Server"), column=1),
            ],
            flows=[
                Flow(
                    number=1,
                    views=[],
                    seen_by=[],
                    source="client",
                    target="server",
                    what=verbatim("masked update"),
                    protected=True,
                    how=verbatim("pairwise masks"),
                )
            ],
            adversaries=[],
            facts=[],
        ),
        "privacy": Privacy(hazards=[], statements=[statement()]),
        "aggregation": Aggregation(
            kind="pairwise",
            statement=[],
            parameters=[],
            rounds=[
                RoundRow(
                    round=figure(number),
                    cohort=figure(8),
                    survivors=figure(7),
                    lost=figure(1),
                    late=figure(0),
                    silent=figure(0),
                    refused=figure(0),
                )
                for number in range(1, 7)
            ],
        ),
        "leakage": Leakage(
            attacks=[attack()],
            curves=[
                Curve(
                    file="attacks/membership-masked.json",
                    attack="membership",
                    exposure="released",
                    defence="noise",
                    points=[(0.0, 0.0), (0.01, 0.02), (0.5, 0.52), (1.0, 1.0)],
                    bound=(3.21, 1e-5),
                )
            ],
            notes=[],
        ),
        "utility": Utility(
            statement=[],
            rounds=[
                UtilityRow(
                    round=figure(3),
                    perplexity=figure(21.5, "figure"),
                    accuracy=empty,
                    epsilon=figure(2.2, "epsilon"),
                    bytes_up=figure(120_000, "bytes"),
                    bytes_down=figure(240_000, "bytes"),
                )
            ],
            costs=[CostRow(label=Said(key="held.drawn.users"), value=figure(12.5, "seconds"))],
            notes=[],
        ),
        "threat_models": [
            threat_model(
                "TM-honest-but-curious-server",
                [claim("C-sum-only"), claim("C-dp-server", "not_refuted")],
            )
        ],
        "crosswalk": [],
        "limitations": [verbatim("Fairness was not measured.")],
        "reproduce": Reproduce(
            commands=[Command(what=Said(key="held.drawn.users"), command="securefed verify demo")],
            facts=[],
        ),
    }
    return Report(**(values | changes))
