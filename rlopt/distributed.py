"""One run in several processes: each samples environments of its own, every sum runs over all.

All processes hold the same parameters, bit for bit, and each takes every decision by itself, from
numbers that are the same in all because they come from `total`. So every process must make the same
calls in the same order. Without torchrun there is one process, and its own sums are the totals.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class LostProcessError(RuntimeError):
    """Another process of the run has ended, or does not answer."""


def start() -> None:
    """Join the other processes, where torchrun started this one."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return
    if torch.cuda.is_available():
        own = int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()
        torch.cuda.set_device(own)  # what `device=cuda` then means
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def stop() -> None:
    """Leave the other processes."""
    if _started():
        dist.destroy_process_group()


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0; process 0 keeps the record of the run."""
    return dist.get_rank() if _started() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _started() else 1


def is_first_to_ask() -> bool:
    """True in one process only, so that what happens to all is told once."""
    return not _started() or dist.distributed_c10d._get_default_store().add("asked", 1) == 1


def share(**settings: int) -> int:
    """This process' part of a number of things that are divided among all.

    Raises:
        ValueError: it can't be divided evenly.
    """
    ((name, number),) = settings.items()
    if number % world_size() != 0:
        message = f"{name} must be a multiple of the number of processes, {world_size()}"
        raise ValueError(f"{message}, got {number}")
    return number // world_size()


def total(x: Tensor) -> Tensor:
    """The sum of x over all processes, with the same bits in each.

    Its gradient is that of this process' own x, so that the gradients of all add up to the whole.
    """
    return x if world_size() == 1 else _Total.apply(x)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        with _naming_loss():
            dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        return gradient[0]


@contextmanager
def _naming_loss() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise LostProcessError(f"lost another process of the run: {reason}") from error


def total_count(count: int) -> int:
    """The sum of a whole number over all processes."""
    return count if world_size() == 1 else int(total(torch.tensor(count)))


def total_mean(x: Tensor) -> Tensor:
    """The mean of the entries of x [n] of all processes: scalar, with the gradient of `total`."""
    return total(x.sum() / total_count(len(x)))


def gather(x: Tensor) -> Tensor:
    """Rows x [n, *] of all processes, one after the other: [sum of n, *]; n may differ."""
    if world_size() == 1:
        return x
    sizes = torch.zeros(world_size(), dtype=torch.int64)
    sizes[rank()] = len(x)
    sizes = total(sizes)
    everything = x.new_zeros(int(sizes.sum()), *x.shape[1:])
    everything.split(sizes.tolist())[rank()].copy_(x)
    return total(everything)


def gather_list(items: list[Any]) -> list[Any]:
    """The items of all processes, one process after the other."""
    if world_size() == 1:
        return items
    parts: list[Any] = [None] * world_size()
    with _naming_loss():
        dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]
