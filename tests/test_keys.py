"""A setting that nothing reads is refused by every command, in a line that says what to write."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from omegaconf import OmegaConf
from test_train_script import SMALL, content, run_here, summary_of, train

from rlopt.config import Config, ConfigError, flat_keys, nearest, refuse_unknown, schema_keys


class Pays(gym.Env):
    """Five steps, each with the constructor's `pay` as its reward."""

    observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(2)

    def __init__(self, pay=1.0):
        self.pay, self.t = pay, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), self.pay, False, self.t == 5, {}


gym.register("Pays-v0", Pays)
FILES = {
    "algo/mine.yaml": "_target_: rlopt.algos.pg.PG\noptimizer:\n  _target_: torch.optim.SGD\n"
    "  _partial_: true\n  lr: 0.1\n",
    "tuned/mine/CartPole-v1.yaml": "# @package _global_\ngamma: 0.97\n",
    "tuned/npg/Pendulum-v1.yaml": "# @package _global_\ngamma: 0.5\n",
    "env/my_cart.yaml": "id: CartPole-v1\nnum_envs: 4\n",
    "env/bad_cart.yaml": "id: CartPole-v1\nfoo: 4\n",
    "experiment/deep/good.yaml": "# @package _global_\ngamma: 0.9\n",
    "experiment/unread.yaml": "# @package _global_\neval:\n  x: 1\n",
    "experiment/whole.yaml": "# @package _global_\ntotal_steps: 1e3\n",
    "experiment/no_package.yaml": "gamma: 0.9\n",
    "experiment/rate.yaml": "# @package _global_\nalgo:\n  lr: 1\n",
    "experiment/broken.yaml": "# @package _global_\ngamma: [0.9\n",
}


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    """A user's own config folder."""
    folder = tmp_path_factory.mktemp("own") / "conf"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run") / "it", "algo=npg")


def cases(*all_cases, quick):
    """Cases of a table, of which the `quick` first are in the default suite."""
    marks = [() if i < quick else pytest.mark.slow for i in range(len(all_cases))]
    return [pytest.param(*case, marks=m) for case, m in zip(all_cases, marks, strict=True)]


def refused(script, *arguments):
    """The one line with which a command ends; it prints nothing else."""
    code, out = run_here(script, *arguments)
    assert isinstance(code, str)
    assert code.startswith("error: ")
    assert "\n" not in code
    assert out == ""
    return code.removeprefix("error: ")


# Hints


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("algo.lr", "did you mean algo.optimizer.lr?"),
        ("algo.optimiser.lr", "did you mean algo.optimizer.lr?"),
        ("lr", "did you mean algo.optimizer.lr?"),
        ("algo.KL", "did you mean algo.kl?"),
        ("Seed", "did you mean seed?"),
        ("polcy.hidden_sizes", "did you mean policy.hidden_sizes?"),
        ("policy.depth", "there are policy.hidden_sizes"),
        ("algo.optimizer.nonsense", "there are algo.optimizer.lr"),
        ("nonsense", "there are seed, algo, policy"),
        ("nonsense.x", "there are seed, algo, policy"),
    ],
)
def test_the_nearest_key_is_one_of_the_same_word_else_one_spelt_alike(key, hint):
    keys = ["seed", "algo", "algo.kl", "algo.optimizer", "algo.optimizer.lr", "algo._target_"]
    assert nearest(key, [*keys, "policy", "policy.hidden_sizes"]) == hint


@pytest.mark.parametrize("key", ["nonsense", "eval.odd", "env.odd", "log.odd", "_odd"])
def test_a_key_outside_the_schema_is_refused(key):
    cfg = OmegaConf.create({"seed": 0, "env": {"kwargs": {"any": 1}}, "algo": {"any": {"deep": 1}}})
    refuse_unknown(cfg, schema_keys(Config))
    OmegaConf.update(cfg, key, 3, force_add=True)
    with pytest.raises(ConfigError, match=f"^{key} is no setting: there are "):
        refuse_unknown(cfg, schema_keys(Config))


def test_flat_keys_are_those_of_sections_too():
    assert flat_keys({"a": {"b": {}, "c": [{"d": 1}]}}) == ["a", "a.b", "a.c"]


