"""The text of a first run file: few settings, each with what it costs in privacy."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from securefed.config.privacy import Unit

StarterTask = Literal["causal-lm", "sequence-classification"]

_MOST_CORRUPT, _MOST_MISSING = 0.1, 0.25
_LEAST_BATCH, _MOST_BATCH, _BATCH_SHARE = 8, 256, 10


@dataclass(frozen=True, kw_only=True)
class Starter:
    """What a first run file is made from.

    Attributes:
        name: what the run is called.
        task: what is learnt.
        model: as ``model.source`` takes it.
        data: as ``data.source`` takes it.
        clients: those chosen; empty for all that ``data`` holds.
        cohort: how many clients that makes; None where it is not known.
        unit: what is protected as one.
        epsilon: of the whole run, against the server.
        window: tokens of an example.
        units: a low estimate of how many units train (windows, records or users); None where it is
            not known, or for ``unit = "client"``.
        labels: the number of classes, for classification.
        targets: the linear modules that get LoRA layers.
        head: the module that classifies and travels whole; empty for language models.
        fields: by key of ``[data]``, fields of records other than the defaults.
        trainer: local steps of the user's own, as ``training.trainer`` has it, for
            ``unit = "client"``; None for the built-in ones.
    """

    name: str
    task: StarterTask
    model: str
    data: str
    unit: Unit
    epsilon: float
    targets: tuple[str, ...]
    clients: tuple[str, ...] = ()
    cohort: int | None = None
    window: int = 32
    units: int | None = None
    labels: int | None = None
    head: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    trainer: str | None = None

    @property
    def corrupt(self) -> int:
        """Clients that may collude with the server: a tenth, one at least from five on."""
        return 0 if self.cohort is None or self.cohort < 5 else max(1, self.cohort // 10)

    @property
    def missing(self) -> int:
        """Clients that may fall silent in a round: a quarter, none of three or fewer."""
        return 0 if self.cohort is None else int(_MOST_MISSING * self.cohort)

    @property
    def batch(self) -> int:
        """Units drawn in a round over all clients: a tenth of them within bounds."""
        if self.units is None:
            return 128
        wanted = max(_LEAST_BATCH, min(_MOST_BATCH, self.units // _BATCH_SHARE))
        return max(1, min(wanted, self.units))

    @property
    def delta(self) -> float:
        """1e-5, or less where there are so many units that one of them would be likely to lose."""
        count = self.units or self.cohort or 1
        return min(1e-5, 10.0 ** -(math.ceil(math.log10(count)) + 1)) if count > 1 else 1e-5

    @property
    def _example(self) -> Literal["record", "conversation", "window"]:
        if self.task != "causal-lm":
            return "record"
        return "conversation" if "messages_field" in self.fields else "window"

    def text(self) -> str:
        """The run file.

        Example:
            >>> starter = Starter(name="first", task="causal-lm", model="owner/model", data="texts",
            ...     unit="client", epsilon=8.0, targets=("v_proj",), cohort=10)
            >>> print(starter.text().splitlines()[0])
            # first: a run file of securefed.
        """
        parts = (
            self._head(),
            self._model(),
            self._data(),
            self._lora(),
            self._training(),
            self._privacy(),
            self._cohort(),
            self._evaluation(),
            ["[output]", f"name = {_text(self.name)}"],
        )
        return "\n\n".join("\n".join(part) for part in parts) + "\n"

    def _head(self) -> list[str]:
        return [
            f"# {self.name}: a run file of securefed.",
            f"# Check it before anything is spent:  securefed plan {self.name}.toml",
            f"# Train:                              securefed run {self.name}.toml",
            "# All settings and their ranges:      securefed schema",
        ]

    def _model(self) -> list[str]:
        return [
            "[model]",
            f"source = {_text(self.model)}",
            f"task = {_text(self.task)}",
            *([] if self.labels is None else [f"labels = {self.labels}"]),
        ]

    def _data(self) -> list[str]:
        window = {
            "record": "an example: a record, cut off after so many tokens",
            "conversation": "an example: a conversation, cut off after so many tokens",
            "window": "an example: a window of so many tokens of one document",
        }[self._example]
        completions = _line("completion_only = true", "the loss is of the assistant's words alone")
        return [
            "[data]",
            f"source = {_text(self.data)}",
            *([f"clients = {json.dumps(self.clients)}"] if self.clients else []),
            *(f"{key} = {_text(value)}" for key, value in sorted(self.fields.items())),
            *([completions] if self._example == "conversation" else []),
            _line(f"window_tokens = {self.window}", window),
            _line("held_out_fraction = 0.1", "measured on, never trained on"),
        ]

    def _lora(self) -> list[str]:
        head = _line(f"modules_to_save = [{_text(self.head)}]", "the head travels whole")
        return [
            "[lora]",
            "# Epsilon does not depend on these.  Each coordinate that travels is noised alike: a",
            "# smaller rank and fewer modules leave more of the signal.",
            "rank = 4",
            "alpha = 8.0",
            f"target_modules = {json.dumps(self.targets)}",
            *([head] if self.head else []),
            _line('sharing = "ffa"', "B travels, A is made once and frozen"),
        ]

    def _training(self) -> list[str]:
        if self.unit == "client":
            steps = [
                _line(
                    "local_steps = 4", "costs nothing: a client's whole change is clipped as one"
                ),
                "batch_size = 16",
                _line("micro_batch = 16", "examples at a time: memory, not privacy"),
                _line("local_learning_rate = 1e-3", "of the local steps"),
                *([] if self.trainer is None else [f"trainer = {_text(self.trainer)}"]),
                _line('server_optimizer = "sgd"', "the mean update as it is: FedAvg"),
                "server_learning_rate = 1.0",
            ]
        else:
            steps = [
                _line("micro_batch = 16", "examples at a time: memory, not privacy"),
                "server_learning_rate = 0.02",
            ]
        return [
            "[training]",
            _line("rounds = 10", "more rounds need more noise in each for the same epsilon"),
            *steps,
        ]

    def _privacy(self) -> list[str]:
        return [
            "[privacy]",
            f"# Protected as one: {self._protected()}.",
            f"unit = {_text(self.unit)}",
            _line('mechanism = "distributed"', "each client noises its input before it is masked"),
            "# For the whole run, against the server; 1 is strong, 10 is weak.  The least noise",
            "# that keeps to it is looked for: half of it takes about twice the noise.  Retries",
            "# are charged too, and the run ends before it would exceed this.",
            f"target_epsilon = {self.epsilon:g}",
            _line(
                f"delta = {self.delta:g}",
                f"goes with it; far below 1 in the number of {self.unit}s",
            ),
            _line("clip_norm = 0.5", "noise is in proportion to it; it adapts by the table below"),
            *self._batch(),
            *self._faults(),
            "",
            "[privacy.adaptive_clip]",
            _line(
                "target_quantile = 0.5", f"half of the {self.unit}s are clipped; no epsilon more"
            ),
        ]

    def _protected(self) -> str:
        if self.unit == "client":
            return "all that one client holds; the strongest, and it needs many clients"
        if self.unit == "example":
            return {
                "record": "one record; not a person, who may have several",
                "conversation": "one conversation; not a person, who may have several",
                "window": "one window of tokens; not a document and not a person",
            }[self._example]
        if "user_field" in self.fields:
            return "all records of one user at one client"
        return "one document; name data.user_field for all records of a person"

    def _batch(self) -> list[str]:
        if self.unit == "client":
            return []
        of = "" if self.units is None else f" of roughly {self.units:,}"
        return [
            f"# How many {self.unit}s{of} are drawn in a round, in secret, over all",
            "# clients.  Fewer cost less epsilon; the noise in their mean is larger.",
            f"expected_batch = {self.batch}",
        ]

    def _faults(self) -> list[str]:
        note = "# Noise is sized for the clients that are neither corrupt nor missing."
        if self.cohort is None:
            return [
                note,
                _line(f"corrupt_fraction = {_MOST_CORRUPT}", "may collude with the server"),
                _line(f"dropout_fraction = {_MOST_MISSING}", "may fall silent in a round"),
            ]
        corrupt, missing = _share(self.corrupt, self.cohort), _share(self.missing, self.cohort)
        of = f"of {self.cohort} clients"
        return [
            note,
            _line(f"corrupt_fraction = {corrupt:g}", f"{self.corrupt} {of} may help the server"),
            _line(f"dropout_fraction = {missing:g}", f"{self.missing} {of} may be missing"),
        ]

    def _cohort(self) -> list[str]:
        least = 3 if self.cohort is None else max(2, self.cohort - self.missing)
        return [
            "[aggregation]",
            _line('kind = "pairwise"', "masks: the server sees the sum and nothing else"),
            "",
            "[cohort]",
            _line(f"min_clients = {least}", "a client takes part in no smaller cohort"),
        ]

    def _evaluation(self) -> list[str]:
        return [
            "[evaluation]",
            "# Exact means of held-out figures stand outside epsilon; take few of them, or",
            '# figures = "histogram": noised counts, which have an epsilon of their own.',
            _line("every = 0", "before the first round and after the last"),
        ]


def _line(setting: str, why: str) -> str:
    """A setting, and beside it why."""
    return f"{setting:<29} # {why}"


def _text(value: str) -> str:
    """A TOML string; JSON's escapes are TOML's."""
    return json.dumps(value, ensure_ascii=False)


def _share(count: int, of: int) -> float:
    """``count / of`` to four digits, rounded up, so that its floor over ``of`` is ``count``."""
    return math.ceil(1e4 * count / of - 1e-9) / 1e4


def relative_source(source: str, run_file: Path) -> str:
    """A folder as it is seen from a run file; an absolute path and a name stay as they are.

    Args:
        source: a folder's path, from where the command runs, or a built-in or hub name.
        run_file: where the run file will be.
    """
    path = Path(source)
    if path.is_absolute() or not path.exists():
        return source
    return Path(os.path.relpath(path.resolve(), run_file.resolve().parent)).as_posix()
