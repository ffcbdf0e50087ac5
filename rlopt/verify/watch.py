"""What a trainer's parts were given and returned while it iterated, written down beside them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution

from rlopt.masks import KEY, ActionMask
from rlopt.recorder import Recorder
from rlopt.rollout import EpisodeRollout, StepRollout
from rlopt.schedule import Schedule
from rlopt.trainer import Trainer
from rlopt.types import Batch, RecurrentPolicy


@contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Attributes of an object changed for a while."""
    before = {name: getattr(owner, name) for name in attributes}
    own = set(vars(owner))
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if name in own:
                setattr(owner, name, value)
            else:  # a method of the class, hidden for a while
                delattr(owner, name)


def tensors_of(*modules: Any) -> dict[str, Tensor]:
    """Copies of all tensors of the modules' states: parameters and buffers."""
    return {
        f"{i}.{name}": x.clone()
        for i, module in enumerate(modules)
        for name, x in module.state_dict().items()
        if isinstance(x, Tensor)
    }


def num_changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> int:
    """How many tensors are not bitwise the same."""
    return sum(not torch.equal(before[name], after[name]) for name in before)


@dataclass
class EnvLog:
    """The calls of a vector environment in their order.

    Attributes:
        env: the vector environment.
        seeds: of its resets.
        steps: of each step the observation [N, *] before it, the action as it arrived, and the
            observation, reward, terminated and truncated that it returned.
        fresh: of each step whether a reset came just before it.
        masks: what each step's info says of the actions that are allowed, or None.
    """

    env: Any
    seeds: list[Any] = field(default_factory=list)
    steps: list[tuple[Any, ...]] = field(default_factory=list)
    fresh: list[bool] = field(default_factory=list)
    last: tuple[Any, bool] = (None, False)  # observation, and whether a reset gave it
    masks: list[Any] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Write down every call."""
        step, reset = self.env.step, self.env.reset

        def watched_step(action: Any) -> Any:
            returned = step(action)
            kept = copy.deepcopy(returned[:4])  # an environment may use its arrays again
            self.steps.append((self.last[0], copy.deepcopy(action), *kept))
            self.fresh.append(self.last[1])
            self.last = kept[0], False
            self.masks.append(copy.deepcopy(returned[4].get(KEY)))
            return returned

        def watched_reset(**options: Any) -> Any:
            returned = reset(**options)
            self.seeds.append(options.get("seed"))
            self.last = copy.deepcopy(returned[0]), True
            return returned

        with replaced(self.env, step=watched_step, reset=watched_reset):
            yield

    @property
    def num_calls(self) -> int:
        """Steps and resets."""
        return len(self.steps) + len(self.seeds)

    def replay(self) -> list[tuple[NDArray, NDArray, NDArray]]:
        """Of each step: whether it is a transition, its number in its episode, the return so far.

        Each [N]. The step after an episode's end only resets (Gymnasium's NEXT_STEP).
        """
        N = self.env.num_envs
        result: list[tuple[NDArray, NDArray, NDArray]] = []
        for (*_, reward, terminated, truncated), fresh in zip(self.steps, self.fresh, strict=True):
            if fresh or not result:
                resets, count, total = np.zeros(N, bool), np.zeros(N, int), np.zeros(N)
            number, total = count, np.where(resets, 0.0, total + np.reshape(reward, N))
            result.append((~resets, number, total))
            count = np.where(resets, 0, count + 1)
            resets = np.logical_or(terminated, truncated)
        return result


class Watch:
    """Two iterations of a trainer.

    Attributes:
        env: calls of the training environments, None where the sampler is not the package's.
        unmasked: those of the same behind `ActionMask`, None where there is none.
        batches: of each update.
        fits: observations, steps and targets of each fit of the baseline.
        fits_come_first: the last one came before the update, on a rollout of its own.
        scheduled: of each update, the share of the run that is done and each scheduled value as
            its part holds it.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        known = isinstance(trainer.rollout, StepRollout | EpisodeRollout)
        self.env = EnvLog(trainer.rollout.recorder.env) if known else None
        masked = self.env is not None and isinstance(self.env.env, ActionMask)
        self.unmasked = EnvLog(self.env.env.env) if self.env is not None and masked else None
        self.batches: list[Batch] = []
        self.fits: list[tuple[Tensor, Tensor, Tensor]] = []
        self.scheduled: list[tuple[float, dict[str, float]]] = []
        self.fits_come_first = False

    def iterate(self) -> dict[str, float]:
        """One iteration of the trainer."""
        trainer, updates = self.trainer, len(self.batches)
        step, fit = trainer.rule.step, trainer.baseline.fit
        progress = min(1.0, trainer.env_steps / trainer.settings.total_steps)

        def watched_step(batch: Batch) -> dict[str, float]:
            self.batches.append(batch)
            self.scheduled.append((progress, {k: held(s) for k, s in trainer.schedules.items()}))
            return step(batch)

        def watched_fit(*args: Tensor) -> dict[str, float]:
            self.fits_come_first = len(self.batches) == updates
            self.fits.append(tuple(x.clone() for x in args))  # type: ignore[arg-type]
            return fit(*args)

        with replaced(trainer.rule, step=watched_step), replaced(trainer.baseline, fit=watched_fit):
            if self.env is None:
                return trainer.iterate()
            with self.env.watching(), ExitStack() as stack:
                if self.unmasked is not None:
                    stack.enter_context(self.unmasked.watching())
                return trainer.iterate()