# Commands


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    cases(
        ("train.py", "+nonsense=3", "nonsense is no setting: there are seed, total_steps, "),
        ("train.py", "-m seed=0,1 +eval.x=1", "eval.x is no setting: there are eval.every, "),
        ("train.py", "-m +eval.evry=1,2", "eval.evry is no setting: did you mean eval.every?"),
        ("train.py", "algo=ppo +algo.lr=1", "algo.lr is no setting of PPO: did you mean algo.opt"),
        ("verify.py", "+nonsense=3", "nonsense is no setting"),
        ("evaluate.py", "run=x +nonsense=3", "nonsense is no setting: there are run, checkpoint"),
        ("train.py", "++sweep.nonsense=3 -m seed=0,1", "sweep.nonsense is no setting: there are "),
        ("train.py", "algo=ppo algo.lr=1", "algo.lr is no setting: did you mean algo.optimizer.lr"),
        (
            "train.py",
            "algo=pg +algo.optimizer.momentun=1 algo.optimizer._target_=torch.optim.SGD",
            "algo.optimizer.momentun is no setting of SGD: did you mean algo.optimizer.momentum?",
        ),
        ("train.py", "+advantage.gamma=0.5", "advantage.gamma is no setting of gae: "),
        ("train.py", "+schedule.algo={}", "schedule.algo names no number"),
        (
            "train.py",
            "env=FrozenLake-v1 +env.kwargs.is_slipery=false",
            "env.kwargs.is_slipery is no setting of FrozenLake-v1: did you mean env.kwargs.is_sli",
        ),
        (
            "train.py",
            "env=test_keys:Pays-v0 +env.kwargs.mode=1",
            "env.kwargs.mode is no setting of test_keys:Pays-v0: there are env.kwargs.pay",
        ),
        ("train.py", "resume_force=true", "resume_force=true goes with resume=<run folder>"),
        ("train.py", "tuned=npg/HalfCheetah-v5", "tuned=npg/HalfCheetah-v5: there is no such file"),
        ("train.py", "algo=ppo.yaml", "algo=ppo.yaml: write algo=ppo"),
        ("verify.py", "resume=it", "resume=it: verify.py audits settings"),
        ("compare.py", "+log.x=3", "log.x is no setting: there are log.histograms, log.video"),
        ("compare.py", "total_steps=9", "total_steps=9: the warm-up's length is warmup_steps="),
        ("compare.py", "eval.every=9", "eval.every=9: compare.py does not read it"),
        ("report.py", "runs=x +nonsense=3", "nonsense is no setting: there are runs, out"),
        ("export.py", "run=x +nonsense=3", "nonsense is no setting: there are run, checkpoint"),
        ("export.py", "run=x env.kwargs.pay=3", "env.kwargs.pay is no setting: there are run, "),
        quick=5,
    ),
)
def test_what_nothing_reads_is_refused(script, arguments, message, tmp_path):
    arguments = arguments.split()
    if script == "train.py":
        folder = "sweep" if "-m" in arguments else "run"
        flags = [arguments.pop(arguments.index("-m"))] if "-m" in arguments else []
        arguments = [*flags, *SMALL[1:], *arguments, f"hydra.{folder}.dir={tmp_path / 'it'}"]
    assert refused(script, *arguments).startswith(message)
    assert not list(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("+nonsense=3", "nonsense is no setting"),
        ("+algo.lr=3", "algo.lr is no setting of NPG: there are algo.max_kl"),
    ],
)
def test_resume_refuses_it_too(run, arguments, message):
    before = content(run)
    assert refused("train.py", f"resume={run}", arguments).startswith(message)
    assert content(run) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    cases(
        ("algo=nog", "algo=nog: there is no such file; did you mean algo=npg?"),
        ("experiment=lecture/npg algo.max_k=1", "algo.max_k is no setting: did you mean algo.max_"),
        ("-m algo=npg,ppo algo.epoch=1", "algo.epoch is no setting under algo=npg: "),
        ("total_steps=1e5", "total_steps=1e5 must be a whole number: write total_steps=100000"),
        ("algo=PPO-clip", "algo=PPO-clip: there is no such file; did you mean algo=ppo_clip?"),
        ("experiment=npg", "experiment=npg: there is no such file; did you mean experiment=lect"),
        ("algo=a.b.Mine", "algo=a.b.Mine: there is no such file; a class is algo._target_=a.b.Mi"),
        ("-m algo=npg,nog", "algo=nog: there is no such file"),
        ("-m algo=npg,ppo algo.epochs=1", "algo.epochs is no setting under algo=npg: there are al"),
        ("chunk_size=None", "chunk_size=None: no value is null, write chunk_size=null"),
        ("algo=pg algo.optimizer=null", "algo.optimizer=None is no class"),
        ("diagnostics=si", "diagnostics=si must be true or false"),
        (
            "gamma=0,99",
            "gamma=0,99 is several values: add -m for a sweep over them, or write gamma=[",
        ),
        (
            "env.wrappers=a.B",
            "env.wrappers=a.B must be a list: write 'env.wrappers=[{_target_:a.B}",
        ),
        (
            "algo=pg algo.optimizer=sgd",
            "algo.optimizer=sgd is no class, {_target_: <class>, ...}: write ",
        ),
        ("~env", "~algo and ~env leave"),
        quick=4,
    ),
)
def test_what_to_write_is_said(arguments, message, tmp_path):
    folder = f"hydra.{'sweep' if '-m' in arguments else 'run'}.dir={tmp_path / 'it'}"
    assert refused("train.py", *arguments.split(), folder).startswith(message)


