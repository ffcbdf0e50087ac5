"""What passes between the parts: `Rollout` (sampled data), `Batch` (what an update sees).

Shapes: T steps, N environments, B valid transitions, k the size of a distribution's parameter
vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution

from rlopt.distributed import gather_list, total, total_count
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
        obs: [T+1, N, *]; uint8 where the environment's observations are, else floats, float64 where
            float32 cannot hold them and the policy takes it. Under a recurrent policy floats
            [T+1, N, d + H], its state before the observation behind it.
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
    def starts(self) -> Tensor:
        """[T, N] bool, first rows of trajectories: runs of valid rows, whole episodes or parts."""
        starts = self.valid.clone()
        starts[1:] &= ~self.valid[:-1]
        return starts

    @property
    def num_trajectories(self) -> int:
        """Number of trajectories, M."""
        return int(self.starts.sum())


@dataclass(frozen=True)
class Batch:
    """The valid transitions of a rollout, one environment after the other.

    Of several processes each holds the transitions of its own environments. The rows of a sequence
    belong together, in their order; what divides a batch (`chunks`, `halves`, `every`, `subsample`,
    `minibatches`) divides it into units that stay whole: sequences where there are any, else rows.

    Attributes:
        obs: [B, *]; for a recurrent policy [B, d + H + 1], `starts` as its last column.
        action: [B, *].
        advantage: [B].
        horizon: what a mean over steps is multiplied by to give the expectation that is wanted:
            1 for the mean over steps, B / M for the lecture's sum over a trajectory's steps,
            averaged over M trajectories.
        chunk_size: transitions whose graph is in memory at a time, or None for all of them.
        starts: [B] bool, where each sequence begins, the first row among them; None where every row
            is a unit, as for policies without memory.
    """

    obs: Tensor
    action: Tensor
    advantage: Tensor
    horizon: float = 1.0
    chunk_size: int | None = None
    starts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.advantage)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        return replace(
            self,
            obs=self.obs[index],
            action=self.action[index],
            advantage=self.advantage[index],
            starts=None if self.starts is None else self.starts[index],
        )

    @cached_property
    def _sequences(self) -> list[Tensor]:
        """The rows of each sequence."""
        assert self.starts is not None
        rows = torch.arange(len(self), device=self.starts.device)
        return [part for part in rows.tensor_split(self.starts.nonzero()[:, 0].cpu()) if len(part)]

    @property
    def num_units(self) -> int:
        """Sequences of this process, or rows where there are none."""
        return len(self) if self.starts is None else len(self._sequences)

    def rows(self, units: Tensor | slice) -> Tensor | slice:
        """The rows of the units of these numbers, in their order."""
        if self.starts is None:
            return units
        numbers = range(self.num_units)[units] if isinstance(units, slice) else units.tolist()
        nothing = torch.arange(0, device=self.starts.device)
        return torch.cat([nothing, *(self._sequences[i] for i in numbers)])

    def chunks(self) -> list[Batch]:
        """Parts that are passed through a network one at a time; at least one."""
        units = self.chunk_size or PASS_ROWS
        if self.starts is not None:  # their steps follow each other: best all at once
            longest = max(map(len, self._sequences), default=1)
            units = max(1, self.chunk_size // longest if self.chunk_size else self.num_units)
        starts = range(0, max(self.num_units, 1), units)
        return [self[self.rows(slice(i, i + units))] for i in starts]

    def halves(self) -> tuple[Batch, Batch]:
        """The first half of the units and the second."""
        middle = self.num_units // 2
        return self[self.rows(slice(middle))], self[self.rows(slice(middle, None))]

    def every(self, n: int) -> Batch:
        """Every n-th unit."""
        return self[self.rows(slice(None, None, n))]

    def subsample(self, size: int) -> Batch:
        """Random units, about `size` transitions of all processes; the batch itself if smaller."""
        if size >= self.count:
            return self
        units = max(1, round(size / self.count * self.num_units))
        chosen = torch.randperm(self.num_units)[:units]
        return self[self.rows(chosen.to(self.obs.device))]

    def minibatches(self, size: int) -> list[Tensor | slice]:
        """Rows of a pass over the batch in random order, split evenly.

        At most `size` transitions of all processes each; of sequences about as many, and at least
        one sequence.
        """
        parts = math.ceil(self.count / size)
        if self.starts is not None:  # none may be empty in all processes
            parts = min(parts, max(gather_list([self.num_units])))
        order = torch.randperm(self.num_units).to(self.obs.device)
        return [self.rows(units) for units in order.tensor_split(parts)]

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
    Others are of torch's default float type; a policy whose attribute `takes_float64` is True gets
    those that float32 cannot hold in float64.
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


@runtime_checkable
class RecurrentPolicy(Policy, Protocol):
    """A policy with a memory: a state [H] of what was seen before, 0 at an episode's start.

    Its rows [B, d + H + 1] are observation, state before it, and 1 where a sequence begins. Of the
    states it takes those at the beginnings and makes the others anew.
    """

    state_size: int

    def advance(self, obs: Tensor, state: Tensor) -> tuple[Distribution, Tensor]:
        """One step: observations [N, d] and states [N, H] to distribution and next states."""
        ...


class Baseline(Protocol):
    """A regression of the return on observation and step.

    Observations are of the types that a policy gets; in float64 only if the baseline's attribute
    `takes_float64` is True.
    """

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


def obs_tensor(x: Any, dtype: torch.dtype, policy: object, device: torch.device | str) -> Tensor:
    """An array of observations as a tensor that the policy takes.

    Bytes stay bytes, a quarter of the floats' memory. `dtype` is that of `observations.obs_dtype`;
    where the policy does not take float64 the tensor is of torch's default float type.
    """
    if not getattr(policy, "takes_float64", False):
        dtype = torch.get_default_dtype()
    return torch.as_tensor(x, dtype=None if x.dtype == "uint8" else dtype, device=device)


def obs_for(part: object, obs: Tensor) -> Tensor:
    """Observations as a baseline takes them: in float64 only if its `takes_float64` is True."""
    if obs.dtype != torch.float64 or getattr(part, "takes_float64", False):
        return obs
    return obs.to(torch.get_default_dtype())
