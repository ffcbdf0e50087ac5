"""What passes between the parts: `Rollout` (sampled data), `Batch` (what an update sees).

Shapes: T steps, N environments, B valid transitions, k the size of a distribution's parameter
vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from rlopt.distributed import total, total_count
from rlopt.linalg import PASS_ROWS, sum_gradient


class NonFiniteError(FloatingPointError):
    """An environment gave a number that is not finite.

    Attributes:
        num_steps: transitions that were sampled to no use.
    """

    def __init__(self, message: str, num_steps: int) -> None:
        super().__init__(message)
        self.num_steps = num_steps


@dataclass(frozen=True)
class Rollout:
    """Time-major experience in Gymnasium's NEXT_STEP autoreset convention.

    After a done comes one row whose action is ignored; it has `valid = False` and is no
    transition. For every valid row `obs[t + 1]` is the true successor of `obs[t]`.

    Attributes:
        obs: [T+1, N, *]; uint8 where the environment's observations are, else floats.
        action: [T, N, *], as sampled (the environment may have received a clipped copy).
        reward: [T, N], 0 on invalid rows.
        terminated: [T, N] bool, the successor's value is 0.
        truncated: [T, N] bool, the sum is cut but the successor keeps its value.
        valid: [T, N] bool.
        step: [T+1, N] int64, index of `obs` within its episode.
        episode_returns: undiscounted returns of the episodes that ended, in order of ending.
        episode_lengths: their lengths in steps.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    step: Tensor
    episode_returns: list[float]
    episode_lengths: list[int]

    @property
    def num_steps(self) -> int:
        """Number of valid transitions, B."""
        return int(self.valid.sum())

    def flatten(self, x: Tensor) -> Tensor:
        """The valid entries of x [T, N, *] as [B, *], one environment after the other."""
        return x.transpose(0, 1)[self.valid.T]

    @property
    def num_trajectories(self) -> int:
        """Number of trajectories, M: runs of valid rows, whole episodes or parts of one."""
        starts = self.valid.clone()
        starts[1:] &= ~self.valid[:-1]
        return int(starts.sum())


@dataclass(frozen=True)
class Batch:
    """The valid transitions of a rollout, one environment after the other.

    Of several processes each holds the transitions of its own environments.

    Attributes:
        obs: [B, *].
        action: [B, *].
        advantage: [B].
        horizon: what a mean over steps is multiplied by to give the expectation that is wanted:
            1 for the mean over steps, B / M for the lecture's sum over a trajectory's steps,
            averaged over M trajectories.
        chunk_size: transitions whose graph is in memory at a time, or None for all of them.
    """

    obs: Tensor
    action: Tensor
    advantage: Tensor
    horizon: float = 1.0
    chunk_size: int | None = None

    def __len__(self) -> int:
        return len(self.advantage)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        return replace(
            self, obs=self.obs[index], action=self.action[index], advantage=self.advantage[index]
        )

    def chunks(self) -> list[Batch]:
        """The batch in parts that are passed through a network one at a time; at least one."""
        size = self.chunk_size or PASS_ROWS
        return [self[i : i + size] for i in range(0, max(len(self), 1), size)]

    @cached_property
    def count(self) -> int:
        """Number of transitions of all processes."""
        return total_count(len(self))

    def expect(self, x: Tensor) -> Tensor:
        """E[x] of a per-step quantity x [B], over the transitions of all processes: scalar.

        Differentiated, it gives this process' share of the gradient: what
        `linalg.set_gradient` adds up.
        """
        return self.horizon / self.count * total(x.sum())

    def gradient(self, x: Callable[[Batch], Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """The gradient of E[x(batch)] in `parameters`, [P], one chunk after the other.

        `x` maps a batch to a per-step quantity [B].
        """
        g = sum_gradient((x(chunk).sum() for chunk in self.chunks()), parameters)
        return self.horizon / self.count * g


class Policy(Protocol):
    """What every update rule needs of a policy, which is also an `nn.Module`.

    Observations are uint8 where the environment's are (images): the policy makes floats of them.
    """

    def dist_params(self, obs: Tensor) -> Tensor:
        """Observations [B, *] to distribution parameters [B, k]."""
        ...

    def dist(self, params: Tensor) -> Distribution:
        """Distribution parameters [B, k] to a distribution over actions, batch shape [B]."""
        ...

    def __call__(self, obs: Tensor) -> Distribution:
        """Both: the distribution over actions at `obs`."""
        ...

    def update_statistics(self, obs: Tensor) -> None:
        """Take observations [B, *] into the observation normaliser, if there is one."""
        ...

    def parameters(self) -> Any:
        """The parameters that an update moves."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """The reverse of `state_dict`."""
        ...


class Baseline(Protocol):
    """A regression of the return on observation, which may be uint8, and step."""

    def __call__(self, obs: Tensor, step: Tensor) -> Tensor:
        """Values [..] of observations [.., *] at steps [..] of their episodes."""
        ...

    def fit(self, obs: Tensor, step: Tensor, target: Tensor) -> dict[str, float]:
        """Fit to targets [B]; returns metrics."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """The reverse of `state_dict`."""
        ...


class UpdateRule(Protocol):
    """Is to a policy what `torch.optim.Optimizer` is to parameters."""

    def step(self, batch: Batch) -> dict[str, float]:
        """Move the policy's parameters; returns metrics."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What must be saved to go on exactly."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        ...


def float_tensor(x: Any, device: torch.device | str) -> Tensor:
    """Any array as a tensor of torch's default float type on `device`."""
    return torch.as_tensor(x, dtype=torch.get_default_dtype(), device=device)


def obs_tensor(x: Any, device: torch.device | str) -> Tensor:
    """An array of observations as a tensor: bytes stay bytes, a quarter of the floats' memory."""
    is_bytes = x.dtype == "uint8"
    return torch.as_tensor(x, device=device) if is_bytes else float_tensor(x, device)


def as_float(obs: Tensor) -> Tensor:
    """Observations as floats: bytes in torch's default float type."""
    return obs if obs.is_floating_point() else obs.to(torch.get_default_dtype())