# A folder of the user's own


@pytest.mark.parametrize(
    ("arguments", "message"),
    cases(
        ("algo=mine algo.momentum=1", "algo.momentum is no setting: there are algo.optimizer"),
        ("env=bad_cart", "{conf}/env/bad_cart.yaml: env.foo is no setting: there are env.id, "),
        ("experiment=no_package", "{conf}/experiment/no_package.yaml: its first line must be # @p"),
        ("env=Pendulum-v1", "{conf}/tuned/npg/Pendulum-v1.yaml is not read, for "),
        ("algo=min", "algo=min: there is no such file; did you mean algo=mine?"),
        ("experiment=deep/god", "experiment=deep/god: there is no such file; did you mean experim"),
        (
            "env=my_carrt",
            "env=my_carrt: no environment of this id is registered; did you mean env=",
        ),
        (
            "experiment=unread",
            "{conf}/experiment/unread.yaml: eval.x is no setting: there are eval",
        ),
        ("experiment=whole", "{conf}/experiment/whole.yaml: total_steps=1000.0 must be a whole nu"),
        ("experiment=rate algo=pg", "algo.lr is no setting of PG: did you mean algo.optimizer.lr?"),
        ("experiment=broken", "while parsing a flow sequence"),
        quick=4,
    ),
)
def test_hints_know_the_users_own_files(arguments, message, conf, tmp_path):
    folder = f"hydra.run.dir={tmp_path / 'it'}"
    line = refused("train.py", f"--config-dir={conf}", *arguments.split(), folder)
    assert line.startswith(message.format(conf=conf))


@pytest.mark.slow
def test_a_search_path_is_known_as_well(conf, tmp_path):
    search = f"hydra.searchpath=[file://{conf}]"
    line = refused("train.py", search, "algo=mine", "algo.lr=1", f"hydra.run.dir={tmp_path}/it")
    assert line == "algo.lr is no setting: did you mean algo.optimizer.lr?"


@pytest.mark.parametrize(
    "how",
    [pytest.param("--config-dir={}", marks=pytest.mark.slow), "hydra.searchpath=[file://{}]"],
)
def test_the_record_names_the_users_own_files_and_resume_finds_them(how, conf, tmp_path):
    names = ["algo/mine", "experiment/deep/good", "tuned/mine/CartPole-v1"]
    own = sorted(str(conf / f"{name}.yaml") for name in names)
    arguments = [*SMALL[1:], "algo=mine", "experiment=deep/good"]
    folder = tmp_path / "it"
    code, out = run_here("train.py", how.format(conf), *arguments, f"hydra.run.dir={folder}")
    assert code is None
    assert f"tuned settings: {own[2]}\n" in out
    assert all(f"own file: {name}\n" in out for name in own)
    summary = summary_of(folder)
    assert run_here("train.py", f"resume={folder}", "total_steps=300")[0] is None
    resumed = summary_of(folder)
    assert resumed["env_steps"] >= 300
    for about in (summary, resumed):
        assert sorted(about["own_files"]) == own
        assert (about["tuned"], about["experiment"]) == (own[2], "deep/good")
    events = b"".join(path.read_bytes() for path in folder.glob("events.*"))
    assert b"_hparams_" in events
    assert own[2].encode() in events


