"""The greedy policy as a program that needs none of this package: torch.export, and ONNX."""

from __future__ import annotations

import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlopt.checkpoint import write

BATCHES = (1, 7, 5000)  # sizes that a program is tried on
ONNX = ("onnx", "onnxscript", "onnxruntime")


class Greedy(nn.Module):
    """Flat observations [B, d] to the most probable actions [B, *] as `env.step` takes them.

    Raises:
        ValueError: actions are neither Discrete nor a Box.
    """

    low: Tensor
    high: Tensor

    def __init__(self, policy: nn.Module, action_space: spaces.Space) -> None:
        super().__init__()
        if not isinstance(action_space, spaces.Discrete | spaces.Box):
            raise ValueError(f"export needs Discrete or Box actions, got {action_space}")
        self.policy = policy
        self.space = action_space
        if isinstance(action_space, spaces.Box):
            self.register_buffer("low", torch.as_tensor(action_space.low))
            self.register_buffer("high", torch.as_tensor(action_space.high))

    def forward(self, obs: Tensor) -> Tensor:
        """The actions: within the bounds of a Box, or counted from Discrete's start."""
        action = self.policy(obs).mode
        if isinstance(self.space, spaces.Discrete):
            return action + int(self.space.start)
        return action.reshape(-1, *self.low.shape).clamp(self.low, self.high)


def export(greedy: Greedy, obs_shape: tuple[int, ...], folder: Path) -> dict[Path, float]:
    """Write policy.pt2, and policy.onnx where the extra `onnx` is installed, for any batch size.

    Each is read back, and its actions are compared on random observations: to 1e-6, or 1e-5 where
    another library adds in another order.

    Returns:
        The files, and the largest difference that `largest_difference` found.

    Raises:
        ValueError: torch.export can't trace the policy, or the actions differ by more.
    """
    example, batch = (torch.zeros(2, *obs_shape),), {0: torch.export.Dim("batch")}
    frozen = copy.deepcopy(greedy).eval().requires_grad_(False)
    try:
        program = torch.export.export(frozen, example, dynamic_shapes=(batch,))
    except Exception as error:  # whatever a policy of the user's own does
        raise ValueError(f"torch.export can't trace the policy: {error}") from error
    files = [(folder / "policy.pt2", write_torch, read_torch, 1e-6)]
    if has_onnx():
        files.append((folder / "policy.onnx", write_onnx, read_onnx, 1e-5))
    differences = {}
    for path, write_program, read_program, tolerance in files:
        write_program(program, path)
        differences[path] = largest_difference(greedy, read_program(path), obs_shape)
        if not differences[path] <= tolerance:
            raise ValueError(f"{path} is wrong: actions differ by {differences[path]:.2g}")
    return differences


def has_onnx() -> bool:
    """Whether the extra `onnx` is installed."""
    return all(importlib.util.find_spec(name) for name in ONNX)


@torch.no_grad()
def largest_difference(
    greedy: Greedy, program: Callable[[Tensor], Tensor], obs_shape: tuple[int, ...]
) -> float:
    """Of the actions at random observations, over 1 or the largest action.

    Of whole numbers that of their log-probabilities: of two equally probable ones either is right.
    """
    worst, generator = 0.0, torch.Generator().manual_seed(0)
    for size in BATCHES:
        obs = torch.randn(size, *obs_shape, generator=generator)
        expected, actual = greedy(obs), program(obs)
        assert actual.shape == expected.shape
        if expected.is_floating_point():
            difference = (actual - expected) / max(1.0, float(expected.abs().max()))
        else:
            dist = greedy.policy(obs)
            difference = dist.log_prob(actual) - dist.log_prob(expected)
        worst = max(worst, float(difference.abs().max()))
    return worst


def write_torch(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write what `torch.export.load` reads."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write(path, buffer.getvalue())


def read_torch(path: Path) -> Callable[[Tensor], Tensor]:
    """The program as a function of observations."""
    return torch.export.load(path).module()


def write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write an ONNX model with the input `obs` and the output `action`."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
    buffer: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of torch
        onnx = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["obs"], output_names=["action"]
        )
    assert onnx is not None
    onnx.save(buffer)
    write(path, buffer.getvalue())


def read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """The model, run by onnxruntime, as a function of observations."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda obs: torch.as_tensor(session.run(["action"], {"obs": obs.numpy()})[0])
