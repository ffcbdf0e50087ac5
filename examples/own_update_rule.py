"""An update rule of one's own: policy gradient with an entropy bonus.

    theta <- theta + eta * grad E[ln pi(a | s) A(s, a) + beta H(pi(. | s))]

A rule is anything with `step`, `state_dict` and `load_state_dict`. As a script, and in a run with
everything around it (`algo=pg` brings the optimiser's settings, `+` adds one that is new):

    python examples/own_update_rule.py
    PYTHONPATH=examples python scripts/train.py algo=pg env=CartPole-v1 \
        algo._target_=own_update_rule.EntropyPG +algo.entropy_bonus=0.01
"""

from functools import partial

import torch
from training import train

from rlopt.envs import make_vector_env
from rlopt.linalg import assign_gradient
from rlopt.policies import MLPPolicy


class EntropyPG:
    def __init__(self, policy, *, optimizer, entropy_bonus):
        self.policy, self.parameters = policy, list(policy.parameters())
        self.optimizer, self.entropy_bonus = optimizer(self.parameters), entropy_bonus

    def step(self, batch):
        def objective(batch):  # per transition [B]; its expectation is what we climb
            pi = self.policy(batch.obs)
            return pi.log_prob(batch.action) * batch.advantage + self.entropy_bonus * pi.entropy()

        g = batch.gradient(objective, self.parameters)  # over all processes of the run, in chunks
        assign_gradient(self.parameters, -g)  # optimisers descend
        self.optimizer.step()
        return {"algo/grad_norm": float(g.norm())}

    def state_dict(self):
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state["optimizer"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    env = make_vector_env("CartPole-v1", num_envs=16)
    policy = MLPPolicy(env.single_observation_space, env.single_action_space, hidden_sizes=[32],
                       activation="tanh", distribution="gaussian", log_std_init=0.0,
                       output_gain=0.01, orthogonal_init=True, normalize_obs=True)
    rule = EntropyPG(policy, optimizer=partial(torch.optim.Adam, lr=0.01), entropy_bonus=0.01)
    for i, mean_return in enumerate(train(env, policy, rule, iterations=60)):
        print(f"{i:3}  {mean_return:.1f}")