def test_settings_of_another_version_are_named_and_can_be_taken(tmp_path):
    arguments = [*SMALL[1:], "env=Pendulum-v0", "env.id=Pendulum-v1", "total_steps=64"]
    code, out = run_here("train.py", *arguments, f"hydra.run.dir={tmp_path / 'one'}")
    assert code is None
    note = "note: there is no tuned/npg/Pendulum-v0.yaml; tuned=npg/Pendulum-v1 takes the settings"
    assert note in out
    assert summary_of(tmp_path / "one")["tuned"] is None
    arguments += ["tuned=npg/Pendulum-v1", f"hydra.run.dir={tmp_path / 'two'}"]
    code, out = run_here("train.py", *arguments)
    assert code is None
    assert "note: there is no" not in out
    assert summary_of(tmp_path / "two")["tuned"] == "tuned/npg/Pendulum-v1.yaml"


# Evaluation


def evaluation(run, *arguments):
    code, out = run_here("evaluate.py", f"run={run}", "episodes=4", *arguments)
    assert code is None
    return out


@pytest.fixture(scope="module")
def pays(tmp_path_factory):
    """A run whose return is five times the constructor's `pay`, 2 in training."""
    return train(
        tmp_path_factory.mktemp("pays") / "it", "env=test_keys:Pays-v0", "+env.kwargs.pay=2"
    )


@pytest.mark.parametrize("plus", ["", pytest.param("++", marks=pytest.mark.slow), "+"])
def test_an_evaluation_has_the_environment_that_it_names(pays, plus):
    before = content(pays)
    out = evaluation(pays, f"{plus}env.kwargs.pay=100")
    assert "changed: env.kwargs.pay=100 (the run has 2)\n" in out
    assert "return mean 500.00  std 0.00  min 500.00  max 500.00" in out
    assert content(pays) == before


def test_time_limit_and_wrappers_can_be_changed_too(pays):
    limit = "{_target_: gymnasium.wrappers.TimeLimit, max_episode_steps: 3}"
    assert "mean 6.000 " in evaluation(pays, f"env.wrappers=[{limit}]")
    out = evaluation(pays, "env.max_episode_steps=4", "env.kwargs.pay=0.01234")
    assert "changed: env.max_episode_steps=4 (the run has 20)\n" in out
    assert "mean 0.04936 " in out


@pytest.mark.parametrize(
    ("argument", "message"),
    cases(
        (
            "env.kwargs.pa=3",
            "env.kwargs.pa is no setting of test_keys:Pays-v0: did you mean env.kwargs",
        ),
        ("env.num_envs=3", "env.num_envs=3: write num_envs=3"),
        ("env.kwarg.a=3", "env.kwarg.a is no setting of an environment: there are env.kwargs, env"),
        ("algo=ppo", "algo=ppo belongs to the run: an evaluation can change env.kwargs.<key>, "),
        ("env.backend=async", "env.backend=async: write backend=async"),
        (
            "env.action_mask=true",
            "env.action_mask=True belongs to the run: an evaluation can change",
        ),
        ("env=CartPole-v1", "env=CartPole-v1: write env.id=CartPole-v1"),
        ("env.kwargs={}", "env.kwargs={} changes nothing"),
        ("env.wrappers.0.x=3", "env.wrappers.0.x=3: the run has no env.wrappers.0.x"),
        ("~env.kwargs", "~env.kwargs belongs to the run"),
        ("+policy.hidden_sizes=[3]", "+policy.hidden_sizes=[3] belongs to the run"),
        ("gamma=0.5", "gamma=0.5 belongs to the run"),
        (
            "env.max_episode_steps=1e1",
            "env.max_episode_steps must be a whole number of at least 1, ",
        ),
        (
            "env.wrappers=[{_target_: gymnasium.wrappers.NormalizeReward}]",
            "env.wrappers[0] changes the reward, and evaluation has the environment's own",
        ),
        quick=3,
    ),
)
def test_an_evaluation_refuses_every_other_change(pays, argument, message):
    assert refused("evaluate.py", f"run={pays}", argument).startswith(message)


def test_a_policy_that_does_not_fit_the_changed_environment_is_named(run):
    line = refused("evaluate.py", f"run={run}", "env.id=Pendulum-v1")
    assert line.startswith(
        "changed: env.id=Pendulum-v1 (the run has CartPole-v1): the run's policy "
    )


def test_a_video_that_cant_be_is_refused_before_an_episode_is_played(pays, monkeypatch):
    monkeypatch.setattr("rlopt.evaluate.evaluate", None)
    line = refused("evaluate.py", f"run={pays}", "video=true")
    assert line.startswith("video=true: ")
    assert "env=test_keys:Pays-v0" in line
    assert not (pays / "videos").exists()
