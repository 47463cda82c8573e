"""trl's ``SFTTrainer`` as a client's trainer; needs the extra ``trl``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from securefed.errors import ConfigError
from securefed.training.examples import Examples
from securefed.training.hf_trainer import HfTrainer, row_columns

_ONLY_WORD = "<pad>"


class SftTrainer(HfTrainer):
    """A :class:`~securefed.training.local.LocalTrainer` that runs trl's ``SFTTrainer``.

    As :class:`~securefed.training.hf_trainer.HfTrainer`, with settings of ``SFTConfig``; for causal
    language models.  Conversations and completions are the run file's (``data.messages_field``,
    ``data.completion_only``): trl is handed their tokens with labels, its own templates, packing
    and truncation are refused, and its tokenizer knows one word, so that nothing can be tokenized
    another way in silence.  Mixed precision and activation checkpointing are off unless asked for
    (``bf16``, ``gradient_checkpointing``), which ``SFTConfig`` alone would turn on.

    Its head computes predictions of tokens that count alone: how long a step takes depends on how
    many there are.  Where answers are timed, prepare contributions before a round.

    Guarantees:
        - Those of :class:`~securefed.training.hf_trainer.HfTrainer`; trl's report of use to the
          Hub is off too, and no adapter is made.
    """

    kind: ClassVar[type[Any]] = SFTConfig
    allowed: ClassVar[frozenset[str]] = (
        HfTrainer.allowed - {"activation_checkpointing", "activation_checkpointing_kwargs"}
    ) | {
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "loss_type",
        "router_aux_loss_coef",
    }
    preset: ClassVar[Mapping[str, Any]] = {
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }

    def build(self, **given: Any) -> Any:
        """The ``SFTTrainer``; yours to replace, as :meth:`HfTrainer.build`.

        Args:
            given: besides ``model``, ``args``, ``train_dataset`` and ``data_collator``, the
                ``processing_class`` of one word.
        """
        return SFTTrainer(**given)

    def parts(self, data: Examples) -> dict[str, Any]:
        """As :meth:`HfTrainer.parts`: a data set in memory, and a tokenizer of one word.

        Raises:
            ConfigError: the examples are to be classified.
        """
        if data.labels is not None:
            raise ConfigError(
                f"{type(self).__name__}: trl's SFTTrainer is for model.task = 'causal-lm'; use "
                "securefed.training.hf_trainer:HfTrainer to classify"
            )
        return {
            **super().parts(data),
            "train_dataset": Dataset.from_dict(row_columns(data)),
            "processing_class": PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer(WordLevel({_ONLY_WORD: 0}, unk_token=_ONLY_WORD)),
                pad_token=_ONLY_WORD,
            ),
        }
