"""``securefed init``: a first run file, from flags or from answers."""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from securefed.cli.watching import say
from securefed.config import DataSection, Unit, load_config
from securefed.config.starter import Starter, StarterTask, relative_source
from securefed.errors import ConfigError, SecureFedError

if TYPE_CHECKING:
    from securefed.training.folder import Document

_TASKS: dict[str, StarterTask] = {
    "chat": "causal-lm",
    "causal-lm": "causal-lm",
    "classification": "sequence-classification",
}
_MODELS = {
    "causal-lm": "builtin:smollm2-135m-instruct",
    "sequence-classification": "builtin:minilm-l6-v2",
}
_TARGETS = {"builtin:smollm2-135m-instruct": ["v_proj"], "builtin:minilm-l6-v2": ["value"]}
_CHAT_FIELD = "messages"
_EPSILON = 8.0
_MOST_LABELS = 10_000
_TOKEN_LETTERS = 5
"""Of a token of plain text: more than most tokenizers take, so that examples are undercounted."""
_DENSE, _MARKS, _LONGEST = 3, 12, 1024
"""Of conversations: letters of a token at least, tokens around a message, the longest window."""
_WINDOWS = {"causal-lm": (8, 32), "sequence-classification": (16, 128)}


def init(
    out: Annotated[Path, typer.Option(help="The run file to write.")] = Path("run.toml"),
    task: Annotated[
        str | None, typer.Option(help="'chat', 'causal-lm' or 'classification'.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A folder, a hub name or builtin:NAME.")] = None,
    data: Annotated[
        str | None, typer.Option(help="A folder: one file or sub-folder a client; or builtin:NAME.")
    ] = None,
    clients: Annotated[str, typer.Option(help="'all', or names with commas between.")] = "all",
    unit: Annotated[
        str | None, typer.Option(help="What is protected as one: example, user or client.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Of the whole run, against the server.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Of a JSONL or CSV record.")] = "text",
    label_field: Annotated[str, typer.Option(help="Of a record, for classification.")] = "label",
    user_field: Annotated[
        str | None, typer.Option(help="Of a record: whose it is, for --unit user.")
    ] = None,
    messages_field: Annotated[
        str | None,
        typer.Option(help=f"Of a JSONL record: a conversation; --task chat: '{_CHAT_FIELD}'."),
    ] = None,
    trainer: Annotated[
        str | None,
        typer.Option(help="Local steps of your own, module:Class; for --unit client alone."),
    ] = None,
) -> None:
    """Write a commented run file for your own model and data."""
    if out.exists():
        raise ConfigError(f"--out {out}: is there already and is not written over; name another")
    if out.suffix != ".toml":
        raise ConfigError(f"--out {out}: a run file's name ends in .toml")
    name = re.sub(r"[^\w.-]", "-", out.stem, flags=re.ASCII).lstrip("_.-")[:64] or "run"
    asked = _asked(task, "--task", "task", "causal-lm", "chat, causal-lm or classification")
    meant = _task(asked)
    if asked == "chat":
        messages_field = messages_field or _CHAT_FIELD
    source = _asked(data, "--data", "folder of the clients' texts", None, "a folder")
    chosen_model = _asked(model, "--model", "model", _MODELS[meant], "", optional=True)
    protected: Unit = "client"  # with a trainer of one's own: of its steps the whole is clipped
    if unit is not None or trainer is None:
        protected = _unit(_asked(unit, "--unit", "unit of privacy", "example", "", optional=True))
    if trainer is not None and protected != "client":
        raise ConfigError(
            f"--trainer {trainer} with --unit {protected}: steps of a trainer of your own are on "
            "several examples at once, of which only a client's whole update can be clipped; use "
            "--unit client, or leave --trainer out"
        )
    spent = _epsilon(epsilon)
    if user_field is not None and protected != "user":
        raise ConfigError(f"--user-field {user_field}: is for --unit user alone")
    if messages_field is not None and meant != "causal-lm":
        raise ConfigError(f"--messages-field {messages_field}: is for --task chat or causal-lm")
    given = {
        "text_field": text_field,
        "label_field": label_field,
        "user_field": user_field,
        "messages_field": messages_field,
    }
    defaults = DataSection()
    fields = {
        key: value
        for key, value in given.items()
        if value is not None and value != getattr(defaults, key)
    }
    names = tuple(n.strip() for n in clients.split(",") if n.strip()) if clients != "all" else ()
    seen = _Seen()
    if not source.startswith("builtin:"):
        seen = _looked_at(Path(source), meant, protected, names, fields)
    elif meant == "sequence-classification":
        seen = _Seen(labels=2)
    starter = Starter(
        name=name,
        task=meant,
        model=relative_source(chosen_model, out),
        data=relative_source(source, out),
        unit=protected,
        epsilon=spent,
        targets=tuple(_targets(chosen_model)),
        clients=names,
        cohort=seen.clients,
        units=seen.units,
        window=seen.window,
        labels=seen.labels,
        head=_head(chosen_model) if meant == "sequence-classification" else "",
        fields=fields,
        trainer=trainer,
    )
    _write(out, starter.text())
    say(f"{out}: written, and it loads")
    if seen.clients is not None:
        count = "" if seen.units is None else f", roughly {seen.units:,} {protected}s to train on"
        say(f"{source}: {seen.clients} clients{count}")
    if trainer is not None:
        say(f"{trainer}: its folder goes on PYTHONPATH; plan looks for it")
    say(f"next: securefed plan {out}   (says epsilon, bytes, memory and time; spends nothing)")


