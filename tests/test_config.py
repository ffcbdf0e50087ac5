import dataclasses
import inspect
import sys

import gymnasium as gym
import pytest
import torch
from gymnasium import spaces
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_method
from omegaconf import MISSING, OmegaConf
from probes import CONFIGS, WithSpaces

import tuned
from rlopt.build import make_trainer
from rlopt.config import Config, ConfigError, nearest, remarks, to_dict
from rlopt.targets import GROUPS, bind, keyword_parameters

GIVEN = {"gamma", "policy"}  # by the package
gym.register(
    "TextActions-v0",
    entry_point=WithSpaces,
    kwargs={"action_space": spaces.Text(3)},
)


ConfigStore.instance().store("schema", Config)


def compose_config(*overrides):
    """What Hydra itself makes of the command line, typed and without a shortcut, resolved."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    OmegaConf.resolve(cfg)
    return cfg


def yaml_files(pattern):
    return [path.relative_to(CONFIGS) for path in sorted(CONFIGS.glob(pattern))]


def group_choices():
    return [(group, path.stem) for group in GROUPS for path in yaml_files(f"{group}/*.yaml")]


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def schema_keys(schema):
    for field in dataclasses.fields(schema):
        nested = field.default_factory
        if dataclasses.is_dataclass(nested):
            yield from (f"{field.name}.{key}" for key in schema_keys(nested))
        elif field.name not in GROUPS:
            yield field.name


def assert_settings_are_parameters(cfg, group):
    target = get_method(cfg[group]["_target_"])
    keywords = keyword_parameters(target)
    assert set(cfg[group]) - {"_target_"} == set(keywords) - GIVEN
    parameters = [*inspect.signature(target).parameters.values(), *keywords.values()]
    assert all(p.default is p.empty for p in parameters)


@pytest.mark.parametrize(("group", "choice"), group_choices())
def test_a_choice_sets_exactly_the_keyword_parameters_of_its_target(group, choice):
    cfg = compose_config(f"{group}={choice}", "~tuned")
    assert_settings_are_parameters(cfg, group)
    file = OmegaConf.create(
        {"chunk_size": None, group: OmegaConf.load(CONFIGS / group / f"{choice}.yaml")}
    )
    assert to_dict(cfg[group]) == to_dict(file[group])


def test_base_yaml_has_a_value_for_every_key_of_the_schema():
    base = OmegaConf.to_container(OmegaConf.load(CONFIGS / "base.yaml"))
    values = dict(leaves(base))
    for key in schema_keys(Config):
        assert values.get(key, MISSING) != MISSING, key
    assert set(base) - {"defaults"} == {f.name for f in dataclasses.fields(Config)} - set(GROUPS)


def test_the_composed_config_has_no_value_missing_and_no_other_keys():
    cfg = compose_config()
    assert not OmegaConf.missing_keys(cfg)
    assert set(cfg) == {field.name for field in dataclasses.fields(Config)}


def assert_applies(path, *overrides):
    cfg, file = compose_config(*overrides), OmegaConf.load(CONFIGS / path)
    file = {key: value for key, value in to_dict(file).items() if key != "defaults"}
    for key, value in leaves(file):
        assert OmegaConf.select(cfg, key) == value, key
    for group in GROUPS:
        assert_settings_are_parameters(cfg, group)


@pytest.mark.parametrize("path", yaml_files("tuned/**/*.yaml"), ids=str)
def test_tuned_settings_apply_by_themselves(path):
    _, algo, *env = path.with_suffix("").parts
    assert_applies(path, f"algo={algo}", f"env={'/'.join(env)}")


OTHER_PARTS = ["policy=fourier", "advantage=td", "baseline=zero", "rollout=episodes"]


@pytest.mark.parametrize("path", yaml_files("tuned/**/*.yaml"), ids=str)
def test_tuned_settings_suit_any_choice_of_the_other_groups(path):
    _, algo, *env = path.with_suffix("").parts
    cfg = tuned.fitted(compose_config(f"algo={algo}", f"env={'/'.join(env)}", *OTHER_PARTS), [])
    for group in GROUPS:
        assert_settings_are_parameters(cfg, group)


def test_of_tuned_settings_only_those_of_another_part_are_left_out():
    typed = "advantage.lambda_=0.5"
    cfg = compose_config("algo=trpo", "env=Acrobot-v1")
    assert tuned.fitted(cfg, []) == cfg
    cfg = compose_config("algo=trpo", "env=Acrobot-v1", "advantage=td")
    assert set(tuned.fitted(cfg, []).advantage) == {"_target_", "num_steps"}
    with pytest.raises(ConfigError, match=r"^advantage\.lambda_ is no setting of td"):
        bind(tuned.fitted(cfg, [typed]), "advantage")


@pytest.mark.parametrize("path", yaml_files("experiment/**/*.yaml"), ids=str)
def test_an_experiment_beats_what_it_is_combined_with(path):
    assert_applies(path, f"experiment={path.relative_to('experiment').with_suffix('')}")


@pytest.mark.parametrize("path", yaml_files("env/**/*.yaml"), ids=str)
def test_settings_of_an_environment_apply_by_themselves(path):
    env_id = path.relative_to("env").with_suffix("")
    assert compose_config(f"env={env_id}", "~tuned").env.id == str(env_id)


def test_any_id_is_an_environment():
    assert compose_config("env=ALE/Pong-v5").env.id == "ALE/Pong-v5"
    assert compose_config("env=my_package:MyEnv-v0").env.id == "my_package:MyEnv-v0"


BAD = [
    ("env=CartPoel-v1", r"env=CartPoel-v1: .*CartPole-v1"),
    ("env=probes:Nothing-v0", r"env=probes:Nothing-v0"),
    ("env=no_such_package:Env-v0", r"env=no_such_package:Env-v0: .*no_such_package"),
    ("seed=-1", r"seed must be .* at least 0, got -1"),
    ("total_steps=0", r"total_steps must be .* at least 1, got 0"),
    ("num_threads=0", r"num_threads must be .* at least 1, got 0"),
    ("gamma=2", r"gamma must be between 0 and 1, got 2"),
    ("gamma=nan", r"gamma must be a number, got nan"),
    ("average_over=step", r"average_over must be one of steps, trajectories, got 'step'"),
    ("eval.every=0", r"eval\.every must be .* at least 1, got 0"),
    ("eval.episodes=0", r"eval\.episodes must be .* at least 1, got 0"),
    ("eval.final_episodes=0", r"eval\.final_episodes must be .* at least 1, got 0"),
    ("checkpoint.every=0", r"checkpoint\.every must be .* at least 1, got 0"),
    ("device=tpu7", r"device=tpu7 is not available here"),
    ("env.num_envs=0", r"env\.num_envs must be .* at least 1, got 0"),
    ("env.backend=foo", r"env\.backend must be one of auto, .*async, got 'foo'"),
    ("env.max_episode_steps=0", r"env\.max_episode_steps must be .* at least 1, got 0"),
    ("+env.kwargs.foo=1", r"env.*foo.*CartPole-v1"),
    ("+algo.foo=1", r"algo\.foo is no setting of NPG: there are algo\.max_kl, "),
    ("+algo.max_k=1", r"algo\.max_k is no setting of NPG: did you mean algo\.max_kl\?"),
    ("~algo.damping", r"algo\.damping is missing: NPG needs it"),
    ("algo._target_=rlopt.algos.npg.NPGG", r"algo\._target_.*NPGG"),
    ("algo.max_kl=-1", r"algo\.max_kl must be greater than 0, got -1"),
    ("algo.max_kl=abc", r"algo\.max_kl must be a number, got 'abc'"),
    ("algo.max_kl=null", r"algo\.max_kl must be a number, got None"),
    ("algo.fisher=exakt", r"algo\.fisher must be one of exact, empirical, got 'exakt'"),
    ("algo.cg_iterations=1.5", r"algo\.cg_iterations must be a whole number .*, got 1\.5"),
    ("algo=trpo algo.backtrack_ratio=1", r"algo\.backtrack_ratio must be .*, got 1"),
    ("algo=pg algo.optimizer.lr=-1", r"algo.*learning rate.*-1"),
    ("algo=pg algo.optimizer._target_=torch.optim.Adm", r"algo\.optimizer.*torch\.optim\.Adm"),
    ("algo=ppo algo.epochs=0", r"algo\.epochs must be .* at least 1, got 0"),
    ("algo=ppo algo.penalty=-1", r"algo\.penalty must be at least 0, got -1"),
    ("algo=ppo algo.penalty_range=[1]", r"algo.*penalty_range.*\[1\]"),
    ("algo=ppo algo.penalty_range=[2,1]", r"algo.*penalty_range.*\[2, 1\]"),
    ("policy.activation=tanj", r"policy\.activation must be one of tanh, .*, got 'tanj'"),
    ("policy.distribution=betta", r"policy\.distribution must be one of gauss.*, got 'betta'"),
    ("policy.distribution=beta", r"policy\.distribution must be gaussian where no action is a Box"),
    ("policy.hidden_sizes=[0]", r"policy\.hidden_sizes must be .* at least 1, got 0"),
    (
        "policy.hidden_sizes=64",
        r"policy\.hidden_sizes must be a list .*, got 64: write policy\.hidden_sizes=\[64\]$",
    ),
    ("policy.log_std_init=30", r"policy\.log_std_init must be between -20 and 20, got 30"),
    ("seed=9223372036854775808", r"seed must be between 0 and 9223372036854775807, got 92"),
    ("num_threads=100000", r"num_threads must be between 1 and 1024, got 100000"),
    ("device=meta", r"device=meta is not available here"),
    ("stop_at_return=nan", r"stop_at_return must be a number, got nan"),
    ("stop_at_return=inf", r"stop_at_return must be finite, got inf"),
    ("chunk_size=0", r"chunk_size must be .* at least 1, got 0"),
    ("algo.max_kl=inf", r"algo\.max_kl must be finite, got inf"),
    ("algo.cg_tolerance=1", r"algo\.cg_tolerance must be at least 0 and less than 1, got 1"),
    ("algo.step_size=0.1 algo.max_kl=abc", r"algo\.max_kl must be a number, got 'abc'"),
    ("algo._target_=torch.nn.Identity", r"algo\._target_=.*Identity can't be that: it has no step"),
    ("policy._target_=builtins.dict", r"policy\._target_=builtins\.dict can't be that"),
    ("advantage._target_=builtins.print", r"advantage"),
    (
        "algo=pg algo.optimizer=adam",
        r"algo\.optimizer=adam is .*: write algo\.optimizer\._target_=torch\.optim\.Adam$",
    ),
    (
        "algo=pg algo.optimizer._target_=torch.optim.LBFGS algo.optimizer.fused=null",
        r"algo.*fused",
    ),
    ("algo=ppo algo.penalty=0.1", r"algo\.penalty must be between 0\.3 and 100, got 0\.1"),
    ("algo=ppo algo.penalty_range=[a,b]", r"algo\.penalty_range must be a number, got 'a'"),
    (
        "algo=ppo algo.minibatch_size=17 rollout.num_steps=8",
        r"algo\.minibatch_size=17 is larger than the batch: env\.num_envs=2 times "
        r"rollout\.num_steps=8 is 16$",
    ),
    (
        "baseline.fit=optimizer baseline.minibatch_size=17 rollout.num_steps=8",
        r"baseline\.minibatch_size=17 is larger than the batch",
    ),
    ("baseline.chunk_size=0", r"baseline\.chunk_size must be .* at least 1, got 0"),
    ("baseline=zero +baseline.fit=gauss_newton", r"baseline\.fit is no setting of ZeroBaseline: "),
    ("+policy.recurrent=true", r"policy\.recurrent is no setting of MLPPolicy: there are "),
    ("policy.orthogonal_init=7", r"policy\.orthogonal_init must be true or false, got 7"),
    ("baseline.orthogonal_init=7", r"baseline\.orthogonal_init must be true or false, got 7"),
    ("baseline.standardize_target=7", r"baseline\.standardize_target must be true or false, got 7"),
    ("policy.normalize_obs=7", r"policy\.normalize_obs must be true or false, got 7"),
    ("advantage.lambda_=2", r"advantage\.lambda_ must be between 0 and 1, got 2"),
    ("advantage=td advantage.num_steps=0", r"advantage\.num_steps must be .*, got 0"),
    ("baseline.fit=adam", r"baseline\.fit must be one of optimizer, gauss_newton, got 'adam'"),
    ("baseline=linear baseline.ridge=0", r"baseline\.ridge must be greater than 0, got 0"),
    ("rollout.num_steps=0", r"rollout\.num_steps must be .* at least 1, got 0"),
    ("rollout=episodes rollout.episodes=0", r"rollout\.episodes must be .* at least 1, got 0"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD, ids=[overrides for overrides, _ in BAD])
def test_a_mistake_is_one_line_and_leaves_no_trace(overrides, message, tmp_path):
    with pytest.raises(ConfigError, match=f"^{message}") as raised:
        make_trainer(compose_config("env.num_envs=2", *overrides.split()), tmp_path)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


REMARKS = [
    ("algo.solver=dense algo.cg_iterations=3", ["algo.cg_iterations", "algo.solver=dense"]),
    ("algo=ppo algo.target_kl=null algo.penalty_range=[1,2]", ["algo.penalty_range"]),
    ("baseline.optimizer.lr=0.1", ["baseline.optimizer", "baseline.fit=gauss_newton"]),
    ("baseline.fit=optimizer baseline.damping=1", ["baseline.damping", "baseline.fit=optimizer"]),
    ("algo.step_size=0.1 algo.max_kl=0.1", ["algo.max_kl", "algo.step_size=0.1"]),
    ("stop_at_return=3 total_steps=9", ["stop_at_return=3", "eval.every=20000", "total_steps=9"]),
    ("rollout=episodes rollout.episodes=3", ["env.num_envs=16: only 3"]),
    ("algo.max_kl=0.1", []),
    ("algo.solver=dense", []),
    ("experiment=lecture/pg", []),
    ("experiment=lecture/npg", []),
]


@pytest.mark.parametrize(("overrides", "parts"), REMARKS, ids=[o for o, _ in REMARKS])
def test_a_setting_without_effect_is_remarked_on(overrides, parts):
    keys = [override.split("=")[0] for override in overrides.split()]
    lines = remarks(compose_config(*overrides.split(), "~tuned"), keys)
    assert len(lines) == bool(parts)
    assert [part for part in parts if part not in lines[0]] == []


def test_an_optimizer_that_needs_a_closure_is_refused(tmp_path):
    overrides = ["algo=pg", "algo.optimizer._target_=torch.optim.LBFGS", "~algo.optimizer.fused"]
    with pytest.raises(ConfigError, match=r"^algo\.optimizer does not work: .*closure"):
        make_trainer(compose_config(*overrides), tmp_path)


def test_an_unsupported_space_is_named_with_those_that_are(tmp_path):
    message = r"^env=TextActions-v0: actions Text.* not supported; Discrete.*Box"
    with pytest.raises(ConfigError, match=message):
        make_trainer(compose_config("env=TextActions-v0"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_an_absent_gpu_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"^device=cuda is not available here: "):
        make_trainer(compose_config("device=cuda"), tmp_path)


def test_a_missing_extra_says_what_to_install(tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    cfg = compose_config("env=LunarLander-v3", "env.backend=sync")
    with pytest.raises(ConfigError, match=r"^env=LunarLander-v3 .*pip install .*box2d"):
        make_trainer(cfg, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nearest_suggests_one_key_or_lists_all():
    assert nearest("max_k", ["max_kl", "damping"]) == "did you mean max_kl?"
    assert nearest("zzz", ["max_kl", "damping"]) == "there are max_kl, damping"


def test_the_seed_alone_decides_the_initial_networks(tmp_path):
    def parameters(seed):
        trainer = make_trainer(compose_config(f"seed={seed}", "env.num_envs=2"), tmp_path)
        trainer.logger.close()
        return torch.cat([p.flatten() for p in trainer.policy.parameters()]).detach()

    first = parameters(1)
    torch.rand(3)
    assert torch.equal(parameters(1), first)
    assert not torch.equal(parameters(2), first)
