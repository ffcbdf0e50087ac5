"""What one update is worth: rules applied to copies of one frozen policy on one batch.

P parameters, N episodes. A rule's step is x = theta_new - theta_old [P]: `audit` predicts its gain
and KL from the expansions at theta_old and measures both on the batch; `paired_change` estimates
the change of the return from episodes in which both policies share environment seeds and action
noise; `exact_return` needs no episodes where the transition table is known.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor
from torch.distributions import kl_divergence

from rlopt.envs import find_spec
from rlopt.fisher import fisher_operator
from rlopt.linalg import assign, flatten
from rlopt.mdp import TabularEnv, TabularMDP, from_gymnasium
from rlopt.recorder import Recorder, run_episodes, sample
from rlopt.seeding import seeded
from rlopt.tabular import action_probabilities, expected_return
from rlopt.trainer import Trainer
from rlopt.types import Batch, Policy, UpdateRule

Row = dict[str, Any]
MAX_EPISODE_STEPS = 100_000  # of an episode whose return is measured
Z95 = 1.96  # standard errors in half of a 95% interval


# The frozen policy and batch


class Keep:
    """An update rule that moves nothing: it keeps the batch and the policy as it was before it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def step(self, batch: Batch) -> dict[str, float]:
        """Keep both; a copy, since the trainer moves the normaliser after an update."""
        self.kept = copy.deepcopy(self.policy), batch
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


def freeze(trainer: Trainer) -> tuple[Policy, Batch]:
    """The trainer's policy, and the batch that its next update would see."""
    trainer.rule = keep = Keep(trainer.policy)
    trainer.iterate()
    return keep.kept


# A step and what is predicted of it


def step_of(make_rule: Callable[[Any], UpdateRule], policy: Any, batch: Batch, seed: int) -> Tensor:
    """The step x [P] that a fresh rule takes on a copy of the policy."""
    new = copy.deepcopy(policy)
    with seeded(seed):
        make_rule(new).step(batch)
    return (flatten(new.parameters()) - flatten(policy.parameters())).detach()


def moved(policy: Any, x: Tensor) -> Any:
    """A copy of the policy with parameters theta + x."""
    new = copy.deepcopy(policy)
    parameters = list(new.parameters())
    assign(parameters, flatten(parameters).detach() + x)
    return new


@torch.no_grad()
def measured_kl(old: Policy, new: Policy, batch: Batch) -> float:
    """E[KL(pi_old || pi_new)] over the batch's states."""
    return float(batch.expect(kl_divergence(old(batch.obs), new(batch.obs))))


def audit(policy: Any, batch: Batch, x: Tensor) -> dict[str, float]:
    """Predictions from the expansions at theta_old, and what is measured at theta_old + x.

    Returns:
        predicted_gain: g . x, with g the gradient of the surrogate E[pi_new / pi_old A].
        surrogate_gain: E[(pi_new / pi_old - 1) A].
        predicted_kl: 1/2 x^T F x, with F the exact Fisher matrix.
        kl: E[KL(pi_old || pi_new)].
        cosine: of x and g; nan where either is 0.
    """
    parameters = list(policy.parameters())

    def objective(batch: Batch) -> Tensor:
        return policy(batch.obs).log_prob(batch.action) * batch.advantage

    g = batch.gradient(objective, parameters)
    F = fisher_operator(policy, batch, "exact")
    new = moved(policy, x)
    with torch.no_grad():
        log_prob = policy(batch.obs).log_prob(batch.action)
        ratio = (new(batch.obs).log_prob(batch.action) - log_prob).exp()
        surrogate_gain = batch.expect((ratio - 1) * batch.advantage)
    slope = g.dot(x)
    return {
        "predicted_gain": float(slope),
        "surrogate_gain": float(surrogate_gain),
        "predicted_kl": 0.5 * float(x.dot(F(x))),
        "kl": measured_kl(policy, new, batch),
        "cosine": float(slope / (g.norm() * x.norm())),
    }