def _asked(
    given: str | None,
    flag: str,
    what: str,
    default: str | None,
    allowed: str,
    *,
    optional: bool = False,
) -> str:
    """What a flag gave; else the answer on a terminal, or the default where one will do."""
    if given is not None:
        return given
    if sys.stdin.isatty():
        return str(typer.prompt(what, default=default)).strip()
    if optional and default is not None:
        return default
    raise ConfigError(
        f"{flag} is not given, and there is no terminal to ask on; it must be {allowed}"
    )


def _task(text: str) -> StarterTask:
    if text in _TASKS:
        return _TASKS[text]
    raise ConfigError(f"--task {text!r}: must be one of {', '.join(_TASKS)}")


def _unit(text: str) -> Unit:
    found: dict[str, Unit] = {unit: unit for unit in get_args(Unit)}
    if text in found:
        return found[text]
    raise ConfigError(f"--unit {text!r}: must be one of {', '.join(found)}")


def _epsilon(given: float | None) -> float:
    asked = _asked(
        None if given is None else str(given),
        "--epsilon",
        "epsilon of the whole run",
        f"{_EPSILON:g}",
        "",
        optional=True,
    )
    try:
        value = float(asked)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise ConfigError(f"--epsilon {asked}: must be a number > 0, such as 8")
    return value


@dataclass(frozen=True)
class _Seen:
    """What a folder holds.

    Attributes:
        clients: those chosen.
        units: that train; a low estimate.
        labels: classes.
        window: tokens of an example that fit its documents.
    """

    clients: int | None = None
    units: int | None = None
    labels: int | None = None
    window: int = 32


def _looked_at(
    folder: Path, task: StarterTask, unit: Unit, names: tuple[str, ...], fields: dict[str, str]
) -> _Seen:
    from securefed.training.folder import read_folder

    if not folder.is_dir():
        raise ConfigError(
            f"--data {folder}: there is no such folder; it must hold one file or sub-folder a "
            "client, or be builtin:NAME"
        )
    labels = _MOST_LABELS if task == "sequence-classification" else None
    found = read_folder(folder, section=DataSection(**fields), labels=labels)
    unknown = sorted(set(names) - set(found))
    if unknown:
        raise ConfigError(
            f"--clients: {folder} has no client {unknown[0]!r}; there are "
            f"{', '.join(sorted(found)[:10])}"
        )
    kept = {name: found[name] for name in names or found}
    if len(kept) < 2:
        raise ConfigError(
            f"--data {folder}: holds {len(kept)} client; a sum needs at least 2 (one file or "
            "sub-folder is one client)"
        )
    documents = [document for client in kept.values() for document in client]
    classes = None
    if labels is not None:
        classes = max(document.label or 0 for document in documents) + 1
        if classes < 2:
            raise ConfigError(
                f"--data {folder}: every record has label 0; a classifier needs two classes"
            )
    window = _window(documents, task)
    return _Seen(len(kept), _units(kept.values(), task, unit, window), classes, window)


def _window(documents: list[Document], task: StarterTask) -> int:
    """Half of a usual document, so that few are lost for being shorter; a whole one to classify."""
    least, most = _WINDOWS[task]
    letters = [len(document.text) for document in documents]
    if documents[0].messages is not None:  # usual ones whole, with what the template adds
        parts = statistics.median(len(document.messages or ()) for document in documents)
        tokens = statistics.quantiles(letters, n=10)[-1] / _DENSE + _MARKS * parts
        return int(min(_LONGEST, 2 ** math.ceil(math.log2(tokens))))
    tokens = statistics.median(letters) / _TOKEN_LETTERS
    wanted = tokens / 2 if task == "causal-lm" else tokens
    power = math.floor if task == "causal-lm" else math.ceil
    return int(min(most, max(least, 2 ** power(math.log2(max(wanted, 1.0))))))


def _units(
    clients: Iterable[list[Document]], task: StarterTask, unit: Unit, window: int
) -> int | None:
    """How many units train, at least, once a tenth is held out; None for whole clients."""
    if unit == "client":
        return None
    total = 0
    for documents in clients:
        if unit == "user":
            count = len({document.owner for document in documents})
        elif task == "causal-lm" and documents[0].messages is None:
            count = sum(len(d.text) // (_TOKEN_LETTERS * window) for d in documents)
        else:
            count = len(documents)
        total += count - max(1, count // 10) if count else 0
    return max(total, 1)


def _config_of(model: str) -> dict[str, object]:
    """A local model's ``config.json``; empty for any other."""
    path = Path(model) / "config.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model {model}: {path} cannot be read ({error})") from None
    return found if isinstance(found, dict) else {}


def _targets(model: str) -> list[str]:
    """The modules that PEFT adapts in such a model; the last of them, values, alone."""
    if model in _TARGETS:
        return _TARGETS[model]
    kind = str(_config_of(model).get("model_type", ""))
    if not kind:
        say(f"note: {model} is not here, so that its modules are not known; v_proj is written")
        return ["v_proj"]
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    names = list(KNOWN.get(kind, ()))
    if not names:
        say(f"note: PEFT names no modules for {kind!r}; v_proj is written, and plan checks it")
        return ["v_proj"]
    return names[-1:]


def _head(model: str) -> str:
    """What a classifier's head is called: ``score`` on language models, else ``classifier``."""
    kinds = _config_of(model).get("architectures")
    first = str(kinds[0]) if isinstance(kinds, list) and kinds else ""
    return "score" if "CausalLM" in first or "LMHead" in first else "classifier"


def _write(out: Path, text: str) -> None:
    """Write a run file that is known to load; nothing stays of one that does not."""
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"--out {out}: is there already and is not written over") from None
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from None
    try:
        load_config(out)
    except SecureFedError:
        out.unlink()
        raise
