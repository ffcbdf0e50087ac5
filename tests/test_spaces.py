"""One table of (action space x distribution), and what every cell of it must satisfy.

docs/spaces.md shows the same table. The brute-force answers are scipy's densities and samples: a
sampled mean must lie within six of its own standard errors.
"""

from pathlib import Path

import numpy as np
import probes
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate
from probes import make_env
from scipy import special, stats
from space_table import CASES, DISCRETE, REFUSED, SPACES, make_policy, random_obs
from torch.distributions import kl_divergence

from rlopt.action_spaces import BOX_HEADS, HUGE, categories, env_action, leaves, num_columns
from rlopt.fisher import kl_hessian_metric
from rlopt.recorder import Recorder, sample

pytestmark = pytest.mark.usefixtures("float64")

DOCS = Path(__file__).resolve().parent.parent / "docs" / "spaces.md"
ALL = pytest.mark.parametrize(("name", "distribution"), CASES)
SE = 6  # standard errors; a table of this size has its outliers


def two_dists(name, distribution, size=1):
    """pi_old and pi_new at the same states, without a graph."""
    policy, obs = make_policy(name, distribution), random_obs(name, size)
    old = policy(obs)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return old, policy(obs)


# Log-probability


def box_density(distribution, space, params, a):
    """scipy's log-density of one action of a Box, from all of its parameters."""
    d = len(a)
    bounded = np.abs(space.low) < HUGE
    low, high = space.low.reshape(-1).astype(float), space.high.reshape(-1).astype(float)
    if distribution == "beta":
        assert bounded.all()
        return stats.beta.logpdf(a, params[:d], params[d:], low, high - low).sum()
    mean, log_diagonal = params[:d], params[d : 2 * d]
    if distribution == "full_gaussian":
        L = np.diag(np.exp(log_diagonal))
        L[np.tril_indices(d, -1)] = params[2 * d :]
        return stats.multivariate_normal.logpdf(a, mean, L @ L.T)
    if distribution == "squashed_gaussian":
        y = (2 * a - low - high) / (high - low)
        slope = (high - low) / 2 * (1 - y**2)
        z = np.arctanh(y)
        return (stats.norm.logpdf(z, mean, np.exp(log_diagonal)) - np.log(slope)).sum()
    return stats.norm.logpdf(a, mean, np.exp(log_diagonal)).sum()


