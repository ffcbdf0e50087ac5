"""The greedy policy as a program that needs none of this package: torch.export, and ONNX."""

from __future__ import annotations

import copy
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from rlopt.action_spaces import leaves, num_columns
from rlopt.checkpoint import write
from rlopt.types import RecurrentPolicy

BATCHES = (1, 7, 5000)  # sizes that a program is tried on,
MOST_NUMBERS = 2**22  # as far as its observations are no more numbers
ONNX = ("onnx", "onnxscript", "onnxruntime")
INPUTS, OUTPUTS = ["obs", "state"], ["action", "next_state"]


class Greedy(nn.Module):
    """Observations [B, *] to the most probable actions as an environment takes them.

    [B, *shape of the space], those of a Box within its bounds, Discrete ones from their start on;
    those of a Tuple or Dict [B, a], a column for each entry, leaf after leaf. Of a recurrent policy
    observations and states [B, H] to actions and next states; 0 is the state at an episode's start.
    """

    low: Tensor
    high: Tensor
    start: Tensor

    def __init__(self, policy: nn.Module, action_space: spaces.Space) -> None:
        super().__init__()
        self.policy: Any = policy
        columns = [np.stack(entries(leaf)) for leaf in leaves(action_space)]
        low, high, start = torch.from_numpy(np.concatenate(columns, axis=1))
        self.bounded = any(isinstance(leaf, spaces.Box) for leaf in leaves(action_space))
        self.shape = action_space.shape
        self.register_buffer("low", low.to(torch.get_default_dtype()))
        self.register_buffer("high", high.to(torch.get_default_dtype()))
        self.register_buffer("start", start.long())

    def forward(self, obs: Tensor, state: Tensor | None = None) -> Any:
        """The actions, and the next states if there are states."""
        if state is None:
            return self._taken(self.policy(obs).mode)
        dist, new_state = self.policy.advance(obs, state)
        return self._taken(dist.mode), new_state

    def _taken(self, action: Tensor) -> Tensor:
        if self.bounded:
            action = action.clamp(self.low, self.high)
        action = action + self.start
        return action if self.shape is None else action.reshape(-1, *self.shape)


def entries(leaf: spaces.Space) -> tuple[NDArray, NDArray, NDArray]:
    """Lower bound, upper bound and start of each entry of an action, [a] each."""
    size = num_columns(leaf)
    if isinstance(leaf, spaces.Box):
        return leaf.low.reshape(-1), leaf.high.reshape(-1), np.zeros(size)
    start = leaf.start if isinstance(leaf, spaces.Discrete | spaces.MultiDiscrete) else 0
    infinite = np.full(size, np.inf)
    return -infinite, infinite, np.broadcast_to(np.reshape(start, -1), size)


def export(greedy: Greedy, obs: Tensor, folder: Path) -> dict[Path, float]:
    """Write policy.pt2, and policy.onnx where the extra `onnx` is installed, for any batch size.

    Each is read back, and its actions are compared on random observations: to 1e-6, or 1e-5 where
    another library adds in another order. `obs` [B, *] is an example of the programs' input.

    Returns:
        The files, and the largest difference that `largest_difference` found.

    Raises:
        ValueError: torch.export can't trace the policy, or the actions differ by more.
    """
    example = inputs_like(greedy.policy, obs.new_zeros(2, *obs.shape[1:]))
    batch = {0: torch.export.Dim("batch")}
    frozen = copy.deepcopy(greedy).eval().requires_grad_(False)
    try:
        program = torch.export.export(frozen, tuple(example), dynamic_shapes=[batch] * len(example))
    except Exception as error:  # whatever a policy of the user's own does
        raise ValueError(f"torch.export can't trace the policy: {error}") from error
    files = [(folder / "policy.pt2", write_torch, read_torch, 1e-6)]
    if has_onnx():
        files.append((folder / "policy.onnx", write_onnx, read_onnx, 1e-5))
    differences = {}
    for path, write_program, read_program, tolerance in files:
        write_program(program, path)
        differences[path] = largest_difference(greedy, read_program(path), example)
        if not differences[path] <= tolerance:
            raise ValueError(f"{path} is wrong: actions differ by {differences[path]:.2g}")
    return differences


def inputs_like(policy: object, obs: Tensor) -> list[Tensor]:
    """What a program takes: observations [B, *], and states [B, H] of a recurrent policy."""
    if not isinstance(policy, RecurrentPolicy):
        return [obs]
    return [obs, torch.zeros(len(obs), policy.state_size)]


def has_onnx() -> bool:
    """Whether the extra `onnx` is installed."""
    try:
        with warnings.catch_warnings(action="ignore"):  # their own
            for name in ONNX:
                importlib.import_module(name)
    except ImportError:
        return False
    return True


@torch.no_grad()
def largest_difference(
    greedy: Greedy, program: Callable[..., Any], like: Sequence[Tensor]
) -> float:
    """Of the outputs at random inputs `like` others, over 1 or the largest output.

    Near a tie of two actions rounding decides: the policy's actions are those at the observations,
    or a hundred-thousandth beside them.
    """
    worst, generator = 0.0, torch.Generator().manual_seed(0)
    for size in BATCHES:
        size = min(size, MOST_NUMBERS // max(x[0].numel() for x in like))
        inputs = [_random(x, size, generator) for x in like]
        nearby = [greedy(*(x * (1 + e) for x in inputs)) for e in (0.0, -1e-5, 1e-5)]
        for actual, *expected in zip(*map(outputs, [program(*inputs), *nearby]), strict=True):
            assert actual.shape == expected[0].shape
            difference = torch.stack([(actual - x).abs() for x in expected]).amin(0)
            worst = max(worst, float(difference.max() / expected[0].abs().max().clamp(min=1)))
    return worst


def _random(like: Tensor, size: int, generator: torch.Generator) -> Tensor:
    shape = (size, *like.shape[1:])
    if like.is_floating_point():
        return torch.randn(shape, generator=generator, dtype=like.dtype)
    return torch.randint(256, shape, generator=generator, dtype=like.dtype)


def outputs(returned: Any) -> tuple[Tensor, ...]:
    """One output or several."""
    return (returned,) if isinstance(returned, Tensor) else tuple(returned)


def write_torch(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write what `torch.export.load` reads."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write(path, buffer.getvalue())


def read_torch(path: Path) -> Callable[..., Any]:
    """The program as a function of observations."""
    return torch.export.load(path).module()


def write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write an ONNX model of `obs` to `action`; of `obs`, `state` to `action`, `next_state`."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
    buffer: Any = io.BytesIO()
    number = len(program.example_inputs[0])
    names: dict[str, Any] = {"input_names": INPUTS[:number], "output_names": OUTPUTS[:number]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of torch
        onnx = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    assert onnx is not None
    onnx.save(buffer)
    write(path, buffer.getvalue())


def read_onnx(path: Path) -> Callable[..., Any]:
    """The model, run by onnxruntime, as a function of observations."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def program(*inputs: Tensor) -> list[Tensor]:
        arrays = {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=False)}
        return [torch.as_tensor(x) for x in session.run(None, arrays)]

    return program
