"""rlopt/compare.py against its own predictions and exact solutions, and scripts/compare.py."""

import csv
import math
import sys

import pytest
import torch
from gymnasium import spaces
from test_train_script import SMALL, assert_one_error_line, process, run_here
from torch.distributions import Exponential

from rlopt import compare
from rlopt.algos.npg import NPG
from rlopt.distributions import Categorical, DiagonalGaussian
from rlopt.envs import make_vector_env
from rlopt.policies import MLPPolicy
from rlopt.types import Batch

TINY = [
    "warmup_steps=64",
    "env.num_envs=4",
    "env.max_episode_steps=30",
    "rollout.num_steps=16",
    "episodes=8",
    "kls=[0.001,0.01]",
]


def make_env(env_id, num_envs, max_episode_steps=None):
    return make_vector_env(
        env_id,
        num_envs=num_envs,
        backend="auto",
        max_episode_steps=max_episode_steps,
        kwargs={},
    )


def make_policy(env):
    return MLPPolicy(
        env.single_observation_space,
        env.single_action_space,
        hidden_sizes=[16],
        activation="tanh",
        distribution="gaussian",
        log_std_init=-0.5,
        output_gain=0.5,
        orthogonal_init=True,
        normalize_obs=False,
    )


def npg(policy, max_kl=0.02):
    return NPG(
        policy,
        max_kl=max_kl,
        step_size=None,
        fisher="exact",
        fisher_samples=None,
        solver="cg",
        damping=1e-3,
        cg_iterations=20,
        cg_tolerance=1e-10,
    )


def random_batch(policy, obs_size, size=200):
    obs = torch.randn(size, obs_size)
    return Batch(obs, policy(obs).sample(), torch.randn(size))


@pytest.fixture
def cart_pole(float64):
    """A policy and a batch."""
    policy = make_policy(make_env("CartPole-v1", 1))
    return policy, random_batch(policy, 4)


# A step and its predictions


def test_predictions_agree_with_measurements_at_a_small_radius(cart_pole):
    policy, batch = cart_pole
    x = compare.step_of(lambda new: npg(new, 1e-8), policy, batch, seed=0)
    row = compare.audit(policy, batch, x)
    assert row["kl"] == pytest.approx(row["predicted_kl"], rel=1e-3)
    assert row["surrogate_gain"] == pytest.approx(row["predicted_gain"], rel=1e-3)
    assert 0 < row["predicted_kl"] < 1e-8
    assert 0 < row["cosine"] < 1


def test_the_errors_of_the_predictions_are_of_the_next_order(cart_pole):
    policy, batch = cart_pole
    x = compare.step_of(lambda new: npg(new, 1e-7), policy, batch, seed=0)
    one, half = (compare.audit(policy, batch, c * x) for c in (1.0, 0.5))

    def error(row, predicted, measured):
        return abs(row[predicted] - row[measured])

    ratio_gain, ratio_kl = (
        error(one, *keys) / error(half, *keys)
        for keys in [("predicted_gain", "surrogate_gain"), ("predicted_kl", "kl")]
    )
    assert ratio_gain == pytest.approx(4, rel=0.1)  # O(x^2)
    assert ratio_kl == pytest.approx(8, rel=0.1)  # O(x^3)


def test_a_step_along_the_gradient_has_cosine_one(cart_pole):
    policy, batch = cart_pole
    log_prob = policy(batch.obs).log_prob(batch.action)
    batch.expect(log_prob * batch.advantage).backward()
    g = torch.cat([p.grad.reshape(-1) for p in policy.parameters()])
    row = compare.audit(policy, batch, 0.01 * g)
    assert row["cosine"] == pytest.approx(1)
    assert row["predicted_gain"] == pytest.approx(0.01 * float(g @ g))


def test_the_kl_is_from_the_old_policy_to_the_new(cart_pole):
    policy, batch = cart_pole
    x = compare.step_of(npg, policy, batch, seed=0)
    x *= compare.scale_to_kl(policy, batch, x, 0.5)
    p, q = (pi(batch.obs).probs.detach() for pi in (policy, compare.moved(policy, x)))
    kl, reverse = (p * (p / q).log()).sum(-1).mean(), (q * (q / p).log()).sum(-1).mean()
    assert compare.audit(policy, batch, x)["kl"] == pytest.approx(float(kl))
    assert float(kl) != pytest.approx(float(reverse), rel=0.01)


