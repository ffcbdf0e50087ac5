"""Vanilla policy gradient, and what holds for every update rule."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from oracles import (
    KINDS,
    RULES,
    finite_difference,
    flat,
    make_batch,
    make_policy,
    make_rule,
    moved,
    problem,
    step_of,
    surrogate,
)

pytestmark = pytest.mark.usefixtures("float64")

UNIT_SGD = partial(torch.optim.SGD, lr=1.0)
ADAM = partial(torch.optim.Adam, lr=0.01)


@pytest.mark.parametrize("horizon", [1.0, 8.0])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_the_surrogate_by_finite_differences(kind, horizon):
    policy, batch = problem(kind, horizon=horizon)
    old = copy.deepcopy(policy)
    g = finite_difference(lambda theta: surrogate(old, moved(old, theta), batch), flat(old))
    step = step_of(make_rule("pg", policy, optimizer=UNIT_SGD), batch)
    torch.testing.assert_close(step, g, rtol=1e-6, atol=1e-8)


def test_gradient_norm_is_reported_and_gradients_do_not_accumulate():
    policy, batch = problem("box")
    rule = make_rule("pg", policy, optimizer=UNIT_SGD)
    for _ in range(2):
        before = flat(policy)
        metrics = rule.step(batch)
        norm = (flat(policy) - before).norm().item()
        assert metrics["algo/grad_norm"] == pytest.approx(norm)


def test_horizon_turns_the_mean_over_steps_into_a_sum_over_trajectories():
    _, batch = problem("discrete")
    x, trajectories = torch.randn(16), 4
    per_trajectory = replace(batch, horizon=16 / trajectories)
    torch.testing.assert_close(batch.expect(x), x.mean())
    torch.testing.assert_close(per_trajectory.expect(x), x.sum() / trajectories)
    assert per_trajectory[torch.arange(3)].horizon == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RULES)
def test_zero_advantages_leave_the_policy_unchanged(name, kind):
    policy, batch = problem(kind)
    rule = make_rule(name, policy)
    step = step_of(rule, replace(batch, advantage=torch.zeros(16)))
    torch.testing.assert_close(step, torch.zeros_like(step), rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", ["cg", "dense"])
@pytest.mark.parametrize("name", ["npg", "trpo"])
def test_zero_advantages_ask_for_no_natural_step_at_all(name, solver):
    policy, batch = problem("box")
    theta = flat(policy)
    rule = make_rule(name, policy, solver=solver)
    metrics = rule.step(replace(batch, advantage=torch.zeros(16)))
    assert torch.equal(flat(policy), theta)
    assert metrics["algo/step_size"] == metrics["algo/predicted_kl"] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RULES)
def test_a_step_moves_every_parameter_and_improves_the_surrogate(name, kind):
    policy, batch = problem(kind)
    old = copy.deepcopy(policy)
    step = step_of(make_rule(name, policy), batch)
    assert step.abs().min() > 0
    assert surrogate(old, policy, batch) > surrogate(old, old, batch)


@pytest.mark.parametrize("name", RULES)
def test_an_update_leaves_the_statistics_and_the_batch_alone(name):
    policy = make_policy("box", normalize_obs=True)
    policy.update_statistics(3 + 2 * torch.randn(50, 3))
    batch = make_batch(policy)
    buffers, data = copy.deepcopy((dict(policy.named_buffers()), batch))
    make_rule(name, policy).step(batch)
    assert all(torch.equal(b, buffers[n]) for n, b in policy.named_buffers())
    tensors = ["obs", "action", "advantage"]
    assert all(torch.equal(getattr(batch, n), getattr(data, n)) for n in tensors)


@pytest.mark.parametrize("name", RULES)
def test_a_restored_rule_goes_on_exactly(name):
    policy, batch = problem("discrete")
    changes = {
        "pg": {"optimizer": ADAM},
        "ppo": {"optimizer": ADAM, "target_kl": 1e-6, "minibatch_size": 5},
        "ppo_clip": {"optimizer": ADAM, "minibatch_size": 5},
    }.get(name, {})
    rule = make_rule(name, policy, **changes)
    for _ in range(2):
        rule.step(batch)
    restored = make_rule(name, copy.deepcopy(policy), **changes)
    restored.load_state_dict(copy.deepcopy(rule.state_dict()))
    for each in (rule, restored):
        torch.manual_seed(1)
        each.step(batch)
    assert torch.equal(flat(rule.policy), flat(restored.policy))
