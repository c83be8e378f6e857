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
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if isinstance(value, (list, tuple)) and len(value) == len(kinds):
            return tuple(_convert(key, v, k) for v, k in zip(value, kinds, strict=True))
    elif get_origin(kind) is not None:  # Mapping[str, float]
        if isinstance(value, Mapping):
            return {str(k): _convert(f"{key}.{k}", v, float) for k, v in value.items()}
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    if get_origin(kind) is tuple:
        expected = f"a list of {len(get_args(kind))} numbers"
    elif get_origin(kind) is not None:
        expected = "a section of names and numbers"
    else:
        expected = str(getattr(kind, "__name__", kind)).replace("str", "text")
    raise UsageError(f"{key} = {value!r}; expected {expected}")


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
        put(result, tuple(path), value)
    return result


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


_ELSEWHERE = ("data.source", "data.workers", "data.cache", "distill.teacher", "train.device", "train.log_every")
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
