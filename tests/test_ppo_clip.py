import copy
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from oracles import (
    KINDS,
    SGD,
    TwoArms,
    flat,
    make_policy,
    make_rule,
    mean_kl,
    problem,
    step_of,
)

from rlopt.types import Batch

pytestmark = pytest.mark.usefixtures("float64")

UNIT_SGD = partial(torch.optim.SGD, lr=1.0)
RATIO = np.array([1.0, 1.1, 1.5, 0.9, 0.5, 1.0, 1.1, 1.5, 0.9, 0.5])
ADVANTAGE = np.array([2.0, 1.0, 3.0, 0.7, 1.2, -2.0, -1.0, -3.0, -0.7, -1.2])
MOVES = np.array([1, 1, 0, 1, 1, 1, 1, 1, 1, 0])  # 1.5 of a good action, 0.5 of a bad one: enough
ACTION = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
LOGITS = np.array([0.3, -0.5, 0.1])


class ThreeArms(TwoArms):
    """Softmax over three actions, its logits the parameters; the state is ignored."""

    def __init__(self, logits):
        super().__init__(0.5)
        self.theta = torch.nn.Parameter(torch.tensor(logits))

    def dist_params(self, obs):
        return self.theta.expand(len(obs), 3)


def by_hand(entropy_bonus):
    """The gradient [3] of mean(min(r A, clip(r, 0.8, 1.2) A)) + bonus H in the logits."""
    p = np.exp(LOGITS) / np.exp(LOGITS).sum()
    scores = np.eye(3)[ACTION] - p
    entropy_gradient = -p * (np.log(p) - (p * np.log(p)).sum())
    surrogate_gradient = (MOVES * RATIO * ADVANTAGE) @ scores / len(ACTION)
    return surrogate_gradient + entropy_bonus * entropy_gradient


def loss_by_numpy(logits, old_log_prob, entropy_bonus):
    log_p = logits - np.log(np.exp(logits).sum())
    r = np.exp(log_p[ACTION] - old_log_prob)
    L = np.minimum(r * ADVANTAGE, np.clip(r, 0.8, 1.2) * ADVANTAGE)
    return L.mean() - entropy_bonus * (np.exp(log_p) * log_p).sum()


@pytest.mark.parametrize("entropy_bonus", [0.0, 0.3])
def test_gradient_on_both_signs_of_advantages_and_ratios_in_and_out_of_range(entropy_bonus):
    policy = ThreeArms(LOGITS)
    log_p = LOGITS - np.log(np.exp(LOGITS).sum())
    old_log_prob = log_p[ACTION] - np.log(RATIO)
    batch = Batch(torch.zeros(10, 1), torch.tensor(ACTION), torch.tensor(ADVANTAGE))
    rule = make_rule("ppo_clip", policy, optimizer=UNIT_SGD, entropy_bonus=entropy_bonus)
    rule._sgd_step(batch, torch.tensor(old_log_prob))
    step = policy.theta.detach().numpy() - LOGITS

    np.testing.assert_allclose(step, by_hand(entropy_bonus), rtol=1e-12)
    ends = [
        [loss_by_numpy(LOGITS + e, old_log_prob, entropy_bonus) for e in sign * 1e-6 * np.eye(3)]
        for sign in (1, -1)
    ]
    np.testing.assert_allclose(step, np.subtract(*ends) / 2e-6, rtol=1e-7)


@pytest.mark.parametrize("clip_range", [0.01, 1e9])
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_on_the_whole_batch_is_that_of_the_policy_gradient(kind, clip_range):
    policy, batch = problem(kind, horizon=3.0)
    changes = {"epochs": 1, "clip_range": clip_range, "optimizer": SGD}
    steps = [
        step_of(make_rule("pg", copy.deepcopy(policy)), batch),
        step_of(make_rule("ppo_clip", copy.deepcopy(policy), **changes), batch),
    ]
    torch.testing.assert_close(*steps, rtol=1e-12, atol=1e-15)


def test_epochs_ascend_the_clipped_surrogate_from_the_old_policy():
    policy, batch = problem("box", horizon=3.0)
    twin, old = copy.deepcopy(policy), copy.deepcopy(policy)
    metrics = make_rule("ppo_clip", policy, epochs=6).step(batch)

    optimizer, outside = SGD(twin.parameters()), []
    old_log_prob = old(batch.obs).log_prob(batch.action).detach()
    for _ in range(6):
        log_ratio = twin(batch.obs).log_prob(batch.action) - old_log_prob
        ratio = log_ratio.exp()
        good = batch.advantage > 0
        held = torch.where(good, ratio > 1.2, ratio < 0.8)
        optimizer.zero_grad()
        (-3.0 * torch.where(held, 0.0, ratio * batch.advantage).mean()).backward()
        optimizer.step()
        outside.append(((ratio < 0.8) | (ratio > 1.2)).float().mean().item())
    torch.testing.assert_close(flat(policy), flat(twin))
    assert 0.1 < np.mean(outside) < 0.9
    assert metrics["algo/clip_fraction"] == pytest.approx(np.mean(outside))
    assert metrics["algo/approx_kl"] == pytest.approx((ratio - 1 - log_ratio).mean().item())
    assert metrics["algo/epochs"] == 6


