"""`--backend auto`: measures the backends that can run a file on this machine once, remembers, and says why.

Each is measured in a process of its own, so that a runtime that crashes or hangs takes nothing with it, and none of the
losers' memory stays. They take turns: what else the machine does hits all of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from deploy.artifact import check_model_file, sha256
from deploy.bench.probe import PATIENCE_S, Probe
from deploy.choices import BF16, Choice, Finding, may_be_chosen, memory_path, recall, remember
from deploy.environment import Environment
from deploy.session import BACKENDS, choose_backend
from deploy.timing import TOLERANCE
from lfd.data.street import Street, StreetOptions
from lfd.errors import LfdError, ModelError, UsageError
from lfd.preprocess import Image, fit_frame
from lfd.spec import ModelSpec

AUTO = "auto"
"""What a user writes for "measure it"; no name in `deploy.session.BACKENDS`."""

ROUNDS = 5
SECONDS = 0.5
"""Measuring time for each backend."""
MIN_RUNS, MAX_RUNS = 2, 30
"""In one turn."""
FRAMES = 4
LIMIT_S = 60.0
"""How long a backend may take to load or for a turn."""

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino")
NEEDED = {
    "ort": ("onnxruntime", "*"),
    "openvino": ("openvino", "*"),
    BF16: ("openvino", "*"),
    "ort-cuda": ("onnxruntime", "capi/*onnxruntime_providers_cuda.*"),
    "ort-trt": ("onnxruntime", "capi/*onnxruntime_providers_tensorrt.*"),
}
"""The package of a backend, and a file that it has where it is built with it; looked at without importing it."""

Say = Callable[[str], None]


def choose(path: Path, threads: int = 0, say: Say = lambda text: None) -> str:
    """Return the fastest backend for a file on this machine that computes what the file says.

    Measured once for a file, a processor, a number of threads and the runtimes' versions; remembered in the user's
    cache folder. Of equally fast ones it is the file's own, see `choose_backend`.

    Args:
        path: An .onnx file, or an engine, which has one backend only.
        threads: Threads for one inference; 0 leaves it to the runtime.
        say: Takes the line that tells what was chosen and why.

    Raises:
        ModelError: The file is missing or broken, or nothing here runs it.
    """
    check_model_file(path)
    names = candidates(path)
    choosable = [name for name in names if name != BF16]
    if len(choosable) < 2:
        name = choosable[0] if choosable else choose_backend(path)
        say(f"{name}: nothing else here runs {path.name}")
        return name
    key = _key(path, threads)
    found = recall().get(key)
    if found is not None and found.backend in choosable:
        again = f"; remove {memory_path()} to measure again" if any(f.reason for f in found.findings) else ""
        say(found.sentence(f"measured on {found.date_utc}") + again)
        return found.backend
    found = _decided(*_measure(path, names, threads))
    say(found.sentence("measured now"))
    try:
        remember(key, found)
    except OSError as error:
        say(f"the choice cannot be remembered ({error.strerror}: {error.filename}), and is measured again next time")
    return found.backend


def candidates(path: Path) -> list[str]:
    """Return the backends that take a file and are installed, the file's own first."""
    names = []
    for name in BACKENDS:
        with suppress(ModelError, UsageError):
            if choose_backend(path, name) == name and _installed(name):
                names.append(name)
    own = None
    with suppress(ModelError):  # quantised for TensorRT: only asked for by name
        own = choose_backend(path)
    return sorted(names, key=lambda name: name != own)


def _installed(name: str) -> bool:
    if name not in NEEDED:
        return True
    package, file = NEEDED[name]
    spec = find_spec(package)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return any(next(Path(folder).glob(file), None) for folder in folders)


def _measure(path: Path, names: Sequence[str], threads: int) -> tuple[str, list[Finding]]:
    """Return the file's precision, and what was found, in the order of the names."""
    street = Street(0, StreetOptions().size_hw)
    frames = [street.render(25 * n).image for n in range(FRAMES)]
    failed: dict[str, LfdError] = {}
    replies: dict[str, Any] = {}
    rounds: dict[str, list[float]] = {name: [] for name in names}
    maps: dict[str, list[Image]] = {}
    with ExitStack() as stack:
        probes = {name: stack.enter_context(Probe(path)) for name in names}

        def ask_all(question: Callable[[str, Probe], None]) -> None:
            for name, probe in probes.items():
                if name not in failed:
                    try:
                        question(name, probe)
                    except LfdError as error:
                        failed[name] = error

        def load(name: str, probe: Probe) -> None:
            request = {"path": str(path.resolve()), "threads": threads, "backend": name, "size_hw": None}
            replies[name] = probe.ask("load", frames, LIMIT_S - PATIENCE_S, **request)[0]

        def turn(name: str, probe: Probe) -> None:
            known = rounds[name]
            runs = math.ceil(1e3 * SECONDS / ROUNDS / known[-1]) if known else MIN_RUNS
            count = min(max(runs, MIN_RUNS), MAX_RUNS)
            reply = probe.ask("measure", (), LIMIT_S - PATIENCE_S, count=count, batch=None)[0]
            known.append(statistics.median(reply["model_ms"]))

        def predict(name: str, probe: Probe) -> None:
            preprocess = ModelSpec.from_json(replies[name]["spec"], str(path)).preprocess
            maps[name] = [probe.predict(fit_frame(frame, preprocess)) for frame in frames]

        for question in (load, predict, *[turn] * (1 + ROUNDS)):  # the first turn says how many runs fill one
            ask_all(question)
    alive = [name for name in names if name not in failed]
    if not alive:
        raise failed[names[0]]
    reference = "ort" if "ort" in alive else alive[0]
    findings = []
    for name in names:
        if name in alive:
            same = [np.mean(a == b) for a, b in zip(maps[name], maps[reference], strict=True)]
            findings.append(Finding(name, statistics.median(rounds[name][1:]), float(np.mean(same))))
        elif not isinstance(failed[name], UsageError):  # that is a processor without bf16
            findings.append(Finding(name, reason=" ".join(str(failed[name]).split())[:300]))
    return replies[reference]["build"]["precision"], findings


def _decided(precision: str, findings: Sequence[Finding]) -> Choice:
    times = [(f.backend, f.ms) for f in findings if f.ms is not None and may_be_chosen(f, precision)]
    if not times:
        raise ModelError("; ".join(f"{f.backend} failed ({f.reason})" for f in findings if f.reason))
    fastest = min(ms for _, ms in times)
    backend = next(name for name, ms in times if ms <= (1 + TOLERANCE) * fastest)
    return Choice(backend, precision, datetime.now(timezone.utc).strftime("%Y-%m-%d"), tuple(findings))


def _key(path: Path, threads: int) -> str:
    """Return a hash of all that the answer depends on."""
    here = Environment.here(threads)
    runtimes = {name: here.packages[name] for name in RUNTIMES if name in here.packages}
    gpus = [p.read_text(errors="replace") for p in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    parts = [sha256(path), here.cpu, here.cores, here.board, threads, runtimes, gpus]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
