"""From a composed config to the parts of a run; mistakes end here, in one line, before training."""

from __future__ import annotations

import difflib
import inspect
import math
import pydoc
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from torch import Tensor

from rlopt import atari, check
from rlopt.distributed import gather_list, rank, share, world_size
from rlopt.envs import Wrapper, WrapperError, derive_seed, fastest_backend, make_vector_env
from rlopt.evaluate import Evaluation, as_gif, evaluate, record_video, refuse_undrawable
from rlopt.linalg import chunk_that_fits
from rlopt.logger import Logger, NoLogger, flat
from rlopt.policies import FourierPolicy, MLPPolicy
from rlopt.recurrent import rollout_space
from rlopt.schedule import Schedule
from rlopt.trainer import Trainer
from rlopt.types import RecurrentPolicy

TRAINING_STREAM, EVALUATION_STREAM, SAMPLING_STREAM = 0, 1, 2
NUM_STREAMS = 3  # of each process
GROUPS = ["algo", "policy", "advantage", "baseline", "rollout"]
METHODS = {  # of what each `_target_` makes
    "algo": ["step", "state_dict", "load_state_dict"],
    "policy": ["dist_params", "dist", "update_statistics", "parameters", "state_dict"],
    "baseline": ["fit", "state_dict"],
    "rollout": ["collect", "collect_for_baseline"],
}
WITHOUT_EFFECT = [  # while a setting has a value, others do nothing
    ("algo.solver", "dense", ["algo.cg_iterations", "algo.cg_tolerance"]),
    ("algo.target_kl", None, ["algo.penalty_range"]),
    ("policy.distribution", "beta", ["policy.log_std_init"]),
    ("baseline.fit", "gauss_newton", ["baseline.optimizer", "baseline.minibatch_size"]),
    ("baseline.fit", "optimizer", ["baseline.damping", "baseline.cg_iterations"]),
    ("baseline.fit", "optimizer", ["baseline.chunk_size"]),
]
# what constructors raise about values that nobody foresaw; torch without memory: a RuntimeError
UNSOUND = (ValueError, TypeError, RuntimeError, OverflowError, MemoryError)
LARGEST_SEED, MOST_THREADS = 2**63 - 1, 1024


class ConfigError(ValueError):
    """A mistake in the config; one line that names the key, the value and what to write."""


@dataclass
class EnvConfig:
    """Settings of the training environments."""

    id: str = MISSING
    num_envs: int = MISSING
    backend: str = MISSING
    max_episode_steps: int | None = MISSING
    kwargs: dict[str, Any] = MISSING
    action_mask: bool = MISSING
    wrappers: list[Any] = MISSING


@dataclass
class EvalConfig:
    """Settings of the deterministic evaluation."""

    every: int = MISSING
    episodes: int = MISSING
    final_episodes: int = MISSING


@dataclass
class CheckpointConfig:
    """When to save."""

    every: int = MISSING


@dataclass
class LogConfig:
    """What evaluations leave besides numbers."""

    histograms: bool = MISSING
    video: bool = MISSING


@dataclass
class SweepConfig:
    """How a sweep runs; no part of any run's own config."""

    resume: bool = MISSING
    jobs: int = MISSING
    trials: int | None = MISSING
    seeds: list[int] | None = MISSING
    objective: str | None = MISSING


@dataclass
class Config:
    """Types of the top-level settings; their values and meanings are in configs/base.yaml."""

    seed: int = MISSING
    total_steps: int = MISSING
    device: str = MISSING
    num_threads: int = MISSING
    gamma: float = MISSING
    average_over: str = MISSING
    chunk_size: int | None = MISSING
    standardize_advantage: bool = MISSING
    stop_at_return: float | None = MISSING
    diagnostics: bool = MISSING
    on_nonfinite: str = MISSING
    resume: str | None = MISSING
    resume_force: bool = MISSING
    schedule: dict[str, Any] = MISSING
    env: EnvConfig = field(default_factory=EnvConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    algo: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    advantage: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)
    rollout: dict[str, Any] = field(default_factory=dict)