@pytest.mark.parametrize("name", ["ppo", "ppo_clip"])
def test_a_longer_gradient_is_shortened_and_its_norm_reported(name):
    policy, batch = problem("discrete")
    once = {"epochs": 1, "optimizer": UNIT_SGD}
    step = step_of(make_rule(name, copy.deepcopy(policy), **once), batch)
    for limit in (0.5 * step.norm().item(), 2 * step.norm().item()):
        rule = make_rule(name, copy.deepcopy(policy), max_grad_norm=limit, **once)
        before = flat(rule.policy)
        metrics = rule.step(batch)
        expected = step * min(1, limit / step.norm().item())
        torch.testing.assert_close(flat(rule.policy) - before, expected, rtol=1e-4, atol=0)
        assert metrics["algo/grad_norm"] == pytest.approx(step.norm().item())


@pytest.mark.parametrize("size", [2, 3, 16])
def test_minibatches_are_standardised_by_cleanrls_formula(size):
    """(A - A.mean()) / (A.std() + 1e-8), where std is the sample's: divided by n - 1."""
    policy, batch = problem("discrete")
    batch = batch[torch.arange(size)]
    A = 5 + 3 * batch.advantage
    sample_std = ((A - A.mean()).square().sum() / (size - 1)).sqrt()

    def step(advantage, standardize_minibatch):
        settings = {"standardize_minibatch": standardize_minibatch, "optimizer": UNIT_SGD}
        rule = make_rule("ppo_clip", copy.deepcopy(policy), epochs=1, **settings)
        return step_of(rule, replace(batch, advantage=advantage))

    expected = step((A - A.mean()) / (sample_std + 1e-8), False)
    torch.testing.assert_close(step(A, True), expected, rtol=1e-9, atol=1e-12)
    assert expected.norm() > 1e-3


def test_a_minibatch_of_one_row_has_an_advantage_of_zero():
    policy, batch = problem("discrete")
    rule = make_rule("ppo_clip", policy, standardize_minibatch=True, minibatch_size=1)
    before = flat(policy)
    rule.step(batch)
    assert torch.equal(flat(policy), before)


def test_an_epoch_visits_every_transition_once():
    policy, batch = problem("discrete")
    rule = make_rule("ppo_clip", policy, minibatch_size=6, epochs=2)
    visits = []
    policy.network.register_forward_hook(lambda module, inputs, output: visits.append(inputs[0]))
    rule.step(batch)
    assert [len(rows) for rows in visits] == [16, 6, 5, 5, 6, 5, 5]
    for part in (visits[1:4], visits[4:]):
        rows = torch.cat(part)
        assert sorted(rows.tolist()) == sorted(batch.obs.tolist())
        assert not torch.equal(rows, batch.obs)


@pytest.mark.parametrize("horizon", [1.0, 6.0])
def test_no_epoch_is_begun_beyond_the_target_kl(horizon):
    """The analytic KL of the whole batch, by the lengths of updates that are allowed n epochs."""
    policy, batch = problem("box", horizon=horizon)

    def run(epochs, target_kl):
        torch.manual_seed(7)
        settings = {"minibatch_size": 5, "optimizer": partial(torch.optim.SGD, lr=0.01 / horizon)}
        settings |= {"epochs": epochs, "target_kl": target_kl}
        rule = make_rule("ppo_clip", copy.deepcopy(policy), **settings)
        metrics = rule.step(batch)
        return mean_kl(policy, rule.policy, batch), metrics["algo/epochs"]

    kls = [run(epochs, None)[0] for epochs in (1, 2, 3)]
    assert 0 < kls[0] < kls[1] < kls[2]
    for allowed in (1, 2):
        between = math.sqrt(kls[allowed - 1] * kls[allowed])
        assert run(9, between) == (kls[allowed], allowed + 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("minibatch_size", 2.5),
        ("clip_range", 0.0),
        ("entropy_bonus", -0.1),
        ("standardize_minibatch", 1),
        ("max_grad_norm", 0.0),
        ("target_kl", 0.0),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        make_rule("ppo_clip", make_policy("box"), **{name: value})
