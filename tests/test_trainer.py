import copy
import csv
import math
from dataclasses import replace

import pytest
import torch
from probes import compose_config

from rlopt import checkpoint
from rlopt.build import make_trainer
from rlopt.envs import derive_seed
from rlopt.evaluate import Evaluation
from rlopt.trainer import evaluation_metrics

RULES = ["pg", "npg", "trpo", "ppo", "ppo_clip"]
QUICK = [
    "~tuned",
    "env.num_envs=4",
    "env.backend=sync",
    "policy.hidden_sizes=[8]",
    "baseline.hidden_sizes=[8]",
    "rollout.num_steps=16",
    "eval.episodes=1",
    "eval.final_episodes=2",
]


@pytest.fixture
def build(tmp_path):
    """Makes a trainer of one iteration on CartPole; overrides say what is different."""
    trainers = []

    def make(*overrides):
        chosen = {override.split("=")[0] for override in overrides} - {"env"}
        quick = [setting for setting in QUICK if setting.split(".")[0] not in chosen]
        cfg = compose_config("env=CartPole-v1", "total_steps=1", *quick, *overrides)
        trainers.append(make_trainer(cfg, tmp_path / str(len(trainers))))
        return trainers[-1]

    yield make
    for trainer in trainers:
        trainer.logger.close()


def rows(trainer):
    with (trainer.logger.folder / "metrics.csv").open(newline="") as file:
        return [{key: float(x) for key, x in row.items() if x} for row in csv.DictReader(file)]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class Spy:
    """Stands in for a rule: keeps the batch and the policies before and after a step."""

    def __init__(self, rule, policy):
        self.rule, self.policy = rule, policy

    def step(self, batch):
        self.batch, self.before = batch, copy.deepcopy(self.policy)
        metrics = self.rule.step(batch) if self.rule else {}
        self.after = copy.deepcopy(self.policy)
        return metrics

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def spy_on(trainer, moves=True):
    trainer.rule = Spy(trainer.rule if moves else None, trainer.policy)
    return trainer.rule


def keep_rollouts(trainer):
    """Lists that fill with the rollouts for the update and for the baseline."""
    rollouts, separate = [], []
    collect, collect_for_baseline = trainer.rollout.collect, trainer.rollout.collect_for_baseline

    def kept(sampler, results):
        def sampled(policy):
            results.append(sampler(policy))
            return results[-1]

        return sampled

    trainer.rollout.collect = kept(collect, rollouts)
    trainer.rollout.collect_for_baseline = kept(collect_for_baseline, separate)
    return rollouts, separate


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("algo", RULES)
def test_two_updates_move_finite_parameters(build, algo, env):
    trainer = build(f"algo={algo}", f"env={env}", "total_steps=100")
    policy = copy.deepcopy(dict(trainer.policy.named_parameters()))
    baseline = copy.deepcopy(list(trainer.baseline.parameters()))
    evaluation = trainer.train()
    assert len(rows(trainer)) == 2
    assert len(evaluation.returns) == 2
    for name, x in trainer.policy.named_parameters():
        assert x.isfinite().all(), name
        assert not torch.equal(x, policy[name]), name
    for old, new in zip(baseline, trainer.baseline.parameters(), strict=True):
        assert new.isfinite().all()
        assert not torch.equal(old, new)


