"""The value as a network that is fitted by least squares: what its kinds of baseline share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
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
from rlopt.networks import in_passes
from rlopt.normalize import ImageNorm, RunningNorm


def inputs(obs: Tensor, step: Tensor, sees_step: bool) -> Tensor:
    """Observations [.., d], with the step [..] of the episode as one more feature if it is seen."""
    if not sees_step:
        return obs
    to_float = obs.dtype if obs.is_floating_point() else torch.get_default_dtype()
    return torch.cat([obs, step[..., None].to(to_float)], dim=-1)


class NetworkBaseline(nn.Module):
    """A network fitted by least squares: an optimiser's epochs, or Gauss-Newton.

    The value is mean + std * network(x). Mean and std are those of the latest targets; when they
    change, the last layer is rescaled so that no value does (van Hasselt et al. 2016, "Learning
    values across many orders of magnitude").

    Gauss-Newton solves (J^T J / B + damping I) d = J^T (y - v) / B by conjugate gradient and takes
    d, or the first of its halvings that lowers the loss.

    Args:
        normalizer: standardises the inputs.
        network: from rows of them [B, d] to [B, 1]; its last layer is linear.
        pass_rows: rows that are passed through it at a time.
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
    takes_float64 = True  # the normaliser subtracts the mean

    def __init__(
        self,
        normalizer: RunningNorm | ImageNorm,
        network: nn.Sequential,
        pass_rows: int,
        *,
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
        check.flag(sees_step=sees_step, standardize_target=standardize_target)
        check.one_of(["optimizer", "gauss_newton"], fit=fit)
        check.whole(epochs=epochs, minibatch_size=minibatch_size, cg_iterations=cg_iterations)
        check.positive(damping=damping)
        if chunk_size is not None:
            check.whole(chunk_size=chunk_size)
        if fit == "optimizer":
            check.optimizer(optimizer=optimizer)
        self.sees_step = sees_step
        self.standardize_target = standardize_target
        self.epochs = epochs
        self.minibatch_size = minibatch_size
        self.damping = damping
        self.cg_iterations = cg_iterations
        self.chunk_size = chunk_size
        self.normalizer = normalizer
        self.network = network
        self.pass_rows = pass_rows
        self.register_buffer("target_mean", torch.zeros(()))
        self.register_buffer("target_std", torch.ones(()))
        # torch's optimisers take a second to import: none for Gauss-Newton
        self.optimizer = optimizer(self.network.parameters()) if fit == "optimizer" else None

    def _inputs(self, obs: Tensor, step: Tensor) -> Tensor:
        """What the value is a function of, [.., d]; a fit asks once."""
        return inputs(obs, step, self.sees_step)

    def _standardized(self, x: Tensor) -> Tensor:
        """Inputs [.., d] to standardised values [..]."""
        value = in_passes(lambda rows: self.network(self.normalizer(rows)), x, self.pass_rows)
        return value.squeeze(-1)

    def forward(self, obs: Tensor, step: Tensor) -> Tensor:
        """Values [..]."""
        return self.target_mean + self.target_std * self._standardized(self._inputs(obs, step))

    def fit(self, obs: Tensor, step: Tensor, target: Tensor) -> dict[str, float]:
        """Least squares on targets [B]; the loss is in units of the variance, if standardised."""
        x = self._inputs(obs, step)
        if self.standardize_target:
            self._rescale(*mean_std(target))
        self.normalizer.update(x)
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
        keep = self.chunk_size is None or len(chunks) == 1
        JtJ = sum_operator([partial(curvature, x) for x, _ in chunks], keep)
        d = -conjugate_gradient(damped(JtJ, self.damping), g, self.cg_iterations, 0.0).x
        with torch.no_grad():
            old_loss = total(loss(x, y))

        @torch.no_grad()
        def reason_to_reject(scale: float) -> str | None:
            assign(parameters, theta + scale * d)
            return None if total(loss(x, y)) < old_loss else "loss"

        if backtrack(reason_to_reject, shrink=0.5, max_tries=10).scale == 0:
            assign(parameters, theta)


def mean_std(target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of targets [B]; a std of 1 in the units of the mean where all are equal."""
    target = gather(target)
    mean, std = target.mean(), linalg.std(target, correction=0)
    spread = std > 1e-6 * mean.abs()
    return mean, torch.where(spread, std, mean.abs().clamp(min=1.0))
