"""securefed: privacy-hardened federated fine-tuning of language models with low-rank adapters."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from securefed.crypto.identity import IdentityKey, IdentityPublicKey
    from securefed.engines.evaluating import evaluate_run
    from securefed.engines.events import RoundEvent
    from securefed.engines.in_process import SecureRoundResult, secure_round
    from securefed.engines.merging import merge_run
    from securefed.engines.simulation import Federation
    from securefed.engines.sliced import SlicedRoundResult, secure_sliced_round
    from securefed.federation.account import open_account
    from securefed.federation.client import ClientRound
    from securefed.federation.floors import ClientFloors
    from securefed.federation.server import ServerRound
    from securefed.federation.session import RoundSession
    from securefed.federation.slice_plans import standing_slices
    from securefed.federation.sliced_rounds import SlicedClientRound, SlicedServerRound
    from securefed.federation.slices import SlicedSession
    from securefed.privacy.accounting import PrivacyGuarantee
    from securefed.privacy.policy import PrivacyPolicy
    from securefed.secagg.aggregations import (
        HomomorphicAggregation,
        PairwiseAggregation,
        PlaintextAggregation,
    )
    from securefed.training.local import LocalTrainer

__version__ = "0.1.0"

# Loaded on first use: `import securefed` needs neither torch nor anything else that is heavy.
_WHERE = {
    "ClientFloors": "securefed.federation.floors",
    "ClientRound": "securefed.federation.client",
    "Federation": "securefed.engines.simulation",
    "HomomorphicAggregation": "securefed.secagg.aggregations",
    "IdentityKey": "securefed.crypto.identity",
    "IdentityPublicKey": "securefed.crypto.identity",
    "LocalTrainer": "securefed.training.local",
    "PairwiseAggregation": "securefed.secagg.aggregations",
    "PlaintextAggregation": "securefed.secagg.aggregations",
    "PrivacyGuarantee": "securefed.privacy.accounting",
    "PrivacyPolicy": "securefed.privacy.policy",
    "RoundEvent": "securefed.engines.events",
    "RoundSession": "securefed.federation.session",
    "SecureRoundResult": "securefed.engines.in_process",
    "ServerRound": "securefed.federation.server",
    "SlicedClientRound": "securefed.federation.sliced_rounds",
    "SlicedRoundResult": "securefed.engines.sliced",
    "SlicedServerRound": "securefed.federation.sliced_rounds",
    "SlicedSession": "securefed.federation.slices",
    "evaluate_run": "securefed.engines.evaluating",
    "merge_run": "securefed.engines.merging",
    "open_account": "securefed.federation.account",
    "secure_round": "securefed.engines.in_process",
    "secure_sliced_round": "securefed.engines.sliced",
    "standing_slices": "securefed.federation.slice_plans",
}

__all__ = [
    "ClientFloors",
    "ClientRound",
    "Federation",
    "HomomorphicAggregation",
    "IdentityKey",
    "IdentityPublicKey",
    "LocalTrainer",
    "PairwiseAggregation",
    "PlaintextAggregation",
    "PrivacyGuarantee",
    "PrivacyPolicy",
    "RoundEvent",
    "RoundSession",
    "SecureRoundResult",
    "ServerRound",
    "SlicedClientRound",
    "SlicedRoundResult",
    "SlicedServerRound",
    "SlicedSession",
    "evaluate_run",
    "merge_run",
    "open_account",
    "secure_round",
    "secure_sliced_round",
    "standing_slices",
]


def __getattr__(name: str) -> object:
    try:
        module = _WHERE[name]
    except KeyError:
        raise AttributeError(f"module 'securefed' has no attribute {name!r}") from None
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
