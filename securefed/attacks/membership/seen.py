"""The model that a view shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from securefed.attacks.base import AdversaryView, PublicKnowledge
from securefed.attacks.views import ReleasedAdapter
from securefed.errors import ConfigError


@contextmanager
def as_seen(view: AdversaryView, public: PublicKnowledge) -> Iterator[None]:
    """Put into ``public.model``, for the moment, the adapter that a view shows.

    A released adapter is taken whole.  Of anything else it is the adapter after a server's step of
    rate 1 along the mean update: what is seen over the number of clients inside.

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
        mean = view.reading(public) / view.contributions
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
