"""A server of a sparse round that keeps the other clients' bundles from one client."""

import numpy as np
import pytest
from secagg_rounds import Cohort, drive

from securefed.errors import ThresholdNotMet
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.carriers import apply_masks
from securefed.secagg.pairwise_client import PairwiseClient
from securefed.secagg.pairwise_server import PairwiseServer
from securefed.secagg.recovery import Holders

VICTIM = 3


class Isolating(PairwiseServer):
    """Opens the victim's input with what others reveal of its self-mask, if it gets that input."""

    alone: np.ndarray | None = None
    opened: np.ndarray | None = None

    def _add_input(self, body: bytes) -> None:
        before = self._sum.total.copy()
        super()._add_input(body)
        self.last = self._sum.total - before

    def receive(self, client_id: str, message: bytes) -> None:
        stage = self.stage
        super().receive(client_id, message)
        if stage == "masked_input" and self._context.index(client_id) == VICTIM:
            self.alone = self.last

    def _unmask(self) -> None:
        shares = {
            i: r.self_shares[VICTIM] for i, r in self._reveals.items() if VICTIM in r.self_shares
        }
        if self.alone is None:
            return
        digest = self._context.digest
        seed = Holders(self._context.parameters.threshold).secret(
            shares,
            lambda found: keys.self_commitment(found, digest, VICTIM),
            self._relay.adverts[VICTIM].self_commitment,
            VICTIM,
            "the victim",
        )
        self.opened = self.alone.copy()
        own = keys.self_keystream_key(seed, digest, self._view, VICTIM)
        apply_masks(self.opened, [(own, True)])


def hide_all_bundles(stage, name, reply):
    if stage == "masked_input" and name == f"c{VICTIM:03}":
        return wire_messages.encode_delivery({})
    return reply


@pytest.mark.parametrize("checked", [True, False], ids=["as built", "holders not counted"])
def test_a_client_without_the_bundles_of_others_masks_nothing(checked, monkeypatch):
    """Its neighbours hold shares of its self-mask all the same, and reveal them in good faith.

    They were sent its bundle and told that it survived.  So the only thing between the server and
    that one input is that the client counts the holders which shared with it before it masks.
    """
    if not checked:
        monkeypatch.setattr(PairwiseClient, "_check_holders", lambda self, count, what: None)
    cohort = Cohort(size=16, degree=8, length=9)
    server = Isolating(cohort.context())
    outcome = drive(cohort, server=server, meddle_down=hide_all_bundles)
    victim = cohort.names[VICTIM]
    if checked:
        assert isinstance(outcome.refused[victim], ThresholdNotMet)
        assert "1 holders of this client's shares" in str(outcome.refused[victim])
        assert victim not in outcome.sent["masked_input"]
        assert server.opened is None
    else:
        np.testing.assert_array_equal(server.opened, cohort.inputs[victim])
