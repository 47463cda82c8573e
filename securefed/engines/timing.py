"""What encryption took in one attempt, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from securefed.engines.in_process import Carried
from securefed.secagg.encryption import DECRYPTOR


@dataclass(frozen=True)
class EncryptionSeconds:
    """Seconds of one attempt; none of them depends on a sample or on what a contribution holds.

    Attributes:
        encrypting: mean over the clients that sent, for all of that answer but making and charging
            the contribution: checking the key, masks, ciphertexts, their check, a signature.
        adding: the server's, for all contributions together, as they arrive.
        opening: of one key holder, its checks included.
    """

    encrypting: float = 0.0
    adding: float = 0.0
    opening: float = 0.0

    @classmethod
    def of(cls, carried: Carried, contributions: Mapping[str, float]) -> EncryptionSeconds:
        """From a round that ended well.

        Args:
            carried: what was measured.
            contributions: seconds that each client took to make its contribution and to charge it.
        """
        sending = carried.seconds["masked_input"]
        sent = contributions.keys() & sending.keys()
        stages = list(carried.seconds.values())
        by_decryptor = [answers[DECRYPTOR] for answers in stages if DECRYPTOR in answers]
        opened = by_decryptor[-1:] or list(stages[-1].values())
        return cls(
            encrypting=float(np.mean([sending[name] - contributions[name] for name in sent])),
            adding=carried.taking["masked_input"],
            opening=float(np.mean(opened)),
        )
