"""A policy network of one's own: CartPole looks the same in a mirror, so should the policy.

    pi(right | s) = pi(left | -s):  logits [f(-s), f(s)] with one network f

A policy is any `nn.Module` with `dist_params`, `dist`, `forward` and `update_statistics`; every
rule takes it, and a distribution of rlopt.distributions brings its Fisher matrix. As a script, and
in a run with everything around it (`~policy` drops the settings of the policy it replaces):

    python examples/own_policy.py
    PYTHONPATH=examples python scripts/train.py algo=npg env=CartPole-v1 \
        ~policy +policy._target_=own_policy.MirrorPolicy +policy.width=32
"""

import torch
from torch import nn
from training import train

from rlopt.algos.npg import NPG
from rlopt.distributions import Categorical
from rlopt.envs import make_vector_env


class MirrorPolicy(nn.Module):
    def __init__(self, observation_space, action_space, *, width):
        super().__init__()
        (size,) = observation_space.shape
        self.f = nn.Sequential(nn.Linear(size, width), nn.Tanh(), nn.Linear(width, 1))

    def dist_params(self, obs):  # [B, d] -> logits [B, 2]
        return torch.cat([self.f(-obs), self.f(obs)], dim=-1)

    def dist(self, params):
        return Categorical(params)

    def forward(self, obs):
        return self.dist(self.dist_params(obs))

    def update_statistics(self, obs):
        """Nothing: running means would break the mirror."""


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    env = make_vector_env("CartPole-v1", num_envs=16)
    policy = MirrorPolicy(env.single_observation_space, env.single_action_space, width=32)
    rule = NPG(policy, max_kl=0.02, step_size=None, fisher="exact",
               fisher_samples=None, solver="cg", damping=0.01, cg_iterations=10, cg_tolerance=1e-3)
    for i, mean_return in enumerate(train(env, policy, rule, iterations=40)):
        print(f"{i:3}  {mean_return:.1f}")
