"""Baselines: b(s) or the lecture's b(s, h), fitted to returns by regression.

Each standardises its own inputs and targets, so neither the reward's scale nor the observation's
matters, and shares no parameter with the policy, so that fitting it can't move the policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.optim import Optimizer

from rlopt import check, linalg
from rlopt.distributed import gather, total, total_count, total_mean
from rlopt.linalg import (
    PASS_ROWS,
    Operator,
    assign,
    conjugate_gradient,
    damped,
    flatten,
    jacobian_metric_operator,
    set_gradient,
    sum_gradient,
    sum_operator,
)
from rlopt.line_search import backtrack
from rlopt.normalize import RunningNorm
from rlopt.policies import mlp
from rlopt.types import as_float


def _inputs(obs: Tensor, step: Tensor, sees_step: bool) -> Tensor:
    """Observations [.., d], with the step [..] of the episode as one more feature if it is seen."""
    if not sees_step:
        return obs
    x = as_float(obs)
    return torch.cat([x, step[..., None].to(x)], dim=-1)


class ZeroBaseline(nn.Module):
    """b = 0: the advantage is the return itself."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__()

    def forward(self, obs: Tensor, step: Tensor) -> Tensor:
        """Zeros [..]."""
        return torch.zeros_like(step, dtype=as_float(obs[:0]).dtype)

    def fit(self, obs: Tensor, step: Tensor, target: Tensor) -> dict[str, float]:
        """Nothing to fit."""
        return {}


class LinearBaseline(nn.Module):
    """Ridge regression on features of the observation and the step.

    Features: x, x^2 and 1, with x the standardised observation, and t, t^2, t^3 of the standardised
    step.

    Args:
        observation_space: Box of shape [d].
        ridge: lambda of lambda ||w||^2, on standardised targets and the mean over samples.
        sees_step: the step of the episode is a feature.

    Source: Duan et al. 2016, "Benchmarking deep reinforcement learning for continuous control",
    section 5.2.
    """

    weight: Tensor

    def __init__(self, observation_space: spaces.Space, *, ridge: float, sees_step: bool) -> None:
        super().__init__()
        check.positive(ridge=ridge)
        check.flag(sees_step=sees_step)
        assert observation_space.shape is not None
        size = observation_space.shape[0] + sees_step
        self.ridge = ridge
        self.sees_step = sees_step
        self.normalizer = RunningNorm(size)
        self.register_buffer("weight", torch.zeros(2 * size + sees_step + 1, dtype=torch.float64))

    def _features(self, obs: Tensor, step: Tensor) -> Tensor:
        x = self.normalizer(_inputs(obs, step, self.sees_step)).double()
        cube = [x[..., -1:] ** 3] if self.sees_step else []
        return torch.cat([x, x**2, *cube, torch.ones_like(x[..., :1])], dim=-1)

    def forward(self, obs: Tensor, step: Tensor) -> Tensor:
        """Values [..]."""
        return (self._features(obs, step) @ self.weight).to(as_float(obs[:0]))

    @torch.no_grad()
    def fit(self, obs: Tensor, step: Tensor, target: Tensor) -> dict[str, float]:
        """Solve (Phi^T Phi / B + ridge I) w = Phi^T y / B, in float64 on standardised targets."""
        self.normalizer.update(_inputs(obs, step, self.sees_step))
        phi, y = self._features(obs, step), target.double()
        mean, std = _mean_std(y)
        count = total_count(len(y))
        eye = torch.eye(phi.shape[1], dtype=phi.dtype, device=phi.device)
        gram = total(phi.T @ phi) / count + self.ridge * eye
        moment = total(phi.T @ ((y - mean) / std)) / count
        solution, info = torch.linalg.solve_ex(gram, moment)
        if info > 0:  # singular to rounding: features that depend on each other, a tiny ridge
            solution = torch.linalg.pinv(gram, hermitian=True) @ moment
        self.weight.copy_(solution * std)
        self.weight[-1] += mean
        return {"baseline/loss": float(total_mean(((phi @ self.weight - y) / std).square()))}


