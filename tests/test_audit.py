"""The audit trail: predictions at the old parameters, for every rule."""

import math

import pytest
import torch
from oracles import KINDS, RULES, make_batch, make_policy, make_rule
from torch.distributions import kl_divergence

from rlopt.audit import Audit
from rlopt.fisher import fisher_operator
from rlopt.linalg import assign, dense, flatten
from rlopt.types import Batch

pytestmark = pytest.mark.usefixtures("float64")


def surrogate(policy, batch, old_log_prob):
    ratio = (policy(batch.obs).log_prob(batch.action) - old_log_prob).exp()
    return float(batch.expect(ratio * batch.advantage))


def small_step(kind, size):
    """A policy moved by a random step of that size; the batch; old parameters and the audit."""
    policy = make_policy(kind)
    batch = make_batch(policy)
    old = flatten(policy.parameters()).detach()
    audit = Audit(policy, batch)
    assign(list(policy.parameters()), old + size * torch.randn_like(old))
    return policy, batch, old, audit


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_agree_with_what_a_small_step_does(kind):
    policy, batch, _, audit = small_step(kind, 1e-4)
    metrics = audit.metrics()
    with torch.no_grad():
        dist = audit.old
        log_prob = dist.log_prob(batch.action)
        gain = surrogate(policy, batch, log_prob) - float(batch.expect(batch.advantage))
        kl = float(batch.expect(kl_divergence(dist, policy(batch.obs))))
    assert metrics["audit/predicted_gain"] == pytest.approx(gain, rel=0.02)
    assert metrics["audit/predicted_kl"] == pytest.approx(kl, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_predicted_kl_is_the_quadratic_form_of_the_fisher_matrix(kind):
    policy, batch, old, audit = small_step(kind, 0.1)
    step = flatten(policy.parameters()).detach() - old
    predicted = audit.metrics()["audit/predicted_kl"]
    assign(list(policy.parameters()), old)
    F = dense(fisher_operator(policy, batch, "exact"), old)
    assert predicted == pytest.approx(0.5 * float(step @ F @ step), rel=1e-4)


@pytest.mark.parametrize("name", RULES)
def test_the_policy_is_left_as_the_rule_made_it(name):
    policy = make_policy("box")
    batch = make_batch(policy)
    audit = Audit(policy, batch)
    make_rule(name, policy).step(batch)
    new = flatten(policy.parameters()).detach()
    metrics = audit.metrics()
    assert torch.equal(flatten(policy.parameters()), new)
    assert abs(metrics["audit/step_gradient_cosine"]) <= 1 + 1e-12  # rounding may pass 1
    assert metrics["audit/predicted_gain"] > 0


def test_plain_gradient_ascent_steps_along_the_gradient():
    policy = make_policy("discrete")
    batch = make_batch(policy)
    audit = Audit(policy, batch)
    make_rule("pg", policy).step(batch)
    assert audit.metrics()["audit/step_gradient_cosine"] == pytest.approx(1.0)


def test_two_equal_halves_are_all_signal_and_opposite_ones_all_noise():
    policy = make_policy("discrete")
    batch = make_batch(policy)
    obs, action = batch.obs.repeat(2, 1), batch.action.repeat(2)
    equal = Audit(policy, Batch(obs, action, batch.advantage.repeat(2))).metrics()
    opposite = Batch(obs, action, torch.cat([batch.advantage, -batch.advantage]))
    assert equal["audit/gradient_split_cosine"] == pytest.approx(1.0)
    assert equal["audit/gradient_snr"] > 1e6
    noise = Audit(policy, opposite).metrics()
    assert noise["audit/gradient_split_cosine"] == pytest.approx(-1.0)
    assert noise["audit/gradient_snr"] == pytest.approx(-1.0)


def test_one_transition_and_no_advantage_give_finite_figures_or_nan():
    policy = make_policy("discrete")
    batch = make_batch(policy)[:1]
    silent = Batch(batch.obs, batch.action, torch.zeros(1))
    metrics = Audit(policy, silent).metrics()
    assert metrics["audit/predicted_gain"] == metrics["audit/predicted_kl"] == 0.0
    assert math.isnan(metrics["audit/gradient_snr"])
