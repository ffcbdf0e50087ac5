"""An environment of one's own: bring a cart to rest at the origin.

    x' = x + v dt,  v' = v + a dt,  reward -(x^2 + 0.1 a^2)

An environment is any `gymnasium.Env` that is registered when its module is imported. As a script,
and in a run with everything around it (`module:id` imports the module first):

    python examples/own_environment.py
    PYTHONPATH=examples python scripts/train.py algo=npg env=own_environment:Cart-v0
"""

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from training import train

from rlopt.algos.npg import NPG
from rlopt.envs import make_vector_env
from rlopt.policies import MLPPolicy

DT = 0.1


class Cart(gym.Env):
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.v = self.np_random.uniform(-1, 1, size=2)
        return np.array([self.x, self.v], np.float32), {}

    def step(self, action):
        a = float(action[0])
        reward = -(self.x**2 + 0.1 * a**2)
        self.x, self.v = self.x + self.v * DT, self.v + a * DT
        return np.array([self.x, self.v], np.float32), reward, False, False, {}


gym.register("Cart-v0", Cart, max_episode_steps=100)

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    env = make_vector_env("Cart-v0", num_envs=16)
    policy = MLPPolicy(env.single_observation_space, env.single_action_space, hidden_sizes=[],
                       activation="tanh", distribution="gaussian", log_std_init=-0.5,
                       output_gain=0.01, orthogonal_init=True, normalize_obs=True)
    rule = NPG(policy, max_kl=0.05, step_size=None, fisher="exact",
               fisher_samples=None, solver="cg", damping=0.01, cg_iterations=10, cg_tolerance=1e-3)
    for i, mean_return in enumerate(train(env, policy, rule, iterations=40)):
        print(f"{i:3}  {mean_return:.1f}")
