"""Searches all that a server can do in a small sparse round, with a solver, for a forbidden sum.

    pip install ortools          # beside the package; it is no dependency of the tests
    python tests/fuzz/search_adversary.py --largest 12

Places of a ring are clients.  The solver chooses who is corrupt (within the bounds a and b on runs
of h and w + 1 places), which bundle is sent on to which client, who masks, a few survivor lists,
who is told which, and whose signatures are shown.  Honest clients do what pairwise_client.py says.
A forbidden sum is one of

``both``   both secrets of one honest client,
``two``    two disjoint sets of honest clients, each opened,
``part``   an opened set that is not just the honest clients of one list.

``INFEASIBLE`` means that there is none.  With ``--less-t 1``, ``--less-q 1``, or without the check
that t holders shared (``--unchecked``) some are found.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter

from ortools.sat.python import cp_model


class Search:
    """One ring; ``t`` and ``q`` as (S1) and (S2) of parameters.py give them, or less."""

    def __init__(self, n, h, w, a, b, *, t, q, lists, floor=2, checked=True) -> None:
        self.n, self.t, self.floor, self.lists = n, t, floor, range(lists)
        self.model = cp_model.CpModel()
        self.near = {i: self.around(i, h) for i in range(n)}
        self.corrupt = self.bits(n)
        for i in range(n):
            self.model.add(sum(self.corrupt[(i + s) % n] for s in range(h)) <= a)
            self.model.add(sum(self.corrupt[(i + s) % n] for s in range(w + 1)) <= b)
        self.shared, self.masked = self.bits(n), self.bits(n)
        self.got = {(v, u): self.bit() for v in range(n) for u in self.near[v]}
        for v in range(n):
            self.all_if(self.masked[v], self.shared[v], ~self.corrupt[v])
            self.all_if(self.corrupt[v], self.shared[v])
            for u in self.near[v]:
                self.all_if(self.got[v, u], self.shared[u], self.masked[v])
            if checked:
                holders = sum(self.got[v, u] for u in self.near[v]) + 1
                self.model.add(holders >= t).only_enforce_if(self.masked[v])
        self.listed = {(j, i): self.bit() for j in self.lists for i in range(n)}
        self.tells = {(v, j): self.bit() for v in range(n) for j in self.lists}
        self.sign(w, q)
        self.seed_open, self.root_open = self.bits(n), self.bits(n)
        self.recover()

    def around(self, i, reach):
        return sorted({(i + s) % self.n for s in range(-reach, reach + 1)} - {i})

    def bit(self):
        return self.model.new_bool_var("")

    def bits(self, count):
        return [self.bit() for _ in range(count)]

    def all_if(self, cause, *effects):
        for effect in effects:
            self.model.add_implication(cause, effect)

    def sign(self, w, q):
        """Who signs which list (one at most), and who reveals for it."""
        for j in self.lists:
            signs = self.bits(self.n)
            self.model.add(sum(self.listed[j, i] for i in range(self.n)) >= self.floor)
            for v in range(self.n):
                self.all_if(signs[v], self.masked[v], self.listed[j, v])
                self.all_if(self.tells[v, j], signs[v])
                for u in self.near[v]:  # a listed neighbour must have shared, as v was told
                    self.model.add_bool_or(~signs[v], ~self.listed[j, u], self.got[v, u])
                shown = []
                for x in {v, *self.around(v, w // 2)}:
                    shown.append(seen := self.bit())
                    self.all_if(seen, self.listed[j, x])
                    self.model.add_bool_or(~seen, self.corrupt[x], signs[x])
                self.model.add(sum(shown) >= q).only_enforce_if(self.tells[v, j])
            self.__dict__.setdefault("signs", []).append(signs)
        for v in range(self.n):
            self.model.add_at_most_one(signs[v] for signs in self.signs)

    def recover(self):
        """Which seeds and roots at least t holders give; corrupt holders give both."""
        for u in range(self.n):
            self.all_if(self.seed_open[u], self.shared[u])
            self.all_if(self.root_open[u], self.shared[u])
            for opened, on_list in ((self.seed_open[u], True), (self.root_open[u], False)):
                given = []
                for v in [*self.near[u], u]:
                    ways = [] if v == u else [self.corrupt[v]]
                    for j in self.lists:
                        ways.append(way := self.bit())
                        there = self.listed[j, u]
                        self.all_if(way, self.tells[v, j], there if on_list else ~there)
                        if v != u:
                            self.all_if(way, self.got[v, u])
                    given.append(gives := self.bit())
                    self.model.add_bool_or(~gives, *ways)
                self.model.add(sum(given) >= self.t).only_enforce_if(opened)

    def opened(self):
        """A set whose sum has no mask left: each pair mask is mutual within it, or explained."""
        members = self.bits(self.n)
        self.model.add_bool_or(members)
        for u in range(self.n):
            self.all_if(members[u], self.masked[u], self.seed_open[u])
            for v in self.near[u]:
                mutual = self.bit()
                self.all_if(mutual, members[v], self.got[v, u])
                self.model.add_bool_or(
                    ~members[u], ~self.got[u, v], self.corrupt[v], self.root_open[v], mutual
                )
        return members

    def forbid(self, kind):
        if kind == "both":
            victims = self.bits(self.n)
            self.model.add_bool_or(victims)
            for u, victim in enumerate(victims):
                self.all_if(victim, ~self.corrupt[u], self.seed_open[u], self.root_open[u])
        elif kind == "two":
            for one, other in zip(self.opened(), self.opened(), strict=True):
                self.model.add_bool_or(~one, ~other)
        else:
            members = self.opened()
            for j in self.lists:
                differs = self.bits(self.n)
                self.model.add_bool_or(differs)
                for i, differ in enumerate(differs):
                    self.all_if(differ, ~self.corrupt[i])
                    self.model.add(members[i] != self.listed[j, i]).only_enforce_if(differ)

    def solve(self, seconds):
        solver = cp_model.CpSolver()
        solver.parameters.max_time_in_seconds = seconds
        return solver.status_name(solver.solve(self.model))


def rings(largest):
    """Every (n, h, w, a, b, t, q) up to ``largest`` clients that (S1) and (S2) leave possible."""
    for n in range(6, largest + 1):
        for h in range(1, (n - 2) // 2 + 1):
            for w, a in itertools.product(range(2 * h, n - 1, 2), range(h)):
                for b in sorted({a, min(2 * a, w + 1)}):
                    t, q = h + a + 2, -(-(w + b + h + 2) // 2)
                    if t <= 2 * h + 1 and q <= w + 1:
                        yield n, h, w, a, b, t, q


def main() -> None:
    parser = argparse.ArgumentParser(description="Search small rings for a forbidden sum.")
    parser.add_argument("--largest", type=int, default=10, help="clients, 6..16 or so")
    parser.add_argument("--lists", type=int, default=2, help="survivor lists told, >= 1")
    parser.add_argument("--seconds", type=float, default=120, help="for each search")
    parser.add_argument("--less-t", type=int, default=0, help="taken off the threshold")
    parser.add_argument("--less-q", type=int, default=0, help="taken off the quorum")
    parser.add_argument("--unchecked", action="store_true", help="mask without counting holders")
    asked = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    for n, h, w, a, b, t, q in rings(asked.largest):
        for kind in ("both", "two", "part"):
            search = Search(
                n,
                h,
                w,
                a,
                b,
                t=t - asked.less_t,
                q=q - asked.less_q,
                lists=asked.lists,
                checked=not asked.unchecked,
            )
            search.forbid(kind)
            status = search.solve(asked.seconds)
            counts[kind, status] += 1
            if status != "INFEASIBLE":
                print(f"n={n} h={h} w={w} a={a} b={b} t={t} q={q} {kind}: {status}", flush=True)
    for (kind, status), count in sorted(counts.items()):
        print(f"{count:6} {kind:5} {status}")


if __name__ == "__main__":
    main()
