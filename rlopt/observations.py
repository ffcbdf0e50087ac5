"""Flat observations that remember what they were made of, and how they become a network's input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from gymnasium import spaces

from rlopt.action_spaces import leaves
from rlopt.normalize import ImageNorm, RunningNorm


class FlatBox(spaces.Box):
    """A flat Box that carries the space whose observations were flattened into it.

    Args:
        flat: the Box of shape [d].
        original: the space; a row is its leaves one after the other.
    """

    def __init__(self, flat: spaces.Box, original: spaces.Space) -> None:
        super().__init__(flat.low, flat.high, dtype=flat.dtype)
        self.original = original


def original(space: spaces.Space) -> spaces.Space:
    """What a flat space was made of; itself where it was flat from the start."""
    return space.original if isinstance(space, FlatBox) else space


def entries(space: spaces.Space) -> list[spaces.Space]:
    """The leaves of the original, in the order of their columns; an action mask is the last."""
    return list(leaves(original(space)))


def is_image(entry: spaces.Space) -> bool:
    """A Box of rows, columns and channels (first or last), or of rows and columns."""
    return isinstance(entry, spaces.Box) and len(entry.shape) in (2, 3)


def images(space: spaces.Space) -> list[spaces.Space]:
    """The entries that are images."""
    return [entry for entry in entries(space) if is_image(entry)]


def make_normalizer(
    parts: Sequence[spaces.Space], standardize: bool
) -> RunningNorm | ImageNorm | None:
    """From flat observations to a network's input: vectors standardised, pixels within 0 and 1.

    Args:
        parts: entries of the observation.
        standardize: by running statistics; else vectors stay as they are, and without an image
            there is nothing to do.
    """
    sizes = [spaces.flatdim(part) for part in parts]
    if not any(map(is_image, parts)):
        return RunningNorm(sum(sizes)) if standardize else None
    scales, is_vector = [], []
    for part, size in zip(parts, sizes, strict=True):
        whole = is_image(part) and not np.issubdtype(part.dtype, np.floating)
        scales += [1 / 255 if whole else 1.0] * size
        is_vector += [not is_image(part)] * size
    return ImageNorm(torch.tensor(scales), torch.tensor(is_vector).nonzero()[:, 0], standardize)
