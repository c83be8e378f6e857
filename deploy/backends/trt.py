"""TensorRT 10 and 11 on an NVIDIA GPU: own buffers and stream, one CUDA graph a frame, without torch."""

from __future__ import annotations

import ctypes
import math
import weakref
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import BuildInfo, check_engine_fits, read_engine
from deploy.backends.contract import Form, check_batch, check_graph
from deploy.backends.cuda import ErrorLog, checked, find_gpu, make_logger, require_cuda, require_tensorrt
from lfd.errors import ModelError
from lfd.preprocess import Image

TYPES: dict[str, type[np.generic]] = {"u8": np.uint8, "f32": np.float32}


class TrtSession:
    """An `InferenceSession` on TensorRT.

    The copy to the GPU, the network and the copy back are recorded once as a CUDA graph, and started by one call; where
    TensorRT or the driver do not let it be recorded, they are started one by one. `build.backend` says which.

    Args:
        path: The engine, with its record beside it. Deserialising it runs native code out of it: the record's hash and
            what it was built for are checked before that.
        threads: Of the CPU, for a protocol that all backends share; no work of an inference is done there.
        parallel: Likewise; the GPU takes one inference at a time.

    Raises:
        ModelError: A file is missing or broken, was built for another GPU or TensorRT, or is not a frame-to-map engine.
        MissingDependencyError: TensorRT or cuda-bindings is not installed, or there is no GPU.
    """

    parallel = 1

    def __init__(self, path: Path, threads: int = 0, parallel: int = 1) -> None:
        info, plan = read_engine(path)
        trt: Any = require_tensorrt()
        here = find_gpu(trt)
        check_engine_fits(info, here, path)
        self.spec = info.spec
        self._log = ErrorLog()
        runtime = trt.Runtime(make_logger(trt, self._log.add))
        if info.version_compatible:
            runtime.engine_host_code_allowed = True  # it brings TensorRT's lean runtime of its own version
        if isinstance(core := info.options.get("dla_core"), int):
            runtime.DLA_core = core
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ModelError(
                f"{path}: TensorRT {here.tensorrt} cannot load it ({self._log.reason()}). "
                f"Fix: build it here with lfd-export trt {info.onnx} -o {path} --overwrite"
            )
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        sides = {
            mode: {name: _form(trt, engine, name) for name in names if engine.get_tensor_mode(name) == mode}
            for mode in (trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT)
        }
        inputs, outputs = sides.values()
        self.batch = check_graph(path, self.spec, list(inputs.values()), list(outputs.values()))
        self._range = info.batch if self.batch is None else (self.batch,) * 3
        self._names: tuple[str, str] = (*inputs, *outputs)
        self._out_type = TYPES[next(iter(outputs.values()))[0]]
        context = engine.create_execution_context()
        if context is None:
            raise ModelError(f"{path}: TensorRT has no memory for it on {here.name} ({self._log.reason()})")
        # TensorRT wants them to go in this order: an engine outlives its contexts, a runtime its engines.
        self._context, self._engine, self._runtime = context, engine, runtime
        self._cuda: Any = require_cuda()
        self._open = ExitStack()
        self._bound = ExitStack()
        self._frames: NDArray[Any] = np.empty(0, np.uint8)
        try:
            self._stream = self._ask(
                self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking), "to make a stream"
            )
            self._open.callback(self._cuda.cudaStreamDestroy, self._stream)
            self._bind(max(1, self._range[0]))
        except BaseException:
            self.close()
            raise
        self.build = BuildInfo(
            backend=f"tensorrt {'with' if self._graph is not None else 'without'} CUDA graph",
            precision=info.build.precision,
            onnx_sha256=info.build.onnx_sha256,
            versions={"tensorrt": here.tensorrt},
            device=here.name,
        )

    def run(self, batch: Image) -> NDArray[Any]:
        """Run the model; see `deploy.session.InferenceSession.run`."""
        check_batch(batch, self.spec, self.batch)
        low, _, high = self._range
        if batch.dtype != np.uint8 or not low <= len(batch) <= high:
            raise ModelError(f"{len(batch)} frames of {batch.dtype}; this model takes {low} to {high} of uint8")
        if len(batch) != len(self._frames):
            self._bind(len(batch))
        np.copyto(self._frames, batch)
        if self._graph is not None:
            self._ask(self._cuda.cudaGraphLaunch(self._graph, self._stream), "to start the model")
        else:
            self._enqueue()
        self._wait()
        return self._out

    def close(self) -> None:
        """Free the model's memory; `run` must not be called after. An array that it returned stays readable."""
        self._bound.close()
        self._open.close()
        self._context = self._engine = self._runtime = None

    def __enter__(self) -> TrtSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, answer: Any, wanted: str) -> Any:
        return checked(self._cuda, answer, wanted)

    def _wait(self) -> None:
        self._ask(self._cuda.cudaStreamSynchronize(self._stream), "while the model ran")

    def _bind(self, size: int) -> None:
        """Take memory for a batch of this size, and record the graph; what was there before goes."""
        self._bound.close()
        try:
            self._allocate(size)
            # Once before it is recorded: TensorRT settles by itself what depends on the shapes.
            self._enqueue()
            self._wait()
            self._graph = self._record()
        except BaseException:
            self._bound.close()
            self._frames = self._frames[:0]  # no batch has this size: the next run begins here again
            raise

    def _allocate(self, size: int) -> None:
        cuda, context = self._cuda, self._context
        frame, out = self._names
        height, width = self.spec.preprocess.size_hw
        if not context.set_input_shape(frame, (size, height, width, 3)):
            raise ModelError(f"TensorRT refuses a batch of {size} ({self._log.reason()})")
        classes = (len(self.spec.labels),) if self.spec.output == "logits" else ()
        shape, wanted = tuple(context.get_tensor_shape(out)), (size, *classes, height, width)
        if shape != wanted:
            raise ModelError(f"the engine gives {shape} for {size} frames; expected {wanted}. Fix: build it again")
        self._frames = self._pinned((size, height, width, 3), np.uint8)
        self._out = self._pinned(shape, self._out_type)
        self._device: list[int] = []
        for name, host in ((frame, self._frames), (out, self._out)):
            address = self._ask(cuda.cudaMalloc(host.nbytes), f"to allocate {host.nbytes} bytes on the GPU")
            # What freeing answers is the error of an earlier call, which that call's caller has been told.
            self._bound.callback(cuda.cudaFree, address)
            self._device.append(address)
            if not context.set_tensor_address(name, address):
                raise ModelError(f"TensorRT refuses the memory for {name} ({self._log.reason()})")

    def _pinned(self, shape: tuple[int, ...], kind: type[np.generic]) -> NDArray[Any]:
        """Return an array in page-locked memory, which the GPU copies by itself; it is freed with the last view of it.

        So that what `run` returned can still be read when the session has been closed.
        """
        size = math.prod(shape) * np.dtype(kind).itemsize
        address = self._ask(self._cuda.cudaHostAlloc(size, 0), f"to allocate {size} bytes that the GPU can copy")
        owner = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(owner, self._cuda.cudaFreeHost, address).atexit = False  # the system takes all back then
        return np.ctypeslib.as_array(owner).view(kind).reshape(shape)

    def _enqueue(self) -> None:
        """Put a whole run into the stream."""
        cuda, kinds = self._cuda, self._cuda.cudaMemcpyKind
        there, back = self._device
        to = cuda.cudaMemcpyAsync(
            there, self._frames.ctypes.data, self._frames.nbytes, kinds.cudaMemcpyHostToDevice, self._stream
        )
        self._ask(to, "to copy the frame to the GPU")
        if not self._context.execute_async_v3(int(self._stream)):
            raise ModelError(f"TensorRT failed while running: {self._log.reason()}")
        back_again = cuda.cudaMemcpyAsync(
            self._out.ctypes.data, back, self._out.nbytes, kinds.cudaMemcpyDeviceToHost, self._stream
        )
        self._ask(back_again, "to copy the class map back")

    def _record(self) -> Any:
        """Return a whole run as a CUDA graph; None where it cannot be recorded."""
        cuda = self._cuda
        # Other threads' calls do not break it: only this one's are recorded.
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        made, graph = None, None
        if int(cuda.cudaStreamBeginCapture(self._stream, mode)[0]) == 0:
            try:
                self._enqueue()
                whole = True
            except ModelError:  # a layer that waits for the GPU, or allocates; it runs all the same
                whole = False
            error, graph = cuda.cudaStreamEndCapture(self._stream)
            if whole and int(error) == 0:
                error, made = cuda.cudaGraphInstantiate(graph, 0)
                made = made if int(error) == 0 else None
        if graph is not None:
            cuda.cudaGraphDestroy(graph)
        if made is None:
            cuda.cudaGetLastError()  # CUDA keeps it, and would hand it to the next who asks
            return None
        self._bound.callback(cuda.cudaGraphExecDestroy, made)
        return made


def _form(trt: Any, engine: Any, name: str) -> Form:
    """Return the type of an input or output, in TensorRT's word where we have none, and its shape; None is open."""
    kind = engine.get_tensor_dtype(name)
    words = {trt.DataType.UINT8: "u8", trt.DataType.FLOAT: "f32"}
    return words.get(kind, str(kind)), [side if side >= 0 else None for side in tuple(engine.get_tensor_shape(name))]
