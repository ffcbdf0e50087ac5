import pytest
import torch
from oracles import actions_and_weights
from torch.distributions import kl_divergence

from rlopt.distributions import Categorical, DiagonalGaussian

pytestmark = pytest.mark.usefixtures("float64")

FAMILIES = [Categorical, DiagonalGaussian]


def test_categorical_is_the_softmax_of_its_logits():
    logits = torch.randn(5, 4)
    probs = logits.exp() / logits.exp().sum(-1, keepdim=True)
    dist, action = Categorical(logits), torch.tensor([0, 1, 2, 3, 0])
    torch.testing.assert_close(dist.log_prob(action), probs[torch.arange(5), action].log())
    torch.testing.assert_close(dist.entropy(), -(probs * probs.log()).sum(-1))


def test_gaussian_takes_mean_and_log_std():
    mean, log_std, action = torch.randn(3, 5, 2)
    dist = DiagonalGaussian(torch.cat([mean, log_std], dim=-1))
    z = (action - mean) / log_std.exp()
    density = (-0.5 * z**2).exp() / (log_std.exp() * (2 * torch.pi) ** 0.5)
    torch.testing.assert_close(dist.log_prob(action), density.prod(-1).log())
    assert (dist.batch_shape, dist.event_shape) == ((5,), (2,))


@pytest.mark.parametrize("family", FAMILIES)
def test_kl_and_entropy_are_expectations_over_actions(family):
    old, new = family(torch.randn(5, 4)), family(torch.randn(5, 4))
    pairs = list(actions_and_weights(old))
    kl = sum(w * (old.log_prob(a) - new.log_prob(a)) for a, w in pairs)
    torch.testing.assert_close(kl_divergence(old, new), kl)
    entropy = sum(-w * old.log_prob(a) for a, w in pairs)
    torch.testing.assert_close(old.entropy(), entropy)


@pytest.mark.parametrize("family", FAMILIES)
def test_fisher_product_is_the_expected_outer_product_of_scores(family):
    params = torch.randn(5, 4, requires_grad=True)
    u, expected = torch.randn(5, 4), torch.zeros(5, 4)
    for action, weight in actions_and_weights(family(params)):
        (score,) = torch.autograd.grad(family(params).log_prob(action).sum(), params)
        expected += weight[:, None] * score * (score * u).sum(-1, keepdim=True)
    torch.testing.assert_close(family(params.detach()).fisher_product(u), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_follow_the_density(family):
    dist = family(torch.randn(4).expand(50_000, 4))
    surprise = -dist.log_prob(dist.sample())
    assert surprise.mean() == pytest.approx(float(dist.entropy()[0]), abs=0.02)


def test_an_impossible_action_is_never_sampled():
    p = torch.tensor([0.5, 0.0, 0.2, 0.3])
    action = Categorical(p.log()).sample((100_000,))
    frequency = torch.bincount(action, minlength=4) / len(action)
    torch.testing.assert_close(frequency, p, atol=0.01, rtol=0)
    assert frequency[1] == 0


def test_mode_is_the_greedy_action():
    assert Categorical(torch.tensor([[0.0, 3.0, 1.0]])).mode.tolist() == [1]
    assert DiagonalGaussian(torch.tensor([[0.5, -2.0, 1.0, 1.0]])).mode.tolist() == [[0.5, -2.0]]


UNIFORM, SURE = torch.zeros(1, 2), torch.tensor([[0.0, -800.0]])  # exp(-800) underflows


@pytest.mark.parametrize(
    ("old", "new", "kl"),
    [
        (SURE, UNIFORM, torch.log(torch.tensor(2.0))),
        (SURE, SURE, torch.tensor(0.0)),
        (UNIFORM, SURE, 400 - torch.log(torch.tensor(2.0))),
    ],
    ids=["old underflows", "both underflow", "new underflows"],
)
def test_kl_of_underflowing_probabilities_is_finite_and_right(old, new, kl):
    new = new.clone().requires_grad_()
    value = kl_divergence(Categorical(old), Categorical(new)).sum()
    torch.testing.assert_close(value.detach(), kl.to(value))
    (slope,) = torch.autograd.grad(value, new)
    torch.testing.assert_close(slope, new.detach().softmax(-1) - old.softmax(-1))


def test_underflowing_probabilities_have_finite_log_prob_entropy_and_fisher_product():
    dist = Categorical(SURE)
    assert dist.log_prob(torch.tensor([1])) == -800
    assert dist.entropy() == 0
    assert torch.equal(dist.fisher_product(torch.ones(1, 2)), torch.zeros(1, 2))
