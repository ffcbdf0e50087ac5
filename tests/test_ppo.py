import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from oracles import (
    KINDS,
    SGD,
    TwoArms,
    actions_and_weights,
    flat,
    make_policy,
    make_rule,
    mean_kl,
    problem,
    step_of,
)

from rlopt.linalg import gradient
from rlopt.types import Batch

pytestmark = pytest.mark.usefixtures("float64")

ADAM = partial(torch.optim.Adam, lr=0.02)
FROZEN = partial(torch.optim.SGD, lr=0.0)


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_ascend_the_surrogate_minus_the_penalised_kl_from_the_old_policy(kind, kl):
    policy, batch = problem(kind, horizon=3.0)
    twin = copy.deepcopy(policy)
    make_rule("ppo", policy, kl=kl, penalty=0.7, epochs=4).step(batch)

    old, optimizer = copy.deepcopy(twin), SGD(twin.parameters())
    old_dist = old.dist(old.dist_params(batch.obs).detach())
    for _ in range(4):
        new = twin(batch.obs)
        pairs = list(actions_and_weights(old_dist)) if kl == "analytic" else [(batch.action, 1.0)]
        kls = sum(w * (old_dist.log_prob(a) - new.log_prob(a)) for a, w in pairs)
        ratio = new.log_prob(batch.action).exp() / old_dist.log_prob(batch.action).exp()
        optimizer.zero_grad()
        (-3.0 * (ratio * batch.advantage - 0.7 * kls).mean()).backward()
        optimizer.step()
    torch.testing.assert_close(flat(policy), flat(twin))
    assert (flat(policy) - flat(old)).norm() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_gradient_is_the_policy_gradient(kind):
    policy, batch = problem(kind)
    steps = [
        step_of(make_rule("pg", copy.deepcopy(policy)), batch),
        step_of(make_rule("ppo", copy.deepcopy(policy), epochs=1, penalty=100.0), batch),
    ]
    torch.testing.assert_close(*steps)


def test_the_gradient_of_the_sampled_kl_is_that_of_minus_log_pi():
    policy, batch = problem("box")
    log_prob = policy(batch.obs).log_prob(batch.action)
    g = gradient(-log_prob.mean(), list(policy.parameters()))
    rule = make_rule("ppo", policy, kl="sampled", epochs=1, penalty=5.0)
    step = step_of(rule, replace(batch, advantage=torch.zeros(16)))
    torch.testing.assert_close(step, -0.1 * 5.0 * g)


@pytest.mark.parametrize(
    ("size", "parts"), [(16, [16]), (100, [16]), (6, [6, 5, 5]), (1, [1] * 16)]
)
def test_an_epoch_visits_every_transition_once_in_even_minibatches(size, parts):
    policy, batch = problem("discrete")
    visits = []
    rule = make_rule("ppo", policy, minibatch_size=size, epochs=2)
    policy.network.register_forward_hook(lambda module, inputs, output: visits.append(inputs[0]))
    rule.step(batch)
    epochs = visits[1 : 1 + len(parts)], visits[1 + len(parts) :]  # the first looks at pi_k
    rows = [torch.cat(epoch) for epoch in epochs]
    for epoch, seen in zip(epochs, rows, strict=True):
        assert [len(part) for part in epoch] == parts
        torch.testing.assert_close(seen.sort(0).values, batch.obs.sort(0).values)
    assert not torch.equal(*rows)


def natural_step(penalty):
    """PPO run to convergence from two arms of J = 100 pi_1 + pi_2, [1]."""
    action = torch.tensor([0, 0, 0, 1])
    batch = Batch(torch.zeros(4, 1), action, torch.where(action == 0, 100.0, 1.0))
    optimizer = partial(torch.optim.SGD, lr=2 / penalty)
    rule = make_rule("ppo", TwoArms(0.75), penalty=penalty, optimizer=optimizer, epochs=60)
    return step_of(rule, batch).item()


def test_as_the_penalty_grows_the_policy_stays_put_and_its_step_becomes_the_natural_gradient():
    """The maximiser of g x - penalty / 2 F x^2 is F^-1 g / penalty, here 99 / penalty."""
    assert natural_step(1e3) == pytest.approx(0.099, rel=0.05)
    assert natural_step(1e5) == pytest.approx(0.00099, rel=0.001)
    assert abs(natural_step(1e12)) < 1e-9