def test_no_step_has_no_gain_and_no_direction(cart_pole):
    policy, batch = cart_pole
    x = torch.zeros_like(compare.flatten(policy.parameters()))
    row = compare.audit(policy, batch, x)
    assert math.isnan(row.pop("cosine"))
    assert set(row.values()) == {0.0}
    assert math.isnan(compare.scale_to_kl(policy, batch, x, 0.01))


@pytest.mark.parametrize("target", [1e-5, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("length", [1e-3, 1.0, 30.0])
def test_a_step_is_scaled_to_the_kl_that_is_asked_for(cart_pole, target, length):
    policy, batch = cart_pole
    x = compare.step_of(npg, policy, batch, seed=0) * length
    c = compare.scale_to_kl(policy, batch, x, target)
    assert c > 0
    assert compare.audit(policy, batch, c * x)["kl"] == pytest.approx(target, rel=0.01)


def test_a_kl_that_no_scale_reaches_is_nan(float64):
    box = spaces.Box(-1, 1, (2,))
    policy = MLPPolicy(
        box,
        spaces.Discrete(2),
        hidden_sizes=[3],
        activation="tanh",
        distribution="gaussian",
        log_std_init=0.0,
        output_gain=0.1,
        orthogonal_init=True,
        normalize_obs=False,
    )
    batch = random_batch(policy, 2)
    x = torch.zeros(sum(p.numel() for p in policy.parameters()))
    x[:6] = 1.0  # the first layer alone: tanh saturates
    assert compare.audit(policy, batch, x)["kl"] > 0
    assert math.isnan(compare.scale_to_kl(policy, batch, x, 5.0))


def test_the_frozen_policy_is_left_as_it_is(cart_pole):
    policy, batch = cart_pole
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    random_state = torch.get_rng_state()
    x = compare.step_of(npg, policy, batch, seed=0)
    compare.scale_to_kl(policy, batch, x, 0.01)
    compare.audit(policy, batch, x)
    for key, value in policy.state_dict().items():
        assert torch.equal(value, before[key])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.allclose(
        compare.flatten(compare.moved(policy, x).parameters()),
        compare.flatten(policy.parameters()) + x,
    )


# Common random numbers


def test_two_policies_act_on_the_same_noise():
    def draw(dist):
        torch.manual_seed(1)
        return dist.sample()

    old, new = torch.tensor([0.4, 0.6]), torch.tensor([0.5, 0.5])
    a, b = (draw(Categorical(p.log().expand(10_000, 2))) for p in (old, new))
    assert (a >= b).all()  # nobody moves against the change
    assert (a != b).double().mean() == pytest.approx(0.1, abs=0.01)  # the total variation

    old, new = torch.full((10,), 0.1), torch.full((10,), 0.1)
    new[0], new[9] = 0.15, 0.05  # the inverse distribution function differs with probability 0.45
    a, b = (draw(Categorical(p.log().expand(10_000, 10))) for p in (old, new))
    assert (a != b).double().mean() < 2 * 0.05 / 1.05 + 0.01

    mean, std = torch.randn(5, 3), torch.rand(5, 3) + 0.1
    a = draw(DiagonalGaussian(torch.cat([mean, std.log()], -1)))
    b = draw(DiagonalGaussian(torch.cat([mean + 1, (2 * std).log()], -1)))
    assert torch.allclose((a - mean) / std, (b - mean - 1) / (2 * std), atol=1e-5)

    rate = torch.tensor([1.0, 2.0])
    assert torch.equal(draw(Exponential(rate)), draw(Exponential(rate)))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1", "Pendulum-v1"])
def test_a_policy_differs_from_itself_by_exactly_nothing(env_id):
    env = make_env(env_id, 20, max_episode_steps=25)
    policy = make_policy(env)
    old, new = (compare.episode_returns(policy, env, seed=3) for _ in range(2))
    assert old.shape == (20,)
    assert compare.paired_change(old, new)["return_change"] == 0
    assert compare.paired_change(old, new)["half_width"] == 0
    assert not torch.equal(old, compare.episode_returns(policy, env, seed=4))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_common_random_numbers_shrink_the_interval(env_id):
    env = make_env(env_id, 200, max_episode_steps=60)
    policy = make_policy(env)
    batch = random_batch(policy, env.single_observation_space.shape[0])
    x = compare.step_of(npg, policy, batch, seed=0)
    new = compare.moved(policy, compare.scale_to_kl(policy, batch, x, 1e-4) * x)
    old_returns = compare.episode_returns(policy, env, seed=3)
    paired = compare.paired_change(old_returns, compare.episode_returns(new, env, seed=3))
    independent = compare.episode_returns(new, env, seed=4) - old_returns
    assert paired["half_width"] < 0.7 * compare.half_width(independent)
    # What is reported for independent episodes is what they give
    expected = pytest.approx(compare.half_width(independent), rel=0.15)
    assert paired["half_width_unpaired"] == expected


def test_returns_are_of_one_episode_for_each_environment():
    """On CartPole the return is the length; without a time limit in reach all of them differ."""
    env = make_env("CartPole-v1", 7)
    policy = make_policy(env)
    returns = compare.episode_returns(policy, env, seed=0)
    recorder = compare.Recorder(env, "cpu", compare.sample)
    torch.manual_seed(0)
    recorder.reset(0)
    rollout = compare.run_episodes(recorder, policy, 7, 500)
    assert sorted(returns.tolist()) == sorted(rollout.episode_returns)


# Exact changes


def test_the_sampled_interval_contains_the_exact_change():
    env = make_env("FrozenLake-v1", 1500)
    mdp = compare.transition_table("FrozenLake-v1", {}, None)
    policy = make_policy(env)
    rollout = compare.Recorder(make_env("FrozenLake-v1", 1), "cpu", compare.sample)
    rollout.reset(0)
    obs = rollout.record(policy, None, 500).obs[:-1, 0]
    toward_goal = (policy(obs).sample() == 2).float() - 0.25
    batch = Batch(obs, policy(obs).sample(), toward_goal)
    x = compare.step_of(npg, policy, batch, seed=0)
    (row,) = compare.compare(
        policy,
        batch,
        {"npg": 3 * x},
        [],
        lambda p: compare.episode_returns(p, env, seed=1),
        lambda p: compare.exact_return(mdp, p),
    )
    assert row["half_width"] > 0
    assert abs(row["return_change"] - row["exact_change"]) < row["half_width"]
    returns = compare.episode_returns(policy, env, seed=1)
    error = abs(float(returns.mean()) - compare.exact_return(mdp, policy))
    assert error < compare.half_width(returns)


def test_a_transition_table_is_found_where_there_is_one():
    slippery = compare.transition_table("FrozenLake-v1", {}, None)
    dry = compare.transition_table("FrozenLake-v1", {"is_slippery": False}, 7)
    assert (slippery.horizon, dry.horizon) == (100, 7)
    assert (slippery.P > 0).sum() > (dry.P > 0).sum()
    assert compare.transition_table("rlopt/TwoActions-v0", {}, None).horizon == 1
    assert compare.transition_table("CartPole-v1", {}, None) is None


# The command


def rows_of(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def script(*arguments):
    return run_here("compare.py", *TINY, *arguments)


def assert_written(folder, rules):
    table = (folder / "table.md").read_text(encoding="utf-8")
    cells = [line.split(" | ")[0].strip("| ") for line in table.splitlines()[4:]]
    assert cells == rules
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in folder.iterdir()} == {"table.md", "metrics.csv", "compare.png"}
    return table


@pytest.mark.slow
def test_the_command_as_a_process(tmp_path):
    done = process("compare.py", *TINY, f"output={tmp_path / 'out'}")
    out, err = done.communicate(timeout=100)
    assert (done.returncode, err) == (0, "")
    rules = ["pg", "npg", "trpo", "ppo"]
    assert assert_written(tmp_path / "out", rules) in out
    assert f"wrote {tmp_path / 'out'}" in out
    rows = rows_of(tmp_path / "out")
    assert [row["rule"] for row in rows] == [rule for rule in rules for _ in range(3)]
    for row in rows:
        if row["target_kl"] != "nan":
            assert float(row["kl"]) == pytest.approx(float(row["target_kl"]), rel=0.02)


def test_the_settings_of_a_rule_are_its_own_and_the_result_is_repeatable(tmp_path):
    def npg_row(folder, *arguments):
        code, _ = script("algos=[npg]", f"output={tmp_path / folder}", "kls=[]", *arguments)
        assert code is None
        (row,) = rows_of(tmp_path / folder)
        return row

    first = npg_row("a")
    assert first == npg_row("b")
    narrow = npg_row("c", "rules.npg.max_kl=0.0002")
    ratio = float(narrow["predicted_kl"]) / float(first["predicted_kl"])
    assert ratio == pytest.approx(0.01, rel=0.01)  # from the same policy on the same batch


def test_an_exact_change_on_a_tabular_environment(tmp_path):
    code, _ = script("env=FrozenLake-v1", "algos=[npg,pg]", f"output={tmp_path / 'out'}")
    assert code is None
    assert "exact change" in assert_written(tmp_path / "out", ["npg", "pg"])
    rows = rows_of(tmp_path / "out")
    assert all(math.isfinite(float(row["exact_change"])) for row in rows)
    assert [row["return_change"] == "" for row in rows] == [False, True, True] * 2


class Nudge:
    """A rule that is no part of the package: adds a constant to every parameter."""

    def __init__(self, policy, *, amount):
        self.policy, self.amount = policy, amount

    def step(self, batch):
        with torch.no_grad():
            for p in self.policy.parameters():
                p += self.amount * torch.linspace(-1, 1, p.numel()).view_as(p)
        return {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_a_rule_of_ones_own(tmp_path):
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "nudge.yaml").write_text(
        "_target_: test_compare.Nudge\namount: 0.01\n", encoding="utf-8"
    )
    arguments = ["algos=[pg,nudge]", f"output={tmp_path / 'out'}", "rules.nudge.amount=0"]
    code, _ = script(*arguments, f"--config-dir={tmp_path}")
    assert code is None
    assert_written(tmp_path / "out", ["pg", "nudge"])
    rows = [row for row in rows_of(tmp_path / "out") if row["rule"] == "nudge"]
    assert [row["return_change"] for row in rows] == ["0.0"]  # no step, and none to scale


def test_the_policy_of_a_run(tmp_path):
    run = tmp_path / "run"
    small = [setting for setting in SMALL if setting != "~tuned"]
    assert run_here("train.py", *small, f"hydra.run.dir={run}", "policy=linear")[0] is None
    arguments = ["episodes=8", "kls=[]", f"run={run}", f"output={tmp_path / 'out'}"]
    code, out = run_here("compare.py", *arguments)
    assert code is None
    steps = torch.load(run / "checkpoints" / "last.pt")["env_steps"]
    assert f"policy of last.pt at {steps} steps" in out
    assert_written(tmp_path / "out", ["pg", "npg", "trpo", "ppo"])

    code, _ = run_here("compare.py", f"run={run}", "env.num_envs=2")
    assert code.startswith(f"error: env.num_envs=2: run={run} decides it")
    (run / "checkpoints" / "last.pt").unlink()
    code, _ = run_here("compare.py", f"run={run}", f"output={tmp_path / 'none'}")
    assert code.startswith("error: ")
    assert "last.pt does not exist" in code
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("algos=[npg,trppo]", ["algo=trppo", "did you mean algo=trpo?"]),
        ("algos=npg", ["algos=npg", "algos=[pg,npg]"]),
        ("algos=[]", ["algos=[]", "algos=[pg,npg]"]),
        ("rules.npg.max_kl=-1", ["rules.npg.max_kl must be greater than 0, got -1"]),
        ("rules.ppo.epochs=0", ["rules.ppo.epochs must be", "got 0"]),
        ("episodes=1", ["episodes must be", "at least 2, got 1"]),
        ("warmup_steps=-1", ["warmup_steps must be", "got -1"]),
        ("run_checkpoint=first", ["run_checkpoint must be one of last, best"]),
        ("kls=[0.1,0]", ["kls[1] must be greater than 0, got 0"]),
        ("episods=3", ["episods is no setting", "episodes"]),
        ("run=nowhere", ["run=nowhere is no run folder"]),
        ("env=CartPoel-v1", ["env=CartPoel-v1", "CartPole-v1"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, argument, parts):
    code, out = run_here("compare.py", f"output={tmp_path / 'out'}", argument)
    assert isinstance(code, str)
    assert code.startswith("error: ")
    assert "\n" not in code
    assert [part for part in parts if part not in code] == []
    assert out == ""
    assert not list(tmp_path.iterdir())


def test_a_bad_rule_name_is_one_line_on_stderr(tmp_path):
    done = process("compare.py", "algos=[pgg]", f"output={tmp_path / 'out'}")
    assert_one_error_line(done, "algo=pgg", "did you mean algo=pg?")


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine").touch()
    code, _ = script(f"output={tmp_path}")
    assert code.startswith(f"error: output={tmp_path} exists already")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_missing_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _ = script(f"output={tmp_path / 'out'}")
    assert code.startswith("error: compare.py needs a package: pip install -e '.[bench]'")
