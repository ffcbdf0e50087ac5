"""Limits of single distributions: bounds, certainty, narrow densities."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from space_table import BOUNDED, make_policy, random_obs
from torch.distributions import kl_divergence

from rlopt.action_spaces import BOX_HEADS

pytestmark = pytest.mark.usefixtures("float64")


def make(name, distribution, params):
    """A distribution from given parameters of a policy's."""
    return make_policy(name, distribution).dist(params)


def test_kl_and_entropy_of_bits_that_are_almost_sure_are_finite_and_right():
    old, new = torch.tensor([[800.0, -800.0, 0.0]]), torch.tensor([[0.0, -800.0, 800.0]])
    p, q = (make("MultiBinary", "gaussian", x) for x in (old, new))
    assert float(kl_divergence(p, q)) == pytest.approx(np.log(2) + 400 - np.log(2))
    assert float(p.entropy()) == pytest.approx(np.log(2))


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_kl_of_narrow_betas_keeps_its_digits_in_float32(size):
    """As alpha + beta grows, the KL of (a, b) to (1.01 a, b) tends to a Gaussian's."""
    params = torch.tensor([[size, size]], dtype=torch.float64)
    other = params * torch.tensor([1.0 + 0.01, 1.0])
    unit = spaces.Box(-1, 1, (1,))
    head = BOX_HEADS["beta"](unit, 0.0)
    kl = {
        dtype: float(kl_divergence(*(head.to(dtype).dist(x.to(dtype)) for x in (params, other))))
        for dtype in (torch.float32, torch.float64)
    }
    assert kl[torch.float32] == pytest.approx(kl[torch.float64], rel=1e-3)
    assert kl[torch.float64] > 0


@pytest.mark.parametrize("distribution", ["squashed_gaussian", "beta"])
@pytest.mark.parametrize("output", [-100.0, 100.0])
def test_actions_at_a_bound_have_finite_log_probability_and_score(distribution, output):
    """In float32 a sample of these can be the bound itself."""
    head = BOX_HEADS[distribution](BOUNDED, 0.0).float()
    output = torch.full((1, head.num_outputs), output, dtype=torch.float32)
    params = head(output).detach().requires_grad_()
    bounds = torch.tensor([[-1, 0], [1, 4], [-1, 4]], dtype=torch.float32)
    log_prob = head.dist(params).log_prob(bounds[:, None])
    (score,) = torch.autograd.grad(log_prob.sum(), params)
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(score).all()
    assert torch.isfinite(head.dist(params).entropy()).all()


def test_the_mode_of_a_beta_is_its_peak_and_the_centre_where_it_has_none():
    peak = make("Box, bounded", "beta", torch.tensor([[3.0, 1.0, 2.0, 1.0]])).mode
    torch.testing.assert_close(peak, torch.tensor([[-1 + 2 * 2 / 3, 2.0]]))


def test_a_factor_beside_the_diagonal_correlates_the_actions():
    policy = make_policy("Box, unbounded", "full_gaussian")
    sample = policy(random_obs("", 1)).sample(torch.Size([20_000]))[:, 0]
    L = policy(random_obs("", 1)).L[0].detach()
    torch.testing.assert_close(torch.cov(sample.T), L @ L.T, atol=0.05, rtol=0)
    assert abs(float(L[1, 0])) > 0.05


@pytest.mark.parametrize("distribution", [d for d in BOX_HEADS if d != "beta"])
def test_initial_std_is_the_setting_in_half_ranges_for_every_gaussian(distribution):
    space = spaces.Box(np.float32([-3, 0]), np.float32([3, 1]))
    head = BOX_HEADS[distribution](space, -1.0)
    params = head(torch.zeros(1, head.num_outputs))
    unit = torch.ones(2) if distribution == "squashed_gaussian" else torch.tensor([3.0, 0.5])
    torch.testing.assert_close(params[:, 2:4].exp(), unit[None] * np.exp(-1))
