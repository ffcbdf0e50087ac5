"""Estimates from trajectories: the gradient with a baseline, the objective by weighting."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlopt import tabular
from rlopt.advantages import reward_to_go
from rlopt.baselines import LinearBaseline
from rlopt.enumeration import example, trajectory_batch
from rlopt.envs import make_vector_env
from rlopt.lecture.moments import bernstein, estimate_moments
from rlopt.lecture.results import Result, estimated_gradient, gap, random_pi
from rlopt.policies import MLPPolicy
from rlopt.rollout import EpisodeRollout
from rlopt.rows import Row, at_most
from rlopt.tabular import action_probabilities, tabular_policy
from rlopt.types import Batch, Rollout


def monte_carlo(rollout: Rollout, value: Tensor) -> Tensor:
    """R_h(tau) - b [T, N] by the package's estimator, with values b [T+1, N].

    The lecture's J ends at H and is worth 0 there: a time limit is not bootstrapped.
    """
    ends = rollout.terminated, rollout.truncated
    return reward_to_go(rollout.reward, value, *ends, rollout.valid, gamma=1.0, bootstrap=False)


def expectation_is_the_advantage(seed: int) -> Result:
    """Slide "(M=1) PG with a Learned Baseline": E[R_h - b(s_h)] ~ A_h(s_h, a_h), the wavy line.

    Given s_h and a_h, the expectation over all trajectories is Q_h - b(s_h) for any b: it is A_h
    where b = V_h, else it differs by V_h - b(s_h). That is the same for every action, so that the
    preference between actions and each step's term of the gradient are those of A_h for any b.
    """
    ex = example(seed)
    V, _, A = tabular.values(ex.mdp, ex.pi)
    H, S, _ = ex.mdp.shape
    visits, scores = tabular.visits(ex.mdp, ex.pi), tabular.scores(ex.policy, S)
    came = visits > 0  # [H, S]; elsewhere there is nothing to average

    def expectation(b: Tensor) -> Tensor:  # E[R_h - b(s_h) | s_h, a_h]: [H, S, A]
        return conditional_mean(ex.rollout, baseline_values(ex.rollout, b), A.shape)

    def gradient_terms(advantage: Tensor) -> Tensor:  # E[grad ln pi advantage] at each step: [H, P]
        return torch.einsum("hsa,sap->hp", visits[..., None] * ex.pi * advantage, scores)

    generator = torch.Generator().manual_seed(seed)
    bs = 10 * torch.randn(5, H + 1, S, generator=generator, dtype=V.dtype)
    any_b = torch.stack([expectation(b) for b in bs])  # [5, H, S, A]
    centred = any_b - (ex.pi * any_b).sum(-1, keepdim=True)
    terms = torch.stack([gradient_terms(x) for x in any_b])
    return Result([
        at_most("b V_h: E[R_h - b] = A_h", gap(expectation(V)[came], A[came]), 1e-12),
        at_most("any b: E[R_h - b] = A_h + V_h - b",
                gap(any_b[:, came], (A + (V - bs)[:, :H, :, None])[:, came]), 1e-12),
        at_most("any b: less its mean over actions, = A_h", gap(centred[:, came], A[came]), 1e-12),
        at_most("any b: gradient's term at each h = A_h's", gap(terms, gradient_terms(A)), 1e-12),
    ])  # fmt: skip


def baseline_values(rollout: Rollout, b: Tensor) -> Tensor:
    """A table b [H+1, S] at the states and steps of a rollout: [T+1, N]."""
    return b[rollout.step, rollout.obs.argmax(-1)]


def conditional_mean(rollout: Rollout, value: Tensor, shape: torch.Size) -> Tensor:
    """The average of R_h - b in each (h, s_h, a_h) of a rollout: [H, S, A], 0 where there is none.

    Args:
        rollout: in states that are one-hot.
        value: b [T+1, N].
        shape: H, S, A.
    """
    valid = rollout.valid
    h, s = rollout.step[:-1][valid], rollout.obs[:-1].argmax(-1)[valid]
    index = h, s, rollout.action[valid]
    total, count = torch.zeros(2, *shape, dtype=value.dtype)
    total.index_put_(index, monte_carlo(rollout, value)[valid], accumulate=True)
    count.index_put_(index, torch.ones_like(total[index]), accumulate=True)
    return total / count.clamp(min=1)


def unbiased_for_any_baseline(seed: int) -> Result:
    """Slide "(M=1) PG with a Learned Baseline": "regardless of our choice of b, ... unbiased".

    In exact expectation over all trajectories, for baselines that are zero, arbitrary or V.
    """
    ex = example(seed)
    g = tabular.policy_gradient(ex.mdp, ex.policy)
    arbitrary = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=g.dtype)
    rows = []
    for name, b in {
        "zero": torch.zeros(4, 4, dtype=g.dtype),
        "arbitrary": 10 * arbitrary,
        "V_h": tabular.values(ex.mdp, ex.pi).V,
    }.items():
        batch = trajectory_batch(
            ex.rollout, monte_carlo(ex.rollout, baseline_values(ex.rollout, b))
        )
        rows.append(
            at_most(f"exact mean, b {name}", gap(estimated_gradient(ex.policy, batch), g), 1e-12)
        )
    return Result(rows)


FITTED_ON, TRAJECTORIES, HORIZON = 400, 12800, 8  # the slide's N, and how many are averaged
LEVEL = 0.001  # of all errors that the statement tests, together


def variance_without_and_with_baseline(seed: int) -> Result:
    """Slide "(M=1) PG with a Learned Baseline": b fitted on N other trajectories cuts the variance.

    On CliffWalking, for a random policy. The package's rollout samples, and PG's gradient is
    compared with the exact one: each entry, and the component along the exact one. The limits are
    Bernstein's (`moments`): where the estimate is unbiased, the probability that any error of these
    rows exceeds its limit is at most 0.001. The variance is exact for the baseline that was fitted.
    """
    mdp, policy = cliff_walking(seed)
    _, S, _ = mdp.shape
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        baselines, rollout = sampled(mdp, policy, seed)
    estimates = {
        name: estimated_gradient(policy, trajectory_batch(
            rollout, monte_carlo(rollout, baseline_values(rollout, b))
        )).double()
        for name, b in baselines.items()
    }  # fmt: skip

    policy = policy.double()
    pi, scores = action_probabilities(policy, S), tabular.scores(policy, S)
    exact = tabular.policy_gradient(mdp, policy)
    directions = torch.cat([torch.eye(len(exact)).to(exact), exact[:, None] / exact.norm()], 1)
    level = LEVEL / len(baselines) / directions.shape[1]
    rows, variance = [], {}
    for name, b in baselines.items():
        moments = estimate_moments(mdp, pi, scores @ directions, b[:HORIZON].double())
        error = ((estimates[name] - exact) @ directions).abs()
        limit = bernstein(moments, TRAJECTORIES, level) + 1e-6 * exact.norm()  # float32's rounding
        variance[name] = float(moments.variance[:-1].sum())
        rows.append(at_most(f"largest error / limit, b {name}", (error / limit).max(), 1.0))
    ratio = variance["zero"] / variance["fitted b(s, h)"]
    rows.append(Row("variance, b zero / b fitted", ratio, 1.1, np.inf))
    rows.append(at_most("variance formula, on 512 trajectories", tiny_variance_error(seed), 1e-12))
    return Result(rows, {"variance": variance})


def tiny_variance_error(seed: int) -> float:
    """`estimate_moments`' variance against R_h - b of all trajectories of the tiny MDP."""
    ex = example(seed)
    _, S, _ = ex.mdp.shape
    scores = tabular.scores(ex.policy, S)
    b = torch.randn(4, S, generator=torch.Generator().manual_seed(seed), dtype=scores.dtype)
    advantage = monte_carlo(ex.rollout, baseline_values(ex.rollout, b))
    score = scores[ex.rollout.obs[:-1].argmax(-1), ex.rollout.action]
    one_by_one = torch.einsum("tn,tnp->np", advantage, score)
    moments = estimate_moments(ex.mdp, ex.pi, scores, b[:-1])
    return gap(moments.variance, one_by_one.var(0, correction=0))


