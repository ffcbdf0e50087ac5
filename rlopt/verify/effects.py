"""Checks of who moves what: parameters, statistics, random state, and what is reported of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rlopt.normalize import RunningNorm
from rlopt.rows import Row, at_most
from rlopt.verify.audit import ITERATIVE, Audit
from rlopt.verify.dense import brute_kl, has_sum


def actor_parameters(audit: Audit) -> list[Row]:
    """A tensor moves the KL if and only if it is among `policy.parameters()`.

    Finds a log std that was left out, a value head that was not, and a baseline on the policy's
    trunk. Tensors that want a gradient are looked for in all modules of policy and baseline.
    """
    actor = {id(p) for p in audit.parameters}
    with torch.no_grad():
        old = audit.policy.dist(audit.policy.dist_params(audit.batch.obs).clone())
        least, other, left_out = math.inf, 0.0, ""
        for name, x in trainable_tensors(audit).items():
            before = x.clone()
            generator = torch.Generator().manual_seed(3)
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            x.add_(0.1 * (1 + x.abs()) * noise)
            kl = float(brute_kl(old, audit.policy(audit.batch.obs)).abs().max())
            x.copy_(before)
            if id(x) in actor:
                least = min(least, kl)
            elif kl > other:
                other, left_out = kl, f" ({name})"
    shared = sum(id(p) in actor for p in audit.baseline.parameters())  # type: ignore[attr-defined]
    return [
        Row("least KL by nudging an actor's tensor", least, 1e-12, math.inf),
        at_most(f"largest KL by any other{left_out}", other, 1e-14),
        at_most("tensors that policy and baseline share", shared, 0.0),
    ]


def trainable_tensors(audit: Audit) -> dict[str, Tensor]:
    """Every tensor that wants a gradient in the modules of policy and baseline, by name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for owner, module in (("policy", audit.policy), ("baseline", audit.baseline)):
        assert isinstance(module, nn.Module)
        for prefix, part in module.named_modules():
            for key, x in {**dict(part._parameters), **vars(part)}.items():
                if isinstance(x, Tensor) and x.requires_grad and x.is_leaf:
                    found.setdefault(id(x), (".".join(filter(None, (owner, prefix, key))), x))
    return dict(found.values())


def moved_by_the_step(audit: Audit) -> list[Row]:
    """The step moves every tensor of the actor and none of the baseline; its fit none of ours."""
    step, _ = audit.step()
    parts = step.split([p.numel() for p in audit.parameters])
    still = sum(not bool(part.any()) for part in parts)
    by_step = audit.changed["baseline by the rule's step"]
    by_fit = audit.changed["policy by the baseline's fit"]
    return [
        at_most("tensors of the policy that stay", still, 0.0),
        at_most("tensors of the baseline that the step moves", by_step, 0.0),
        at_most("tensors of the policy that a fit moves", by_fit, 0.0),
    ]


def measured_kl(audit: Audit) -> list[Row]:
    """What the trainer reports of the whole iteration is KL(pi_old || pi_new) and the gain.

    Against a sum over actions, quadrature, or samples. The KL in the other direction differs by
    order KL^(3/2).
    """
    batch, old, new = audit.full_batch, audit.old, audit.new
    kl = brute_kl(old, new)
    truth = float(batch.expect(kl))
    log_ratio = new.log_prob(batch.action) - old.log_prob(batch.action)
    gain = float(batch.horizon * (log_ratio.exp() * batch.advantage - batch.advantage).mean())
    size = float(batch.horizon * (log_ratio.expm1() * batch.advantage).abs().mean())
    return [
        at_most("|KL / brute force - 1|", abs(audit.metrics["policy/kl"] / truth - 1),
                ITERATIVE if has_sum(old) else 0.05),
        at_most("|gain - brute force|, relative",
                abs(audit.metrics["policy/surrogate_gain"] - gain) / size, ITERATIVE),
    ]  # fmt: skip


def statistics(audit: Audit) -> list[Row]:
    """Normaliser statistics change by `update_statistics`, after the update, and by nothing else.

    Source: Andrychowicz et al. 2021 normalise alike; the order is this package's, for a ratio of 1.
    """
    rows = [
        at_most("tensors that sampling changes", audit.changed["policy by sampling"], 0.0),
        at_most("statistics that the step changes",
                audit.changed["statistics by the rule's step"], 0.0),
    ]  # fmt: skip
    if any(isinstance(m, RunningNorm) for m in audit.policy.modules()):  # type: ignore[attr-defined]
        moved = audit.statistics_moved_after_update
        rows.append(Row("statistics that move after the update", moved, 1, math.inf))
    return rows
