"""scripts/verify.py passes what is sound, and fails each planted fault in the row that names it."""

import dataclasses
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from plants import PLANTS
from probes import compose_config
from torch import nn
from torch.distributions import Independent

from rlopt import advantages, build, fisher, linalg
from rlopt.advantages import standardize
from rlopt.algos.npg import NPG
from rlopt.algos.trpo import TRPO
from rlopt.linalg import Solution
from rlopt.line_search import LineSearch, backtrack
from rlopt.policies import MLPPolicy
from rlopt.trainer import Trainer
from rlopt.types import Batch
from rlopt.verify import CHECKS, name_of, verify
from rlopt.verify.dense import brute_kl
from rlopt.verify.watch import replaced

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "verify.py"
ENVS = ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"]
QUICK = ["rollout.num_steps=64", "env.num_envs=8"]

pytestmark = pytest.mark.usefixtures("float64")


def audited(*overrides, alter=None, checks=CHECKS):
    """The rows of `python scripts/verify.py <overrides>`; `alter` plants a fault in the trainer."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build.make_trainer(compose_config(*overrides), Path(folder))
        trainer.logger.close()
    if alter is not None:
        alter(trainer)
    return verify(trainer, checks)


def failed(rows):
    return {name for name, row in rows if row.verdict == "FAIL"}


COMBINATIONS = [
    *itertools.product(["npg", "trpo"], ENVS),
    *itertools.product(["pg", "ppo", "ppo_clip"], ENVS[:1]),
    *(pytest.param(*c, marks=pytest.mark.slow) for c in itertools.product(["pg", "ppo"], ENVS[1:])),
]


@pytest.mark.parametrize(("algo", "env"), COMBINATIONS)
def test_everything_passes(algo, env):
    rows = audited(f"algo={algo}", f"env={env}")
    assert not failed(rows)
    assert {name for name, _ in rows} == set(map(name_of, CHECKS))
    assert sum(row.verdict == "PASS" for _, row in rows) >= 40


OTHER_SETTINGS = [
    "algo=npg algo.fisher=empirical",
    "algo=npg algo.solver=dense policy=linear policy.normalize_obs=false",
    "algo=npg algo.step_size=0.1 baseline=zero advantage=reward_to_go",
    "algo=pg advantage=reward_to_go advantage.bootstrap=false",
    "algo=npg algo.damping=0 policy.activation=relu baseline=linear",
    "algo=trpo algo.kl=sampled advantage=td",
    "algo=trpo policy=fourier baseline=trunk",
    "algo=trpo average_over=trajectories rollout=episodes rollout.baseline_episodes=4",
    "algo=ppo algo.kl=sampled algo.target_kl=null",
    "algo=ppo_clip env=Pendulum-v1 algo.entropy_bonus=0.01 algo.standardize_minibatch=true",
    "algo=pg algo.optimizer._target_=torch.optim.SGD standardize_advantage=false",
]


@pytest.mark.parametrize("overrides", OTHER_SETTINGS)
def test_other_settings_pass(overrides):
    assert not failed(audited("env=CartPole-v1", *overrides.split()))


# A policy and a rule of the user's own


class Plain:
    """A rule with nothing that the package's rules have in common but names of settings.

    They mean something else, or nothing.
    """

    def __init__(self, policy, *, rate):
        self.policy, self.rate = policy, rate
        self.optimizer = self.fisher = self.kl = "none"
        self.penalty = self.clip_range = self.max_kl = self.damping = self.backtrack_ratio = 7.0
        self.cg_iterations = self.fisher_samples = self.step_size = None

    def step(self, batch):
        parameters = list(self.policy.parameters())
        log_prob = self.policy(batch.obs).log_prob(batch.action)
        loss = batch.expect(log_prob * batch.advantage)
        with torch.no_grad():
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p += self.rate * g
        return {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Gumbel(nn.Module):
    """A distribution that the package knows nothing of; no normaliser."""

    family = torch.distributions.Gumbel

    def __init__(self, observation_space, action_space, **settings_of_the_other):
        super().__init__()
        self.linear = nn.Linear(observation_space.shape[0], 2)

    def dist_params(self, obs):
        return self.linear(obs)

    def dist(self, params):
        return Independent(self.family(params[:, :1], params[:, 1:].exp()), 1)

    def forward(self, obs):
        return self.dist(self.dist_params(obs))

    def update_statistics(self, obs):
        pass


class Laplace(Gumbel):
    """Its KL holds |x|, of which autograd takes the second derivative at 0 for 0."""

    family = torch.distributions.Laplace


# Faults: each takes pytest's monkeypatch, or is a class that `_target_` names


def reversed_kl(name):
    def plant(patch):
        patch.setattr(name, lambda p, q: torch.distributions.kl_divergence(q, p))

    return plant


def negative_kl(name):
    def plant(patch):
        patch.setattr(name, lambda p, q: -torch.distributions.kl_divergence(p, q))

    return plant


def no_kl_in_the_line_search(patch):
    patch.setattr("rlopt.algos.trpo.kl_divergence", lambda p, q: torch.zeros(()))


def smaller(function):
    """What is taken for the smaller of the free and the clipped surrogate."""
    return lambda patch: patch.setattr("rlopt.algos.ppo_clip.torch.min", function)


class ForgetsLogStd(MLPPolicy):
    def parameters(self, recurse=True):
        return (p for name, p in self.named_parameters() if name != "head.log_std")


class HasValueHead(MLPPolicy):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.value = nn.Parameter(torch.zeros(3))

    def dist_params(self, obs):
        return super().dist_params(obs) + 0 * self.value.sum()


def aliasing_cg(A, b, max_iterations, tolerance):
    x, r = torch.zeros_like(b), b.clone()
    p, rr = r, r.dot(r)
    for _ in range(max_iterations):
        if rr.sqrt() <= tolerance * b.norm():
            break
        Ap = A(p)
        alpha = rr / p.dot(Ap)
        x = x + alpha * p
        r -= alpha * Ap  # p too
        rr_next = r.dot(r)
        p = r + (rr_next / rr) * p
        rr = rr_next
    return Solution(x, r, max_iterations, float(rr.sqrt() / b.norm()))


def absolute_tolerance(A, b, max_iterations, tolerance):
    return linalg.conjugate_gradient(A, b, max_iterations, tolerance / (float(b.norm()) + 1e-30))


def solver(function):
    def plant(patch):
        function.__name__ = "conjugate_gradient"
        patch.setattr("rlopt.algos.npg.conjugate_gradient", function)

    return plant


def prepare(change):
    """A fault in how estimators read an episode's end."""

    def plant(patch):
        original = advantages._prepare
        patch.setattr(advantages, "_prepare", lambda *args: change(original, *args))

    return plant