def validate(cfg: DictConfig) -> None:
    """Check the top-level settings.

    Raises:
        ConfigError: the first one that is wrong.
    """
    try:
        check.whole(0, seed=cfg.seed)
        check.whole(total_steps=cfg.total_steps, num_threads=cfg.num_threads)
        check.between(0, LARGEST_SEED, seed=cfg.seed)
        check.between(1, MOST_THREADS, num_threads=cfg.num_threads)
        check.fraction(gamma=cfg.gamma)
        check.flag(standardize_advantage=cfg.standardize_advantage, diagnostics=cfg.diagnostics)
        check.flag(**{f"log.{key}": value for key, value in cfg.log.items()})
        if cfg.stop_at_return is not None:
            check.number(stop_at_return=cfg.stop_at_return)
        if cfg.chunk_size is not None:
            check.whole(chunk_size=cfg.chunk_size)
        check.one_of(["steps", "trajectories"], average_over=cfg.average_over)
        check.one_of(
            ["stop", "skip"] if world_size() == 1 else ["stop"], on_nonfinite=cfg.on_nonfinite
        )
        for section in ("eval", "checkpoint"):
            for key, value in cfg[section].items():
                check.whole(**{f"{section}.{key}": value})
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _use_device(cfg.device)


def refuse_contradictions(cfg: DictConfig) -> None:
    """Settings that are sound by themselves and not together.

    Raises:
        ConfigError: the first pair.
    """
    if "num_steps" in cfg.rollout:
        batch = cfg.env.num_envs * cfg.rollout.num_steps
        for section, fitted in (
            ("algo", True),
            ("baseline", cfg.baseline.get("fit") == "optimizer"),
        ):
            size = cfg[section].get("minibatch_size")
            if fitted and size is not None and size > batch:
                raise ConfigError(
                    f"{section}.minibatch_size={size} is larger than the batch: env.num_envs="
                    f"{cfg.env.num_envs} times rollout.num_steps={cfg.rollout.num_steps} is {batch}"
                )
    if "algo.penalty" in flat(to_dict(cfg.schedule)) and cfg.algo.get("target_kl") is not None:
        target = f"algo.target_kl={cfg.algo.target_kl}"
        raise ConfigError(f"schedule.algo.penalty can't be: {target} adapts it, null does not")


def _use_device(device: str) -> None:
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"device={device} is not available here: {reason}") from error


def remarks(cfg: DictConfig, overridden: list[str]) -> list[str]:
    """What the user should know of settings that are without effect, one line each.

    Args:
        cfg: the run's config, sound.
        overridden: keys that were set on the command line.
    """
    lines = [
        f"{key} is without effect: {switch}={value}"
        for switch, value, keys in WITHOUT_EFFECT
        for key in keys
        if OmegaConf.select(cfg, switch, default=MISSING) == value
        and any(k == key or k.startswith(f"{key}.") for k in overridden)
    ]
    if "algo.max_kl" in overridden and cfg.algo.get("step_size") is not None:
        lines.append(f"algo.max_kl is without effect: algo.step_size={cfg.algo.step_size}")
    if cfg.stop_at_return is not None and cfg.eval.every >= cfg.total_steps:
        lines.append(
            f"stop_at_return={cfg.stop_at_return} is without effect: eval.every={cfg.eval.every} "
            f"leaves no evaluation before total_steps={cfg.total_steps}"
        )
    if "episodes" in cfg.rollout:
        most = max(cfg.rollout.episodes, cfg.rollout.baseline_episodes)
        if most < cfg.env.num_envs:
            lines.append(
                f"env.num_envs={cfg.env.num_envs}: only {most} of them run, one for each of "
                f"rollout.episodes={cfg.rollout.episodes}"
            )
    return lines


def remarks_on_images(policy: Any) -> list[str]:
    """A line on a policy that takes an image for a vector."""
    if not isinstance(policy, MLPPolicy | FourierPolicy) or not policy.images:
        return []
    shape = "x".join(map(str, policy.images[0].shape or ()))
    return [
        f"an image of {shape} is a vector to this policy: policy=cnn baseline=cnn see it as one"
    ]


def read_config(run: Path) -> DictConfig:
    """The config that a run folder has recorded.

    Raises:
        ConfigError: it is no run folder.
    """
    path = run / ".hydra" / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"run={run} is no run folder: it has no .hydra/config.yaml")
    cfg = OmegaConf.load(path)
    assert isinstance(cfg, DictConfig)
    return cfg


def make(cfg: DictConfig, section: str, *args: Any, **given: Any) -> Any:
    """Build what `cfg[section]` describes: its `_target_` of `args`, with its settings as keywords.

    What is `given` goes to a target that has a keyword of that name, and is no setting.

    Raises:
        ConfigError: an unknown target, an unknown or missing setting, or a value that the target
        refuses.
    """
    with naming(section, cfg[section]):
        part = bind(cfg, section, **given)(*args)
    kind = "algo" if section.startswith("rules.") else section  # rules of scripts/compare.py
    missing = [name for name in METHODS[kind] if not callable(getattr(part, name, None))]
    if missing:
        target = cfg[section]._target_
        raise ConfigError(f"{section}._target_={target} can't be that: it has no {missing[0]}")
    return part


