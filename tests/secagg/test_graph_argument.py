"""The argument of parameters.py, said again without its code and tried on every small case.

Places of a ring are clients.  A *configuration* gives every place a role in an attack by the
server; all of a family are tried at once, as rows of arrays.  What clients check (that a list holds
themselves, that every listed neighbour shared as they were told, that t holders have their shares,
that q witnesses signed the same list) is written down here anew.  Looked for is a configuration in
which the server opens a sum that the argument rules out.

The families are the ways that attacks have; ``tests/fuzz/search_adversary.py`` searches over every
choice that a server has, with a solver.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

Bits = NDArray[np.bool_]
Counts = NDArray[np.int8]


@dataclass(frozen=True)
class Ring:
    """Sizes, thresholds, and how many corrupt clients runs of h and of w + 1 places may hold."""

    n: int
    h: int
    w: int
    a: int
    b: int
    t: int
    q: int
    floor: int

    @classmethod
    def derived(cls, n: int, h: int, w: int, a: int = 0, b: int = 0, floor: int = 2) -> Ring:
        """(S1) t >= h + a + 2 and (S2) 2 q >= w + b + h + 2, with nothing to spare."""
        made = cls(n, h, w, a, b, t=h + a + 2, q=-(-(w + b + h + 2) // 2), floor=floor)
        assert made.t <= 2 * h + 1
        assert made.q <= w + 1 < n
        return made

    def less(self, *, t: int = 0, q: int = 0) -> Ring:
        changes = {**self.__dict__, "t": self.t - t, "q": self.q - q}
        return Ring(**changes)

    def around(self, marked: Bits, reach: int) -> Counts:
        """How many of the ``reach`` places on each side of a place are marked."""
        found = np.zeros(marked.shape, dtype=np.int8)
        for step in range(1, reach + 1):
            found += np.roll(marked, step, axis=1)
            found += np.roll(marked, -step, axis=1)
        return found

    def runs(self, marked: Bits, length: int) -> Counts:
        """How many of ``length`` places from each on are marked."""
        found = np.zeros(marked.shape, dtype=np.int8)
        for step in range(length):
            found += np.roll(marked, -step, axis=1)
        return found

    def configurations(self, roles: int) -> NDArray[np.uint8]:
        """Every row of n roles in which role 0, corrupt, keeps to the bounds on runs."""
        possible = range(0 if self.a else 1, roles)
        half = [
            np.array(list(itertools.product(possible, repeat=places)), dtype=np.uint8)
            for places in (self.n // 2, self.n - self.n // 2)
        ]
        made = np.concatenate(
            (np.repeat(half[0], len(half[1]), axis=0), np.tile(half[1], (len(half[0]), 1))), axis=1
        )
        corrupt = made == 0
        kept = (self.runs(corrupt, self.h) <= self.a).all(axis=1)
        kept &= (self.runs(corrupt, self.w + 1) <= self.b).all(axis=1)
        return made[kept]

    def revealing(self, signers: Bits, corrupt: Bits) -> Bits:
        """Who signed a list and is shown q signatures on it, its own among them."""
        signed = signers | corrupt
        return signers & (self.around(signed, self.w // 2) + signed >= self.q)

    def spread(self, marked: Bits, graph: Bits) -> Bits:
        """Members of those components of ``graph`` (joined within h) that hold a marked place."""
        found = marked & graph
        while True:
            wider = found | (graph & (self.around(found, self.h) > 0))
            if (wider == found).all():
                return found
            found = wider

    def pieces(self, members: Bits) -> Counts:
        """How many components they are: each but the only one ends before h empty places."""
        ahead = np.zeros(members.shape, dtype=bool)
        for step in range(1, self.h + 1):
            ahead |= np.roll(members, -step, axis=1)
        ends = (members & ~ahead).sum(axis=1)
        return np.maximum(ends, members.any(axis=1))


def cut_or_two_lists(ring: Ring) -> dict[str, int]:
    """Everyone is sent every bundle.  The server tells two lists, and drops whom it likes.

    Roles: corrupt; told list A and on it alone; told B and on it alone; told A, told B, or silent,
    and on both; on neither.  How many configurations break which claim.
    """
    roles = ring.configurations(7)
    corrupt = roles == 0
    honest = ~corrupt
    on_a = corrupt | (roles == 1) | (roles == 3) | (roles == 4) | (roles == 5)
    on_b = corrupt | (roles == 2) | (roles == 3) | (roles == 4) | (roles == 5)
    long_a = on_a.sum(axis=1) >= ring.floor
    long_b = on_b.sum(axis=1) >= ring.floor
    tells_a = ring.revealing(((roles == 1) | (roles == 3)) & long_a[:, None], corrupt)
    tells_b = ring.revealing(((roles == 2) | (roles == 4)) & long_b[:, None], corrupt)
    # Holders of a client's shares: itself and the h on each side; corrupt ones give both kinds.
    bad = ring.around(corrupt, ring.h)
    by_a = ring.around(tells_a, ring.h) + tells_a
    by_b = ring.around(tells_b, ring.h) + tells_b
    selves = bad + by_a * on_a + by_b * on_b >= ring.t
    roots = bad + by_a * ~on_a + by_b * ~on_b >= ring.t
    masked = honest & ~roots
    opened = masked & ~ring.spread(masked & ~selves, masked)
    return {
        "both kinds": int((honest & selves & roots).any(axis=1).sum()),
        "two sums": int((ring.pieces(opened) > 1).sum()),
        "not a whole list": _not_whole(opened, (honest & on_a, long_a), (honest & on_b, long_b)),
    }


def _not_whole(opened: Bits, *lists: tuple[Bits, Bits]) -> int:
    whole = np.zeros(len(opened), dtype=bool)
    for members, long_enough in lists:
        whole |= (opened == members).all(axis=1) & long_enough
    return int((opened.any(axis=1) & ~whole).sum())


def hidden_bundles(ring: Ring, *, holders_checked: bool = True) -> dict[str, int]:
    """The server hides some clients' bundles from those whose inputs it wants to open.

    Roles: corrupt; a target that is told the list, or is not; a helper, whose bundle no target is
    sent but who is sent theirs, and so masks with them and holds their shares; dropped.  The list
    is everyone but the dropped.  ``holders_checked``: a client masks nothing unless t holders, as
    it was told, have its shares.
    """
    roles = ring.configurations(5)
    corrupt, helper, dropped = roles == 0, roles == 3, roles == 4
    target = (roles == 1) | (roles == 2)
    enough = (~dropped).sum(axis=1) >= ring.floor
    if holders_checked:
        sent = ring.around(target | dropped | corrupt, ring.h) + 1
        enough &= ((sent >= ring.t) | ~target).all(axis=1)
    # A target does not sign where a listed neighbour did not share as it was told.
    signing = helper | ((roles == 1) & (ring.around(helper, ring.h) == 0))
    tells = ring.revealing(signing & enough[:, None], corrupt)
    shown = ring.around(corrupt | tells, ring.h)
    selves = shown + tells >= ring.t
    roots = shown >= ring.t
    in_the_way = dropped & ~roots & (ring.around(target, ring.h) > 0)
    opens = target.any(axis=1) & (selves | ~target).all(axis=1) & ~in_the_way.any(axis=1) & enough
    partial = helper.any(axis=1) | (ring.pieces(target) > 1)
    return {"not a whole list": int((opens & partial).sum())}


CUTS = [
    Ring.derived(7, 1, 4),
    Ring.derived(7, 2, 4),
    Ring.derived(7, 2, 4, a=1, b=1),
]
HIDING = [
    Ring.derived(9, 2, 4),
    Ring.derived(8, 2, 4, a=1, b=1),
    Ring.derived(8, 3, 6, a=1, b=1),
]


@pytest.mark.parametrize("ring", CUTS, ids=str)
def test_no_lists_and_no_dropped_set_open_more_than_one_whole_list(ring):
    assert cut_or_two_lists(ring) == {"both kinds": 0, "two sums": 0, "not a whole list": 0}


@pytest.mark.parametrize("ring", HIDING, ids=str)
def test_no_hidden_bundles_open_a_part_of_a_list(ring):
    assert hidden_bundles(ring) == {"not a whole list": 0}


@dataclass(frozen=True)
class _Cut:
    """Only the simplest family, for larger rings: corrupt, on the list, dropped."""

    ring: Ring

    def opened(self) -> int:
        ring = self.ring
        roles = ring.configurations(3)
        corrupt, alive, dropped = roles == 0, roles == 1, roles == 2
        tells = ring.revealing(alive, corrupt)
        bad, by = ring.around(corrupt, ring.h), ring.around(tells, ring.h) + tells
        selves = alive & (bad + by >= ring.t)
        roots = dropped & (bad + by >= ring.t)
        masked = (alive | dropped) & ~roots
        opened = masked & ~ring.spread(masked & ~selves, masked)
        in_parts = int((ring.pieces(opened) > 1).sum())
        return in_parts + _not_whole(opened, (alive, (~dropped).sum(axis=1) >= ring.floor))


@pytest.mark.parametrize(
    "ring",
    [
        Ring.derived(12, 1, 4),
        Ring.derived(12, 2, 6),
        Ring.derived(12, 2, 8, a=1, b=2),
        Ring.derived(11, 3, 6, a=1, b=2),
        pytest.param(Ring.derived(14, 2, 8, a=1, b=2), marks=pytest.mark.slow),
        pytest.param(Ring.derived(14, 3, 10, a=2, b=3), marks=pytest.mark.slow),
        pytest.param(Ring.derived(13, 4, 10, a=2, b=3), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_no_set_of_dropped_clients_cuts_the_ring(ring):
    assert _Cut(ring).opened() == 0


@pytest.mark.parametrize("ring", [Ring.derived(10, 1, 4), Ring.derived(14, 2, 6)], ids=str)
def test_with_one_share_less_a_cut_of_the_ring_opens_an_arc(ring):
    assert _Cut(ring).opened() == 0
    assert _Cut(ring.less(t=1)).opened() > 0


def test_with_one_signature_less_two_lists_are_opened():
    ring = Ring.derived(7, 1, 4)
    assert cut_or_two_lists(ring)["not a whole list"] == 0
    assert cut_or_two_lists(ring.less(q=1))["not a whole list"] > 0


def test_a_client_that_masked_without_asking_for_holders_would_be_opened_alone():
    """The argument needs the check that t holders shared, as the client was told, before masking.

    Without it the server withholds every bundle from one client, whose input is then under its own
    mask alone, and the neighbours that did get its bundle reveal that mask in good faith.
    """
    assert hidden_bundles(HIDING[0], holders_checked=False)["not a whole list"] > 0