@pytest.mark.parametrize("algo", RULES)
def test_every_row_has_the_metrics_of_every_rule(build, algo):
    trainer = build(f"algo={algo}", "total_steps=100")
    trainer.train()
    first, last = rows(trainer)
    wanted = {
        "env_steps",
        "rollout/return_mean",
        "rollout/length_mean",
        "rollout/episodes",
        "policy/kl",
        "policy/surrogate_gain",
        "policy/entropy",
        "policy/entropy_after",
        "baseline/explained_variance",
        "baseline/loss",
        "time/steps_per_second",
        "time/rollout_share",
    }
    evaluated = {"eval/return_mean", "eval/return_std", "eval/length_mean"}
    assert wanted <= first.keys()
    assert any(key.startswith("algo/") for key in first)
    assert not evaluated & first.keys()
    assert wanted | evaluated <= last.keys()


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("average_over", ["steps", "trajectories"])
@pytest.mark.parametrize("algo", RULES)
def test_measurements_equal_recomputation(build, algo, average_over, env):
    """KL(old || new), entropies and the surrogate's gain, by the densities' formulas."""
    trainer = build(f"algo={algo}", f"env={env}", f"average_over={average_over}")
    spy = spy_on(trainer)
    trainer.train()
    batch = spy.batch
    with torch.no_grad():
        old, new = spy.before(batch.obs), spy.after(batch.obs)
        if env == "CartPole-v1":
            kl = (old.probs * (old.logits - new.logits)).sum(-1)
            entropy = [-(d.probs * d.logits).sum(-1) for d in (old, new)]
        else:
            (m, s), (n, t) = ((d.mean, d.stddev) for d in (old, new))
            kl = ((t / s).log() + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5).sum(-1)
            entropy = [(x.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1) for x in (s, t)]
        ratio = (new.log_prob(batch.action) - old.log_prob(batch.action)).exp()
        gain = batch.horizon * ((ratio - 1) * batch.advantage).mean()
    row = rows(trainer)[0]
    expected = {
        "policy/kl": batch.horizon * kl.mean(),
        "policy/surrogate_gain": gain,
        "policy/entropy": entropy[0].mean(),
        "policy/entropy_after": entropy[1].mean(),
    }
    for tag, value in expected.items():
        assert math.isclose(row[tag], value, rel_tol=1e-3, abs_tol=1e-6), tag
    assert row["policy/kl"] > 0


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_rule_sees_the_policy_that_sampled(build, env):
    """The ratio is 1 before the step, in the second iteration too: old statistics, no clipping."""
    trainer = build(f"env={env}", "total_steps=100")
    spy = spy_on(trainer)
    sampled = []
    collect = trainer.rollout.collect

    def collect_and_copy(policy):
        sampled.append((copy.deepcopy(policy), collect(policy)))
        return sampled[-1][1]

    trainer.rollout.collect = collect_and_copy
    trainer.train()
    assert len(sampled) == 2
    policy, rollout = sampled[-1]
    assert policy.normalizer.count == sampled[0][1].num_steps > 0
    assert same(policy.state_dict(), spy.before.state_dict())
    with torch.no_grad():
        old = rollout.flatten(policy(rollout.obs[:-1]).log_prob(rollout.action))
        ratio = (spy.before(spy.batch.obs).log_prob(spy.batch.action) - old).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio))


def test_the_normalizer_moves_after_the_update_by_the_batch(build):
    trainer = build()
    spy = spy_on(trainer)
    trainer.train()
    assert spy.before.normalizer.count == spy.after.normalizer.count == 0
    normalizer = trainer.policy.normalizer
    assert normalizer.count == len(spy.batch)
    torch.testing.assert_close(normalizer.mean, spy.batch.obs.double().mean(0))


@pytest.mark.parametrize("baseline", ["mlp", "linear"])
def test_fitting_the_baseline_leaves_the_policy_bitwise_unchanged(build, baseline):
    trainer = build(f"baseline={baseline}")
    before = copy.deepcopy(trainer.policy.state_dict())
    obs = torch.randn(50, 4)
    trainer.baseline.fit(obs, torch.arange(50), obs.sum(-1))
    assert same(trainer.policy.state_dict(), before)
    policy = {id(p) for p in trainer.policy.parameters()}
    assert not any(id(p) in policy for p in trainer.baseline.parameters())


