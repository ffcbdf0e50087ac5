"""Training without a config: the parts, and the loop that ties them together."""

import numpy as np
import torch

from rlopt.advantages import gae, standardize
from rlopt.algos.npg import NPG
from rlopt.baselines import LinearBaseline
from rlopt.envs import make_vector_env
from rlopt.evaluate import evaluate
from rlopt.policies import MLPPolicy
from rlopt.rollout import StepRollout
from rlopt.types import Batch


def train(env, policy, rule, iterations):
    baseline = LinearBaseline(env.single_observation_space, ridge=1e-5, sees_step=True)
    sampler = StepRollout(env, "cpu", seed=0, num_steps=128)
    for _ in range(iterations):
        rollout = sampler.collect(policy)  # obs [T+1, N, d], reward [T, N], ...
        with torch.no_grad():
            value = baseline(rollout.obs, rollout.step)
        ends = rollout.terminated, rollout.truncated, rollout.valid
        advantage = gae(rollout.reward, value, *ends, gamma=0.99, lambda_=0.95)
        data = rollout.obs[:-1], rollout.step[:-1], rollout.action, advantage + value[:-1]
        obs, step, action, target = map(rollout.flatten, data)  # [B, d], [B], ...
        rule.step(Batch(obs, action, rollout.flatten(standardize(advantage, rollout.valid))))
        baseline.fit(obs, step, target)
        policy.update_statistics(obs)
        yield np.mean(rollout.episode_returns)


if __name__ == "__main__":
    torch.set_num_threads(1)  # small networks are fastest on one
    torch.manual_seed(0)
    env = make_vector_env("CartPole-v1", num_envs=16)
    policy = MLPPolicy(env.single_observation_space, env.single_action_space, hidden_sizes=[32],
                       activation="tanh", distribution="gaussian", log_std_init=0.0,
                       output_gain=0.01, orthogonal_init=True, normalize_obs=True)
    rule = NPG(policy, max_kl=0.02, step_size=None, fisher="exact",
               fisher_samples=None, solver="cg", damping=0.1, cg_iterations=10, cg_tolerance=1e-3)
    for i, mean_return in enumerate(train(env, policy, rule, iterations=40)):
        print(i, mean_return)
    result = evaluate(policy, env, episodes=50, seed=1, deterministic=True, device="cpu")
    print(result.mean)