def bind(cfg: DictConfig, section: str, **given: Any) -> Callable[..., Any]:
    """The `_target_` of `cfg[section]` with its settings bound, to be called."""
    name = cfg[section].get("_target_")
    target = locate(section, name)
    settings = [key for key in cfg[section] if not str(key).startswith("_")]
    try:
        parameters = inspect.signature(target).parameters.values()
        found = keyword_parameters(target)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{section}._target_={name} can't be that: {error}") from error
    names = [p.name for p in parameters]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    given = {name: value for name, value in given.items() if name in found}
    keywords = {name: p.default is p.empty for name, p in found.items() if name not in given}
    for key in settings:
        if keywords and key not in keywords:
            hint = nearest(key, list(keywords))
            raise ConfigError(f"{section}.{key} is no setting of {target.__name__}: {hint}")
        if not keywords and not takes_any and key not in names:
            raise ConfigError(f"{section}.{key} is no setting of {target.__name__}: it has none")
    for key, required in keywords.items():
        if required and key not in settings:
            raise ConfigError(f"{section}.{key} is missing: {target.__name__} needs it")
    with naming(section, cfg[section]):
        bound = instantiate(cfg[section], _convert_="all", _partial_=True)
    return partial(bound, **given) if given else bound


def keyword_parameters(target: Any) -> dict[str, inspect.Parameter]:
    """A target's keyword-only parameters; `**settings` of a class are those of its base."""
    parameters = inspect.signature(target).parameters.values()
    own = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    if inspect.isclass(target) and any(p.kind is p.VAR_KEYWORD for p in parameters):
        return keyword_parameters(target.__base__) | own
    return own


def locate(section: str, name: Any) -> Any:
    """The class or function of a `_target_`.

    Raises:
        ConfigError: there is none.
    """
    try:
        target: Any = pydoc.locate(str(name))
    except pydoc.ErrorDuringImport as error:
        raise ConfigError(f"{section}._target_={name} can't be imported: {error}") from error
    if not callable(target):
        raise ConfigError(f"{section}._target_={name}: there is no such class or function")
    return target


@contextmanager
def naming(section: str, settings: DictConfig) -> Iterator[None]:
    """Turn what the parts raise about their settings into a ConfigError with full names."""
    try:
        yield
    except ConfigError:
        raise
    except WrapperError as error:
        raise ConfigError(str(error)) from error
    except (*UNSOUND, InstantiationException) as error:
        message = one_line(error)
        if message.startswith(f"{section}="):
            raise ConfigError(message) from error
        if message.split(" ")[0] in settings:
            raise ConfigError(f"{section}.{message}") from error
        target = re.search(r"Error locating target '(\S+)'.* full_key: (\S+)", message)
        if target is not None:
            raise ConfigError(f"{target[2]}._target_={target[1]} can't be imported") from error
        values = (
            f"{section}.{k}={v}" for k, v in flat(to_dict(settings)).items() if "._" not in f".{k}"
        )
        raise ConfigError(f"{section}: {message} (with {', '.join(values)})") from error


def make_advantage(cfg: DictConfig) -> Any:
    """The estimator of `cfg.advantage` with its settings and `cfg.gamma` bound."""
    section = OmegaConf.create({"advantage": {**cfg.advantage, "gamma": cfg.gamma}})
    estimator = bind(section, "advantage")
    zero, no = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool)
    with naming("advantage", cfg.advantage):
        # it checks its settings when called: call it before training does
        advantage = estimator(zero, torch.zeros(2, 1), no, no, no)
    if not (torch.is_tensor(advantage) and advantage.shape == zero.shape):
        target = cfg.advantage._target_
        raise ConfigError(f"advantage._target_={target} can't be that: it returns no advantages")
    return estimator


def make_env(cfg: DictConfig, evaluation: bool = False) -> VectorEnv:
    """The vector environment of `cfg.env`, this process' share of it."""
    settings = env_settings(cfg, evaluation)
    with naming("env", cfg.env):
        settings["num_envs"] = share(num_envs=cfg.env.num_envs)
        return make_vector_env(settings.pop("id"), **settings)


def env_settings(cfg: DictConfig, evaluation: bool) -> dict[str, Any]:
    """`cfg.env` as arguments of `make_vector_env`.

    In evaluation the reward is the environment's own: without wrappers of the reward, and of a
    game its score.
    """
    settings = to_dict(cfg.env)
    wrappers = enumerate(settings.get("wrappers", []))
    made = [make_wrapper(f"env.wrappers[{i}]", wrapper, evaluation) for i, wrapper in wrappers]
    settings["wrappers"] = [wrapper for wrapper in made if wrapper is not None]
    if evaluation and atari.is_atari(cfg.env.id):
        settings["kwargs"] |= atari.SCORES
    return settings


