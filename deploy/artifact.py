"""What is known of a model file: its ModelSpec and how it was built."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lfd.errors import ModelError
from lfd.files import to_json
from lfd.spec import MAX_JSON_BYTES, METADATA_KEY, ModelSpec, Scalar

ENGINE_SCHEMA = 1
PRECISION_KEY = "lfd_precision"
"""Metadata key of an .onnx file that says `fp32`, `fp16` or `int8`; without it a file is fp32."""

INT8_TARGET_KEY = "lfd_int8_target"
"""Key under which a quantised file says which runtime its Q/DQ pairs are for: `ort`, `openvino` or `trt`."""

AMPERE = (8, 0)

MAX_MODEL_BYTES = 2 << 30
"""ONNX is a protocol buffer: 2 GiB is its limit."""


@dataclass(frozen=True)
class BuildInfo:
    """How a file that runs came to be.

    Attributes:
        backend: Runtime and provider that executes it, such as "onnxruntime CPUExecutionProvider".
        precision: `fp32`, `fp16`, `int8`.
        onnx_sha256: Hash of the ONNX file.
        versions: Package name to version, of what matters to its speed and output.
        device: The processor it runs on.
    """

    backend: str
    precision: str
    onnx_sha256: str
    versions: Mapping[str, str]
    device: str


def check_model_file(path: Path) -> None:
    """Refuse what cannot be a model before a parser sees it.

    Raises:
        ModelError: Missing, a folder, empty or too large.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a folder; expected an .onnx file. Fix: lfd-export onnx {path} -o model.onnx")
    if not path.is_file():
        raise ModelError(f"{path}: no such file; expected a model written by lfd-export")
    size = path.stat().st_size
    if not 0 < size <= MAX_MODEL_BYTES:
        raise ModelError(f"{path}: {size} bytes; a model has 1 byte to 2 GiB. Fix: export it again")


def read_spec(metadata: Mapping[str, str], path: Path) -> ModelSpec:
    """Read the ModelSpec out of an ONNX file's metadata.

    Raises:
        ModelError: There is none, or it is not valid.
    """
    if METADATA_KEY not in metadata:
        raise ModelError(
            f"{path}: has no ModelSpec (classes, colours, input size). Fix: write the file with lfd-export onnx"
        )
    return ModelSpec.from_json(metadata[METADATA_KEY], str(path))


def int8_target(path: Path) -> str | None:
    """Return the runtime that a file was quantised for; None when it does not say, or is no ONNX file.

    Read off the protocol buffer (ModelProto.metadata_props is field 14, of key 1 and value 2) before any runtime
    has parsed the file, since it says which one should. The weights are skipped, not read.
    """
    with path.open("rb") as file:
        for number, length in _blocks(file, path.stat().st_size):
            if number == 14 and length <= MAX_JSON_BYTES:
                entry = io.BytesIO(file.read(length))
                pair = {part: entry.read(size) for part, size in _blocks(entry, length)}
                if pair.get(1) == INT8_TARGET_KEY.encode():
                    return pair.get(2, b"").decode(errors="replace")[:32]
    return None


