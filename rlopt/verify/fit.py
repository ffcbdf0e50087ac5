"""Checks of the baseline: what it is fitted to, and its fit against dense solutions."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlopt.baselines import LinearBaseline, TrunkBaseline
from rlopt.distributions import sum_of
from rlopt.least_squares import NetworkBaseline
from rlopt.linalg import assign, flatten
from rlopt.normalize import ImageNorm, RunningNorm
from rlopt.policies import NetworkPolicy
from rlopt.rows import Row, at_most, not_applicable
from rlopt.verify.audit import ITERATIVE, ROUNDING, Audit, relative
from rlopt.verify.watch import replaced

MAX_JACOBIAN = 3e7  # entries
MAX_CG = 400
LEAST_DAMPING = 1e-3  # with which conjugate gradient arrives
OTHER_BASELINE = "a baseline of another kind"


def targets_of_the_fit(audit: Audit) -> list[Row]:
    """The baseline is fitted to advantage + value of the rollout's transitions, after the estimate.

    What is reported of it is 1 - Var(target - value) / Var(target) from before the fit.
    """
    target = audit.fit_args[2]
    scale = max(1.0, float(audit.fit_target.abs().max()))
    valid = audit.estimate_args[4]
    value = audit.estimate_args[1][:-1].T[valid.T]
    error = (target - audit.fit_target).abs().max() / scale
    rows = [at_most("largest error of a target, relative", error, ROUNDING)]
    if audit.watch.fits_come_first:
        return rows
    with at_state(audit):
        own = audit.baseline(*audit.fit_args[:2]).detach()
    y, v = target.cpu().numpy(), own.cpu().numpy()
    rows.append(at_most("values of the estimate: error, relative",
                        (value - own).abs().max() / scale, 1e-9))  # fmt: skip
    if np.var(y) > 1e-12 * max(1, np.abs(y).max()) ** 2:
        explained = 1 - np.var(y - v) / np.var(y)
        reported = audit.metrics["baseline/explained_variance"]
        rows.append(at_most("explained variance: error", abs(reported - explained), ITERATIVE))
    return rows


@contextmanager
def at_state(audit: Audit) -> Iterator[None]:
    """The baseline as it was before its last fit, and afterwards as it is now."""
    now = copy.deepcopy(audit.baseline.state_dict())
    audit.baseline.load_state_dict(copy.deepcopy(audit.baseline_state))
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        audit.baseline.load_state_dict(now)


def baseline_fit(audit: Audit) -> list[Row]:
    """One fit against the equations that it solves, made densely.

    Ridge regression: (Phi^T Phi / B + ridge I) w = Phi^T y / B on standardised targets y. A
    Gauss-Newton step: (J^T J / B + damping I) d = J^T (y - v) / B, the first of its halvings that
    lowers the loss. An optimiser: the gradient of the mean of (v - y)^2.
    """
    baseline = audit.baseline
    with at_state(audit):
        if isinstance(baseline, LinearBaseline):
            return ridge_rows(baseline, *audit.fit_args)
        if isinstance(baseline, NetworkBaseline):
            return network_rows(baseline, *few(audit, baseline))
    return [not_applicable(OTHER_BASELINE)]


def few(audit: Audit, baseline: NetworkBaseline) -> tuple[Tensor, ...]:
    """The fit's data, or as many evenly spread rows as a dense Jacobian is possible for."""
    most = max(8, int(MAX_JACOBIAN / sum(p.numel() for p in baseline.network.parameters())))
    every = -(-len(audit.fit_args[2]) // min(most, 128))
    return tuple(x[::every].clone() for x in audit.fit_args)


def ridge_rows(baseline: LinearBaseline, obs: Tensor, step: Tensor, target: Tensor) -> list[Row]:
    """Ridge regression: the residual of its equations, and the values that follow."""
    baseline.fit(obs, step, target)
    phi = features(baseline, obs, step)
    y = target.double().cpu().numpy()
    mean, std = y.mean(), y.std()
    if std <= 1e-6 * abs(mean):
        return [not_applicable("all targets are equal")]
    w = baseline.weight.cpu().numpy().copy()
    w[-1] -= mean
    gram = phi.T @ phi / len(y) + baseline.ridge * np.eye(phi.shape[1])
    moment = phi.T @ ((y - mean) / std) / len(y)
    residual = np.abs(gram @ (w / std) - moment).max() / np.abs(moment).max()
    value = baseline(obs, step).detach().cpu().numpy()
    error = np.abs(value - phi @ baseline.weight.cpu().numpy()).max() / np.abs(value).max()
    return [
        at_most("|A w - b| / |b| of the ridge regression", residual, 1e-8),
        at_most("values: |v - Phi w|, relative", error, ROUNDING),
    ]


def features(baseline: LinearBaseline, obs: Tensor, step: Tensor) -> NDArray:
    """[x, x^2, t^3, 1] of standardised inputs, by NumPy."""
    inputs = inputs_of(baseline.sees_step, obs, step)
    norm = baseline.normalizer
    mean, var = (x.double().cpu().numpy() for x in (norm.mean, norm.var))
    x = np.clip((inputs - mean) / scale_of(mean, var), -10, 10)
    cube = [x[:, -1:] ** 3] if baseline.sees_step else []
    return np.concatenate([x, x**2, *cube, np.ones((len(x), 1))], axis=1)


def scale_of(mean: NDArray, var: NDArray) -> NDArray:
    """Standard deviations; 1 for constants, whose variance is 0 but for rounding."""
    std = np.sqrt(var)
    return np.where(std > 1e-12 * np.abs(mean), std, 1.0)


def inputs_of(sees_step: bool, obs: Tensor, step: Tensor) -> NDArray:
    """Observations, and the step of the episode behind them, [B, d]."""
    x = obs.double().cpu().numpy()
    return np.concatenate([x, step.cpu().numpy()[:, None]], axis=1) if sees_step else x


def network_rows(baseline: NetworkBaseline, obs: Tensor, step: Tensor, target: Tensor) -> list[Row]:
    """A fit of a network: what precedes its steps, then one of them."""
    parameters = list(baseline.network.parameters())
    rows = rescaling_rows(baseline, obs, step, target)
    with replaced(baseline, epochs=0):
        baseline.fit(obs, step, target)  # statistics alone
    y = (target - baseline.target_mean) / baseline.target_std

    def standardized() -> Tensor:
        return (baseline(obs, step) - baseline.target_mean) / baseline.target_std

    v = standardized()
    J = torch.stack([
        flatten(torch.autograd.grad(entry, parameters, retain_graph=True)) for entry in v
    ])  # fmt: skip
    error, theta = y - v.detach(), flatten(parameters).detach()
    if baseline.optimizer is not None:
        return [*rows, *optimizer_rows(baseline, J.T @ -error * 2 / len(y), obs, step, target)]
    damping = max(baseline.damping, LEAST_DAMPING)
    inner = damping * torch.eye(len(y), dtype=J.dtype, device=J.device) + J @ J.T / len(y)
    d = J.T @ torch.linalg.solve(inner, error) / len(y)  # Woodbury

    def loss(scale: float) -> float:
        assign(parameters, theta + scale * d)
        with torch.no_grad():
            return float((standardized() - y).square().mean())

    tried = [(scale, loss(scale)) for scale in (0.5**i for i in range(10))]
    first = next((scale for scale, found in tried if found < loss(0.0)), 0.0)
    assign(parameters, theta)
    settings = {"epochs": 1, "cg_iterations": MAX_CG, "damping": damping}
    with no_statistics(baseline), replaced(baseline, **settings):
        metrics = baseline.fit(obs, step, target)
    moved = flatten(parameters).detach() - theta
    with torch.no_grad():
        after = float((standardized() - y).square().mean())
    return [
        *rows,
        at_most("|step - dense Gauss-Newton|, relative", relative(moved, first * d), 1e-5),
        at_most("reported loss: relative error", abs(metrics["baseline/loss"] / after - 1), 1e-9),
    ]


@contextmanager
def no_statistics(baseline: NetworkBaseline) -> Iterator[None]:
    """Its normaliser stays as it is."""

    def update(*args: object) -> None:
        pass

    with replaced(baseline.normalizer, update=update):
        yield


def rescaling_rows(
    baseline: NetworkBaseline, obs: Tensor, step: Tensor, target: Tensor
) -> list[Row]:
    """New target statistics are those of the targets, and change no value."""
    if not baseline.standardize_target:
        return []
    state = copy.deepcopy(baseline.state_dict())
    with torch.no_grad():
        before = baseline(obs, step)
        other = 3 * target - 5
        with no_statistics(baseline), replaced(baseline, epochs=0):
            baseline.fit(obs, step, other)
        after = baseline(obs, step)
    x = other.cpu().numpy()
    spread = x.std() > 1e-6 * abs(x.mean())
    mean, std = float(baseline.target_mean), float(baseline.target_std)
    baseline.load_state_dict(state)
    change = (after - before).abs().max() / max(1.0, float(before.abs().max()))
    rows = [at_most("new target scale: change of a value", change, 1e-9)]
    if spread:
        error = max(abs(mean - x.mean()), abs(std - x.std())) / x.std()
        rows.append(at_most("mean and std of targets: error, relative", error, 1e-9))
    return rows


def optimizer_rows(
    baseline: NetworkBaseline, g: Tensor, obs: Tensor, step: Tensor, target: Tensor
) -> list[Row]:
    """The gradients of an epoch of minibatches, without moving, and how many there are."""
    parameters = list(baseline.network.parameters())
    gradients: list[Tensor] = []

    def keep(*args: object) -> None:
        gradients.append(flatten(p.grad for p in parameters))  # type: ignore[misc]

    size = max(1, len(target) // 5)
    parts = math.ceil(len(target) / size)
    with no_statistics(baseline), replaced(baseline.optimizer, step=keep), replaced(
        baseline, epochs=2, minibatch_size=size
    ):  # fmt: skip
        baseline.fit(obs, step, target)
    sizes = [len(part) for part in torch.arange(len(target)).tensor_split(parts)]
    first = gradients[:parts]
    total = sum_of(n * x for n, x in zip(sizes, first, strict=True)) / len(target)
    return [
        at_most("steps of 2 epochs: |number - due|", abs(len(gradients) - 2 * parts), 0.0),
        at_most("sum of an epoch's gradients: error", relative(total, g), 1e-9),
        at_most("equal minibatches of two epochs", float(torch.equal(first[0], gradients[parts])),
                0.0),
    ]  # fmt: skip


def baseline_statistics(audit: Audit) -> list[Row]:
    """The baseline's normaliser after two fits, against NumPy on the inputs of both."""
    baseline = audit.baseline
    if isinstance(baseline, TrunkBaseline):
        if isinstance(audit.policy, NetworkPolicy):
            return trunk_rows(audit, audit.policy, baseline)
        return [not_applicable("a policy of another kind")]
    if not isinstance(baseline, LinearBaseline | NetworkBaseline):
        return [not_applicable(OTHER_BASELINE)]
    fits = audit.watch.fits
    inputs = [inputs_of(baseline.sees_step, obs, step) for obs, step, _ in fits]
    return statistics_rows(baseline.normalizer, np.concatenate(inputs))


def trunk_rows(audit: Audit, policy: NetworkPolicy, baseline: TrunkBaseline) -> list[Row]:
    """A trunk's features are what the policy's last layer sees; each update moves them."""
    seen: list[Tensor] = []
    obs = audit.batch.obs
    last = list(policy.network.children())[-1]
    handle = last.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with torch.no_grad():
        policy.dist_params(obs)
        handle.remove()
        error = (baseline.trunk(obs) - torch.cat(seen)).abs().max()
    return [at_most("features - what the last layer sees", error, ROUNDING)]


def statistics_rows(normalizer: nn.Module | None, x: NDArray) -> list[Row]:
    """Count, mean, variance and output of a normaliser that has seen x [B, d]."""
    if isinstance(normalizer, RunningNorm):
        norm, own = normalizer, x
    else:
        if not isinstance(normalizer, ImageNorm) or normalizer.running is None:
            return [not_applicable("no entry is standardised")]
        norm, own = normalizer.running, x[:, normalizer.vectors.cpu().numpy()]
    count, mean, var = (t.double().cpu().numpy() for t in (norm.count, norm.mean, norm.var))
    true_mean, true_var = own.mean(0), own.var(0)
    size = np.maximum(np.abs(own).max(0), 1e-100)
    few_rows = own[:100]
    output = norm(torch.as_tensor(few_rows, device=norm.mean.device)).cpu().numpy()
    varies = true_var > 1e-8 * size**2
    z = ((few_rows - true_mean) / scale_of(true_mean, true_var)).clip(-10, 10)
    far = norm(norm.mean + 100 * norm.var.sqrt()).cpu().numpy()
    return [
        at_most("|count - samples|", abs(float(count) - len(own)), 0.0),
        at_most("mean: largest error, relative", float((np.abs(mean - true_mean) / size).max()),
                1e-9),
        at_most("variance: largest error, relative",
                float((np.abs(var - true_var) / size**2).max()), 1e-9),
        at_most("standardised inputs: largest error",
                np.abs(output - z)[:, varies].max(initial=0), 1e-6),
        at_most("output at 100 std: error",
                np.abs(far[varies] - 10).max(initial=0), ROUNDING),
    ]  # fmt: skip