def make_wrapper(name: str, settings: Any, evaluation: bool) -> Wrapper | None:
    """What puts a wrapper around an environment; None for one that evaluation leaves out.

    Raises:
        ConfigError: an unknown target or setting.
    """
    if not isinstance(settings, Mapping) or "_target_" not in settings:
        raise ConfigError(f"{name} must be {{_target_: <class>, ...}}, got {settings!r}")
    target, section = locate(name, settings["_target_"]), OmegaConf.create({name: settings})[name]
    if isinstance(target, type) and issubclass(target, NormalizeObservation):
        raise ConfigError(
            f"{name}: {target.__name__} would learn other statistics in evaluation; "
            "policy.normalize_obs=true keeps them in the checkpoint"
        )
    of_reward = (gym.RewardWrapper, NormalizeReward)
    if evaluation and isinstance(target, type) and issubclass(target, of_reward):
        return None
    with naming(name, section):
        wrap = instantiate(section, _convert_="all", _partial_=True)
    # Gymnasium asks for tuples, which yaml does not have
    tuples = {k: tuple(x) for k, x in wrap.keywords.items() if isinstance(x, list)}
    return partial(_wrap, name=name, wrap=partial(wrap, **tuples))


def _wrap(env: gym.Env, name: str, wrap: Callable[[gym.Env], Any]) -> gym.Env:
    """The wrapped environment; whatever the wrapper raises is one line with its name."""
    try:
        wrapped = wrap(env)
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise WrapperError(f"{name} can't wrap {env.observation_space}: {what}") from error
    if not isinstance(wrapped, gym.Env):
        raise WrapperError(f"{name} is no wrapper: it returns {wrapped!r:.100}")
    return wrapped


def make_policy(cfg: DictConfig, env: VectorEnv) -> Any:
    """The policy of `cfg.policy` for the spaces of `env`, on `cfg.device`."""
    policy = make(cfg, "policy", env.single_observation_space, env.single_action_space)
    return policy.to(cfg.device)


def make_trainer(cfg: DictConfig, folder: Path, state: dict[str, Any] | None = None) -> Trainer:
    """All parts of a run, from its seed; writes nothing before every part is made.

    Networks start the same in every process; environments and sampling have seeds of their own. A
    resumed run goes on from `state`, a checkpoint, or from its start where that is empty.

    Raises:
        ConfigError: a mistake in the config.
    """
    validate(cfg)
    torch.set_num_threads(cfg.num_threads)
    torch.manual_seed(cfg.seed)
    if cfg.env.backend == "auto":  # recorded in the saved config
        with naming("env", cfg.env):
            cfg.env.backend = fastest_backend(
                cfg.env.id, cfg.env.kwargs, cfg.env.action_mask, cfg.env.wrappers
            )
    env, eval_env = make_env(cfg), make_env(cfg, evaluation=True)
    policy = make_policy(cfg, env)
    obs_space = rollout_space(policy, env.single_observation_space)
    baseline = make(cfg, "baseline", obs_space, policy=policy).to(cfg.device)
    fit_into_memory(cfg, policy, baseline, spaces.flatdim(obs_space))
    rule = make(cfg, "algo", policy)
    advantage = make_advantage(cfg)
    training_seed, evaluation_seed, sampling_seed = (
        derive_seed(cfg.seed, NUM_STREAMS * rank() + stream)
        for stream in (TRAINING_STREAM, EVALUATION_STREAM, SAMPLING_STREAM)
    )
    rollout = make(cfg, "rollout", env, cfg.device, training_seed)
    refuse_contradictions(cfg)
    if rank() > 0:
        torch.manual_seed(sampling_seed)

    def evaluate_policy(episodes: int) -> Evaluation:
        own = evaluate(
            policy,
            eval_env,
            episodes=math.ceil(episodes / world_size()),
            seed=evaluation_seed,
            deterministic=True,
            device=cfg.device,
        )
        return Evaluation(gather_list(own.returns), gather_list(own.lengths))

    record = NoLogger(folder)
    schedules = make_schedules(cfg, policy, rule, baseline, obs_space)
    trainer = Trainer(
        policy, baseline, rule, advantage, rollout, evaluate_policy, record, cfg, schedules
    )
    if state:
        load_state(trainer, state)
    if rank() == 0:
        if cfg.log.video:
            film(trainer, cfg, folder / "videos", evaluation_seed)
        resumed_at = None if state is None else trainer.env_steps
        trainer.logger = Logger(folder, to_dict(cfg), cfg.total_steps, resumed_at)
    return trainer