def _blocks(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """Yield number and length of a protocol buffer's length-delimited fields, with the file standing at each.

    See https://protobuf.dev/programming-guides/encoding. Ends where there is none: a model has no thousands of fields.
    """
    for _ in range(10_000):
        tag = _varint(file)
        kind = tag & 7
        length = _varint(file) if kind == 2 else {0: 0, 1: 8, 5: 4}.get(kind, end)
        if kind == 0:
            _varint(file)
        after = file.tell() + length
        if after > end or not tag:
            return
        if kind == 2:
            yield tag >> 3, length
        file.seek(after)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = (file.read(1) or b"\0")[0]
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value


def sha256(path: Path) -> str:
    """Return the file's SHA-256 as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class Accelerator:
    """A GPU with a TensorRT: what an engine is built for and runs on.

    Attributes:
        name: Such as "Orin" or "NVIDIA A10".
        compute_capability: Major and minor; SM 8.7 is (8, 7).
        tensorrt: Version of TensorRT, such as "10.3.0".
        platform: System and machine, such as "linux-aarch64".
    """

    name: str
    compute_capability: tuple[int, int]
    tensorrt: str
    platform: str


@dataclass(frozen=True)
class EngineInfo:
    """What lies beside a TensorRT engine, whose own file stays as trtexec, DeepStream and Triton know it.

    Attributes:
        spec: The model.
        build: How it was built.
        built_on: The GPU and the TensorRT that it was built on.
        version_compatible: Newer TensorRTs load it too. It then holds code that the runtime must be allowed to run.
        hardware_compatible: `none`, `ampere_plus` or `same_cc`.
        batch: Smallest, best and largest batch.
        onnx: Name of the ONNX file, without its folder; for the command that builds the engine again.
        engine_sha256: Hash of the engine, which also tells a truncated or exchanged file before native code reads it.
        options: The build's other options.
        convolutions: Precision to number of convolutions that run in it; empty when not read back.
    """

    spec: ModelSpec
    build: BuildInfo
    built_on: Accelerator
    version_compatible: bool
    hardware_compatible: str
    batch: tuple[int, int, int]
    onnx: str
    engine_sha256: str
    options: Mapping[str, Scalar]
    convolutions: Mapping[str, int]

    def to_json(self) -> str:
        """Return the text of the file beside the engine."""
        return to_json({"schema": ENGINE_SCHEMA, **asdict(self)})

    @classmethod
    def from_json(cls, text: str, origin: str) -> EngineInfo:
        """Read the record; every field is validated, since the file may come from anywhere.

        Raises:
            ModelError: It is not such a record, or of another schema.
        """
        try:
            record = json.loads(text)
            if record["schema"] != ENGINE_SCHEMA:
                raise ValueError(f"schema {record['schema']}; this version reads {ENGINE_SCHEMA}")
            build, device = record["build"], record["built_on"]
            low, best, high = (_whole(n) for n in record["batch"])
            major, minor = (_whole(n) for n in device["compute_capability"])
            return cls(
                spec=ModelSpec.from_json(json.dumps(record["spec"]), origin),
                build=BuildInfo(
                    backend=_text(build["backend"]),
                    precision=_text(build["precision"]),
                    onnx_sha256=_text(build["onnx_sha256"]),
                    versions={_text(k): _text(v) for k, v in build["versions"].items()},
                    device=_text(build["device"]),
                ),
                built_on=Accelerator(
                    _text(device["name"]), (major, minor), _text(device["tensorrt"]), _text(device["platform"])
                ),
                version_compatible=record["version_compatible"] is True,
                hardware_compatible=_text(record["hardware_compatible"]),
                batch=(low, best, high),
                onnx=_text(record["onnx"]),
                engine_sha256=_text(record["engine_sha256"]),
                options={_text(k): v for k, v in record["options"].items() if isinstance(v, Scalar)},
                convolutions={_text(k): _whole(v) for k, v in record["convolutions"].items()},
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ModelError(
                f"{origin}: cannot be read as an engine's record ({type(error).__name__}: {error}). "
                "Fix: build the engine again with lfd-export trt"
            ) from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"expected a whole number, got {value!r}")
    return value


def engine_info_path(engine: Path) -> Path:
    """Return the path of the record beside an engine."""
    return engine.with_name(f"{engine.name}.json")


def read_engine_info(engine: Path) -> EngineInfo:
    """Read the record beside an engine; see `read_engine`."""
    return read_engine(engine)[0]


def read_engine(engine: Path) -> tuple[EngineInfo, bytes]:
    """Read an engine and the record beside it, and check by hash that they belong together.

    The bytes that were hashed are those returned: nobody can exchange the file in between.

    Raises:
        ModelError: Either file is missing or broken, or they do not belong together.
    """
    check_model_file(engine)
    beside = engine_info_path(engine)
    if not beside.is_file():
        raise ModelError(
            f"{engine}: has no {beside.name} beside it, which says its classes, and what it was built for. "
            "Fix: build it with lfd-export trt, and keep both files together"
        )
    if (size := beside.stat().st_size) > MAX_JSON_BYTES:
        raise ModelError(f"{beside}: {size} bytes; expected at most {MAX_JSON_BYTES}")
    info = EngineInfo.from_json(beside.read_text(encoding="utf-8", errors="replace"), str(beside))
    plan = engine.read_bytes()
    if hashlib.sha256(plan).hexdigest() != info.engine_sha256:
        raise ModelError(
            f"{engine}: is not the engine that {beside.name} belongs to, or was cut short. {_rebuild(info, engine)}"
        )
    return info, plan


def check_engine_fits(info: EngineInfo, here: Accelerator, engine: Path) -> None:
    """Refuse an engine that this GPU and this TensorRT cannot run, before native code reads it.

    An engine runs on the compute capability, the TensorRT and the platform that it was built for. Built as version
    compatible it also runs on newer versions of the same major, and one of 10 on 11 (TensorRT's support matrix); built
    as hardware compatible on Ampere and newer.

    Raises:
        ModelError: It does not fit; the message has the command that builds it again.
    """
    there = info.built_on
    if here.platform != there.platform:
        _refuse(info, engine, "platform", there.platform, here.platform)
    built, running = _version(there.tensorrt), _version(here.tensorrt)
    newer = running >= built and (running[:1] == built[:1] or (built[:1], running[:1]) == ((10,), (11,)))
    if built != running and not (info.version_compatible and newer):
        _refuse(info, engine, "TensorRT", there.tensorrt, here.tensorrt)
    oldest = min(here.compute_capability, there.compute_capability)
    ampere_plus = info.hardware_compatible == "ampere_plus" and oldest >= AMPERE
    if here.compute_capability != there.compute_capability and not ampere_plus:
        sm = [f"SM {a.compute_capability[0]}.{a.compute_capability[1]} ({a.name})" for a in (there, here)]
        _refuse(info, engine, "GPU", *sm)


def _refuse(info: EngineInfo, engine: Path, what: str, there: str, here: str) -> None:
    raise ModelError(f"{engine}: was built for {what} {there}; here it is {here}. {_rebuild(info, engine)}")


def _rebuild(info: EngineInfo, engine: Path) -> str:
    return f"Fix: build it here with lfd-export trt {info.onnx} -o {engine} --overwrite"


def _version(text: str) -> tuple[int, ...]:
    """Major, minor and patch; packages and libraries of one release differ in what they append."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])