def discounts_twice(patch):
    original = advantages._discounted_sum
    patch.setattr(advantages, "_discounted_sum", lambda x, decay: original(x, decay**2))


def leaks(original, reward, value, terminated, truncated, valid):
    next_value, continues = original(reward, value, terminated, truncated, valid)
    return next_value, torch.ones_like(continues)


def truncation_ends(original, reward, value, terminated, truncated, valid):
    return original(reward, value, terminated | truncated, truncated, valid)


def bootstraps_from_itself(original, reward, value, terminated, truncated, valid):
    _, continues = original(reward, value, terminated, truncated, valid)
    return torch.where(terminated, 0.0, torch.where(truncated, value[:-1], value[1:])), continues


def both_bootstraps(original, reward, value, terminated, truncated, valid):
    return original(reward, value, terminated & ~truncated, truncated, valid)


def normaliser_before_the_update(patch):
    class Early(Trainer):
        def _update(self, batch):
            self.policy.update_statistics(batch.obs)
            return super()._update(batch)

    patch.setattr(build, "Trainer", Early)


class Unnormalised(NPG):
    def step(self, batch):
        with replaced(self, step_size=self.max_kl):
            return super().step(batch)


class DividesByNothing(NPG):
    def step(self, batch):
        A = batch.advantage
        return super().step(dataclasses.replace(batch, advantage=A / A.std()))