def run(policy, batch, **changes):
    """A step of PPO with its own minibatches, as a deterministic function of its settings."""
    rule = make_rule("ppo", copy.deepcopy(policy), minibatch_size=5, optimizer=ADAM, **changes)
    torch.manual_seed(7)
    metrics = rule.step(batch)
    return rule, metrics


@pytest.mark.parametrize(
    ("kl_over_target", "factor"),
    [(3.0, 2), (1.51, 2), (1.49, 1), (1.0, 1), (1 / 1.49, 1), (1 / 1.51, 0.5), (0.1, 0.5)],
)
@pytest.mark.parametrize("horizon", [1.0, 6.0])
def test_penalty_is_adapted_once_a_step_on_the_kl_of_the_whole_batch(
    kl_over_target, factor, horizon
):
    policy, batch = problem("box", horizon=horizon)
    fixed, _ = run(policy, batch, target_kl=None)
    kl = mean_kl(policy, fixed.policy, batch)
    adapted, metrics = run(policy, batch, target_kl=kl / kl_over_target)
    assert metrics["algo/penalty"] == 1  # the one that the step used
    assert adapted.penalty == factor
    assert fixed.penalty == 1
    assert torch.equal(flat(adapted.policy), flat(fixed.policy))


def test_adaptation_does_not_listen_to_the_sampled_kl():
    policy, batch = problem("box")
    target = mean_kl(policy, run(policy, batch, kl="sampled")[0].policy, batch)
    rule, _ = run(policy, batch, kl="sampled", target_kl=target)
    assert rule.penalty == 1
    log_ratio = policy(batch.obs).log_prob(batch.action) - rule.policy(batch.obs).log_prob(
        batch.action
    )
    assert not target / 1.5 < log_ratio.mean().item() < 1.5 * target


@pytest.mark.parametrize(
    ("optimizer", "bound"), [(FROZEN, 0.8), (partial(torch.optim.SGD, lr=10.0), 1.3)]
)
def test_penalty_stays_in_its_range(optimizer, bound):
    policy, batch = problem("discrete")
    rule = make_rule("ppo", policy, optimizer=optimizer, target_kl=1e-9, penalty_range=(0.8, 1.3))
    rule.step(batch)
    assert rule.penalty == bound


def test_penalty_keeps_halving_over_steps_and_is_part_of_the_checkpoint():
    policy, batch = problem("discrete")
    rule, restored = (make_rule("ppo", policy, optimizer=FROZEN, target_kl=0.01) for _ in range(2))
    for _ in range(3):
        rule.step(batch)
    assert rule.penalty == 1 / 8
    restored.load_state_dict(rule.state_dict())
    assert restored.step(batch)["algo/penalty"] == 1 / 8
    assert restored.penalty == 1 / 16


def test_a_policy_that_runs_into_underflow_stays_finite_and_is_pulled_back():
    policy = TwoArms(0.5)
    batch = Batch(torch.zeros(2, 1), torch.tensor([0, 1]), torch.tensor([1.0, 1.0]))
    with torch.no_grad():
        old_params = policy.dist_params(batch.obs)
        policy.theta.fill_(800.0)
    rule = make_rule("ppo", policy)
    rule._sgd_step(batch, old_params, policy.dist(old_params).log_prob(batch.action))
    assert 700 < policy.theta.item() < 800


def test_an_action_far_out_stalls_adam_unless_the_gradient_is_shortened():
    """The ratio grows exponentially, and Adam remembers the square of its gradient."""
    policy, batch = problem("box")
    far = batch.action.clone()
    far[0] += 8
    once = replace(batch, action=far, advantage=batch.advantage.abs())
    adam, ways = partial(torch.optim.Adam, lr=0.003), []
    for limit in (None, 0.5):
        rule = make_rule(
            "ppo", copy.deepcopy(policy), optimizer=adam, epochs=10, max_grad_norm=limit
        )
        assert rule.step(once)["algo/grad_norm"] > 10
        rule.epochs = 100
        ways.append(step_of(rule, batch).norm())
    assert ways[1] > 2 * ways[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("minibatch_size", 2.5),
        ("penalty", -1.0),
        ("target_kl", 0.0),
        ("max_grad_norm", 0.0),
        ("kl", "reverse"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        make_rule("ppo", make_policy("box"), **{name: value})


@pytest.mark.parametrize("changes", [{"penalty": 0.0}, {"penalty_range": (0.0, 1.0)}])
def test_an_adapted_penalty_must_be_able_to_grow(changes):
    with pytest.raises(ValueError, match="penalty"):
        make_rule("ppo", make_policy("box"), target_kl=0.01, **changes)
