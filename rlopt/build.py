"""From a composed config to the parts of a run; mistakes end here, in one line, before training."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from rlopt import atari, backends
from rlopt.baselines import CNNBaseline
from rlopt.config import (
    ConfigError,
    is_number,
    nearest,
    one_line,
    refuse_contradictions,
    to_dict,
    validate,
)
from rlopt.distributed import gather_list, rank, share, total_count, world_size
from rlopt.envs import derive_seed, fastest_backend, find_spec, make_vector_env, time_limit
from rlopt.evaluate import (
    LONGEST_EPISODE,
    Evaluation,
    as_gif,
    evaluate,
    record_video,
    refuse_undrawable,
)
from rlopt.linalg import chunk_that_fits
from rlopt.logger import Logger, NoLogger, flat
from rlopt.networks import NATURE_SIZE
from rlopt.observations import is_image
from rlopt.policies import CNNPolicy, FourierPolicy, MLPPolicy
from rlopt.recurrent import rollout_space
from rlopt.schedule import Schedule
from rlopt.seeding import seed_process, seeded
from rlopt.targets import BY_NAME, bind, make, make_wrapper, naming
from rlopt.trainer import Trainer
from rlopt.types import RecurrentPolicy

TRAINING_STREAM, EVALUATION_STREAM, SAMPLING_STREAM = 0, 1, 2
NUM_STREAMS = 3  # of each process


def make_trainer(
    cfg: DictConfig,
    folder: Path,
    state: dict[str, Any] | None = None,
    files: Mapping[str, str | None] = MappingProxyType({}),
) -> Trainer:
    """All parts of a run, from its seed; writes nothing before every part is made.

    Networks start the same in every process; environments and sampling have seeds of their own. A
    resumed run goes on from `state`, a checkpoint, or from its start where that is empty. `files`
    names those that the config was made of; TensorBoard's hyperparameters have them.

    Raises:
        ConfigError: a mistake in the config.
    """
    validate(cfg)
    torch.set_num_threads(cfg.num_threads)
    seed_process(cfg.seed)
    training_seed, evaluation_seed, sampling_seed = (
        derive_seed(cfg.seed, NUM_STREAMS * rank() + stream)
        for stream in (TRAINING_STREAM, EVALUATION_STREAM, SAMPLING_STREAM)
    )
    if cfg.env.backend == "auto":  # recorded in the saved config
        with naming("env", cfg.env):
            cfg.env.backend = fastest_backend(
                cfg.env.id,
                to_dict(cfg.env.kwargs),
                cfg.env.action_mask,
                cfg.env.wrappers,
                cfg.env.max_episode_steps,
            )
    with seeded(sampling_seed):  # constructors may draw: other numbers in every process
        env, eval_env = make_env(cfg), make_env(cfg, evaluation=True)
    policy = make_policy(cfg, env)
    obs_space = rollout_space(policy, env.single_observation_space)
    baseline = make(cfg, "baseline", obs_space, policy=policy).to(cfg.device)
    fit_into_memory(cfg, policy, baseline, spaces.flatdim(obs_space))
    rule = make(cfg, "algo", policy)
    advantage = make_advantage(cfg)
    rollout = make(cfg, "rollout", env, cfg.device, training_seed)
    refuse_contradictions(cfg)
    if rank() > 0:
        seed_process(sampling_seed)
    limit = evaluation_limit(cfg)

    def evaluate_policy(episodes: int) -> Evaluation:
        own = evaluate(
            policy,
            eval_env,
            episodes=math.ceil(episodes / world_size()),
            seed=evaluation_seed,
            deterministic=True,
            device=cfg.device,
            max_episode_steps=limit,
            on_nonfinite=cfg.on_nonfinite,
        )
        counts = total_count(own.num_cut), total_count(own.num_nonfinite)
        return Evaluation(gather_list(own.returns), gather_list(own.lengths), *counts)

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
        about = {**to_dict(cfg), **files}
        trainer.logger = Logger(folder, about, cfg.total_steps, resumed_at)
    return trainer


def make_env(cfg: DictConfig, evaluation: bool = False) -> VectorEnv:
    """The vector environment of `cfg.env`, this process' share of it."""
    settings = env_settings(cfg, evaluation)
    with naming("env", cfg.env):
        settings["num_envs"] = share(num_envs=cfg.env.num_envs)
        try:
            return make_vector_env(settings.pop("id"), **settings)
        except ValueError as error:
            refuse_unknown_kwargs(cfg, str(error))
            raise


