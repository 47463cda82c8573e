"""Who may learn which layers of a client's noise, and how they leave the sum.

Client i draws one fresh 32-byte seed for the first layer that can be removed; the others follow in
a one-way chain, and each gives the key of its layer (layers and their sizes:
:mod:`securefed.privacy.layers`).

    seed_1 of i           = 32 fresh bytes
    seed_{k+1} of i       = KDF(seed_k, NEXT_LAYER, round, i)
    noise key k of i      = KDF(seed_k, LAYER_NOISE, round, i)
    commitment of i       = H(LAYERS_COMMITMENT, round, i, seed_T)

What is removed is always the last layers, D + 1..T, so one seed of each survivor is opened: seed
D + 1, which gives these layers and tells nothing of those before it.  The commitment to the last
seed fixes all of them: a seed with another end of its chain is refused, and two with the same end
are a collision.

Each of the T seeds is Shamir-shared by itself, apart from root and self-mask seed and with the same
threshold t.  A client reveals shares once, for one survivor list, and only shares of the seed whose
number follows from the length of that list.  So it takes t > (n + c) / 2 clients that hold one list
to open a seed, and of a seed with another number there are never more than c shares: below the
survivors' number everything stays closed, with colluding clients too, and of a client that is not
listed, or where T are missing already, nothing is opened at all.

The noise that honest survivors keep against the server is thus exactly what the plan says for the
number missing.  A corrupt client may commit to a seed that its noise does not follow from.  What
the server then subtracts is noise of that client's making, as all of its contribution is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.keys import commit, derive
from securefed.crypto.prg import RandomBytes, SecretHolder, draw
from securefed.errors import LocalProtocolError
from securefed.privacy.layers import layer_noise
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.round_secrets import SECRET_BYTES

NEXT_LAYER = b"securefed/1/round/next-noise-layer"
LAYER_NOISE = b"securefed/1/round/noise-layer"
LAYERS_COMMITMENT = b"securefed/1/round/noise-layers-commitment"


def chain(seed: bytes, digest: bytes, index: int, count: int) -> list[bytes]:
    """A seed and the ``count - 1`` that follow from it."""
    seeds = [seed]
    context = digest + index.to_bytes(4, "big")
    for _ in range(count - 1):
        seeds.append(derive(seeds[-1], label=NEXT_LAYER, context=context))
    return seeds


def layers_commitment(seed: bytes, digest: bytes, index: int, count: int) -> bytes:
    """What the owner of ``seed``, the first of ``count`` that are left in its chain, promised."""
    last = chain(seed, digest, index, count)[-1]
    return commit(last, label=LAYERS_COMMITMENT, context=digest + index.to_bytes(4, "big"))


def noise_of(seed: bytes, context: RoundContext, index: int, missing: int) -> NDArray[np.int64]:
    """Layers ``missing`` + 1 and later of client ``index``, from the seed of the first of them.

    Returns:
        int64[context.length].
    """
    stds = context.noise_layers[missing:]
    where = context.digest + index.to_bytes(4, "big")
    keys = [
        derive(each, label=LAYER_NOISE, context=where)
        for each in chain(seed, context.digest, index, len(stds))
    ]
    return layer_noise(stds, keys, context.length)


class NoiseLayers(SecretHolder):
    """The layers of one client in one round: it adds their noise and shares their seeds.

    Args:
        context: the round; it has at least one layer.
        client_id: whose layers.
        random: source of the first seed.
    """

    __slots__ = ("_added", "_context", "_dealt", "_index", "_seed")

    def __init__(self, context: RoundContext, client_id: str, random: RandomBytes) -> None:
        self._context = context
        self._index = context.index(client_id)
        self._seed = draw(random, SECRET_BYTES)
        self._added = self._dealt = False

    @property
    def stds(self) -> tuple[float, ...]:
        """Std of layers 1..T, in grid units."""
        return self._context.noise_layers

    def belong_to(self, context: RoundContext, index: int) -> bool:
        """Whether they are that client's in that round."""
        return (self._context.digest, self._index) == (context.digest, index)

    @property
    def added(self) -> bool:
        """Whether their noise was handed out."""
        return self._added

    def noise(self) -> NDArray[np.int64]:
        """Their sum, int64[context.length], handed out once.

        Raises:
            LocalProtocolError: asked for again: a second vector with the same noise would show the
                difference of the two.
        """
        if self._added:
            raise LocalProtocolError("noise: these layers were added to a vector already")
        self._added = True
        return noise_of(self._seed, self._context, self._index, 0)

    def commitment(self) -> bytes:
        """To all of them, 32 bytes."""
        count = len(self.stds)
        return layers_commitment(self._seed, self._context.digest, self._index, count)

    def seeds(self) -> list[bytes]:
        """Seeds 1..T, to be shared, handed out once.

        Raises:
            LocalProtocolError: asked for again: shared in two rounds, seeds of two numbers of
                missing clients could be opened.
        """
        if self._dealt:
            raise LocalProtocolError("seeds: these layers were shared in a round already")
        self._dealt = True
        return chain(self._seed, self._context.digest, self._index, len(self.stds))
