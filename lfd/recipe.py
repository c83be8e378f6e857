"""From a TOML recipe, the command line and --set to a configuration, and back to TOML."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import tomli_w

from lfd.config import Config
from lfd.errors import UsageError, unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
MAX_RECIPE_BYTES = 1 << 20

T = TypeVar("T")


def _convert(key: str, value: Any, kind: Any) -> Any:
    """Return the value as its field's type, or say what was expected; 1 is taken for 1.0, no more."""
    kinds = get_args(kind)
    if get_origin(kind) is tuple:
        if isinstance(value, (list, tuple)) and (Ellipsis in kinds or len(value) == len(kinds)):
            each = [kinds[0]] * len(value) if Ellipsis in kinds else kinds
            return tuple(_convert(key, v, k) for v, k in zip(value, each, strict=True))
    elif get_origin(kind) is not None:  # Mapping[str, ...]
        if isinstance(value, Mapping):
            return {str(k): _convert(f"{key}.{k}", v, kinds[1]) for k, v in value.items()}
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise UsageError(f"{key} = {value!r}; expected {_expected(kind)}")


def _expected(kind: Any, plural: bool = False) -> str:
    """Return what a field's type is called in a message."""
    kinds = get_args(kind)
    if get_origin(kind) is tuple:
        count = "" if Ellipsis in kinds else f"{len(kinds)} "
        return f"{'lists' if plural else 'a list'} of {count}{_expected(kinds[0], True)}"
    if kinds:
        return f"a section of names and {_expected(kinds[1], True)}"
    if plural:
        return {"float": "numbers", "int": "whole numbers", "str": "texts"}[kind.__name__]
    return str(kind.__name__).replace("str", "text")


def fill(cls: type[T], name: str, values: Any) -> T:
    """Build a frozen dataclass from a section of a recipe.

    Args:
        cls: The dataclass.
        name: The section's, for messages.
        values: Key to value.

    Raises:
        UsageError: An unknown key, or a value of another type or out of range.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"[{name}] = {values!r}; expected a section of keys")
    kinds = get_type_hints(cls)
    for key in values:
        if key not in kinds:
            raise unknown(f"key in [{name}]", key, kinds)
    return cls(**{key: _convert(f"{name}.{key}", value, kinds[key]) for key, value in values.items()})


def from_mapping(record: Mapping[str, Any]) -> Config:
    """Build a configuration from nested dictionaries.

    Raises:
        UsageError: An unknown section or key, or a value of another type or out of range.
    """
    sections = get_type_hints(Config)
    for name in record:
        if name not in sections:
            raise unknown("section", name, sections)
    losses = record.get("loss", {})
    if not isinstance(losses, Mapping) or not all(isinstance(options, Mapping) for options in losses.values()):
        raise UsageError(f"[loss] = {losses!r}; expected a section a loss, such as [loss.lfd]")
    typed = {name: fill(sections[name], name, values) for name, values in record.items() if name != "loss"}
    return Config(**typed, loss={name: dict(options) for name, options in losses.items()})


def read_recipe(name: str) -> dict[str, Any]:
    """Read a recipe by name or path as nested dictionaries.

    Raises:
        UsageError: There is no such recipe, or it is not TOML.
    """
    path = Path(name)
    if "/" not in name and not name.endswith(".toml"):
        path = RECIPES / f"{name}.toml"
        if not path.is_file():
            raise unknown("recipe", name, recipe_names())
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise UsageError(f"{path}: larger than {MAX_RECIPE_BYTES} bytes; expected a recipe")
        record: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return record
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"recipe {path}: cannot be read ({error}); expected a TOML file") from error


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the toolkit."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def apply_set(record: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Return the record with `section.key=value` assignments made; values are TOML, or plain text.

    Raises:
        UsageError: An assignment of another form.
    """
    result = {name: dict(values) if isinstance(values, Mapping) else values for name, values in record.items()}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path = key.strip().split(".")
        if not equals or len(path) not in (2, 3) or not all(path):
            raise UsageError(f"--set {assignment!r}; expected section.key=value, such as optimizer.lr=0.01")
        try:
            value = tomllib.loads(f"v = {text}")["v"]
        except (ValueError, RecursionError):
            value = text.strip()
        if not isinstance(value, str) and _holds_text(path):  # a tap's path may be 3, a run be called 2026-01-31
            value = text.strip()
        put(result, tuple(path), value)
    return result


def _holds_text(path: list[str]) -> bool:
    """Tell whether the value of section.key, or of section.key.name, is text."""
    section = get_type_hints(Config).get(path[0])
    kind = get_type_hints(section).get(path[1]) if dataclasses.is_dataclass(section) else None
    return (get_args(kind)[1:] == (str,)) if len(path) == 3 else kind is str


def put(record: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set a value in nested dictionaries, copying what it changes.

    Raises:
        UsageError: Something on the way is no section.
    """
    for part in path[:-1]:
        nested = record.get(part, {})
        if not isinstance(nested, Mapping):
            raise UsageError(f"[{part}] = {nested!r}; expected a section of keys")
        record[part] = dict(nested)
        record = record[part]
    record[path[-1]] = value


_ELSEWHERE = (
    "data.source",
    "data.val",
    "data.workers",
    "data.cache",
    "distill.teacher",
    "train.device",
    "train.init",
    "train.log_every",
)
"""Keys that a resumed run may change: where things are, not what is done."""


def difference(before: str, after: str) -> str:
    """Return the first key in which two configurations, as TOML, would run differently; "" when none."""
    old, new = (
        {f"{section}.{key}": value for section, values in tomllib.loads(text).items() for key, value in values.items()}
        for text in (before, after)
    )
    changed = [key for key in {**old, **new} if key not in _ELSEWHERE and old.get(key) != new.get(key)]
    return changed[0] if changed else ""


def to_toml(config: Config) -> str:
    """Return the configuration as TOML that `read_recipe` and `from_mapping` read back to an equal one."""
    return tomli_w.dumps(dataclasses.asdict(config))
