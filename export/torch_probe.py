"""A checkpoint as lfd-bench measures it: `python -m export.torch_probe` is `deploy.bench.probe` with PyTorch behind it.

A program of its own, which deploy starts by name and only for a checkpoint: what it imports is not on a device.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from deploy.artifact import BuildInfo, sha256
from deploy.bench.models import model_file
from deploy.bench.probe import Request, main
from deploy.session import InferenceSession
from lfd.errors import MissingDependencyError, ModelError, require
from lfd.preprocess import Image
from lfd.spec import ModelSpec


class TorchSession:
    """An `InferenceSession` on PyTorch's CPU, eager, fp32: the same job as the exported graph, frame to class map.

    Args:
        request: A run of lfd-train or its model.safetensors, threads, and an input size in place of its own; backends
            are for files.

    Raises:
        CheckpointError: It cannot be read.
    """

    def __init__(self, request: Request) -> None:
        import torch  # noqa: PLC0415 - what cannot be imported has been said by `prepare`

        from export.graph import DeployGraph  # noqa: PLC0415
        from lfd.checkpoint import load_model  # noqa: PLC0415

        if request.threads:
            torch.set_num_threads(request.threads)
        model, spec = load_model(request.path)
        preprocess = replace(spec.preprocess, size_hw=request.size_hw or spec.preprocess.size_hw)
        self.spec: ModelSpec = replace(spec, preprocess=preprocess, output="class_map")
        self.batch: int | None = None  # any
        self.parallel = 1
        self._torch, self._model = torch, model
        self._graph = DeployGraph(model, preprocess, "class_map").eval()
        self.build = BuildInfo(
            backend="PyTorch CPU, eager",
            precision="fp32",
            onnx_sha256=sha256(model_file(request.path)),
            versions={"torch": torch.__version__},
            device=platform.processor() or platform.machine(),
        )

    def described(self) -> ModelSpec:
        """Return the specification with parameters and MACs, counted here: ten times as long as loading may take."""
        from lfd.profile import count_macs, count_parameters  # noqa: PLC0415

        size_hw = self.spec.preprocess.size_hw
        counts = {"params": count_parameters(self._model), "macs": count_macs(self._model, size_hw)}
        return replace(self.spec, provenance={**self.spec.provenance, **counts})

    def run(self, batch: Image) -> NDArray[Any]:
        """Run the model; see `deploy.session.InferenceSession.run`."""
        if batch.shape[1:] != (*self.spec.preprocess.size_hw, 3) or batch.dtype != "uint8":
            raise ModelError(f"a batch of {batch.dtype} {batch.shape}; this model takes {asdict(self.spec.preprocess)}")
        with self._torch.inference_mode():
            found: NDArray[Any] = self._graph(self._torch.from_numpy(batch)).numpy()
        return found

    def close(self) -> None:
        """Free the model's memory; `run` must not be called after."""
        del self._graph, self._model

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def prepare(request: Request) -> Callable[[], InferenceSession]:
    """Import PyTorch, whose code is not the model's memory, and return what loads the checkpoint.

    Raises:
        MissingDependencyError: There is no PyTorch here.
    """
    try:
        for module in ("torch", "export.graph", "lfd.checkpoint", "lfd.profile"):
            require(module, "train")
    except MissingDependencyError as error:
        raise MissingDependencyError(
            f"{request.path}: a checkpoint runs on PyTorch, which is not installed here. Fix: where it is, "
            f"lfd-export onnx {request.path.name} -o model.onnx, and measure that file"
        ) from error
    import torch  # noqa: PLC0415

    from lfd.profile import count_macs  # noqa: PLC0415

    count_macs(torch.nn.Conv2d(3, 1, 1), (1, 1))  # what counting needs is loaded now, and is not the model's either
    return lambda: TorchSession(request)


def describe(session: InferenceSession) -> ModelSpec:
    """Return the specification of a `TorchSession`, with its counts."""
    assert isinstance(session, TorchSession)  # noqa: S101 - `prepare` made it
    return session.described()


if __name__ == "__main__":
    main(prepare, describe)