def log_density(space, distribution, params, action):
    """The log-probability of one flat action: the sum over the leaves of the space."""
    total = 0.0
    for leaf in leaves(space):
        a, action = np.split(action, [num_columns(leaf)])
        if isinstance(leaf, spaces.Box):
            sizes = {"full_gaussian": 2 * len(a) + len(a) * (len(a) - 1) // 2}
            p, params = np.split(params, [sizes.get(distribution, 2 * len(a))])
            total += box_density(distribution, leaf, p, a)
        elif isinstance(leaf, spaces.MultiBinary):
            p, params = np.split(params, [len(a)])
            total += stats.bernoulli.logpmf(a, special.expit(p)).sum()
        else:
            for choice, n in zip(a, categories(leaf), strict=True):
                p, params = np.split(params, [n])
                total += special.log_softmax(p)[int(choice)]
    assert not len(params)
    return total


@ALL
def test_log_probability_is_scipys(name, distribution):
    policy = make_policy(name, distribution)
    obs = random_obs(name, 20)
    with torch.no_grad():
        params, dist = policy.dist_params(obs), policy(obs)
    action = dist.sample()
    assert params.shape == (20, policy.head.num_params)
    rows = zip(params.numpy(), action.reshape(20, -1).numpy(), strict=True)
    truth = torch.tensor([log_density(SPACES[name], distribution, p, a) for p, a in rows])
    torch.testing.assert_close(dist.log_prob(action), truth, rtol=1e-9, atol=1e-9)
    assert (dist.batch_shape, action.shape[1:]) == ((20,), dist.event_shape)


# Entropy and KL


def assert_mean(samples, expected):
    """The mean of samples [n, ...] is the expected one, to the samples' own standard error."""
    error = (samples.mean(0) - expected).abs()
    assert (error <= SE * samples.std(0) / len(samples) ** 0.5 + 1e-12).all()


@ALL
def test_entropy_and_kl_are_the_means_over_samples(name, distribution):
    with torch.no_grad():
        old, new = two_dists(name, distribution)
        action = old.sample(torch.Size([20_000]))
        log_prob = old.log_prob(action)
        assert_mean(-log_prob, old.entropy())
        assert_mean(log_prob - new.log_prob(action), kl_divergence(old, new))
        assert float(kl_divergence(old, new)) > 1e-4
        assert abs(float(kl_divergence(old, old))) < 1e-14


# Fisher


def score_samples(policy, params, count):
    """Scores [count, k] of actions sampled at one vector of distribution parameters [k]."""
    leaf = params.detach().expand(count, -1).requires_grad_()
    dist = policy.dist(leaf)
    return torch.autograd.grad(dist.log_prob(dist.sample()).sum(), leaf)[0]


def metric(policy, params):
    """M [k, k] from the closed form, at one vector of distribution parameters [k]."""
    k = len(params)
    return policy.dist(params.detach().expand(k, -1)).fisher_product(torch.eye(k))


@ALL
def test_fisher_metric_is_the_hessian_of_the_kl(name, distribution):
    policy = make_policy(name, distribution)
    params = policy.dist_params(random_obs(name, 8)).detach()
    u = torch.randn_like(params)
    closed_form = policy.dist(params).fisher_product(u)
    torch.testing.assert_close(closed_form, kl_hessian_metric(policy, params)(u))
    assert closed_form.abs().max() > 0.01


@ALL
def test_fisher_metric_is_the_outer_product_of_sampled_scores(name, distribution):
    policy = make_policy(name, distribution)
    params = policy.dist_params(random_obs(name, 1))[0]
    score, M = score_samples(policy, params, 20_000), metric(policy, params)
    assert_mean(score, torch.zeros_like(params))
    assert_mean(score[:, :, None] * score[:, None, :], M)
    torch.testing.assert_close(M, M.T)


# What an environment gets


@ALL
def test_environments_get_actions_of_their_space(name, distribution):
    space, policy = SPACES[name], make_policy(name, distribution)
    obs, shape = random_obs(name, 50), (num_columns(space),)
    for flat in (policy(obs).sample(), policy(obs).mode):
        assert flat.shape[1:] == (() if isinstance(space, spaces.Discrete) else shape)
        actions = list(iterate(batch_space(space, 50), env_action(space, flat.detach().numpy())))
        assert len(actions) == 50
        assert all(space.contains(action) for action in actions)


@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "sync") for name in SPACES), ("Dict, nested", "async"), ("MultiDiscrete", "async")],
)
def test_rollouts_hold_flat_actions_and_the_environments_their_own(name, backend):
    """`StrictSpaces` takes nothing that is not in its space."""
    env = make_env("StrictSpaces-v0", 3, backend, action_space=SPACES[name])
    recorder = Recorder(env, "cpu", sample)
    recorder.reset(0)
    rollout = recorder.record(probes.make_policy(env), quota=None, num_rows=5)
    width = () if isinstance(SPACES[name], spaces.Discrete) else (num_columns(SPACES[name]),)
    assert rollout.action.shape == (5, 3, *width)
    env.close()


def test_a_flat_action_goes_to_the_leaves_in_order():
    space = SPACES["Dict, nested"]
    action = env_action(space, np.array([[0.5, 9.0, 1, 0, 1, 0], [-7.0, 2.0, 0, 1, 0, 1]]))
    (box, bits), grip = action["arm"], action["grip"]
    assert box.tolist() == [[0.5, 4.0], [-1.0, 2.0]]
    assert (bits.tolist(), grip.tolist()) == ([[1, 0], [0, 1]], [[1, 0], [0, 1]])
    assert (box.dtype, bits.dtype, grip.dtype) == (np.float32, np.int8, np.int64)


@pytest.mark.parametrize(
    ("name", "flat", "expected"),
    [
        ("Discrete, any start", [0, 2], [-2, 0]),
        ("MultiDiscrete", [[0, 2], [1, 0]], [[5, 2], [6, 0]]),
        ("MultiDiscrete, masked", [[0, 2]], [[[0, 2]]]),
    ],
)
def test_choices_count_from_the_start_of_the_space(name, flat, expected):
    assert env_action(SPACES[name], np.array(flat)).tolist() == expected


@pytest.mark.parametrize("name", DISCRETE)
def test_the_mode_is_the_most_probable_action(name):
    dist = make_policy(name)(random_obs(name, 5))
    assert (dist.log_prob(dist.mode) >= dist.log_prob(dist.sample(torch.Size([500])))).all()


# What is refused, and the documentation


@pytest.mark.parametrize(("name", "distribution"), REFUSED)
def test_a_distribution_that_a_space_cant_have_is_one_line(name, distribution):
    with pytest.raises(ValueError, match=f"^distribution must be .*, got '{distribution}' for "):
        make_policy(name, distribution)


def table():
    """The lines of the table in docs/spaces.md."""
    yield "| actions | " + " | ".join(f"`{d}`" for d in BOX_HEADS) + " |"
    yield "|---|" + "---|" * len(BOX_HEADS)
    for name in SPACES:
        cells = ["yes" if (name, d) in CASES else "refused" for d in BOX_HEADS]
        yield f"| {name} | " + " | ".join(cells) + " |"


def test_the_documentation_shows_this_table():
    assert "\n".join(table()) in DOCS.read_text()
