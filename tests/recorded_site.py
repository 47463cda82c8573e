"""A site with a recorded, already quantised vector in place of model and data."""

from __future__ import annotations

import hashlib

import numpy as np

from securefed import PairwiseAggregation, PrivacyPolicy
from securefed.federation.session import RoundSession

CONFIG, MODEL = "11" * 32, "22" * 32
POLICY = PrivacyPolicy(clip_norm=1.0, mechanism="none", corrupt_fraction=0.1, dropout_fraction=0.25)


def session_of(session, cohort, roster, dimension, *, number=1, policy=POLICY, stated=None):
    return RoundSession(
        session=session,
        round=number,
        cohort=tuple(sorted(cohort)),
        roster={name: roster[name] for name in cohort},
        dimension=dimension,
        policy=policy,
        aggregation=PairwiseAggregation(),
        model=hashlib.sha256(b"recorded").digest(),
        stated=stated,
    )


class RecordedSite:
    config, model, size = CONFIG, MODEL, 1

    def __init__(self, vector, dimension, policy=POLICY, before=lambda: None):
        self.vector, self.dimension, self.policy, self.before = vector, dimension, policy, before
        self.encoded, self.stated = 0, None

    def round(self, invitation, roster):
        session = session_of(
            invitation.session,
            tuple(invitation.sizes),
            roster,
            self.dimension,
            number=invitation.round,
            policy=self.policy,
            stated=self.stated,
        )

        def encode(codec, generator):
            self.before()
            self.encoded += 1
            return np.array(self.vector, dtype=np.uint32)

        return session, encode

    keeps = leaves = False

    def take(self, kept):
        self.taken = kept

    def kept(self):
        return b"state %d" % self.encoded

    def finish(self, adapter, kept, folder):
        (folder / "adapter").write_bytes(adapter + kept)

    def priced(self, invitation):
        name = {"round": invitation.round, "session": invitation.session.hex()}
        return {"recorded": True}, {"mechanism": (self.stated or self.policy).mechanism} | name
