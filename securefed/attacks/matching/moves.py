"""Discrete moves: other orders of the tokens that a candidate has."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def moved(
    places: Sequence[Sequence[int]], total: int, count: int, generator: torch.Generator
) -> torch.Tensor:
    """Random orders, each one move away from the present one.

    The moves are: two tokens change places; a token goes elsewhere; a run of tokens goes elsewhere;
    a beginning goes to the end.  Of several texts, two tokens of different ones may change places.

    Args:
        places: of each text, the places whose tokens may move, numbered through all texts.
        total: n, how many places there are.
        count: how many orders, >= 0.
        generator: of the choices.

    Returns:
        int64[count, n]: where the token of each place comes from.

    Source: Balunovic et al. 2022, "LAMP" (2202.08827), section 4.2, for the moves within a text.
    """
    orders = torch.arange(total).repeat(count, 1)
    for row in range(count):
        text = list(places[_below(len(places), generator)])
        if len(text) < 2:
            continue
        kind = _below(5 if len(places) > 1 else 4, generator)
        if kind == 4:
            _exchange(orders[row], places, generator)
            continue
        orders[row, torch.tensor(text)] = torch.tensor(_turned(text, kind, generator))
    return orders


def _below(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound, (1,), generator=generator))


def _turned(text: list[int], kind: int, generator: torch.Generator) -> list[int]:
    """One text's places in another order."""
    size = len(text)
    if kind == 0:
        one, other = torch.randperm(size, generator=generator)[:2].tolist()
        text[one], text[other] = text[other], text[one]
        return text
    if kind == 3:
        cut = 1 + _below(size - 1, generator)
        return text[cut:] + text[:cut]
    length = 1 if kind == 1 else 1 + _below(size - 1, generator)
    start = _below(size - length + 1, generator)
    run, rest = text[start : start + length], text[:start] + text[start + length :]
    at = _below(len(rest) + 1, generator)
    return rest[:at] + run + rest[at:]


def _exchange(
    order: torch.Tensor, places: Sequence[Sequence[int]], generator: torch.Generator
) -> None:
    one, other = torch.randperm(len(places), generator=generator)[:2].tolist()
    here = places[one][_below(len(places[one]), generator)]
    there = places[other][_below(len(places[other]), generator)]
    order[here], order[there] = there, here