def held(schedule: Schedule) -> float:
    """The number as the scheduled part holds it; nan where its optimiser's groups differ."""
    name = schedule.name.removeprefix("optimizer.")
    if name == schedule.name:
        return float(getattr(schedule.part, name))
    values = {float(group[name]) for group in schedule.part.optimizer.param_groups}
    return values.pop() if len(values) == 1 else float("nan")


@contextmanager
def watched_dists(policy: Any, watch: Callable[[Distribution], None]) -> Iterator[None]:
    """Show `watch` every distribution that the policy acts by."""
    if not isinstance(policy, RecurrentPolicy):
        handle = policy.register_forward_hook(lambda module, args, dist: watch(dist))
        try:
            yield
        finally:
            handle.remove()
        return
    advance = policy.advance

    def advance_and_watch(*args: Tensor) -> tuple[Distribution, Tensor]:
        dist, state = advance(*args)
        watch(dist)
        return dist, state

    with replaced(policy, advance=advance_and_watch):
        yield


@contextmanager
def recorded_samples(policy: Any) -> Iterator[list[Tensor]]:
    """The log-probability [N] of every sample that is drawn from the policy's distributions."""
    samples: list[Tensor] = []

    def watch(dist: Distribution) -> None:
        draw = dist.sample

        def sample(*args: Any) -> Tensor:
            action = draw(*args)
            samples.append(dist.log_prob(action))
            return action

        vars(dist)["sample"] = sample  # hides the method for this draw

    with watched_dists(policy, watch):
        yield samples


@contextmanager
def recorded_modes(policy: Any) -> Iterator[list[Tensor]]:
    """The most probable action [N, *] of every distribution that the policy acts by."""
    modes: list[Tensor] = []

    def watch(dist: Distribution) -> None:
        modes.append(dist.mode)

    with watched_dists(policy, watch):
        yield modes


@contextmanager
def watched_recorders() -> Iterator[list[EnvLog]]:
    """The calls of the environments of each recorder that is reset meanwhile."""
    logs: list[EnvLog] = []
    reset = Recorder.reset
    with ExitStack() as stack:

        def watched_reset(recorder: Recorder, seed: int | None) -> None:
            if all(log.env is not recorder.env for log in logs):
                logs.append(EnvLog(recorder.env))
                stack.enter_context(logs[-1].watching())
            reset(recorder, seed)

        with replaced(Recorder, reset=watched_reset):
            yield logs
