"""What a study is: a TOML file with networks, schedule and methods, and the queue of runs that follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lfd.config import Config
from lfd.errors import UsageError, unknown
from lfd.methods import METHODS, find_method, plan
from lfd.recipe import apply_set, fill, from_mapping, put, read_recipe

COST_GROUP = 4
"""Methods whose steps are timed beside KD's at once: what fits into memory."""


@dataclass(frozen=True)
class Network:
    """A network and how it is trained.

    Attributes:
        model: Its name, as `lfd-train list models` shows it.
        set: `section.key=value`, on top of the study's.
    """

    model: str
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row of the ablation.

    Attributes:
        name: What the table calls it.
        set: `section.key=value`, on top of the student's.
        method: What is trained.
        seeds: Of how many runs; () takes the study's.
    """

    name: str
    set: tuple[str, ...] = ()
    method: str = "lfd"
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Matrix:
    """The top level of a study's file.

    Attributes:
        recipe: Of lfd-train, a name or a file; what every run starts from.
        set: `section.key=value`, on top of it, in every run.
        seeds: Of each method.
        first: Methods whose seeds all come first, and which are scored at equal time too.
        methods: The others.
        reference: Method whose time a run at equal time takes.
        equal_time: Methods that are also trained for as long as the reference takes.
        overrides: Method to `section.key=value`, such as loss weights that fit small crops.
    """

    recipe: str
    set: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    first: tuple[str, ...] = ("none", "kd", "lfd")
    methods: tuple[str, ...] = ()
    reference: str = "lfd"
    equal_time: tuple[str, ...] = ("none", "kd")
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study's file.

    Attributes:
        matrix: What is compared.
        teacher: The teacher, trained first where none is given.
        students: The students.
        ablation: Rows, each on the first student.
    """

    matrix: Matrix
    teacher: Network
    students: tuple[Network, ...]
    ablation: tuple[Row, ...]


