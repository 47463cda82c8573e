"""From embeddings back to tokens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn.functional import normalize

from securefed.attacks.base import PublicKnowledge
from securefed.attacks.inversion.inputs import InputReader, reading_layers

_TEMPERATURE = 0.05


class Projection:
    """Nearest tokens by cosine.

    Args:
        public: the model.
        table: float32[vocabulary, d], the embedding of every token.
        barred: tokens that no place is projected to.
    """

    def __init__(self, public: PublicKnowledge, table: torch.Tensor, barred: Iterable[int]) -> None:
        self._table = normalize(table, dim=1)
        self._barred = torch.tensor(sorted(barred), dtype=torch.int64)
        layers = {block: name for block, name in reading_layers(public.model).items() if block == 0}
        self._reader = InputReader(public.model, layers) if layers else None

    def nearest(self, embeddings: torch.Tensor) -> torch.Tensor:
        """int64[..., w]: the token of the nearest embedding, for float32[..., w, d]."""
        return self._top(embeddings, self._table, 1)[..., 0]

    def at_places(self, embeddings: torch.Tensor, count: int) -> torch.Tensor:
        """The tokens that look most alike to block 0, where positions have been added.

        A norm stands between embeddings and block 0, so that a model does not see all of an
        embedding; what it does not see, no gradient tells.

        Args:
            embeddings: float32[n, w, d].
            count: tokens a place.

        Returns:
            int64[n, w, count], best first.
        """
        if self._reader is None:
            return self._top(embeddings, self._table, count)
        seen, found = self._reader.embedded(0, embeddings), []
        every = None
        for place in range(embeddings.shape[1]):
            if every is None or self._reader.absolute:
                every = normalize(self._reader.every(place), dim=1)
            found.append(self._top(seen[:, place], every, count))
        return torch.stack(found, dim=1)

    def _top(self, vectors: torch.Tensor, table: torch.Tensor, count: int) -> torch.Tensor:
        cosines = normalize(vectors.detach(), dim=-1) @ table.T
        cosines[..., self._barred] = -2.0
        return cosines.topk(count, dim=-1).indices

    def next_tokens(self, embeddings: torch.Tensor) -> torch.Tensor:
        """A distribution over what each place's next token may be, from its embedding.

        Args:
            embeddings: float32[..., w, d].

        Returns:
            float32[..., w - 1, vocabulary], differentiable: near to one token where an embedding is
            near to its.
        """
        cosines = normalize(embeddings[..., 1:, :], dim=-1) @ self._table.T
        return torch.softmax(cosines / _TEMPERATURE, dim=-1)
