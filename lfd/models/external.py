"""Networks of others, by names with a colon: torchvision's, segmentation_models_pytorch's, and a user's own.

`torchvision:NAME`, `smp:Arch/encoder`, or `package.module:factory`, where factory(num_classes) returns an nn.Module
that maps (B, 3, H, W) to logits (B, K, h, w): as a tensor, as `out` or `logits` of a dictionary, or as `.logits`.

The last runs code of that module. A name may come out of a checkpoint or a recipe that somebody else made, so that a
module is imported only when the user named it: on the command line (`trust`), or in LFD_TRUST_MODELS.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from torch import nn

from lfd.errors import CheckpointError, UsageError, unknown
from lfd.models import external_smp, external_torchvision
from lfd.models.external_outputs import adapt
from lfd.taps import first_line
from lfd.weights import fill, read_tensors

TRUST = "LFD_TRUST_MODELS"
"""Environment variable: modules, separated by commas, whose code may be run to build a network."""

FORMS = (
    *(f"torchvision:{name}" for name in external_torchvision.NAMES),
    "smp:Arch/encoder",
    "package.module:factory",
)
"""The names there are, for those who list them."""

_Build = Callable[[str, int, str], tuple[nn.Module, str]]
_FAMILIES: dict[str, tuple[Callable[[str], None], _Build]] = {
    "torchvision": (external_torchvision.check_name, external_torchvision.build),
    "smp": (external_smp.check_name, external_smp.build),
}
_OWN = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")

_trusted: set[str] = set()
"""Modules that this process's user named on its command line."""


def trust(name: object) -> None:
    """Let the code of a network be run whose name the user typed; any other name, and None, needs no trust."""
    if isinstance(name, str) and (match := _OWN.fullmatch(name)):
        _trusted.add(match[1])


def check_name(name: str) -> None:
    """Refuse a name that means no network, before anything is built; runs nobody's code.

    Raises:
        UsageError: There is no such network, or it is somebody's own and its module is not trusted.
        MissingDependencyError: segmentation_models_pytorch is not installed.
    """
    family, _, rest = name.partition(":")
    if family in _FAMILIES:
        _FAMILIES[family][0](rest)
        return
    match = _OWN.fullmatch(name)
    if match is None:
        raise UsageError(
            f"model {name!r}; expected a name of `lfd-train list models`, or one of {', '.join(FORMS[-2:])}"
        )
    listed = {entry.strip() for entry in os.environ.get(TRUST, "").split(",")}
    if match[1] not in _trusted | listed:
        raise UsageError(
            f"model {name!r}: building it runs the code of the module {match[1]!r}, which a file asks for and nobody "
            f"here has allowed.{_hint(family)} Fix: if you trust that module, set {TRUST}={match[1]}"
        )


def _hint(family: str) -> str:
    close = difflib.get_close_matches(family, _FAMILIES, n=1)
    return f" Did you mean '{close[0]}:'?" if close else ""


def build(name: str, num_classes: int, weights: str) -> tuple[nn.Module, str]:
    """Build a network; see `lfd.models.create_model`.

    Raises:
        UsageError: There is no such network, it is not trusted, or its factory fails.
        CheckpointError: The weights cannot be had or do not fit.
        MissingDependencyError: segmentation_models_pytorch is not installed.
    """
    check_name(name)
    family, _, rest = name.partition(":")
    if family in _FAMILIES:
        return _FAMILIES[family][1](rest, num_classes, weights)
    return _own(name, num_classes, weights)


def _own(name: str, num_classes: int, weights: str) -> tuple[nn.Module, str]:
    module_name, _, factory_name = name.partition(":")
    module = _import(module_name, name)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"factory in {module_name}", factory_name, known)
    try:
        network = factory(num_classes)
    except (Exception, SystemExit) as error:  # anybody's code
        raise UsageError(f"model {name!r}: {factory_name}({num_classes}) fails ({first_line(error)})") from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"model {name!r}: {factory_name} returns a {type(network).__name__}; expected an nn.Module")
    taps = getattr(network, "taps", {})
    if not (isinstance(taps, Mapping) and all(isinstance(text, str) for entry in taps.items() for text in entry)):
        raise UsageError(f"model {name!r}: its taps are {taps!r}; expected a dictionary of names to paths")
    multiple = getattr(network, "multiple", 1)
    if not isinstance(multiple, int) or multiple < 1:
        raise UsageError(f"model {name!r}: its multiple is {multiple!r}; expected a whole number of pixels")
    if weights == "imagenet":
        raise CheckpointError(
            f"{name}: ImageNet weights of somebody's own network are its factory's affair. Fix: --weights none takes "
            "it as the factory returns it, --weights FILE fills all of it"
        )
    said = f"{name}: starts as its factory returns it (weights none)"
    if weights != "none":
        fill(network, read_tensors(Path(weights)), weights)
        said = f"{name}: starts from {weights}"
    return adapt(network, num_classes, dict(taps), module_name, multiple), said


def _import(module: str, name: str) -> ModuleType:
    """Import a trusted module; the current directory is searched first and stays on the path, as with `python -m`."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UsageError(f"model {name!r}: {module} needs {error.name}, which is not installed") from error
        raise UsageError(
            f"model {name!r}: no module {error.name!r} in {here} or among the installed ones.{_hint(module)} "
            f"Expected one of {', '.join(FORMS[-2:])}"
        ) from error
    except (Exception, SystemExit) as error:  # anybody's code, such as a script that reads its own options
        raise UsageError(f"model {name!r}: {module} cannot be imported ({first_line(error)})") from error
