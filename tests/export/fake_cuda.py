"""A stand-in for cuda.bindings.runtime: memory, streams that run when they are waited for, and graphs.

Its calls return (error, value) as cuda-bindings' do. What is in a stream is done at cudaStreamSynchronize and not
before, so that a wait that is missing shows. `test_trt_api.py` holds its names against the real module, where that is.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from types import ModuleType
from typing import Any

STATUS = enum.IntEnum(
    "cudaError_t",
    {
        "cudaSuccess": 0,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorInsufficientDriver": 35,
        "cudaErrorNoDevice": 100,
        "cudaErrorIllegalAddress": 700,
        "cudaErrorStreamCaptureInvalidated": 901,
    },
)
SAYS = {2: b"out of memory", 35: b"no driver", 100: b"no device", 700: b"an illegal memory access was encountered"}
ATTRIBUTES = enum.IntEnum(
    "cudaDeviceAttr", {"cudaDevAttrComputeCapabilityMajor": 75, "cudaDevAttrComputeCapabilityMinor": 76}
)
COPIES = enum.IntEnum("cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})
MODES = enum.IntEnum("cudaStreamCaptureMode", {"cudaStreamCaptureModeThreadLocal": 1})

Work = Callable[[], None]


class Gpu:
    """What the fake knows.

    Attributes:
        fails: Name of a call to the error that it answers.
        recordable: Whether work can be captured.
        device: Address to memory on the GPU; `host` page-locked memory; both shrink when freed.
        launched: Graphs that were started.
    """

    def __init__(self, **fails: int) -> None:
        self.fails = fails
        self.recordable = True
        self.device: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.streams: dict[int, list[Work]] = {}
        self.graphs: set[int] = set()
        self.launched = 0
        self._capture: list[Work] | None = None
        self._broken = False
        self._made: dict[int, list[Work]] = {}

    def allocate(self, where: dict[int, Any], size: int) -> int:
        memory = (ctypes.c_uint8 * max(1, size))(*[0xAB] * max(1, size))
        address = ctypes.addressof(memory)
        where[address] = memory
        return address

    def put(self, stream: int, work: Work) -> bool:
        """Take work for a stream, or into the graph that is being recorded."""
        assert stream in self.streams
        if self._capture is None:
            self.streams[stream].append(work)
            return True
        self._broken |= not self.recordable
        self._capture.append(work)
        return self.recordable

    def copy(self, to: int, source: int, count: int, kind: Any, stream: int) -> None:
        sides = (self.device, self.host) if kind == COPIES.cudaMemcpyHostToDevice else (self.host, self.device)
        for side, address in zip(sides, (to, source), strict=True):
            assert len(side[address]) >= count, "outside of what was allocated"
        self.put(stream, lambda: ctypes.memmove(to, source, count))

    def wait(self, stream: int) -> None:
        assert self._capture is None, "no waiting while a graph is recorded"
        work, self.streams[stream] = self.streams[stream], []
        for step in work:
            step()

    def stream(self) -> int:
        number = 1 + len(self.streams)
        self.streams[number] = []
        return number

    def begin(self, stream: int) -> None:
        assert not self.streams[stream], "work is pending"
        self._capture, self._broken = [], False

    def end(self, stream: int) -> tuple[Any, Any]:
        work, self._capture = self._capture, None
        assert work is not None
        return (STATUS(901), None) if self._broken else (STATUS(0), work)

    def instantiate(self, work: list[Work]) -> int:
        number = 1000 + len(self._made)
        self._made[number] = work
        self.graphs.add(number)
        return number

    def launch(self, graph: int, stream: int) -> None:
        assert graph in self.graphs
        self.launched += 1
        self.streams[stream] += self._made[graph]


def make_cuda(
    error: int = 0, count: int = 1, capability: tuple[int, int] = (8, 7), gpu: Gpu | None = None
) -> ModuleType:
    """Return the module: one GPU called Orin, or an error when it is asked for one; `gpu` is its memory and streams."""
    cuda = ModuleType("cuda.bindings.runtime")
    on = gpu or Gpu()
    properties = type("cudaDeviceProp", (), {"name": b"Orin"})()

    def call(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*arguments: Any) -> Any:
            if code := on.fails.get(name, 0):
                return STATUS(code), None
            value = function(*arguments)
            return (STATUS(0),) if value is None else (STATUS(0), value)

        return answer

    def attribute(kind: Any, device: int) -> int:
        return capability[0 if kind is ATTRIBUTES.cudaDevAttrComputeCapabilityMajor else 1]

    calls: dict[str, Callable[..., Any]] = {
        "cudaDeviceGetAttribute": attribute,
        "cudaGetDeviceProperties": lambda device: properties,
        "cudaMalloc": lambda size: on.allocate(on.device, size),
        "cudaFree": lambda address: on.device.pop(address) and None,
        "cudaHostAlloc": lambda size, flags: on.allocate(on.host, size),
        "cudaFreeHost": lambda address: on.host.pop(address) and None,
        "cudaStreamCreateWithFlags": lambda flags: on.stream(),
        "cudaStreamDestroy": lambda stream: on.streams.pop(stream) and None,
        "cudaStreamSynchronize": on.wait,
        "cudaMemcpyAsync": on.copy,
        "cudaStreamBeginCapture": lambda stream, mode: on.begin(stream),
        "cudaGraphInstantiate": lambda graph, flags: on.instantiate(graph),
        "cudaGraphLaunch": on.launch,
        "cudaGraphExecDestroy": on.graphs.remove,
        "cudaGraphDestroy": lambda graph: None,
    }
    for name, function in calls.items():
        setattr(cuda, name, call(name, function))
    for name, value in {
        "cudaGetDeviceCount": lambda: (STATUS(error), None if error else count),
        "cudaGetErrorString": lambda code: (STATUS(0), SAYS[int(code)]),
        "cudaGetLastError": lambda: (STATUS(0),),
        "cudaStreamEndCapture": on.end,
        "cudaDeviceAttr": ATTRIBUTES,
        "cudaMemcpyKind": COPIES,
        "cudaStreamCaptureMode": MODES,
        "cudaStreamNonBlocking": 1,
    }.items():
        setattr(cuda, name, value)
    cuda.gpu = on  # type: ignore[attr-defined]
    return cuda
