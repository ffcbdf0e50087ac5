import dataclasses

import pytest
import torch
from oracles import (
    KINDS,
    actions_and_weights,
    dense_fisher,
    flat,
    make_batch,
    make_policy,
    problem,
)
from torch.distributions import Bernoulli, Poisson, kl_divergence
from torch.distributions import Categorical as TorchCategorical
from torch.func import functional_call

from rlopt.fisher import exact_metric, fisher_operator, kl_hessian_metric
from rlopt.linalg import dense
from rlopt.policies import MLPPolicy

pytestmark = pytest.mark.usefixtures("float64")


def at(policy, theta, obs):
    """The policy's distribution as a function of a flat parameter vector."""
    named = dict(policy.named_parameters())
    parts = theta.split([p.numel() for p in named.values()])
    views = {n: part.view_as(p) for (n, p), part in zip(named.items(), parts, strict=True)}
    return functional_call(policy, views, (obs,))


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("kind", KINDS)
def test_product_is_the_mean_outer_product_of_scores(kind, fisher):
    policy, batch = problem(kind)
    F = dense(fisher_operator(policy, batch, fisher), flat(policy))
    torch.testing.assert_close(F, dense_fisher(policy, batch, fisher))


@pytest.mark.parametrize("kind", KINDS)
def test_exact_fisher_is_the_hessian_of_the_mean_kl(kind):
    policy, batch = problem(kind)
    theta, old = flat(policy), policy.dist(policy.dist_params(batch.obs).detach())
    hessian = torch.autograd.functional.hessian(
        lambda theta: kl_divergence(old, at(policy, theta, batch.obs)).mean(), theta
    )
    torch.testing.assert_close(dense(fisher_operator(policy, batch, "exact"), theta), hessian)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_fisher_is_minus_the_expected_hessian_of_the_log_likelihood(kind):
    policy, batch = problem(kind, size=6)
    pairs = list(actions_and_weights(policy(batch.obs)))

    def expected_log_prob(theta):
        dist = at(policy, theta, batch.obs)
        return sum((weight * dist.log_prob(action)).mean() for action, weight in pairs)

    hessian = torch.autograd.functional.hessian(expected_log_prob, flat(policy))
    torch.testing.assert_close(
        dense(fisher_operator(policy, batch, "exact"), flat(policy)), -hessian
    )


def test_empirical_fisher_approaches_the_exact_one_with_many_actions():
    policy = make_policy("discrete")
    batch = make_batch(policy, size=20_000)
    exact, empirical = (
        dense(fisher_operator(policy, batch, kind), flat(policy)) for kind in ("exact", "empirical")
    )
    assert (exact - empirical).norm() < 0.06 * exact.norm()


@pytest.mark.parametrize("rows", [1, 7, 16, 1000])
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_in_chunks_has_the_same_fisher_matrix_and_gradient(kind, fisher, rows):
    policy, batch = problem(kind, horizon=3.0)
    chunked = dataclasses.replace(batch, chunk_size=rows)

    def objective(batch):
        return policy(batch.obs).log_prob(batch.action) * batch.advantage

    v, parameters = torch.randn_like(flat(policy)), list(policy.parameters())
    for of in (
        lambda b: fisher_operator(policy, b, fisher)(v),
        lambda b: b.gradient(objective, parameters),
    ):
        torch.testing.assert_close(of(chunked), of(batch))


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("kind", KINDS)
def test_operator_is_one_fixed_symmetric_psd_matrix(kind, fisher):
    policy, batch = problem(kind)
    F = fisher_operator(policy, batch, fisher)
    u, v = torch.randn(2, len(flat(policy)))
    assert torch.equal(F(v), F(v))
    torch.testing.assert_close(u.dot(F(v)), v.dot(F(u)))
    eigenvalues = torch.linalg.eigvalsh(dense(F, v))
    assert eigenvalues.min() > -1e-12 * eigenvalues.max()


def test_operator_stays_at_the_parameters_it_was_made_at():
    policy, batch = problem("discrete")
    v = torch.randn(len(flat(policy)))
    F = fisher_operator(policy, batch, "exact")
    before = F(v)
    fisher_operator(policy, make_batch(policy), "exact")(v)
    assert torch.equal(F(v), before)
    assert all(p.grad is None for p in policy.parameters())


def test_exact_fisher_depends_on_states_only_and_the_empirical_one_on_actions():
    policy, batch = problem("discrete")
    other = batch.__class__(batch.obs, (batch.action + 1) % 4, -batch.advantage)
    v = torch.randn(len(flat(policy)))

    def products(kind):
        return [fisher_operator(policy, b, kind)(v) for b in (batch, other)]

    assert torch.equal(*products("exact"))
    assert not torch.allclose(*products("empirical"))


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_horizon_scales_the_matrix(fisher):
    policy, batch = problem("box")
    longer = batch.__class__(batch.obs, batch.action, batch.advantage, horizon=25.0)
    v = torch.randn(len(flat(policy)))
    torch.testing.assert_close(
        fisher_operator(policy, longer, fisher)(v), 25 * fisher_operator(policy, batch, fisher)(v)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_closed_form_is_the_hessian_of_the_kl(kind):
    policy, batch = problem(kind)
    params = 2 * torch.randn_like(policy.dist_params(batch.obs))
    u = torch.randn_like(params)
    closed_form = policy.dist(params).fisher_product(u)
    torch.testing.assert_close(closed_form, kl_hessian_metric(policy, params)(u))


class WithoutClosedForm(MLPPolicy):
    """A user's policy: torch's own distributions know no `fisher_product`."""

    family = staticmethod(lambda params: TorchCategorical(logits=params))

    def dist(self, params):
        return self.family(params)


def user_policy(family):
    policy = make_policy("discrete")
    policy.__class__ = type("UserPolicy", (WithoutClosedForm,), {"family": staticmethod(family)})
    return policy


def test_a_distribution_without_closed_form_gives_the_same_fisher_matrix():
    policy, batch = problem("discrete")
    user = user_policy(lambda params: TorchCategorical(logits=params))
    user.load_state_dict(policy.state_dict())
    F, fallback = (dense(fisher_operator(p, batch, "exact"), flat(p)) for p in (policy, user))
    torch.testing.assert_close(fallback, F)


@pytest.mark.parametrize(
    ("family", "variance"),
    [
        (
            lambda params: Bernoulli(logits=params),
            lambda params: params.sigmoid() * (-params).sigmoid(),
        ),
        (lambda params: Poisson(params.exp()), lambda params: params.exp()),
    ],
    ids=["bernoulli", "poisson"],
)
def test_fallback_metric_of_an_exponential_family_is_its_variance(family, variance):
    policy = user_policy(family)
    params, u = torch.randn(2, 5, 4)
    metric = exact_metric(policy, params, make_batch(make_policy("discrete"), size=5))
    torch.testing.assert_close(metric(u), variance(params) * u)
    assert torch.equal(metric(u), metric(u))
