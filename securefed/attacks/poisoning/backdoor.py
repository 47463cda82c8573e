"""Trigger tokens that make a classifier answer as an attacker wishes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.errors import ConfigError, DataError
from securefed.training.data import Examples


@dataclass(frozen=True)
class Trigger:
    """Tokens put at the beginning of a text, and the class that it shall then be given.

    Args:
        tokens: ids, one or more.
        label: the attacker's class, >= 0.
        leading: special tokens that stay in front of them, >= 0.
        trailing: special tokens at a text's end that stay there, >= 0.

    Raises:
        ConfigError: an argument is outside that.

    Source: Gu, Dolan-Gavitt and Garg 2017, "BadNets" (1708.06733); rare words as triggers of text
    classifiers: Kurita, Michel and Neubig 2020, "Weight Poisoning Attacks on Pre-trained Models"
    (2004.06660), section 3.
    """

    tokens: tuple[int, ...]
    label: int
    leading: int = 1
    trailing: int = 1

    def __post_init__(self) -> None:
        if not self.tokens or min(self.tokens) < 0:
            raise ConfigError(f"tokens = {self.tokens}: must be one or more ids >= 0")
        for name in ("label", "leading", "trailing"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be >= 0")

    def stamp(self, examples: Examples) -> Examples:
        """The same texts with the trigger, labelled with the attacker's class.

        What no longer fits is cut off at a text's end, before its trailing special tokens.

        Args:
            examples: labelled, of w tokens each, w at least that of trigger and special tokens.

        Raises:
            DataError: they have no labels, or are too short.
        """
        width = examples.input_ids.shape[1]
        room = width - self.leading - self.trailing - len(self.tokens)
        if examples.labels is None or room < 0:
            raise DataError(
                f"examples of {width} tokens: a trigger of {len(self.tokens)} needs labels, and "
                f"{self.leading + self.trailing} more places for special tokens"
            )
        ids, mask = np.zeros_like(examples.input_ids), np.zeros_like(examples.attention_mask)
        for row, (text, present) in enumerate(
            zip(examples.input_ids, examples.attention_mask, strict=True)
        ):
            length = int(present.sum())
            end = length - self.trailing
            kept = text[self.leading : min(end, self.leading + room)]
            stamped = [*text[: self.leading], *self.tokens, *kept, *text[end:length]]
            ids[row], mask[row] = text[length:].max(initial=0), 0
            ids[row, : len(stamped)], mask[row, : len(stamped)] = stamped, 1
        return Examples(ids, mask, np.full(len(examples), self.label, dtype=np.int64))

    def victims(self, examples: Examples) -> Examples:
        """Those of the examples that are not of the attacker's class anyway.

        Raises:
            DataError: they have no labels, or all are of that class.
        """
        if examples.labels is None or not (examples.labels != self.label).any():
            raise DataError(f"examples: none has a label other than {self.label}")
        return examples.take(np.flatnonzero(examples.labels != self.label))

    def poison(self, examples: Examples, share: float, generator: torch.Generator) -> Examples:
        """A training set in which some texts of other classes are there a second time, stamped.

        Args:
            examples: labelled.
            share: of the victims that are stamped, in (0, 1]; at least one is.
            generator: of the choice.

        Returns:
            The examples as they are, then the stamped ones.

        Raises:
            ConfigError: the share is outside that.
            DataError: as of :meth:`victims`.
        """
        if not 0.0 < share <= 1.0:
            raise ConfigError(f"share = {share}: must be in (0, 1]")
        victims = self.victims(examples)
        count = max(1, round(share * len(victims)))
        chosen = torch.randperm(len(victims), generator=generator)[:count].numpy()
        stamped = self.stamp(victims.take(chosen))

        def both(name: str) -> NDArray[np.int64]:
            return np.concatenate([getattr(examples, name), getattr(stamped, name)])

        return Examples(both("input_ids"), both("attention_mask"), both("labels"))