def refuse_unknown_kwargs(cfg: DictConfig, message: str) -> None:
    """Name the key of `env.kwargs` that a constructor has refused, with the nearest that it takes.

    Raises:
        ConfigError: `message` says that there is such a key.
    """
    refused = re.search(r"unexpected keyword argument '(\w+)'", message)
    if refused is None or refused[1] not in cfg.env.kwargs:
        return
    entry = find_spec(cfg.env.id).entry_point
    target: Any = gym.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    found = inspect.signature(target).parameters.values() if target else ()
    names = [p.name for p in found if p.kind in BY_NAME and p.name != "render_mode"]
    taken = [f"env.kwargs.{name}" for name in names]
    hint = nearest(f"env.kwargs.{refused[1]}", taken) if taken else "it takes none of that name"
    raise ConfigError(f"env.kwargs.{refused[1]} is no setting of {cfg.env.id}: {hint}")


def evaluation_limit(cfg: DictConfig) -> int:
    """Steps after which an evaluation cuts an episode: a setting, else the environment's limit."""
    given = cfg.eval.get("max_episode_steps")  # configs of older runs have none
    own = time_limit(cfg.env.id, cfg.env.max_episode_steps, cfg.env.kwargs)
    return given or own or LONGEST_EPISODE


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


def make_policy(cfg: DictConfig, env: VectorEnv) -> Any:
    """The policy of `cfg.policy` for the spaces of `env`, on `cfg.device`."""
    policy = make(cfg, "policy", env.single_observation_space, env.single_action_space)
    return policy.to(cfg.device)


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
    for section in cfg.schedule:
        if not flat({section: to_dict(cfg.schedule)[section]}):
            raise ConfigError(
                f"schedule.{section} names no number of algo or baseline: it is empty"
            )
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
    options: dict[str, Any] = {
        "seed": seed,
        "deterministic": True,
        "device": cfg.device,
        "max_episode_steps": evaluation_limit(cfg),
        "on_nonfinite": cfg.on_nonfinite,
    }

    def evaluate_and_film(episodes: int) -> Evaluation:
        to = folder / f"step_{trainer.env_steps}"
        if not to.exists():  # a second evaluation at the same step
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


def remarks_on_backend(cfg: DictConfig) -> list[str]:
    """A line on the implementation that trains, where it might not be Gymnasium's."""
    remark = backends.remark(find_spec(cfg.env.id), cfg.env.backend)
    return [] if remark is None else [remark]


def remarks_on_images(policy: Any, baseline: Any) -> list[str]:
    """What convolutions take as images; or that a policy takes an image for a vector."""
    seen: dict[str, list[str]] = {}
    for name, part in (("policy=cnn", policy), ("baseline=cnn", baseline)):
        if isinstance(part, CNNPolicy | CNNBaseline):
            seen.setdefault(part.seen, []).append(name)
    take = {1: "takes", 2: "take"}
    lines = [f"{' and '.join(names)} {take[len(names)]} {text}" for text, names in seen.items()]
    if isinstance(policy, MLPPolicy | FourierPolicy):
        images = [entry.shape or () for entry in policy.entries if is_image(entry, NATURE_SIZE)]
        lines += [
            f"an image of {'x'.join(map(str, shape))} is a vector to this policy: "
            "policy=cnn baseline=cnn see it as one"
            for shape in images[:1]
        ]
    return lines
