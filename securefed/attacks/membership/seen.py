"""The change of the adapter that a view shows, and the model after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.attacks.base import AdversaryView, PublicKnowledge
from securefed.attacks.views import ReleasedAdapter
from securefed.errors import ConfigError


def change(view: AdversaryView, public: PublicKnowledge) -> NDArray[np.float64]:
    """Which way the adapter moves by what is seen, float64[d].

    A released adapter has moved, and clients' updates are moves; a round of distributed DP-SGD sums
    gradients, against which it moves.
    """
    seen = view.reading(public)
    policy = public.session.policy
    moves = policy.unit == "client" or policy.mechanism == "local"
    return seen if moves or isinstance(view, ReleasedAdapter) else -seen


@contextmanager
def as_seen(view: AdversaryView, public: PublicKnowledge) -> Iterator[None]:
    """Put into ``public.model``, for the moment, the adapter that a view shows.

    A released adapter is taken whole.  Of anything else it is the adapter after a server's step of
    rate 1 along the mean change: what is seen over the number of clients inside.

    Args:
        view: what the attacker sees.
        public: what everybody knows.

    Raises:
        ConfigError: a released adapter is of another model.
    """
    named = dict(public.model.named_parameters(remove_duplicate=False))
    if isinstance(view, ReleasedAdapter):
        shown = dict(view.state)
        unknown = sorted(
            name for name in shown if name not in named or named[name].shape != shown[name].shape
        )
        if unknown:
            raise ConfigError(f"view: its adapter is of another model; {unknown[0]} does not fit")
    else:
        mean = change(view, public) / view.contributions
        moved = public.layout.unflatten(mean.astype("float32"))
        shown = {name: named[name].detach() + moved[name] for name in public.layout.names}
    before = {name: named[name].detach().clone() for name in shown}
    try:
        _copy(named, shown)
        yield
    finally:
        _copy(named, before)


def _copy(named: dict[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            named[name].copy_(value)