class MLPBaseline(nn.Module):
    """A multilayer perceptron fitted by least squares: an optimiser's epochs, or Gauss-Newton.

    The value is mean + std * network(x). Mean and std are those of the latest targets; when they
    change, the last layer is rescaled so that no value does (van Hasselt et al. 2016, "Learning
    values across many orders of magnitude").

    Gauss-Newton solves (J^T J / B + damping I) d = J^T (y - v) / B by conjugate gradient and takes
    d, or the first of its halvings that lowers the loss.

    Args:
        observation_space: Box of shape [d].
        hidden_sizes: widths of the hidden layers.
        activation: `tanh`, `relu`, `elu` or `silu`.
        orthogonal_init: orthogonal initial weights in place of `nn.Linear`'s.
        sees_step: the step of the episode is an input, as in the lecture's b(s, h).
        standardize_target: as above; else mean and std stay 0 and 1, and the scale of the return
            decides how fast the network learns.
        fit: `optimizer` or `gauss_newton`.
        optimizer: makes an optimiser from the parameters.
        epochs: passes over the data (`optimizer`), or Gauss-Newton steps.
        minibatch_size: transitions a gradient step, over all processes (`optimizer`).
        damping: lambda in J^T J / B + lambda I (`gauss_newton`).
        cg_iterations: products at the most for a Gauss-Newton step.
        chunk_size: samples whose graph a Gauss-Newton step holds at a time, or None for all.
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        *,
        hidden_sizes: Sequence[int],
        activation: str,
        orthogonal_init: bool,
        sees_step: bool,
        standardize_target: bool,
        fit: str,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        epochs: int,
        minibatch_size: int,
        damping: float,
        cg_iterations: int,
        chunk_size: int | None,
    ) -> None:
        super().__init__()
        check.sizes(hidden_sizes=hidden_sizes)
        check.flag(orthogonal_init=orthogonal_init)
        check.flag(sees_step=sees_step, standardize_target=standardize_target)
        check.one_of(["optimizer", "gauss_newton"], fit=fit)
        check.whole(epochs=epochs, minibatch_size=minibatch_size, cg_iterations=cg_iterations)
        check.positive(damping=damping)
        if chunk_size is not None:
            check.whole(chunk_size=chunk_size)
        if fit == "optimizer":
            check.optimizer(optimizer=optimizer)
        assert observation_space.shape is not None
        size = observation_space.shape[0] + sees_step
        self.sees_step = sees_step
        self.standardize_target = standardize_target
        self.epochs = epochs
        self.minibatch_size = minibatch_size
        self.damping = damping
        self.cg_iterations = cg_iterations
        self.chunk_size = chunk_size
        self.normalizer = RunningNorm(size)
        self.network = mlp([size, *hidden_sizes, 1], activation, 1.0, orthogonal_init)
        self.register_buffer("target_mean", torch.zeros(()))
        self.register_buffer("target_std", torch.ones(()))
        # torch's optimisers take a second to import: none for Gauss-Newton
        self.optimizer = optimizer(self.network.parameters()) if fit == "optimizer" else None

    def _standardized(self, x: Tensor) -> Tensor:
        """Standardised inputs [.., d] to standardised values [..]."""
        return self.network(x).squeeze(-1)

    def forward(self, obs: Tensor, step: Tensor) -> Tensor:
        """Values [..]."""
        x = self.normalizer(_inputs(obs, step, self.sees_step))
        return self.target_mean + self.target_std * self._standardized(x)

    def fit(self, obs: Tensor, step: Tensor, target: Tensor) -> dict[str, float]:
        """Least squares on targets [B]; the loss is in units of the variance, if standardised."""
        inputs = _inputs(obs, step, self.sees_step)
        if self.standardize_target:
            self._rescale(*_mean_std(target))
        self.normalizer.update(inputs)
        x = self.normalizer(inputs)
        y = (target - self.target_mean) / self.target_std
        if self.optimizer:
            self._run_optimizer(x, y, self.optimizer)
        else:
            for _ in range(self.epochs):
                self._gauss_newton_step(x, y)
        with torch.no_grad():
            return {"baseline/loss": float(total_mean((self._standardized(x) - y).square()))}

    def get_extra_state(self) -> dict[str, Any]:
        """The optimiser's state, which belongs into a checkpoint as well."""
        return self.optimizer.state_dict() if self.optimizer else {}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The reverse of `get_extra_state`."""
        if self.optimizer:
            self.optimizer.load_state_dict(state)

    @torch.no_grad()
    def _rescale(self, mean: Tensor, std: Tensor) -> None:
        """Take new target statistics without a change of any value, once there are values."""
        if self.normalizer.count > 0:
            last = self.network[-1]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(self.target_std / std)
            last.bias.copy_((self.target_std * last.bias + self.target_mean - mean) / std)
        self.target_mean.copy_(mean)
        self.target_std.copy_(std)

    def _run_optimizer(self, x: Tensor, y: Tensor, optimizer: Optimizer) -> None:
        parameters = list(self.network.parameters())
        num_minibatches = math.ceil(total_count(len(y)) / self.minibatch_size)
        for _ in range(self.epochs):
            order = torch.randperm(len(y)).to(y.device)
            for index in order.tensor_split(num_minibatches):
                loss = total_mean((self._standardized(x[index]) - y[index]).square())
                set_gradient(parameters, loss)
                optimizer.step()

    def _gauss_newton_step(self, x: Tensor, y: Tensor) -> None:
        parameters = list(self.network.parameters())
        theta = flatten(parameters).detach()
        count, size = total_count(len(y)), self.chunk_size or PASS_ROWS
        chunks = list(zip(x.split(size), y.split(size), strict=True))

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return (self._standardized(x) - y).square().sum() / 2 / count

        def curvature(x: Tensor) -> Operator:
            return jacobian_metric_operator(self._standardized(x), parameters, lambda u: u / count)

        g = sum_gradient((loss(*chunk) for chunk in chunks), parameters)
        JtJ = sum_operator([partial(curvature, x) for x, _ in chunks], keep=self.chunk_size is None)
        d = -conjugate_gradient(damped(JtJ, self.damping), g, self.cg_iterations, 0.0).x
        with torch.no_grad():
            old_loss = total(loss(x, y))

        @torch.no_grad()
        def reason_to_reject(scale: float) -> str | None:
            assign(parameters, theta + scale * d)
            return None if total(loss(x, y)) < old_loss else "loss"

        if backtrack(reason_to_reject, shrink=0.5, max_tries=10).scale == 0:
            assign(parameters, theta)


def _mean_std(target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of targets [B]; a std of 1 in the units of the mean where all are equal."""
    target = gather(target)
    mean, std = target.mean(), linalg.std(target)
    spread = std > 1e-6 * mean.abs()
    return mean, torch.where(spread, std, mean.abs().clamp(min=1.0))


def explained_variance(value: Tensor, target: Tensor) -> float:
    """1 - Var(target - value) / Var(target): 1 is perfect; nan for constant targets.

    The variances are those over all processes.
    """
    value, target = gather(value), gather(target)
    scale = linalg.power_of_two(target)
    value, target = value / scale, target / scale
    variance = target.var(unbiased=False)
    residual = (target - value).var(unbiased=False)
    return float(1 - residual / variance) if variance > 0 else math.nan