class DampsTwice(NPG):
    def step(self, batch):
        with replaced(self, damping=2 * self.damping):
            return super().step(batch)


class ReportsHalf(NPG):
    def step(self, batch):
        metrics = super().step(batch)
        return metrics | {"algo/predicted_kl": metrics["algo/predicted_kl"] / 2}


class MovesInForward(MLPPolicy):
    def forward(self, obs):
        self.update_statistics(obs)
        return super().forward(obs)


class Descends(TRPO):
    def step(self, batch):
        return super().step(dataclasses.replace(batch, advantage=-batch.advantage))


def does_not_restore(patch):
    def keep_the_last(reason_to_reject, shrink, max_tries):
        search = backtrack(reason_to_reject, shrink, max_tries)
        return search if search.scale else LineSearch(1e-300, max_tries, search.rejected)

    patch.setattr("rlopt.algos.trpo.backtrack", keep_the_last)


def records_the_clipped_action(patch):
    patch.setattr("rlopt.rollout.sample", lambda dist: dist.sample().clamp(-2, 2))


def summed_score(patch):
    def fisher_operator(policy, batch, kind):
        log_prob = policy(batch.obs).log_prob(batch.action).sum()
        g = linalg.gradient(log_prob, list(policy.parameters()))
        return lambda v: g * g.dot(v) / len(batch)

    patch.setattr("rlopt.algos.npg.fisher_operator", fisher_operator)