def scale_to_kl(policy: Any, batch: Batch, x: Tensor, target: float) -> float:
    """A scale c at which theta + c x has the measured KL `target`, within 1%; nan if none is found.

    Starts from the quadratic law KL ~ c^2, doubles until the KL is passed, and bisects.
    """

    def kl(c: float) -> float:
        return measured_kl(policy, moved(policy, c * x), batch)

    own = kl(1.0)
    if not own > 0:  # no step, or one lost in rounding
        return math.nan
    low, high = 0.0, math.sqrt(target / own)
    for _ in range(30):
        if not kl(high) < target:
            break
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        value = kl(middle)
        if abs(value / target - 1) < 0.01:
            return middle
        low, high = (middle, high) if value < target else (low, middle)
    return math.nan


# The change of the return


def episode_returns(policy: Policy, env: VectorEnv, seed: int) -> Tensor:
    """Undiscounted returns [N] of one whole episode in each environment, in float64.

    The same `seed` gives every policy the same resets, environment noise and action noise.
    """
    device = next(iter(policy.parameters())).device
    with seeded(seed):
        recorder = Recorder(env, device, sample)
        recorder.reset(seed)
        rollout = run_episodes(recorder, policy, env.num_envs, MAX_EPISODE_STEPS)
    return rollout.reward.double().sum(0)  # rows after an environment's first episode are 0


def half_width(x: Tensor) -> float:
    """Half of the 95% interval of the mean of independent x [N]."""
    return Z95 * float(x.std()) / math.sqrt(len(x))


def paired_change(old: Tensor, new: Tensor) -> dict[str, float]:
    """The mean of new - old [N], half of its interval, and of that of two independent samples."""
    return {
        "return_change": float((new - old).mean()),
        "half_width": half_width(new - old),
        "half_width_unpaired": math.hypot(half_width(old), half_width(new)),
    }


def transition_table(
    env_id: str, kwargs: Mapping[str, Any], max_episode_steps: int | None
) -> TabularMDP | None:
    """The MDP of an environment that exposes its table and has a time limit, else None."""
    spec = find_spec(env_id)
    horizon = max_episode_steps or spec.max_episode_steps
    try:
        env: Any = gym.make(spec, **kwargs)
    except (gym.error.Error, ImportError):  # EnvPool may have environments that Gymnasium lacks
        return None
    if isinstance(env.unwrapped, TabularEnv):
        mdp = env.unwrapped.mdp
        return dataclasses.replace(mdp, horizon=min(mdp.horizon, horizon or mdp.horizon))
    try:
        return from_gymnasium(env, horizon) if horizon else None
    except ValueError:  # no table
        return None


def exact_return(mdp: TabularMDP, policy: Any) -> float:
    """J of a policy network on one-hot states."""
    return float(expected_return(mdp, action_probabilities(policy, len(mdp.mu)).detach()))


# The comparison


def compare(
    policy: Any,
    batch: Batch,
    steps: Mapping[str, Tensor],
    kls: Sequence[float],
    sampled_returns: Callable[[Any], Tensor],
    exact: Callable[[Any], float] | None,
) -> list[Row]:
    """One row for the step x [P] that each rule took (target_kl nan), one for x scaled to each KL.

    `sampled_returns` gives a policy's returns [N], paired between policies; `exact` its J, or is
    None. With it only the rules' own steps are sampled. A KL that no scale reaches has no row.
    """
    old_returns, old_J = sampled_returns(policy), exact(policy) if exact else math.nan
    rows = []
    for rule, x in steps.items():
        scales = [(math.nan, 1.0), *((kl, scale_to_kl(policy, batch, x, kl)) for kl in kls)]
        for target, scale in scales:
            if math.isnan(scale):
                continue
            new = moved(policy, scale * x)
            row: Row = {"rule": rule, "target_kl": target, "scale": scale}
            row |= audit(policy, batch, scale * x)
            if exact is None or math.isnan(target):
                row |= paired_change(old_returns, sampled_returns(new))
            if exact is not None:
                row["exact_change"] = exact(new) - old_J
            rows.append(row)
    return rows