def fit_into_memory(cfg: DictConfig, policy: Any, baseline: Any, obs_size: int) -> None:
    """Where `chunk_size` is null, and a large batch's graph may not fit, write one that does."""
    row_size = obs_size + isinstance(policy, RecurrentPolicy)  # each row begins a sequence

    def params(rows: int) -> Tensor:
        return policy.dist_params(torch.ones(rows, row_size, device=cfg.device))

    def values(rows: int) -> Tensor:
        step = torch.zeros(rows, dtype=torch.int64, device=cfg.device)
        return baseline(torch.ones(rows, obs_size, device=cfg.device), step)

    with naming("policy", cfg.policy):
        if cfg.chunk_size is None:
            cfg.chunk_size = chunk_that_fits(params)
    with naming("baseline", cfg.baseline):
        if cfg.baseline.get("chunk_size", 0) is None:
            cfg.baseline.chunk_size = baseline.chunk_size = chunk_that_fits(values)


def make_schedules(
    cfg: DictConfig, policy: Any, rule: Any, baseline: Any, obs_space: spaces.Space
) -> dict[str, Schedule]:
    """What `cfg.schedule` names, settings of the rule and the baseline, by their full names.

    The parts check values when they are made, so others are made of the values at the end; what is
    sound there and at the start is sound between.

    Raises:
        ConfigError: no number of that name, or one that the part refuses.
    """
    parts = {"algo": (rule, policy), "baseline": (baseline, obs_space)}
    numbers = [key for key, x in flat({s: to_dict(cfg[s]) for s in parts}).items() if is_number(x)]
    schedules, end = {}, OmegaConf.create({section: cfg[section] for section in parts})
    for key, last in flat(to_dict(cfg.schedule)).items():
        if key not in numbers:
            hint = nearest(key, numbers)
            raise ConfigError(f"schedule.{key} names no number of algo or baseline: {hint}")
        if not is_number(last):
            raise ConfigError(f"schedule.{key} must be a number, got {last!r}")
        section, _, name = key.partition(".")
        schedule = Schedule(parts[section][0], name, OmegaConf.select(cfg, key), last)
        if schedule.present != schedule.start:
            part = type(schedule.part).__name__
            raise ConfigError(f"schedule.{key} is without effect: {part} keeps no {name} here")
        schedules[key] = schedule
        OmegaConf.update(end, key, schedule.at(1 - 1e-9))  # the end may be a limit: 0
    try:
        with torch.random.fork_rng():
            for section in dict.fromkeys(key.partition(".")[0] for key in schedules):
                make(end, section, parts[section][1], policy=policy)
    except ConfigError as error:
        raise ConfigError(f"schedule: at the end of the run {error}") from error
    return schedules


def is_number(x: Any) -> bool:
    """A finite number, and no flag."""
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def film(trainer: Trainer, cfg: DictConfig, folder: Path, seed: int) -> None:
    """Make every evaluation leave a video of one greedy episode too.

    Raises:
        ConfigError: the environment can't be drawn, or a package is missing.
    """
    try:
        settings = env_settings(cfg, evaluation=True)
        refuse_undrawable(settings)
    except ValueError as error:
        raise ConfigError(f"log.video=true: {one_line(error)}") from error
    evaluate_only = trainer.evaluate

    def evaluate_and_film(episodes: int) -> Evaluation:
        to = folder / f"step_{trainer.env_steps}"
        if not to.exists():  # a second evaluation at the same step
            options: dict[str, Any] = {"seed": seed, "deterministic": True, "device": cfg.device}
            record_video(trainer.policy, settings, to, episodes=1, **options)
        for path in to.glob("*.mp4"):
            trainer.logger.gif("eval/video", trainer.env_steps, as_gif(path))
        return evaluate_only(episodes)

    trainer.evaluate = evaluate_and_film


def load_state(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put a checkpoint into the trainer.

    Raises:
        ConfigError: it is that of other networks, another rule or other environments.
    """
    try:
        trainer.load_state_dict(state)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigError(f"resume: the checkpoint does not fit the config ({reason})") from error


def to_dict(cfg: DictConfig) -> dict[str, Any]:
    """A config as plain, resolved containers."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def nearest(key: str, allowed: list[str]) -> str:
    """A hint at what was meant."""
    matches = difflib.get_close_matches(key, allowed, n=1)
    return f"did you mean {matches[0]}?" if matches else f"there are {', '.join(allowed)}"


def one_line(error: BaseException) -> str:
    """An exception's message on one line."""
    return " ".join(str(error).split())