def test_a_rule_without_a_step_leaves_the_policys_parameters(build):
    """Sampling, fitting, evaluation and saving move nothing that an update should."""
    trainer = build("total_steps=128")
    spy_on(trainer, moves=False)
    before = copy.deepcopy(list(trainer.policy.parameters()))
    trainer.train()
    after = list(trainer.policy.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert rows(trainer)[-1]["policy/kl"] == 0


def test_batch_is_the_valid_rows_of_one_environment_after_the_other(build):
    trainer = build("env=Counting-v0", "+env.kwargs.lengths=[3]", "standardize_advantage=false")
    spy = spy_on(trainer)
    rollouts, _ = keep_rollouts(trainer)
    trainer.train()
    rollout = rollouts[0]
    assert len(spy.batch) == rollout.num_steps == 4 * 12
    rewards = torch.cat([r[v] for r, v in zip(rollout.reward.T, rollout.valid.T, strict=True)])
    assert torch.equal(spy.batch.obs[:, 0] + 1, rewards)
    assert torch.equal(spy.batch.action, rollout.flatten(rollout.action))


def test_advantages_come_from_the_estimator_and_its_settings(build):
    """lambda 0, gamma 1/2 and a baseline that is 0 at first: A = r + V(s') - V(s) = reward."""
    trainer = build(
        "env=Counting-v0",
        "+env.kwargs.lengths=[3]",
        "standardize_advantage=false",
        "baseline=zero",
        "advantage=reward_to_go",
        "gamma=0.5",
    )
    spy = spy_on(trainer)
    trainer.train()
    first = spy.batch.advantage[spy.batch.obs[:, 0] == 0]
    assert torch.equal(first, torch.full_like(first, 1 + 0.5 * (2 + 0.5 * 3)))


@pytest.mark.parametrize("standardized", [False, True])
def test_advantages_are_standardized_on_request(build, standardized):
    trainer = build(f"standardize_advantage={standardized}")
    spy = spy_on(trainer)
    trainer.train()
    a = spy.batch.advantage
    assert (abs(a.mean()) < 1e-5 and abs(a.std(unbiased=False) - 1) < 1e-5) == standardized


def test_only_valid_steps_are_counted(build):
    """One-step episodes: every other row is a reset."""
    trainer = build("env=Counting-v0", "+env.kwargs.lengths=[1]", "total_steps=33")
    trainer.train()
    assert [row["env_steps"] for row in rows(trainer)] == [32, 64]
    assert trainer.env_steps == 64


@pytest.mark.parametrize(("total_steps", "iterations"), [(1, 1), (64, 1), (65, 2), (128, 2)])
def test_training_ends_at_total_steps(build, total_steps, iterations):
    trainer = build("env=Pendulum-v1", f"total_steps={total_steps}")
    trainer.train()
    assert [row["env_steps"] for row in rows(trainer)] == [64 * (i + 1) for i in range(iterations)]


@pytest.mark.parametrize(("threshold", "iterations"), [("0.5", 1), ("1.0", 1), ("1.5", 3)])
def test_training_ends_when_an_evaluation_reaches_the_threshold(build, threshold, iterations):
    trainer = build(
        "env=ConstantReward-v0", f"stop_at_return={threshold}", "eval.every=1", "total_steps=96"
    )
    evaluation = trainer.train()
    assert len(rows(trainer)) == iterations
    assert evaluation.returns == [1.0, 1.0]
    assert (trainer.logger.folder / "checkpoints" / "last.pt").is_file()


def test_evaluations_come_every_so_many_steps(build):
    trainer = build("env=Pendulum-v1", "eval.every=128", "total_steps=320")
    calls = []

    def evaluate(episodes):
        calls.append((trainer.env_steps, episodes))
        return Evaluation([0.0], [1])

    trainer.evaluate = evaluate
    trainer.train()
    assert calls == [(128, 1), (256, 1), (320, 2)]


def test_best_is_the_policy_of_the_best_evaluation_and_last_the_last(build):
    trainer = build("env=Pendulum-v1", "eval.every=1", "total_steps=192")
    returns, policies = iter([1.0, 3.0, 2.0]), []

    def evaluate(episodes):
        policies.append(copy.deepcopy(trainer.policy.state_dict()))
        return Evaluation([next(returns)], [1])

    trainer.evaluate = evaluate
    trainer.train()
    folder = trainer.logger.folder / "checkpoints"
    best, last = (checkpoint.load(folder / f"{name}.pt") for name in ("best", "last"))
    assert same(best["policy"], policies[1])
    assert same(last["policy"], policies[2])
    assert (best["env_steps"], best["best_return"]) == (128, 3.0)
    assert (last["env_steps"], last["best_return"]) == (192, 3.0)


def test_evaluation_leaves_training_untouched(build):
    """Runs that evaluate never and after every iteration collect the same data."""
    data = []
    for every in (1, 10**6):
        trainer = build(f"eval.every={every}", "total_steps=192")
        rollouts, _ = keep_rollouts(trainer)
        trainer.train()
        data.append(rollouts)
    for a, b in zip(*data, strict=True):
        assert torch.equal(a.obs, b.obs)
        assert torch.equal(a.action, b.action)


@pytest.mark.parametrize("algo", RULES)
def test_a_seed_determines_training(build, algo):
    def final_policy(seed):
        trainer = build(f"algo={algo}", f"seed={seed}", "total_steps=128")
        trainer.train()
        return trainer.policy.state_dict()

    assert same(final_policy(1), final_policy(1))
    assert not same(final_policy(1), final_policy(2))


def test_separate_trajectories_fit_the_baseline_and_are_not_in_the_gradient(build):
    """[step, episode] tells them apart: episodes 0 and 1 are for the fit, 2, 3 and 4 for g."""
    trainer = build(
        "env=Counting-v0",
        "env.num_envs=1",
        "rollout.episodes=3",
        "rollout.baseline_episodes=2",
        "rollout=episodes",
    )
    spy = spy_on(trainer)
    order, fitted = [], []
    fit, step = trainer.baseline.fit, spy.step

    def spied_fit(obs, step, target):
        order.append("fit")
        fitted.append(obs)
        return fit(obs, step, target)

    def spied_step(batch):
        order.append("step")
        return step(batch)

    trainer.baseline.fit, spy.step = spied_fit, spied_step
    trainer.train()
    assert order == ["fit", "step"]
    assert fitted[0][:, 1].unique().tolist() == [0, 1]
    assert spy.batch.obs[:, 1].unique().tolist() == [2, 3, 4]
    assert trainer.env_steps == 15
    assert trainer.policy.normalizer.count == 9
    assert rows(trainer)[0]["rollout/episodes"] == 3


def test_without_separate_trajectories_the_fit_follows_the_update(build):
    trainer = build("env=Counting-v0", "rollout=episodes", "rollout.episodes=4")
    order = []
    fit, step = trainer.baseline.fit, trainer.rule.step
    trainer.baseline.fit = lambda *args: order.append("fit") or fit(*args)
    trainer.rule.step = lambda batch: order.append("step") or step(batch)
    trainer.train()
    assert order == ["step", "fit"]


def test_the_baselines_targets_are_returns_at_the_observations_step(build):
    """reward_to_go: the target does not depend on the baseline."""
    trainer = build(
        "env=Counting-v0",
        "+env.kwargs.lengths=[2, 3]",
        "advantage=reward_to_go",
        "gamma=1.0",
        "rollout.episodes=4",
        "env.num_envs=1",
        "rollout=episodes",
    )
    seen = []
    fit = trainer.baseline.fit
    trainer.baseline.fit = lambda *args: seen.append(args) or fit(*args)
    trainer.train()
    obs, step, target = seen[0]
    assert torch.equal(obs[:, 0], step.float())
    torch.testing.assert_close(target, torch.tensor([3.0, 2, 6, 5, 3] * 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("average_over", "horizon"), [("steps", 1.0), ("trajectories", 2.5)])
def test_average_over_trajectories_scales_by_their_mean_length(build, average_over, horizon):
    trainer = build(
        "env=Counting-v0",
        "+env.kwargs.lengths=[2, 3]",
        "env.num_envs=1",
        "rollout.episodes=4",
        f"average_over={average_over}",
        "rollout=episodes",
    )
    spy = spy_on(trainer)
    trainer.train()
    assert spy.batch.horizon == horizon
    assert spy.batch.expect(torch.ones(10)) == horizon
    assert spy.batch[torch.arange(3)].horizon == horizon


def test_the_baseline_learns_to_explain_returns(build):
    trainer = build("total_steps=4000", "rollout.num_steps=100", "baseline.epochs=3")
    trainer.train()
    explained = [row["baseline/explained_variance"] for row in rows(trainer)]
    assert abs(explained[0]) < 0.5
    assert sum(explained[-3:]) / 3 > 0.3


def test_a_non_finite_update_ends_training(build):
    trainer = build()
    spy = spy_on(trainer)
    step = spy.step

    def poison(batch):
        with torch.no_grad():
            next(iter(trainer.policy.parameters())).fill_(math.nan)
        return step(batch)

    spy.step = poison
    with pytest.raises(FloatingPointError, match="the update"):
        trainer.train()


def learned(trainer):
    return {
        name: copy.deepcopy(getattr(trainer, name).state_dict())
        for name in ("policy", "baseline", "rule")
    }


@pytest.mark.parametrize("poisoned", ["advantage", "target"])
@pytest.mark.parametrize("algo", RULES)
def test_a_rejected_iteration_leaves_no_trace_in_what_learns(build, algo, poisoned):
    """Not in the optimiser's moments, the penalty, the baseline or the normalisers either."""
    trainer = build(
        f"algo={algo}",
        "on_nonfinite=skip",
        "total_steps=250",
        "baseline=mlp",
        "baseline.fit=optimizer",
        "baseline.minibatch_size=16",
    )
    states, iterate, fit = [], trainer.iterate, trainer.baseline.fit
    estimate = trainer.advantage

    def watched_iterate():
        states.append(learned(trainer))
        return iterate()

    def poisoned_estimate(*args):
        bad = poisoned == "advantage" and len(states) == 2
        return estimate(*args) * (math.nan if bad else 1.0)

    def poisoned_fit(obs, step, target):
        bad = poisoned == "target" and len(states) == 2
        return fit(obs, step, target * (math.nan if bad else 1.0))

    trainer.iterate, trainer.advantage = watched_iterate, poisoned_estimate
    trainer.baseline.fit = poisoned_fit
    trainer.train()
    assert str(states[0]) != str(states[1])
    torch.testing.assert_close(states[2], states[1], rtol=0, atol=0)
    assert str(states[3]) != str(states[2])
    assert [row["update/rejected"] for row in rows(trainer)][:4] == [0, 1, 1, 1]


@pytest.mark.parametrize("fault", ["reward", "observation"])
@pytest.mark.parametrize("rollout", ["steps", "episodes"])
def test_skip_goes_on_with_new_episodes_after_an_environments_fault(build, rollout, fault):
    trainer = build(
        "env=Faulty-v0",
        f"+env.kwargs.fault={fault}",
        "+env.kwargs.value=inf",
        "+env.kwargs.at=9",
        f"+env.kwargs.bad_seed={derive_seed(0, 0) + 1}",
        f"rollout={rollout}",
        "on_nonfinite=skip",
        "total_steps=2000",
        *(["rollout.episodes=4"] if rollout == "episodes" else []),
    )
    trainer.train()
    assert trainer.env_steps >= 2000
    assert [row["update/rejected"] for row in rows(trainer)] == [1] * len(rows(trainer))
    assert len(rows(trainer)) > 2


@pytest.mark.parametrize("fault", ["reset", "step"])
def test_skip_ends_where_every_iteration_is_rejected(build, fault):
    trainer = build("env=Pendulum-v1", "on_nonfinite=skip", "total_steps=5")
    reset, step = trainer.rollout.recorder.env.reset, trainer.rollout.recorder.env.step
    bad = {
        "reset": lambda **options: (reset(**options)[0] * math.nan, {}),
        "step": lambda action: (lambda obs, *rest: (obs * math.nan, *rest))(*step(action)),
    }
    setattr(trainer.rollout.recorder.env, fault, bad[fault])
    before = copy.deepcopy(trainer.policy.state_dict())
    trainer.train()
    assert same(before, trainer.policy.state_dict())
    assert trainer.rejected_updates == len(rows(trainer)) > 0


def test_stop_saves_what_there_was_before_and_names_the_fault(build):
    trainer = build(
        "env=Faulty-v0",
        "+env.kwargs.fault=reward",
        "+env.kwargs.value=nan",
        "+env.kwargs.at=17",
        f"+env.kwargs.bad_seed={derive_seed(0, 0) + 1}",
        "total_steps=300",
    )
    states, iterate = [], trainer.iterate
    trainer.iterate = lambda: states.append(learned(trainer)) or iterate()
    with pytest.raises(FloatingPointError, match="environment 1 gave a non-finite reward at step"):
        trainer.train()
    saved = checkpoint.load(trainer.logger.folder / "checkpoints" / "last.pt")
    assert len(states) == 2
    assert saved["env_steps"] == 64
    for name in ("policy", "baseline"):
        torch.testing.assert_close(dict(saved[name]), dict(states[-1][name]), rtol=0, atol=0)


def test_a_rollout_without_ended_episodes_reports_none(build):
    trainer = build("env=Pendulum-v1")
    trainer.train()
    row = rows(trainer)[0]
    assert row["rollout/episodes"] == 0
    assert math.isnan(row["rollout/return_mean"])


def test_rollout_return_is_that_of_recent_episodes(build):
    trainer = build("env=Counting-v0", "+env.kwargs.lengths=[3]", "total_steps=200")
    trainer.train()
    assert [row["rollout/return_mean"] for row in rows(trainer)] == [6.0] * len(rows(trainer))
    assert rows(trainer)[0]["rollout/length_mean"] == 3.0
    assert len(trainer.recent_returns) == min(
        100, sum(r["rollout/episodes"] for r in rows(trainer))
    )


def test_evaluation_metrics():
    evaluation = Evaluation([1.0, 3.0], [10, 20], num_cut=1, num_nonfinite=4)
    expected = {"eval/return_mean": 2.0, "eval/return_std": 1.0, "eval/length_mean": 15.0}
    expected["eval/cut_episodes"] = 1
    assert evaluation_metrics(evaluation, "stop") == expected
    expected["eval/nonfinite_episodes"] = 4
    assert evaluation_metrics(evaluation, "skip") == expected


def test_invalid_numbers_reach_neither_update_nor_fit(build):
    """Noise on the invalid rows of a rollout changes nothing."""
    policies = []
    for noise in (0.0, 7.0):
        trainer = build("env=Counting-v0", "+env.kwargs.lengths=[3]", "+env.kwargs.end=truncated")
        collect = trainer.rollout.collect

        def noisy(policy, collect=collect, noise=noise):
            rollout = collect(policy)
            obs = rollout.obs.clone()
            rows = torch.cat([rollout.valid, torch.ones(1, 4, dtype=torch.bool)])
            follows_valid = torch.cat([torch.zeros(1, 4, dtype=torch.bool), rollout.valid])
            assert (rows | follows_valid).all()  # obs of an invalid row is a valid row's successor
            action = rollout.action + int(noise) * ~rollout.valid
            return replace(rollout, obs=obs, action=action)

        trainer.rollout.collect = noisy
        trainer.train()
        policies.append(trainer.policy.state_dict() | dict(trainer.baseline.named_parameters()))
    assert same(*policies)
