"""Conditions on a run: what a control needs, and when a claim is about a run at all.

A condition is a path and a requirement.  Paths are those of the run file (``aggregation.kind``), or
one of ``RUN_FACTS``, which the ledger knows and a run file alone does not.  A requirement is a bare
value, which must be equal, or ``{op, value}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Protocol, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from securefed.config import RunConfig
from securefed.errors import ConfigError

RUN_FACTS = ("run.clients", "run.dimension", "run.noise_multiplier", "run.rounds")
"""Paths that are not the run file's: cohort size, values of an update, the noise multiplier in
force (also where it follows from a target), and rounds whose sum was opened."""

Op = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not_in", "set", "starts_with"]
Scalar = bool | int | float | str
ORDERED: Mapping[str, Callable[[float, float], bool]] = {
    "<": lambda found, wanted: found < wanted,
    "<=": lambda found, wanted: found <= wanted,
    ">": lambda found, wanted: found > wanted,
    ">=": lambda found, wanted: found >= wanted,
}
"""Comparisons of numbers, by how they are written."""


class Strict(BaseModel):
    """A frozen part of a threat model: unknown keys and other types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Unknown:
    """The value of a fact that nothing is known of yet."""


UNKNOWN = Unknown()


class Facts(Protocol):
    """Whatever knows a run's settings."""

    def value(self, path: str) -> Any:
        """The value at a path, ``UNKNOWN`` where only a ledger could tell.

        Raises:
            ConfigError: there is no such path.
        """
        ...


def _spelt(value: object) -> object:
    return value if isinstance(value, dict) else {"op": "==", "value": value}


class _Requirement(Strict):
    op: Op
    value: Scalar | list[Scalar]

    @model_validator(mode="after")
    def _value_fits(self) -> Self:
        wanted = {"in": "a list", "not_in": "a list", "set": "true or false"}.get(self.op)
        if self.op in ORDERED:
            wanted = "a number"
        elif self.op == "starts_with":
            wanted = "text"
        if not self._fits():
            raise ValueError(f"op = {self.op!r} with value = {self.value!r}: must be {wanted}")
        return self

    def _fits(self) -> bool:
        value = self.value
        if self.op in ORDERED:
            return isinstance(value, int | float) and not isinstance(value, bool)
        if self.op in ("in", "not_in"):
            return isinstance(value, list) and len(value) > 0
        if self.op == "set":
            return isinstance(value, bool)
        return isinstance(value, str) if self.op == "starts_with" else not isinstance(value, list)

    def holds(self, found: Any) -> bool:
        """Whether a value meets it; what is not set meets no comparison."""
        wanted: Any = self.value
        if self.op == "set":
            return _is_set(found) is wanted
        if self.op in ("!=", "not_in"):
            return found not in wanted if self.op == "not_in" else found != wanted
        if not _is_set(found):
            return False
        if self.op in ORDERED:
            return isinstance(found, int | float) and ORDERED[self.op](found, wanted)
        if self.op == "starts_with":
            return isinstance(found, str) and found.startswith(wanted)
        return bool(found in wanted if self.op == "in" else found == wanted)

    def __str__(self) -> str:
        if self.op == "set":
            return "must be set" if self.value else "must not be set"
        words = {
            "==": "must be",
            "!=": "must not be",
            "in": "must be one of",
            "not_in": "must be none of",
            "starts_with": "must start with",
        }
        return f"{words.get(self.op, f'must be {self.op}')} {self.value!r}"


Requirement = Annotated[
    _Requirement, BeforeValidator(_spelt, json_schema_input_type=Scalar | _Requirement)
]
Conditions = dict[Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z_]+)+$")], Requirement]
"""All of them must hold."""


def unmet(conditions: Mapping[str, _Requirement], facts: Facts) -> dict[str, Any]:
    """The paths whose requirement does not hold, with the values found; unknown ones are not in.

    Raises:
        ConfigError: a path is none.
    """
    found = {path: facts.value(path) for path in conditions}
    return {
        path: found[path]
        for path, wanted in conditions.items()
        if found[path] is not UNKNOWN and not wanted.holds(found[path])
    }


def unknown(conditions: Mapping[str, _Requirement], facts: Facts) -> list[str]:
    """The paths that nothing is known of."""
    return [path for path in conditions if facts.value(path) is UNKNOWN]


_OFF: Mapping[str, Callable[[Any], bool]] = {
    "aggregation.kind": lambda value: value == "plaintext",
    "aggregation.masked": lambda value: value is False,
    "privacy.mechanism": lambda value: value == "none",
    "privacy.corrupt_fraction": lambda value: value == 0.0,
    "evaluation.show_clients": lambda value: value is True,
    "model.fingerprint": lambda value: value is None,
    "budget.epsilon": lambda value: value is None,
}


def is_off(path: str, found: Any) -> bool:
    """Whether this value turns a defence off: it is then never a reason why nothing applies."""
    return path in _OFF and _OFF[path](found)


def shown(path: str, found: Any) -> str:
    """A setting in words, for a reason."""
    return f"{path} = {found!r}" if _is_set(found) else f"{path} is not set"


def _is_set(value: Any) -> bool:
    return value is not None and value != []


def look_up(config: RunConfig, path: str) -> Any:
    """The value at a path of a run file; None where a part on the way is not set.

    Raises:
        ConfigError: there is no such path.
    """
    _field(path)
    value: Any = config
    for part in path.split("."):
        if value is None:
            return None
        value = getattr(value, part)
    return value


def check(path: str, wanted: _Requirement) -> None:
    """Refuse a path that no run file has, or a value that it could not have there.

    Raises:
        ConfigError: names both, and what is allowed.
    """
    check_path(path)
    if path in RUN_FACTS:
        return
    annotation = _field(path)
    if wanted.op not in ("==", "!=", "in", "not_in"):
        return
    for value in wanted.value if isinstance(wanted.value, list) else [wanted.value]:
        try:
            TypeAdapter[Any](annotation).validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise ConfigError(f"{path} = {value!r}: a run file cannot have it: {said}") from None


def check_path(path: str) -> None:
    """Refuse a path that neither a run file nor a ledger has.

    Raises:
        ConfigError: names it, and what is allowed.
    """
    if path not in RUN_FACTS:
        _field(path)


def _field(path: str) -> Any:
    """The annotation of a field of the run file."""
    model: type[BaseModel] | None = RunConfig
    annotation: Any = RunConfig
    for part in path.split("."):
        fields = {} if model is None else model.model_fields
        if part not in fields:
            known = ", ".join(fields) or "none: it is a value"
            raise ConfigError(f"{path}: no run file has it; at {part!r} allowed: {known}")
        annotation = fields[part].annotation
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        model = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
    return annotation
