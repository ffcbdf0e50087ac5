"""Small policies and batches, and brute-force answers to compare the package with.

Nothing here is fast or clever: scores sample by sample, expectations over actions by enumeration
(Discrete) or Gauss-Hermite quadrature (Box), derivatives by finite differences.
"""

import copy
import itertools
from functools import partial

import numpy as np
import torch
from gymnasium import spaces
from torch import nn
from torch.distributions import kl_divergence

from rlopt.algos.npg import NPG
from rlopt.algos.pg import PG
from rlopt.algos.ppo import PPO
from rlopt.algos.ppo_clip import PPOClip
from rlopt.algos.trpo import TRPO
from rlopt.distributions import Categorical, DiagonalGaussian
from rlopt.linalg import assign, flatten
from rlopt.policies import MLPPolicy
from rlopt.types import Batch

KINDS = ["discrete", "box"]
OBS_SPACE = spaces.Box(-np.inf, np.inf, (3,))
ACTION_SPACES = {"discrete": spaces.Discrete(4), "box": spaces.Box(-1, 1, (2,))}
SGD = partial(torch.optim.SGD, lr=0.1)

RULES = {
    "pg": (PG, {"optimizer": SGD}),
    "npg": (
        NPG,
        {
            "max_kl": 0.01,
            "step_size": None,
            "fisher": "exact",
            "fisher_samples": None,
            "solver": "cg",
            "damping": 0.01,
            "cg_iterations": 200,
            "cg_tolerance": 1e-12,
        },
    ),
    "trpo": (
        TRPO,
        {
            "max_kl": 0.01,
            "kl": "analytic",
            "fisher": "exact",
            "fisher_samples": None,
            "solver": "cg",
            "damping": 0.01,
            "cg_iterations": 200,
            "cg_tolerance": 1e-12,
            "backtrack_ratio": 0.8,
            "backtrack_tries": 15,
        },
    ),
    "ppo": (
        PPO,
        {
            "optimizer": SGD,
            "epochs": 3,
            "minibatch_size": 1000,
            "penalty": 1.0,
            "target_kl": None,
            "penalty_range": (1e-3, 1e3),
            "max_grad_norm": None,
            "kl": "analytic",
        },
    ),
    "ppo_clip": (
        PPOClip,
        {
            "optimizer": SGD,
            "epochs": 3,
            "minibatch_size": 1000,
            "clip_range": 0.2,
            "entropy_bonus": 0.0,
            "standardize_minibatch": False,
            "max_grad_norm": None,
            "target_kl": None,
        },
    ),
}


def make_rule(name, policy, **changes):
    rule, settings = RULES[name]
    return rule(policy, **settings | changes)


def make_policy(kind, action_space=None, **changes):
    settings = {
        "hidden_sizes": [4],
        "activation": "tanh",
        "distribution": "gaussian",
        "log_std_init": -0.3,
        "output_gain": 0.7,
        "orthogonal_init": True,
        "normalize_obs": False,
    }
    return MLPPolicy(OBS_SPACE, action_space or ACTION_SPACES[kind], **settings | changes)


def make_batch(policy, size=16, horizon=1.0, obs_size=3):
    obs = torch.randn(size, obs_size)
    with torch.no_grad():
        action = policy(obs).sample()
    return Batch(obs, action, torch.randn(size), horizon)


def problem(kind, **batch):
    """A policy and a batch of its own actions."""
    policy = make_policy(kind)
    return policy, make_batch(policy, **batch)


class TwoArms(nn.Module):
    """Softmax over two actions with one parameter, the logit of the first; the state is ignored."""

    def __init__(self, prob):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(prob).logit())

    def dist_params(self, obs):
        logits = torch.stack([self.theta, torch.zeros_like(self.theta)])
        return logits.expand(len(obs), 2)

    def dist(self, params):
        return Categorical(params)

    def forward(self, obs):
        return self.dist(self.dist_params(obs))


class UnitGaussian(TwoArms):
    """A Gaussian of unit variance whose mean is the only parameter."""

    def dist(self, params):
        return DiagonalGaussian(params)


def flat(policy):
    """The policy's parameters as a vector [P] of their own."""
    return flatten(policy.parameters()).detach()


def moved(policy, vector):
    """A copy of the policy with other parameters [P]."""
    copied = copy.deepcopy(policy)
    assign(list(copied.parameters()), vector)
    return copied


def step_of(rule, batch):
    """What one step of the rule adds to its policy's parameters, [P]."""
    before = flat(rule.policy)
    rule.step(batch)
    return flat(rule.policy) - before


def score(policy, obs, action):
    """grad ln pi(a | s) of a single sample, [P]."""
    log_prob = policy(obs[None]).log_prob(action[None])
    return flatten(torch.autograd.grad(log_prob, list(policy.parameters())))


def actions_and_weights(dist):
    """Pairs of an action [B, *] and its weight [B] that sum to the expectation over actions.

    Exact for a Categorical, and for polynomials of the action up to degree 5 under a Gaussian.
    """
    if isinstance(dist, Categorical | torch.distributions.Categorical):
        for a in range(dist.probs.shape[-1]):
            yield torch.full(dist.batch_shape, a), dist.probs[..., a].detach()
        return
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    for index in itertools.product(range(3), repeat=dist.event_shape[0]):
        weight = np.prod(weights[list(index)] / weights.sum())
        z = torch.tensor(nodes[list(index)])
        yield (dist.mean + dist.stddev * z).detach(), torch.full(dist.batch_shape, weight)


def outer_scores(policy, obs, action, weight):
    """sum_i weight_i grad ln pi(a_i | s_i) grad ln pi(a_i | s_i)^T, [P, P]."""
    scores = torch.stack([score(policy, o, a) for o, a in zip(obs, action, strict=True)])
    return scores.T @ (weight[:, None] * scores)


def dense_fisher(policy, batch, kind="exact"):
    """F [P, P] as the mean over samples of outer products of scores."""
    if kind == "empirical":
        pairs = [(batch.action, torch.ones(len(batch)))]
    else:
        pairs = actions_and_weights(policy(batch.obs))
    total = sum(outer_scores(policy, batch.obs, action, weight) for action, weight in pairs)
    return batch.horizon * total / len(batch)


def random_spd(size, condition=100.0):
    Q, _ = torch.linalg.qr(torch.randn(size, size))
    return Q @ torch.diag(torch.linspace(1, condition, size)) @ Q.T


@torch.no_grad()
def surrogate(old, new, batch):
    """E[pi_new / pi_old A] as a loop over the samples."""
    total = 0.0
    for obs, action, advantage in zip(batch.obs, batch.action, batch.advantage, strict=True):
        old_log_prob = old(obs[None]).log_prob(action[None])
        new_log_prob = new(obs[None]).log_prob(action[None])
        total += float((new_log_prob - old_log_prob).exp() * advantage)
    return batch.horizon * total / len(batch)


@torch.no_grad()
def mean_kl(old, new, batch):
    """E[KL(pi_old || pi_new)]."""
    return float(batch.horizon * kl_divergence(old(batch.obs), new(batch.obs)).mean())


def finite_difference(f, x, eps=1e-5):
    """The gradient [P] of a scalar function of a vector by central differences."""
    steps = eps * torch.eye(len(x))
    return torch.tensor([(f(x + e) - f(x - e)) / (2 * eps) for e in steps])
