"""One real iteration of a trainer, watched, and trial steps of its rule from where it began."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from rlopt import fisher, linalg
from rlopt.algos.npg import NPG
from rlopt.algos.trpo import TRPO
from rlopt.linalg import Operator, assign, flatten
from rlopt.trainer import Trainer
from rlopt.types import Batch
from rlopt.verify.dense import Dense, brute_kl, has_sum
from rlopt.verify.draws import Samples, sample_away
from rlopt.verify.watch import Watch, num_changed, recorded_samples, replaced, tensors_of

MAX_CG = 400  # iterations in which conjugate gradient must have converged
NUM_SAMPLES = 64  # of the batch that the dense oracles run on
MAX_JACOBIAN = 3e7  # entries; larger networks are checked on fewer samples
DEFAULTS: dict[str, Any] = {
    "fisher": "exact",
    "damping": 0.01,
    "cg_iterations": 10,
    "cg_tolerance": 1e-3,
}

ROUNDING = 1e-10  # tolerances, see rlopt.verify
ITERATIVE = 1e-6
WIDTHS = (1e-5, 1e-6, 1e-7)  # of central differences


def relative(x: Tensor, truth: Tensor) -> float:
    """||x - truth|| / ||truth||."""
    return float((x - truth).norm() / truth.norm())


class Audit:
    """A trainer after one watched iteration, its policy put back to where that iteration began.

    A first iteration goes before, so that normaliser, baseline and policy are not at their start.

    Attributes:
        rollout: what the update was sampled from; `estimate_args` and `advantage` [T, N], what the
            estimator was given and returned.
        sampled_log_prob: [B], of each action when it was sampled, under the policy of that moment.
        update_log_prob: [B], of the batch's actions when the rule was called.
        full_batch: the rule's batch; `old` and `new` are pi_k and the updated policy on it.
        metrics: what the iteration reported; `taken_step` [P], what it added to the parameters.
        changed: how many tensors changed where none should: keys are what, by what.
        fit_args, fit_target: what the baseline was fitted to, and what it should have been: the
            advantages and values of the latest estimate, added.
        baseline_state: the baseline's before that fit.
        watch: what was written down of both iterations.
        batch: up to 64 transitions of it, on which everything else is measured.
        theta: [P], the actor's parameters pi_k.
        dense: the independent gradient and Fisher matrix at theta on `batch`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.policy, self.baseline, self.rule = trainer.policy, trainer.baseline, trainer.rule
        self.parameters = list(self.policy.parameters())
        self.first_rule_state = copy.deepcopy(self.rule.state_dict())
        self.changed: dict[str, int] = {}
        trainer.env_steps, trainer.recent_returns = 0, deque(maxlen=100)
        self.watch = Watch(trainer)
        self.watch.iterate()
        self._watch()
        self._shrink_batch()
        if isinstance(self.rule, NPG | TRPO):  # what is measured from here on is on few anyway
            self.rule.fisher_samples = None

    def _watch(self) -> None:
        trainer, policy, baseline, rule = self.trainer, self.policy, self.baseline, self.rule
        originals = rule.step, baseline.fit, trainer.rollout.collect, trainer.advantage
        policy_start = tensors_of(policy)
        statistics = [n for n in policy_start if n[2:] not in self._parameter_names()]

        def step(batch: Batch) -> dict[str, float]:
            self.full_batch, self.state = batch, copy.deepcopy(policy.state_dict())
            with torch.no_grad():
                self.old = policy.dist(policy.dist_params(batch.obs).clone())
                self.update_log_prob = policy(batch.obs).log_prob(batch.action)
            before = tensors_of(policy), tensors_of(baseline)
            metrics = originals[0](batch)
            after = tensors_of(policy), tensors_of(baseline)
            self.changed["baseline by the rule's step"] = num_changed(before[1], after[1])
            self.changed["statistics by the rule's step"] = num_changed(
                {n: before[0][n] for n in statistics}, after[0]
            )
            with torch.no_grad():
                self.new = policy.dist(policy.dist_params(batch.obs).clone())
            self.before_statistics = {n: after[0][n] for n in statistics}
            return metrics

        def fit(*args: Tensor) -> dict[str, float]:
            before = tensors_of(policy)
            self.fit_args, self.baseline_state = args, copy.deepcopy(baseline.state_dict())
            valid, target = self.estimate_args[4], self.advantage + self.estimate_args[1][:-1]
            self.fit_target = target.T[valid.T]
            metrics = originals[1](*args)
            self.changed["policy by the baseline's fit"] = num_changed(before, tensors_of(policy))
            return metrics

        def collect(policy: Any) -> Any:
            before = tensors_of(policy)
            with recorded_samples(policy) as samples:
                self.rollout = originals[2](policy)
            self.changed["policy by sampling"] = num_changed(before, tensors_of(policy))
            rows = samples[-len(self.rollout.action) :]
            unknown = torch.full_like(self.rollout.reward, torch.nan)  # not by `dist.sample`
            known = torch.stack(rows) if len(rows) == len(unknown) else unknown
            self.sampled_log_prob = self.rollout.flatten(known)
            return self.rollout

        def advantage(*args: Tensor) -> Tensor:
            self.estimate_args, self.advantage = args, originals[3](*args)
            return self.advantage

        with (
            replaced(rule, step=step),
            replaced(baseline, fit=fit),
            replaced(trainer.rollout, collect=collect),
            replaced(trainer, advantage=advantage),
        ):
            self.metrics = self.watch.iterate()
        moved = num_changed(self.before_statistics, tensors_of(policy))
        self.statistics_moved_after_update = moved
        self.state_after = copy.deepcopy(policy.state_dict())
        after = flatten(self.parameters).detach()
        self.restore()
        self.taken_step = after - flatten(self.parameters).detach()

    def _parameter_names(self) -> set[str]:
        assert isinstance(self.policy, nn.Module)
        return {name for name, _ in nn.Module.named_parameters(self.policy)}

    def restore(self) -> None:
        """The policy as it was when the watched update began."""
        self.policy.load_state_dict(self.state)

    @contextmanager
    def after_the_iteration(self) -> Iterator[None]:
        """The policy as the watched iteration left it, for a while."""
        self.policy.load_state_dict(self.state_after)
        try:
            yield
        finally:
            self.restore()

    def _shrink_batch(self) -> None:
        full = self.full_batch
        self.theta = flatten(self.parameters).detach()
        size_of_dist = self.policy.dist_params(full.obs[:1]).shape[-1]
        most = max(8, int(MAX_JACOBIAN / (size_of_dist * len(self.theta))))
        generator = torch.Generator().manual_seed(0)
        units = torch.randperm(full.num_units, generator=generator).to(full.obs.device)
        batch = full[full.rows(units)][: min(NUM_SAMPLES, most)]  # of the last sequence a part
        if batch.advantage.std(unbiased=False) < 1e-6:  # nothing to learn: any signal will do
            random = torch.randn(len(batch), generator=generator).to(batch.advantage)
            batch = dataclasses.replace(batch, advantage=random)
        self.batch = batch
        self.dense = Dense(self.policy, self.parameters, batch, self.setting("fisher"))

    # The configured pieces

    def setting(self, name: str) -> Any:
        """A setting of the rule, or a usual value where the rule has none of that name."""
        default = DEFAULTS.get(name)
        return getattr(self.rule, name, default) if self.is_natural else default

    @property
    def is_natural(self) -> bool:
        """Whether the rule is a natural gradient of the package's."""
        return isinstance(self.rule, NPG | TRPO)

    @property
    def damping(self) -> float:
        """The rule's damping; a usual one where it has none, for F is singular on few samples."""
        own = self.rule.damping if isinstance(self.rule, NPG | TRPO) else 0.0
        return own or DEFAULTS["damping"] * self.batch.horizon

    @property
    def solved(self) -> dict[str, Any]:
        """Settings with which the rule's linear system has one solution, and CG reaches it."""
        settings = {"damping": self.damping, "cg_iterations": MAX_CG, "cg_tolerance": 1e-10}
        return settings if self.is_natural else {}

    @property
    def radius(self) -> float | None:
        """The KL that the rule's step is documented to have, None for rules without."""
        if not isinstance(self.rule, NPG | TRPO):
            return None
        fixed = isinstance(self.rule, NPG) and self.rule.step_size is not None
        return None if fixed else self.rule.max_kl

    def used_by_rule(self, default: Callable[..., Any]) -> Callable[..., Any]:
        """The function of that name in the module of the rule, else the package's."""
        if not self.is_natural:
            return default
        modules = [sys.modules[c.__module__] for c in type(self.rule).__mro__]
        found = [vars(m)[default.__name__] for m in modules if default.__name__ in vars(m)]
        return found[0] if found else default

    def fisher_operator(self) -> Operator:
        """The Fisher operator that the rule works with, on `batch`."""
        make = self.used_by_rule(fisher.fisher_operator)
        return make(self.policy, self.batch, self.setting("fisher"))

    def conjugate_gradient(self, A: Operator, b: Tensor, iterations: int, tolerance: float) -> Any:
        """The solver that the rule works with."""
        solve = self.used_by_rule(linalg.conjugate_gradient)
        return solve(A, b, iterations, tolerance)

    def step(self, batch: Batch | None = None, **settings: Any) -> tuple[Tensor, dict[str, float]]:
        """What a step of the rule adds, [P], and its metrics; settings changed for this step.

        The rule starts as new each time (no momentum), and everything is put back.
        """
        self.rule.load_state_dict(copy.deepcopy(self.first_rule_state))
        try:
            with replaced(self.rule, **settings), torch.random.fork_rng():
                torch.manual_seed(0)
                metrics = self.rule.step(self.batch if batch is None else batch)
            return flatten(self.parameters).detach() - self.theta, metrics
        finally:
            self.restore()

    def with_advantage(self, advantage: Tensor) -> Batch:
        """`batch` with other advantages [B]."""
        return dataclasses.replace(self.batch, advantage=advantage)

    # Other parameters

    def mean(self, x: Tensor) -> Tensor:
        """E[x] of a per-step quantity x [B] on `batch`."""
        return self.batch.horizon * x.mean()

    @cached_property
    def away(self) -> Tensor:
        """A random step [P] of a KL near 1/2: a policy that is not near to its start.

        As long in every tensor: a log std of one entry moves as much as a matrix of thousands.
        """
        generator, length = torch.Generator().manual_seed(5), 1.0
        parts = [torch.randn(p.shape, generator=generator).to(self.theta) for p in self.parameters]
        v = flatten(part / part.norm() for part in parts)

        def kl(length: float) -> float:
            return float(kl_divergence(*self.at(length * v)).mean())

        for _ in range(60):
            if kl(length) > 0.7:
                length /= 1.3
            elif kl(length) < 0.3:
                length *= 1.4
            else:
                break
        return length * v

    @cached_property
    def samples(self) -> Samples:
        """Actions of that policy."""
        return sample_away(self)

    @torch.no_grad()
    def at(self, delta: Tensor) -> tuple[Distribution, Distribution]:
        """pi_k and the policy at theta + delta, on `batch`."""
        old = self.policy.dist(self.policy.dist_params(self.batch.obs).clone())
        assign(self.parameters, self.theta + delta)
        new = self.policy.dist(self.policy.dist_params(self.batch.obs).clone())
        self.restore()
        return old, new

    def kl(self, delta: Tensor) -> float:
        """E[KL(pi_k || pi at theta + delta)], by brute force where that is exact."""
        old, new = self.at(delta)
        kl = brute_kl(old, new) if has_sum(old) else kl_divergence(old, new)
        return float(self.mean(kl))

    def gain(self, delta: Tensor, advantage: Tensor | None = None) -> float:
        """The surrogate E[pi / pi_k A] at theta + delta, minus E[A]."""
        A = self.batch.advantage if advantage is None else advantage
        return float(self.mean(self.log_ratio(delta).expm1() * A))

    def log_ratio(self, delta: Tensor) -> Tensor:
        """Ln pi / pi_k of the actions [B] at theta + delta."""
        old, new = self.at(delta)
        return new.log_prob(self.batch.action) - old.log_prob(self.batch.action)