def cliff_walking(seed: int) -> tuple[tabular.TabularMDP, MLPPolicy]:
    """The MDP, cut after HORIZON steps, and a policy in float32: halfway from uniform to random."""
    mdp = tabular.from_gymnasium("CliffWalking-v1", HORIZON)
    _, S, A = mdp.shape
    return mdp, tabular_policy((random_pi(S, A, seed) + 1 / A) / 2).float()


def sampled(
    mdp: tabular.TabularMDP, policy: MLPPolicy, seed: int
) -> tuple[dict[str, Tensor], Rollout]:
    """Baselines, one of them fitted on FITTED_ON trajectories, and TRAJECTORIES others.

    Returns:
        Tables b [HORIZON+1, S] by name, and the rollout.
    """
    H, S, _ = mdp.shape
    env = make_vector_env(
        "CliffWalking-v1", num_envs=50, backend="sync", max_episode_steps=H, kwargs={}
    )
    sampler = EpisodeRollout(
        env, "cpu", seed=seed,
        episodes=TRAJECTORIES, baseline_episodes=FITTED_ON, max_episode_steps=H,
    )  # fmt: skip
    fitted = LinearBaseline(env.single_observation_space, ridge=1e-5, sees_step=True)
    fit(fitted, sampler.collect_for_baseline(policy))
    rollout = sampler.collect(policy)
    env.close()

    states, steps = torch.eye(S).repeat(H + 1, 1), torch.arange(H + 1).repeat_interleave(S)
    return {
        "zero": torch.zeros(H + 1, S),
        "arbitrary": 100 * (torch.arange(S) + 3.0 * torch.arange(H + 1)[:, None]).sin(),
        "fitted b(s, h)": fitted(states, steps).view(H + 1, S),
        "exact V_h(s)": tabular.values(mdp, action_probabilities(policy, S)).V.float(),
    }, rollout


