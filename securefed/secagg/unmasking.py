"""What is still in a sum once clients revealed their shares, and what takes it out again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from securefed.errors import RemoteProtocolError
from securefed.secagg import round_secrets as keys
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.carriers import Mask
from securefed.secagg.graph import Graph
from securefed.secagg.messages import Advertisement, Reveal
from securefed.secagg.noise_layers import layers_commitment, noise_of
from securefed.secagg.recovery import Holders, check_commitment


@dataclass(frozen=True, kw_only=True)
class Unmasking:
    """One secret of each sharer, reconstructed, and the masks and noise that it explains.

    Run by: the server, at the end of a round.

    Args:
        context: the round.
        graph: who masked with whom.
        view: the attempt's, which every keystream key depends on.
        adverts: by index, what each client advertised.
        edges: by giver and taker, the sealed edge secret and the commitment to it.
        sharers: who masked with their neighbours; the survivors among them are in the sum.
        survivors: who sent a masked input.
        reveals: by index of the holder, the shares that it revealed.

    Guarantees:
        - Every secret matches its owner's signed commitment, or nothing comes of the sum.
    """

    context: RoundContext
    graph: Graph
    view: bytes
    adverts: Mapping[int, Advertisement]
    edges: Mapping[tuple[int, int], tuple[bytes, bytes]]
    sharers: frozenset[int]
    survivors: frozenset[int]
    reveals: Mapping[int, Reveal] = field(repr=False)

    @cached_property
    def holders(self) -> Holders:
        """Reconstructs; knows afterwards which shares were wrong."""
        return Holders(self.context.parameters.threshold)

    def masks(self) -> Iterator[Mask]:
        """Every mask that is in the sum, as what takes it out again.

        Raises:
            ThresholdNotMet: too few holders revealed a share of somebody's secret.
            RemoteProtocolError: a secret does not match its owner's commitment.
        """
        digest, cohort = self.context.digest, self.context.cohort
        shares: dict[int, dict[int, bytes]] = {}
        for holder, reveal in self.reveals.items():
            for revealed in (reveal.self_shares, reveal.root_shares):
                for owner, share in revealed.items():
                    shares.setdefault(owner, {})[holder] = share
        for index in sorted(self.survivors):
            seed = self.holders.secret(
                shares.get(index, {}),
                partial(keys.self_commitment, digest=digest, index=index),
                self.adverts[index].self_commitment,
                index,
                cohort[index],
            )
            yield keys.self_keystream_key(seed, digest, self.view, index), True
        for index in sorted(self.sharers - self.survivors):
            root = self.holders.secret(
                shares.get(index, {}),
                partial(keys.root_commitment, digest=digest, index=index),
                self.adverts[index].root_commitment,
                index,
                cohort[index],
            )
            yield from self.pair_masks(index, root)

    def pair_masks(self, dropped: int, root: bytes) -> Iterator[Mask]:
        """What the survivors masked towards a client that then dropped out."""
        digest, cohort = self.context.digest, self.context.cohort
        mask_key = keys.mask_key_pair(root, digest, dropped)
        if mask_key.public.raw != self.adverts[dropped].mask_key:
            raise RemoteProtocolError(
                f"{cohort[dropped]!r} advertised a mask key that does not follow from its root"
            )
        for survivor in sorted(self.survivors.intersection(self.graph.neighbours(dropped))):
            if self.graph.gives(dropped, survivor):
                giver, taker = dropped, survivor
                edge, promised = self.edges[giver, taker]
                secret = keys.edge_secret(root, digest, giver, taker, self.adverts[taker].mask_key)
            else:
                giver, taker = survivor, dropped
                edge, promised = self.edges[giver, taker]
                try:
                    secret = mask_key.open(edge, info=keys.edge_info(digest, giver, taker))
                except RemoteProtocolError as error:
                    raise RemoteProtocolError(
                        f"an edge secret of {cohort[giver]!r}: {error}"
                    ) from None
            check_commitment(
                keys.edge_commitment(secret, digest, giver, taker), promised, cohort[giver]
            )
            # The survivor added this keystream if it is the lower one, and subtracted it if higher.
            low, high = min(dropped, survivor), max(dropped, survivor)
            yield keys.pair_keystream_key(secret, digest, self.view, low, high), survivor == low

    def excess(self, missing: int) -> Iterator[NDArray[np.int64]]:
        """Of each survivor the layers of noise that this many survivors do not need.

        Args:
            missing: clients of the cohort that are not in the sum.
        """
        layers = len(self.context.noise_layers)
        if missing >= layers:
            return
        digest, cohort = self.context.digest, self.context.cohort
        for index in sorted(self.survivors):
            seed = self.holders.secret(
                {holder: reveal.layer_shares[index] for holder, reveal in self.reveals.items()},
                partial(layers_commitment, digest=digest, index=index, count=layers - missing),
                self.adverts[index].layers_commitment,
                index,
                cohort[index],
            )
            yield noise_of(seed, self.context, index, missing)