@dataclass(frozen=True)
class Run:
    """A training with its score, or, as `cost`, the timing of some methods' steps in turn.

    Attributes:
        name: Unique in the study, and the name of its files.
        group: `teacher`, `given teacher`, `matrix`, `equal time`, `ablation` or `cost`.
        label: Method, or row of the ablation.
        student: The network's name.
        seed: Of the run.
        config: What lfd-train is given, without data and teacher; of `cost` the first method's.
        costed: Of `cost`: method to configuration.
    """

    name: str
    group: str
    label: str
    student: str
    seed: int
    config: Config
    costed: Mapping[str, Config] = field(default_factory=dict)

    @property
    def taught(self) -> bool:
        """Whether it needs the teacher."""
        return self.group == "cost" or bool(find_method(self.config.distill.method).losses)

    def key(self, data: str, teacher: str) -> str:
        """Return a hash of everything that determines the result but the toolkit's code.

        Args:
            data: Identity of the pictures.
            teacher: Hash of the teacher's file; "" where there is none.
        """
        if self.group == "given teacher":
            return hashlib.sha256(json.dumps([data, teacher]).encode()).hexdigest()[:12]
        what = {"config": asdict(self.config), "costed": {name: asdict(c) for name, c in self.costed.items()}}
        taught = teacher if self.taught else ""
        text = json.dumps([what, data, taught], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_study(path: Path) -> Study:
    """Read a study's file and work out every configuration in it, so that a mistake is found before the first step.

    Raises:
        UsageError: It is not TOML, or names a key, method or network that there is not.
    """
    record = read_recipe(str(path if path.suffix == ".toml" else path.with_suffix(".toml")))
    parts = {name: record.pop(name, default) for name, default in (("teacher", {}), ("student", []), ("ablation", []))}
    if not parts["student"] or not all(isinstance(parts[name], list) for name in ("student", "ablation")):
        raise UsageError(f"{path}: expected [teacher], at least one [[student]], and [[ablation]] rows")
    if "recipe" not in record:
        raise UsageError(f"{path}: names no recipe; expected such as recipe = 'cpu_small'")
    for name, values in (("teacher", [parts["teacher"]]), ("student", parts["student"])):
        if not all(isinstance(v, Mapping) and "model" in v for v in values):
            raise UsageError(f"{path}: [{name}] names no network; expected model = NAME")
    if not all(isinstance(row, Mapping) and "name" in row for row in parts["ablation"]):
        raise UsageError(f"{path}: an [[ablation]] row has no name")
    study = Study(
        fill(Matrix, "study", record),
        fill(Network, "teacher", parts["teacher"]),
        tuple(fill(Network, "student", values) for values in parts["student"]),
        tuple(fill(Row, "ablation", values) for values in parts["ablation"]),
    )
    _check(study, path)
    return study


def _check(study: Study, path: Path) -> None:
    m = study.matrix
    for method in (*m.first, *m.methods):
        find_method(method)
    for method in (m.reference, "kd", *m.equal_time):
        if method not in m.first:
            raise UsageError(f"{path}: method {method!r} is timed, and must stand in first = {list(m.first)}")
    for method in m.overrides:
        if method not in (*m.first, *m.methods):
            raise unknown("method in [overrides]", method, METHODS)
    if not m.seeds or min(m.seeds) < 0 or len(set(m.seeds)) < len(m.seeds):
        raise UsageError(f"{path}: seeds = {list(m.seeds)}; expected different numbers from 0 on")
    names = [run.name for run in queue(study, {})]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{path}: two runs are called {twice!r}; expected different names and networks")


def configure(study: Study, network: Network, method: str, seed: int, more: tuple[str, ...] = ()) -> Config:
    """Return what lfd-train is given for a run, without data and teacher.

    Raises:
        UsageError: A key or value that there is not, or one without effect on the method.
    """
    m = study.matrix
    record = apply_set(read_recipe(m.recipe), (*m.set, *network.set, *m.overrides.get(method, ()), *more))
    for key, value in {"train.model": network.model, "train.seed": seed, "distill.method": method}.items():
        put(record, tuple(key.split(".")), value)
    config = from_mapping(record)
    plan(method, config.distill.weights, config.distill.balance, config.loss)
    return config


def teacher_run(study: Study, given: bool) -> Run:
    """Return the run that trains the teacher, or scores the one that is given."""
    config = configure(study, study.teacher, "none", study.matrix.seeds[0])
    group = "given teacher" if given else "teacher"
    return Run("teacher", group, "none", study.teacher.model, config.train.seed, config)


def queue(study: Study, ratios: Mapping[str, Mapping[str, float]]) -> list[Run]:
    """Return all runs under the teacher, the most telling first.

    Args:
        study: The study.
        ratios: Student to method to seconds a step, in any unit; runs at equal time need them, and are left out
            where they are not there yet.
    """
    m, seeds = study.matrix, study.matrix.seeds
    costs = [list(_costs(study, network)) for network in study.students]
    found = list(_matrix(study, m.first, seeds))
    found += [timed[0] for timed in costs]
    found += _equal_time(study, ratios, seeds[:1])
    found += _matrix(study, m.methods, seeds[:1])
    found += [run for timed in costs for run in timed[1:]]
    found += _equal_time(study, ratios, seeds[1:])
    found += _matrix(study, m.methods, seeds[1:])
    found += _ablation(study)
    return found


def _matrix(study: Study, methods: tuple[str, ...], seeds: tuple[int, ...]) -> Iterator[Run]:
    for seed in seeds:
        for network in study.students:
            for method in methods:
                config = configure(study, network, method, seed)
                yield Run(f"{method}-{network.model}-s{seed}", "matrix", method, network.model, seed, config)


def _costs(study: Study, network: Network) -> Iterator[Run]:
    """Yield the timings: the first methods with KD, then the others, each group beside KD."""
    m = study.matrix
    others = [method for method in m.methods if method not in m.first]
    groups = [m.first, *(tuple(others[at : at + COST_GROUP]) for at in range(0, len(others), COST_GROUP))]
    for number, group in enumerate(groups):
        costed = {method: configure(study, network, method, m.seeds[0]) for method in dict.fromkeys(("kd", *group))}
        name = f"cost{number}-{network.model}"
        yield Run(name, "cost", ", ".join(group), network.model, m.seeds[0], costed["kd"], costed)


def _equal_time(study: Study, ratios: Mapping[str, Mapping[str, float]], seeds: tuple[int, ...]) -> Iterator[Run]:
    m = study.matrix
    for seed in seeds:
        for network in study.students:
            known = ratios.get(network.model, {})
            for method in m.equal_time if {m.reference, *m.equal_time} <= set(known) else ():
                config = configure(study, network, method, seed)
                taken = configure(study, network, m.reference, seed).train.steps * known[m.reference]
                steps = max(1, round(taken / known[method] / 10) * 10)
                config = replace(config, train=replace(config.train, steps=steps))
                name = f"{method}-equal-time-{network.model}-s{seed}"
                yield Run(name, "equal time", method, network.model, seed, config)


def _ablation(study: Study) -> Iterator[Run]:
    """Yield the rows seed by seed; one whose configuration is in the matrix has its key, and is not trained again."""
    network = study.students[0]
    for seed in study.matrix.seeds:
        for number, row in enumerate(study.ablation):
            if seed in (row.seeds or study.matrix.seeds):
                config = configure(study, network, row.method, seed, row.set)
                yield Run(f"ablation{number:02}-s{seed}", "ablation", row.name, network.model, seed, config)
