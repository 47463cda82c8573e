"""The kinds of record that a run's ledger and a client's account hold, and who writes them when.

A run's ledger (``ledger.jsonl``), written by the server:

=======================  ==========================================================================
kind                     what it says, and when it is written
=======================  ==========================================================================
``genesis``              first: what the run is bound to (below)
``round_opened``         an attempt at a round and its privacy event; before its first message
``round_summed``         survivors, who was charged, traffic; before the sum is used for anything
``round_failed``         the attempt ended without a sum; who was charged, and the error's type
``round_abandoned``      a resumed run found the attempt without an end, and charged its clients
``round_applied``        the adapter's hash after the round
``evaluation_opened``    a sum of held-out figures without noise is begun (outside the guarantee)
``evaluated``            its figures
``evaluation_failed``    too few clients took part in it; the error's type
``histogram_opened``     a noised histogram of held-out figures is begun, and its event
``histogram_summed``     its bins; ``histogram_failed`` and ``histogram_abandoned`` as for rounds
``witnessed``            an envelope over the head at the last ``round_applied`` or ``closed``, with
                         the server's signature and those of clients
                         (:mod:`securefed.evidence.heads`)
``software_changed``     another version of this package goes on with the run
``recovered``            a torn last line was cut off after a kill
``closed``               rounds, charges, statements, hashes of the files handed on; the last but
                         for ``witnessed``
=======================  ==========================================================================

Body of ``genesis``: ``software``, ``source_sha256``, ``dependencies`` and ``dependencies_sha256``
(:mod:`securefed.evidence.software`), ``config_sha256``, ``model``, ``model_fingerprint``,
``adapter_sha256``, ``cohort``, ``client_sizes`` (public), ``privacy`` (policy and plan),
``releases`` (what accountants need, for each adversary; :mod:`securefed.privacy.releases`),
``roster`` (:mod:`securefed.evidence.roster`), ``threat_models`` (SHA-256 by file), and where there
are any ``plan`` and ``histograms``; ``accounts`` where those beside the ledger are the server's
copies.

A client's own account (``clients/ID/budget.jsonl``), written by the client:

=============  ====================================================================================
kind           what it says, and when it is written
=============  ====================================================================================
``genesis``    the client's name, the figures that rounds are priced by, its own number of units,
               and the hash of the first record of the ledger that it takes part in
``charge``     one masked input; before it leaves
``witnessed``  the head that the client signs; before the signature leaves
``recovered``  as above
=============  ====================================================================================

Neither holds a seed, a secret key, or a norm or loss of a single client.
"""

from __future__ import annotations

from collections.abc import Iterable

from securefed.evidence.chain import Record

ROUND_OPENED = "round_opened"
ROUND_SUMMED = "round_summed"
ROUND_FAILED = "round_failed"
ROUND_ABANDONED = "round_abandoned"
ROUND_APPLIED = "round_applied"
EVALUATION_OPENED = "evaluation_opened"
EVALUATED = "evaluated"
EVALUATION_FAILED = "evaluation_failed"
HISTOGRAM_OPENED = "histogram_opened"
HISTOGRAM_SUMMED = "histogram_summed"
HISTOGRAM_FAILED = "histogram_failed"
HISTOGRAM_ABANDONED = "histogram_abandoned"
WITNESSED = "witnessed"
SOFTWARE = "software_changed"
CLOSED = "closed"

CHARGED = frozenset({ROUND_OPENED, HISTOGRAM_OPENED})
"""Openings whose event clients charge."""
SIGNED = frozenset({ROUND_APPLIED, CLOSED})
"""Records at which the head is signed."""


def closing(records: Iterable[Record]) -> Record | None:
    """The closing record of a run's ledger; None where the run is not finished."""
    return next((record for record in records if record.kind == CLOSED), None)
