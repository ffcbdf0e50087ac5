"""Estimates from trajectories: the gradient with a baseline, the objective by weighting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rlopt import tabular
from rlopt.advantages import reward_to_go
from rlopt.baselines import LinearBaseline, ZeroBaseline
from rlopt.enumeration import example, trajectory_batch
from rlopt.envs import make_vector_env
from rlopt.lecture.results import Result, estimated_gradient, gap, random_pi
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


def unbiased_for_any_baseline() -> Result:
    """Slide "(M=1) PG with a Learned Baseline": "regardless of our choice of b, ... unbiased".

    In exact expectation over all trajectories, for baselines that are zero, arbitrary or V.
    """
    ex = example()
    g = tabular.policy_gradient(ex.mdp, ex.policy)
    state = ex.rollout.obs.argmax(-1)
    arbitrary = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=g.dtype)
    rows = []
    for name, b in {
        "zero": torch.zeros(4, 4, dtype=g.dtype),
        "arbitrary": 10 * arbitrary,
        "V_h": tabular.values(ex.mdp, ex.pi).V,
    }.items():
        batch = trajectory_batch(ex.rollout, monte_carlo(ex.rollout, b[ex.rollout.step, state]))
        rows.append(
            at_most(f"exact mean, b {name}", gap(estimated_gradient(ex.policy, batch), g), 1e-12)
        )
    return Result(rows)


def variance_without_and_with_baseline() -> Result:
    """Slide "(M=1) PG with a Learned Baseline": b fitted on N other trajectories cuts the variance.

    Sampled from a slippery CliffWalking by the package's rollout, against the exact gradient: the
    largest |z| of its entries (of states that an average trajectory visits at least 0.05 times)
    and Student's quantile for it, at a level of 0.001 over all entries.
    """
    from scipy.stats import t as student

    estimates, exact, tested = sampled_gradients()
    limit = float(student.ppf(1 - 5e-4 / int(tested.sum()), df=BATCHES - 1))
    rows, variance = [], {}
    for name, x in estimates.items():
        z = (x.mean(0) - exact) / (x.var(0) / len(x)).sqrt()
        rows.append(at_most(f"largest |z|, b {name}", z[tested].abs().max(), limit))
        variance[name] = float(x.var(0).sum()) * EPISODES
    error = (estimates["fitted b(s, h)"].mean(0) - exact).norm() / exact.norm()
    ratio = variance["zero"] / variance["fitted b(s, h)"]
    rows += [
        at_most("relative error of the mean, b fitted", error, 0.1),
        Row("variance, b zero / b fitted", ratio, 1.5, np.inf),
    ]
    return Result(rows, {"variance": variance})


BATCHES, EPISODES, HORIZON = 40, 80, 8


def sampled_gradients() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """PG's gradients on a slippery CliffWalking, the exact one, and the entries to test.

    Returns:
        [BATCHES, P] for each baseline, from the same trajectories; [P]; and [P] bool. Entries of
        states that are hardly ever visited are not tested: their samples are far from normal.
    """
    env_id = "CliffWalkingSlippery-v1"
    mdp = tabular.from_gymnasium(env_id, HORIZON)
    _, S, A = mdp.shape
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = tabular_policy(random_pi(S, A, 3).float().double()).float()
        exact_V = tabular.values(mdp, action_probabilities(policy, S)).V.float()
        env = make_vector_env(
            env_id, num_envs=50, backend="sync", max_episode_steps=HORIZON, kwargs={}
        )
        fitted = LinearBaseline(env.single_observation_space, ridge=1e-5, sees_step=True)
        baselines: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "zero": ZeroBaseline(env.single_observation_space),
            "arbitrary": lambda obs, step: 100 * (obs.argmax(-1) + 3.0 * step).sin(),
            "fitted b(s, h)": fitted,
            "exact V_h(s)": lambda obs, step: exact_V[step, obs.argmax(-1)],
        }
        sampler = EpisodeRollout(
            env, "cpu", seed=0,
            episodes=EPISODES, baseline_episodes=EPISODES, max_episode_steps=HORIZON,
        )  # fmt: skip
        estimates: dict[str, list[Tensor]] = {name: [] for name in baselines}
        for _ in range(BATCHES):
            fit(fitted, sampler.collect_for_baseline(policy))
            rollout = sampler.collect(policy)
            for name, b in baselines.items():
                batch = trajectory_batch(
                    rollout, monte_carlo(rollout, b(rollout.obs, rollout.step))
                )
                estimates[name].append(estimated_gradient(policy, batch).double())
        env.close()
    exact = tabular.policy_gradient(mdp, policy.double())
    often = tabular.visits(mdp, action_probabilities(policy, S)).sum(0) >= 0.05
    tested = torch.cat([often.repeat(A), torch.ones(A, dtype=torch.bool)])  # weight [A, S], bias
    return {name: torch.stack(x) for name, x in estimates.items()}, exact, tested


def fit(baseline: LinearBaseline, rollout: Rollout | None) -> None:
    """Regress the Monte Carlo returns on state and step."""
    assert rollout is not None
    valid = rollout.valid
    target = monte_carlo(rollout, torch.zeros_like(rollout.step, dtype=rollout.reward.dtype))
    baseline.fit(rollout.obs[:-1][valid], rollout.step[:-1][valid], target[valid])


def importance_sampling() -> Result:
    """Slide "Back to Estimating l^k(theta)": E_{a ~ pi_theta} A = E_{a ~ pi_k} [pi_theta / pi_k A].

    With R_h(tau) - b in place of A the estimate is off by a constant, the same for every theta.
    """
    ex = example()
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