def fit(baseline: LinearBaseline, rollout: Rollout | None) -> None:
    """Regress the Monte Carlo returns on state and step."""
    assert rollout is not None
    valid = rollout.valid
    target = monte_carlo(rollout, torch.zeros_like(rollout.step, dtype=rollout.reward.dtype))
    baseline.fit(rollout.obs[:-1][valid], rollout.step[:-1][valid], target[valid])


def importance_sampling(seed: int) -> Result:
    """Slide "Back to Estimating l^k(theta)": E_{a ~ pi_theta} A = E_{a ~ pi_k} [pi_theta / pi_k A].

    With R_h(tau) - b in place of A the estimate is off by a constant, the same for every theta.
    """
    ex = example(seed)
    others = [ex.theta + 0.3 * i * torch.ones_like(ex.theta).cumsum(0).cos() for i in (1, 2)]
    zero = torch.zeros_like(ex.rollout.obs[..., 0])
    returns = trajectory_batch(ex.rollout, monte_carlo(ex.rollout, zero - 1.7))

    def estimate(batch: Batch, theta: Tensor) -> Tensor:
        ratio = (ex.at(theta) / ex.pi)[batch.obs.argmax(-1), batch.action]
        return batch.expect(ratio * batch.advantage)

    exact = torch.stack([ex.local_advantage(theta) for theta in others])
    weighted = torch.stack([estimate(ex.batch, theta) for theta in others])
    constant = torch.stack([estimate(returns, theta) for theta in others]) - exact
    at_theta_k = estimate(returns, ex.theta)
    return Result([
        at_most("A, against the exact l^k", gap(weighted, exact), 1e-12),
        at_most("R_h - b, spread of the constant", (constant - at_theta_k).abs().max(), 1e-12),
    ])  # fmt: skip
