"""Checks of what the trainer reports of an iteration, beside KL and gain."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from rlopt.linalg import assign, flatten
from rlopt.rows import Row, at_most, not_applicable
from rlopt.verify.audit import ITERATIVE, Audit
from rlopt.verify.dense import kl_hessian

WIDTH = 1e-4  # of the difference along the step
CURVATURE_SAMPLES = 256  # documented: about so many transitions or sequences


def reported_update(audit: Audit) -> list[Row]:
    """Entropies before and after, and the audit trail: the step's first- and second-order gain.

    The predicted KL comes from a difference of width 1e-2 along the step: judged to 2%.
    """
    metrics, old, new = audit.metrics, audit.old, audit.new
    with torch.no_grad():
        entropies = [float(dist.entropy().mean()) for dist in (old, new)]
    names = ("policy/entropy", "policy/entropy_after")
    size = max(1.0, *map(abs, entropies))
    error = max(abs(metrics[n] - due) for n, due in zip(names, entropies, strict=True)) / size
    rows = [at_most("entropy before and after: error", error, 1e-9)]
    if "audit/predicted_kl" not in metrics:
        return [*rows, not_applicable("diagnostics=false: no audit trail")]
    step, (g, first, second) = audit.taken_step, gradients(audit)
    gain, cosine = float(g.dot(step)), float(cosine_similarity(g, step, dim=0))
    split = float(cosine_similarity(first, second, dim=0))
    scale = float(g.norm() * step.norm()) or 1.0
    kl = quadratic_kl(audit, step)
    return [
        *rows,
        at_most("audit/predicted_gain: error, relative",
                abs(metrics["audit/predicted_gain"] - gain) / scale, ITERATIVE),
        at_most("audit/step_gradient_cosine: error",
                abs(metrics["audit/step_gradient_cosine"] - cosine), ITERATIVE),
        at_most("audit/gradient_split_cosine: error",
                abs(metrics["audit/gradient_split_cosine"] - split), ITERATIVE),
        at_most("audit/predicted_kl: error, relative",
                abs(metrics["audit/predicted_kl"] / kl - 1) if kl > 0 else 0.0, 0.02),
    ]  # fmt: skip


def gradients(audit: Audit) -> tuple[Tensor, Tensor, Tensor]:
    """E[A grad ln pi] of the batch, of the first half of its units and of the second, each [P].

    The first is the mean of the halves where units are rows, of which one may be left over.
    """
    batch, unit = audit.full_batch, units(audit)
    log_prob = audit.policy(batch.obs).log_prob(batch.action)
    x = batch.horizon * batch.advantage * log_prob
    in_first = unit < (int(unit.max()) + 1) // 2
    first, second = (
        flatten(torch.autograd.grad(x[part].mean(), audit.parameters, retain_graph=True))
        for part in (in_first, ~in_first)
    )
    weight = 0.5 if batch.starts is None else float(in_first.double().mean())
    return weight * first + (1 - weight) * second, first, second


def units(audit: Audit) -> Tensor:
    """The number of each transition's unit [B]: its sequence, or itself."""
    batch = audit.full_batch
    if batch.starts is None:
        return torch.arange(len(batch), device=batch.obs.device)
    return batch.starts.cumsum(0) - 1


def quadratic_kl(audit: Audit, step: Tensor) -> float:
    """1/2 E[(J step)^T M (J step)] on every n-th unit of the batch."""
    batch = audit.full_batch
    keep = units(audit) % max(1, len(batch) // CURVATURE_SAMPLES) == 0
    obs = batch.obs[keep]
    ends = []
    with torch.no_grad():
        for width in (WIDTH, -WIDTH):
            assign(audit.parameters, audit.theta + width * step)
            ends.append(audit.policy.dist_params(obs).clone())
        audit.restore()
        params = audit.policy.dist_params(obs).clone()
    Jd = (ends[0] - ends[1]) / (2 * WIDTH)
    return 0.5 * batch.horizon * float(
        torch.einsum("bk,bkl,bl->b", Jd, kl_hessian(audit.policy, params), Jd).mean()
    )  # fmt: skip


def reported_episodes(audit: Audit) -> list[Row]:
    """Number and mean length of the episodes that ended, and the mean of the last 100 returns."""
    metrics, rollout = audit.metrics, audit.rollout
    lengths, recent = rollout.episode_lengths, list(audit.trainer.recent_returns)
    rows = [at_most("|rollout/episodes - number|",
                    abs(metrics["rollout/episodes"] - len(lengths)), 0.0)]  # fmt: skip
    if not lengths:
        return [*rows, not_applicable("no episode ended")]
    mean, returns = sum(lengths) / len(lengths), sum(recent) / len(recent)
    latest = rollout.episode_returns[-100:]
    done = rollout.valid & (rollout.terminated | rollout.truncated)
    ends = sorted((rollout.step[:-1][done] + 1).tolist())
    return [
        *rows,
        at_most("lengths of episodes that differ",
                sum(a != b for a, b in zip(ends, sorted(lengths), strict=True)), 0.0),
        at_most("rollout/length_mean: error", abs(metrics["rollout/length_mean"] - mean), 1e-9),
        at_most("rollout/return_mean: error, relative",
                abs(metrics["rollout/return_mean"] - returns) / max(1, abs(returns)), 1e-9),
        at_most("latest returns that are not in it",
                sum(a != b for a, b in zip(latest, recent[-len(latest):], strict=True)), 0.0),
    ]  # fmt: skip