def redrawn_subsample(patch):
    def fisher_operator(policy, batch, kind):
        def product(v):
            half = batch[torch.randperm(len(batch))[: len(batch) // 2]]
            return fisher.fisher_operator(policy, half, kind)(v)

        return product

    patch.setattr("rlopt.algos.npg.fisher_operator", fisher_operator)


def shares_the_trunk(patch):
    def alter(trainer):
        trunk = trainer.policy.network[:-1]
        trainer.baseline.network = nn.Sequential(*trunk, nn.Linear(64, 1))
        trainer.baseline.optimizer = torch.optim.Adam(trainer.baseline.network.parameters())

    return alter


def divides_by_the_variance(patch):
    def wrong(advantage, valid):
        return standardize(advantage, valid) / advantage[valid].std(unbiased=False)

    patch.setattr("rlopt.trainer.standardize", wrong)


def takes_autoreset_rows(patch):
    def alter(trainer):
        collect = trainer.rollout.collect

        def all_valid(policy):
            rollout = collect(policy)
            return dataclasses.replace(rollout, valid=torch.ones_like(rollout.valid))

        trainer.rollout.collect = all_valid

    return alter


def evaluation_moves_the_normaliser(patch):
    evaluate = build.evaluate

    def wrong(policy, env, **options):
        policy.update_statistics(torch.randn(10, 4))
        return evaluate(policy, env, **options)

    patch.setattr(build, "evaluate", wrong)


def wrong_sign(patch):
    right = Batch.gradient
    patch.setattr(Batch, "gradient", lambda *args: -right(*args))


PPO_CLIP = "algo=ppo_clip env=CartPole-v1"
NPG_CARTPOLE = "algo=npg env=CartPole-v1"
TRPO_CARTPOLE = "algo=trpo env=CartPole-v1"
SEARCHING = TRPO_CARTPOLE + " algo.damping=0.01"  # with more, no step is too long
PENDULUM = "algo=npg env=Pendulum-v1"
FAULTS = {
    "KL reported in the other direction": (
        reversed_kl("rlopt.trainer.kl_divergence"), NPG_CARTPOLE, "measured kl"),
    "KL limited in the other direction": (
        reversed_kl("rlopt.algos.trpo.kl_divergence"), SEARCHING, "line search"),
    "KL limited with the wrong sign": (
        negative_kl("rlopt.algos.trpo.kl_divergence"), SEARCHING, "line search"),
    "KL penalty with the wrong sign": (
        negative_kl("rlopt.algos.ppo.kl_divergence"), "algo=ppo env=CartPole-v1", "penalty"),
    "clipped ratio without the minimum": (
        smaller(lambda free, clipped: clipped), PPO_CLIP, "clipped ratio"),
    "larger of clipped and free": (smaller(torch.max), PPO_CLIP, "clipped ratio"),
    "ratio that is not clipped": (
        smaller(lambda free, clipped: free), PPO_CLIP, "clipped ratio"),
    "line search without the KL": (no_kl_in_the_line_search, SEARCHING, "line search"),
    "line search that does not restore": (does_not_restore, SEARCHING, "line search"),
    "log std left out": (ForgetsLogStd, PENDULUM, "actor parameters"),
    "value head among the actor's": (HasValueHead, NPG_CARTPOLE, "actor parameters"),
    "CG that aliases": (solver(aliasing_cg), NPG_CARTPOLE, "conjugate gradient"),
    "CG of absolute tolerance": (solver(absolute_tolerance), NPG_CARTPOLE, "conjugate gradient"),
    "advantages that leak": (prepare(leaks), NPG_CARTPOLE, "advantages at ends"),
    "truncation as termination": (prepare(truncation_ends), NPG_CARTPOLE, "advantages at ends"),
    "bootstrap from V(s_t)": (prepare(bootstraps_from_itself), PENDULUM, "advantages at ends"),
    "bootstrap beyond a termination": (
        prepare(both_bootstraps), NPG_CARTPOLE, "advantages at ends"),
    "normaliser updated early": (
        normaliser_before_the_update, NPG_CARTPOLE, "log prob ratio is one"),
    "clipped action in the batch": (
        records_the_clipped_action, PENDULUM + " policy.log_std_init=0.5",
        "log prob ratio is one"),
    "step of a constant times F^-1 g": (Unnormalised, NPG_CARTPOLE, "radius of the step"),
    "step that grows with the advantages": (Unnormalised, NPG_CARTPOLE, "advantage scale"),
    "0/0 of zero advantages": (DividesByNothing, NPG_CARTPOLE, "zero advantages"),
    "more damping than documented": (DampsTwice, NPG_CARTPOLE, "natural direction"),
    "a wrong prediction reported": (ReportsHalf, NPG_CARTPOLE, "predicted and measured"),
    "statistics that sampling moves": (MovesInForward, NPG_CARTPOLE, "statistics"),
    "gamma lambda squared": (discounts_twice, NPG_CARTPOLE, "advantages"),
    "second derivative of |x| at 0": (Laplace, PENDULUM, "fisher is hessian of kl"),
    "descent": (Descends, TRPO_CARTPOLE, "ascent"),
    "gradient of the wrong sign": (wrong_sign, NPG_CARTPOLE, "gradient of the rule"),
    "Fisher of the summed score": (
        summed_score, NPG_CARTPOLE + " algo.fisher=empirical", "fisher matrix"),
    "Fisher subsample redrawn": (redrawn_subsample, NPG_CARTPOLE, "fisher matrix"),
    "critic on the policy's trunk": (
        shares_the_trunk, NPG_CARTPOLE + " baseline.fit=optimizer", "moved by the step"),
    "variance for the standard deviation": (
        divides_by_the_variance, NPG_CARTPOLE, "batch of the update"),
    "autoreset rows as transitions": (takes_autoreset_rows, NPG_CARTPOLE, "batch of the update"),
    "evaluation moves the normaliser": (
        evaluation_moves_the_normaliser, NPG_CARTPOLE, "evaluation"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_its_row(fault, monkeypatch):
    plant, overrides, name = FAULTS[fault]
    overrides, alter = [*overrides.split(), *QUICK], None
    if isinstance(plant, type):
        section = "policy" if issubclass(plant, nn.Module) else "algo"
        overrides.append(f"{section}._target_={__name__}.{plant.__name__}")
    else:
        alter = plant(monkeypatch)
    checks = [check for check in CHECKS if name_of(check) == name]
    assert name in failed(audited(*overrides, alter=alter, checks=checks))


@pytest.mark.parametrize("overrides", [NPG_CARTPOLE, TRPO_CARTPOLE, SEARCHING, PENDULUM])
def test_the_settings_of_the_faults_pass_without_them(overrides):
    assert not failed(audited(*overrides.split(), *QUICK))


def test_a_rule_of_the_users_own():
    rows = audited("algo=npg", "env=CartPole-v1", *QUICK, alter=with_plain_rule)
    assert not failed(rows)
    skipped = {name for name, row in rows if row.verdict == "n/a"}
    assert {"gradient of the rule", "natural direction", "line search", "penalty"} <= skipped


def with_plain_rule(trainer):
    trainer.rule = Plain(trainer.policy, rate=0.01)


class MeanReturn(nn.Module):
    """A baseline of another kind: the mean of all targets so far."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(2))

    def forward(self, obs, step):
        return (self.total[0] / self.total[1].clamp(min=1)).expand(step.shape)

    def fit(self, obs, step, target):
        self.total += torch.stack([target.sum(), torch.ones_like(target).sum()])
        return {}


def test_a_baseline_of_the_users_own():
    def alter(trainer):
        trainer.baseline = MeanReturn()

    rows = audited("algo=ppo_clip", "env=CartPole-v1", *QUICK, alter=alter)
    assert not failed(rows)
    assert "baseline fit" in {name for name, row in rows if row.verdict == "n/a"}


@pytest.mark.parametrize("algo", ["pg", "npg", "trpo", "ppo"])
def test_a_policy_of_the_users_own(algo):
    target = f"policy._target_={__name__}.Gumbel"
    assert not failed(audited(f"algo={algo}", "env=Pendulum-v1", target, *QUICK))


def test_every_check_has_a_fault_that_it_finds():
    found = {name for _, _, name in FAULTS.values()} | {plant.row for plant in PLANTS}
    assert set(map(name_of, CHECKS)) <= found


# The oracle itself


def test_brute_kl_is_the_kl():
    D = torch.distributions
    p, q = (D.Categorical(logits=torch.randn(5, 3)) for _ in range(2))
    torch.testing.assert_close(brute_kl(p, q), D.kl_divergence(p, q))
    p, q = (D.Independent(D.Normal(torch.randn(5, 2), torch.rand(5, 2) + 0.1), 1) for _ in "pq")
    torch.testing.assert_close(brute_kl(p, q), D.kl_divergence(p, q))
    p, q = (D.Laplace(torch.randn(5), torch.ones(5)) for _ in range(2))
    torch.testing.assert_close(brute_kl(p, q), D.kl_divergence(p, q), atol=0.01, rtol=0.01)


# The command


def command(folder, *overrides):
    """`python scripts/verify.py <overrides>` as a process in an empty folder."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *overrides],
        cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert list(folder.iterdir()) == []  # it leaves nothing behind
    return done


def test_the_command_passes(tmp_path):
    done = command(tmp_path, "algo=npg", "env=CartPole-v1", *QUICK)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["check", "figure", "measured", "tolerance"]
    assert any("dense" in line and line.endswith("PASS") for line in lines)
    assert max(map(len, lines)) <= 100
    assert "0 FAIL" in lines[-1]


def test_the_command_fails_on_a_rule_with_a_fault(tmp_path):
    target = f"algo._target_={Path(__file__).stem}.{Unnormalised.__name__}"
    done = command(tmp_path, "algo=npg", "env=CartPole-v1", target, *QUICK)
    assert (done.returncode, done.stderr) == (1, "")
    assert any(line.startswith("advantage scale") and line.endswith("FAIL")
               for line in done.stdout.splitlines())  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo.max_kl=-1"], "error: algo.max_kl must be greater than 0, got -1"),
        (["-m", "seed=1,2"], "error: -m: verify.py audits one configuration at a time"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, overrides, message):
    done = command(tmp_path, *overrides)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message + "\n")


def test_a_run_folder_stays_as_it_is(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.csv").write_text("x")
    empty = tmp_path / "empty"
    empty.mkdir()
    command(empty, "algo=npg", f"hydra.run.dir={run}", *QUICK)
    assert [path.name for path in run.iterdir()] == ["metrics.csv"]
