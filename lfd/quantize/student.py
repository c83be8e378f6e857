"""A student that computes in training as its INT8 file will.

The activations' fake quantisers are torchao's, with its moving average of the extremes; the weights' scale follows from
the weights, so that PyTorch's own operator does. Both round as ONNX's QuantizeLinear does, half to even, and let the
gradient through inside the range (Bengio et al., arXiv 1308.3432).

Not nvidia-modelopt, whose quantisers are symmetric: ONNX Runtime's files have zero points. It also wraps modules, and
brings 20 packages. Not torch.ao, which is deprecated for torchao.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lfd.errors import UsageError, require
from lfd.quantize.flavours import Plan, plan
from lfd.quantize.fold import fold
from lfd.quantize.rounding import held, in_half, in_units, mark, round_bias, round_weights, scale_of
from lfd.quantize.topology import TARGETS, Target
from lfd.quantize.trace import Calls, tensors_of, trace
from lfd.spec import Preprocess

MODULE = "int8"
"""The quantisers' place in the student."""
MOMENTUM = 0.01
"""Of the moving average of the extremes, a step."""

Mode = Literal["off", "simulate", "mark"]


class Int8(nn.Module):
    """The fake quantisers of a network, and the hooks that put them into its passes.

    Args:
        network: What is rounded where.
        pixels: (1, 3, 1, 1), 255 times the deviation that the picture was divided by.
        factors: What `lfd.quantize.fold.fold` returned.

    Attributes:
        mode: `off`, the network is the float one; `simulate`; or `mark`, nothing is rounded, and what would be is
            handed to an operator that says its number.
        observing: Ranges follow what passes, while this module is in training.
        until: Share of a run during which they do.
    """

    pixels: Tensor

    def __init__(self, network: Plan, pixels: Tensor, factors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.plan = network
        self.mode: Mode = "off"
        self.observing = False
        self.until = 0.0
        self.register_buffer("pixels", pixels, persistent=False)
        self.register_buffer("flavour", torch.tensor(TARGETS.index(network.target)))  # for `target_in`
        self.ranges = nn.ModuleDict({_key(name): _quantizer(network.target) for name in network.tensors})
        self.factors = nn.Module()  # kept with the weights, so that training goes on in the same units
        for path, factor in factors.items():
            self.factors.register_buffer(_key(path), factor)
        self._calls = Calls(self._visit)
        self._mode: Any = self._calls  # as a context, which torch leaves untyped
        self._inside = False
        self._seen: set[str] = set()

    @property
    def target(self) -> Target:
        """Whose file it computes as."""
        return self.plan.target

    def _of(self, name: str) -> Any:
        """Return the fake quantiser of a tensor."""
        return self.ranges[_key(name)]

    def step(self, progress: float) -> None:
        """Before a step's pass: let the ranges follow it, or keep them, by the share of the run that is done."""
        self.observing = progress < self.until

    def set_momentum(self, momentum: float) -> None:
        """Set how far the moving averages go with each pass."""
        for name in self.plan.tensors:
            self._of(name).activation_post_process.averaging_constant = momentum

    def grids(self) -> list[tuple[float, int]]:
        """Return scale and zero point of each of the plan's tensors."""
        found = (self._of(name) for name in self.plan.tensors)
        return [(float(held(quantizer.scale, self.target)), int(quantizer.zero_point)) for quantizer in found]

    def sound(self) -> bool:
        """Tell whether every range and every factor is one; those of a file from outside need not be."""
        low, high = (0, 255) if self.target == "ort" else (0, 0)
        return all(
            bool(quantizer.scale > 0)
            and low <= int(quantizer.zero_point) <= high
            and bool(quantizer.activation_post_process.min_val <= quantizer.activation_post_process.max_val)
            for quantizer in map(self._of, self.plan.tensors)
        ) and all(bool((torch.isfinite(factor) & (factor > 0)).all()) for factor in self.factors.buffers())

    def folded(self, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """Return a network's folded kernels and what they were multiplied by, for `lfd.quantize.fold.step_unfolded`."""
        found = [(model.get_parameter(f"{_path(key)}.weight"), factor) for key, factor in self.factors.named_buffers()]
        return [(kernel, factor.view(-1, *[1] * (kernel.dim() - 1))) for kernel, factor in found]

    def begin(self, *_: Any) -> None:
        """Before the network's pass."""
        if self.mode == "off":
            return
        self._seen.clear()
        self._calls.begin()
        self._mode.__enter__()
        self._inside = True

    def end(self, *_: Any) -> None:
        """After it, or after it failed."""
        if self._inside:
            self._inside = False
            self._mode.__exit__(None, None, None)

    def enter(self, path: str) -> None:
        """Before a module's pass."""
        if self._inside:
            self._calls.path.append(path)

    def leave(self) -> None:
        """After it."""
        if self._inside:
            self._calls.path.pop()

    def _visit(self, call: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs, weights = self.plan.inputs.get(call, {}), self.plan.weights.get(call, {})
        simulates = self.mode == "simulate"
        if inputs or (weights and simulates):
            given = tensors_of((args, kwargs))
            units = self.pixels if simulates and call == self.plan.first else None  # in which the file has it
            for index, name in inputs.items():
                given[index] = in_units(given[index], units, partial(self._round, name=name))
            if simulates and call in self.plan.biases:
                kernel = given[1] if units is None else given[1] / units
                step = self._of(self.plan.biases[call]).scale * scale_of(kernel, weights[1], self.target)
                given[2] = round_bias(given[2], step)
            if simulates and self.target == "trt" and weights and len(given) > 2:
                given[2] = in_half(given[2])  # the file's bias is fp16
            for index, axis in weights.items() if simulates else ():
                change = partial(round_weights, axis=axis, target=self.target)
                given[index] = in_units(given[index], units, change, inverse=True)
            args, kwargs = _put((args, kwargs), iter(given))
        result = func(*args, **kwargs)
        outputs = self.plan.outputs.get(call)
        if not outputs:
            return result
        made = tensors_of(result)
        for index, name in outputs.items():
            made[index] = self._round(made[index], name)
        return _put(result, iter(made))

    def _round(self, tensor: Tensor, name: str) -> Tensor:
        if self.mode == "mark":
            marked: Tensor = mark(tensor, self.plan.tensors.index(name))
            return marked
        quantizer = self._of(name)
        observer = quantizer.activation_post_process
        with torch.autocast(tensor.device.type, enabled=False):
            values = in_half(tensor.float()) if self.target == "trt" else tensor.float()
            if self.observing and self.training and name not in self._seen:  # once a pass, however many read it
                self._seen.add(name)
                observer(values.detach())
                scale, zero = quantizer.calculate_qparams()
                quantizer.scale.copy_(scale)
                quantizer.zero_point.copy_(zero)
            rounded: Tensor = torch.fake_quantize_per_tensor_affine(
                values,
                held(quantizer.scale, self.target),
                quantizer.zero_point,
                observer.quant_min,
                observer.quant_max,
            )
        return rounded.to(tensor.dtype)


def _quantizer(target: Target) -> Any:
    """Return torchao's fake quantiser of one activation."""
    fake, observer = _torchao("fake_quantize"), _torchao("observer")
    unsigned = target == "ort"
    return fake.FakeQuantize(
        observer=observer.MovingAverageMinMaxObserver,
        quant_min=0 if unsigned else -128,
        quant_max=255 if unsigned else 127,
        dtype=torch.uint8 if unsigned else torch.int8,
        qscheme=torch.per_tensor_affine if unsigned else torch.per_tensor_symmetric,
        averaging_constant=MOMENTUM,
    )


def _torchao(module: str) -> Any:
    """Import a module of torchao without what it says of its own insides: syntax, types of its other parts."""
    logger = logging.getLogger("torch.utils._pytree")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return require(f"torchao.quantization.pt2e.{module}", "quantize")
    finally:
        logger.setLevel(level)


def _key(name: str) -> str:
    return name.replace(".", "/")


def _path(key: str) -> str:
    return key.replace("/", ".")


def _put(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Return a value with its tensors replaced, in the order of `tensors_of`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {key: _put(each, tensors) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_put(each, tensors) for each in value)
    return value


class _Hook:
    """Calls the quantisers around a module's pass; a class, so that a copied network has its copied quantisers'."""

    def __init__(self, module: Int8, path: str, before: bool) -> None:
        self.int8, self.path, self.before = module, path, before

    def __call__(self, *_: Any) -> None:
        root = not self.path
        if self.before:
            self.int8.begin() if root else self.int8.enter(self.path)
        else:
            self.int8.end() if root else self.int8.leave()


def attach(model: nn.Module, target: Target, preprocess: Preprocess) -> Int8:
    """Fold a network's batch norms and give it the fake quantisers of its INT8 file; they are off.

    Args:
        model: The network, changed in place.
        target: Who is to run the file.
        preprocess: Its input.

    Raises:
        MissingDependencyError: torchao is not installed.
        UsageError: It has nothing that runs in int8.
    """
    _torchao("fake_quantize")  # before anything is changed
    factors = fold(model, preprocess.size_hw)
    network = plan(trace(model, preprocess.size_hw), target)
    if not network.weights:
        raise UsageError(f"{type(model).__name__}: has no convolution or product that could run in int8")
    device = next(model.parameters()).device
    int8 = Int8(network, 255 * torch.tensor(preprocess.std).view(1, 3, 1, 1), factors).to(device)
    paths = list(model.named_modules())
    for path, module in paths:
        module.register_forward_pre_hook(_Hook(int8, path, True))
        module.register_forward_hook(_Hook(int8, path, False), always_call=True)
    model.add_module(MODULE, int8)
    return int8


def find(model: nn.Module) -> Int8 | None:
    """Return a network's fake quantisers; None of a float network."""
    found = getattr(model, MODULE, None)
    return found if isinstance(found, Int8) else None


@contextlib.contextmanager
def as_int8(model: nn.Module, mode: Mode = "simulate") -> Iterator[nn.Module]:
    """Let a network compute as its INT8 file does, where it was trained so."""
    int8 = find(model)
    if int8 is None:
        yield model
        return
    before, int8.mode = int8.mode, mode
    try:
        yield model
    finally:
        int8.mode = before


def checked_target(name: str) -> Target:
    """Return a target by its name.

    Raises:
        UsageError: There is none.
    """
    for target in TARGETS:
        if target == name:
            return target
    raise UsageError(f"INT8 for {name!r}; expected {', '.join(TARGETS)}")


def target_in(state: Mapping[str, Tensor]) -> Target | None:
    """Return the target of the network that a state_dict is of; None of a float network's.

    Raises:
        UsageError: It is none of those that are known.
    """
    flavour = state.get(f"{MODULE}.flavour")
    if flavour is None:
        return None
    if flavour.dtype != torch.int64 or flavour.numel() != 1 or not 0 <= int(flavour) < len(TARGETS):
        raise UsageError(f"trained in INT8 for a target that is not known here; expected {', '.join(TARGETS)}")
    return TARGETS[int(flavour)]
