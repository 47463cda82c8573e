"""What clients of a pairwise round say to each other through the server: keys, nonces, shares.

All of it is checked before it is passed on, so that whoever says something wrong is refused by name
before others rely on it.  Clients check it again: they do not trust the server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from securefed.errors import RemoteProtocolError
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.client_secrets import checked_keys
from securefed.secagg.graph import (
    NONCE_BYTES,
    Graph,
    commitments_hash,
    graph_seed,
    nonce_commitment,
)
from securefed.secagg.messages import Advertisement, Bundle, Neighbourhood
from securefed.secagg.signed import Signed


class Relay:
    """The stages before masked inputs, as the server sees them.

    Run by: the server.

    Args:
        context: the round.

    Attributes:
        adverts: by index, what each client advertised.
        edges: by giver and taker, the sealed edge secret and the commitment to it.
        graph: who masks with whom, once it is known.
        view: the attempt's, beneath any encryption; known once bundles are delivered.
    """

    def __init__(self, context: RoundContext) -> None:
        self._context = context
        self._signed: dict[int, Signed] = {}
        self._public_keys: set[bytes] = set()
        self._nonces: dict[int, bytes] = {}
        self._commitments = b""
        self._bundles: dict[int, dict[int, Bundle]] = {}
        self.adverts: dict[int, Advertisement] = {}
        self.edges: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        self.graph = Graph.complete(len(context.cohort))
        self.view = b""

    # -- what is received ------------------------------------------------------------------

    def add_advertisement(self, signed: Signed) -> None:
        """Keep a client's fresh keys and commitments; keys that are not fresh are refused."""
        client_id = self._context.cohort[signed.sender]
        advert = Advertisement.decode(signed.body, noise_layers=len(self._context.noise_layers))
        checked_keys(advert, client_id)
        fresh = {advert.mask_key, advert.envelope_key}
        if len(fresh) != 2 or fresh & self._public_keys:
            raise RemoteProtocolError(f"advertisement of {client_id!r}: a public key appears twice")
        self._public_keys |= fresh
        self._signed[signed.sender] = signed
        self.adverts[signed.sender] = advert

    def add_nonce(self, signed: Signed) -> None:
        """Keep the nonce that a client committed to."""
        client_id = self._context.cohort[signed.sender]
        nonce, commitments = signed.body[:NONCE_BYTES], signed.body[NONCE_BYTES:]
        if commitments != self._commitments:
            raise RemoteProtocolError(f"nonce of {client_id!r}: revealed for other commitments")
        promised = self.adverts[signed.sender].nonce_commitment
        if nonce_commitment(nonce, self._context.digest, signed.sender) != promised:
            raise RemoteProtocolError(f"nonce of {client_id!r}: it committed to another one")
        self._nonces[signed.sender] = nonce

    def add_bundles(self, signed: Signed) -> None:
        """Keep bundles that every receiver will find rightly signed; one bad one refuses all."""
        context, sender = self._context, signed.sender
        there = self._nonces if context.parameters.sparse else self._signed
        with_edge = {
            other: self.graph.gives(sender, other)
            for other in self.graph.neighbours(sender)
            if other in there
        }
        bundles = wire_messages.decode_shares(
            signed.body, with_edge=with_edge, noise_layers=len(context.noise_layers)
        )
        for receiver, bundle in bundles.items():
            advert = self.adverts[receiver]
            covered = bundle.signed_part(
                sender=sender,
                receiver=receiver,
                mask_key=advert.mask_key,
                envelope_key=advert.envelope_key,
            )
            context.roster[context.cohort[sender]].verify(
                bundle.signature, context.digest + covered, label=keys.SIGN_BUNDLE
            )
        self._bundles[sender] = bundles
        for receiver, bundle in bundles.items():
            if bundle.edge:
                self.edges[sender, receiver] = bundle.edge, bundle.edge_commitment

    # -- what is sent ----------------------------------------------------------------------

    def advertised(self, present: list[int]) -> bytes:
        """To everyone in a complete graph: all keys."""
        return wire_messages.encode_advertised(
            {index: self._signed[index].encode() for index in present}
        )

    def commit_to_nonces(self, present: list[int]) -> bytes:
        """To everyone in a sparse graph: the hash of all commitments to nonces."""
        committed = {index: self.adverts[index].nonce_commitment for index in present}
        self._commitments = commitments_hash(committed)
        return wire_messages.encode_commitments(self._commitments)

    def draw_graph(self) -> Callable[[str], bytes]:
        """Place the ring by the nonces; to each client these and its neighbours' keys."""
        context, parameters = self._context, self._context.parameters
        size = len(context.cohort)
        self.view = graph_seed(context.digest, self._nonces)
        self.graph = Graph.from_seed(
            self.view, size=size, degree=parameters.degree, witnesses=parameters.witnesses
        )
        withheld = {
            index: advert.nonce_commitment
            for index, advert in self.adverts.items()
            if index not in self._nonces
        }
        ring = Neighbourhood.encode_ring(self._nonces, withheld, size=size)
        signed = {index: self._signed[index].encode() for index in self._nonces}

        def encode(name: str) -> bytes:
            around = self.graph.neighbours(context.index(name))
            messages = {index: signed[index] for index in around if index in signed}
            return ring + Neighbourhood.encode_keys(messages)

        return encode

    def deliver(self, present: list[int]) -> Callable[[str], dict[int, Bundle]]:
        """Fix the view; to each client the bundles for it, by sender."""
        context = self._context
        bundles, self._bundles = self._bundles, {}  # the envelopes live as long as the messages
        if not context.parameters.sparse:
            self.view = keys.sharers_hash(
                {i: hashlib.sha256(self._signed[i].body).digest() for i in present}
            )

        def addressed(name: str) -> dict[int, Bundle]:
            receiver = context.index(name)
            around = self.graph.neighbours(receiver)
            return {sender: bundles[sender][receiver] for sender in around if sender in bundles}

        return addressed
