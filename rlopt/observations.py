"""Flat observations that remember what they were made of, and how they become a network's input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from gymnasium import spaces

from rlopt.action_spaces import children, leaves
from rlopt.normalize import ImageNorm, RunningNorm

LARGEST_WHOLE = 2**24  # float32 holds every whole number up to it
SURE_SIZE = 36  # sides of a matrix of other numbers than bytes that is taken for an image


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


def obs_dtype(space: spaces.Space) -> torch.dtype:
    """The type that holds observations: torch's default float, or float64 where it must be.

    It must be where float32 cannot hold an entry exactly: float64 and large whole numbers. The
    normaliser subtracts their mean before they become float32.
    """
    exact = all(map(_fits_float32, entries(space)))
    return torch.get_default_dtype() if exact else torch.float64


def _fits_float32(entry: spaces.Space) -> bool:
    if not isinstance(entry, spaces.Box):
        return True  # zeros and ones
    if np.issubdtype(entry.dtype, np.floating):
        return np.finfo(entry.dtype).nmant <= 23
    largest = max(-int(entry.low.min()), int(entry.high.max()))
    return largest <= LARGEST_WHOLE


def image_size(shape: Sequence[int]) -> tuple[int, int, int, bool]:
    """Channels, height and width of an image's shape, and whether its channels are last.

    Of the first and last of three dimensions the smaller one holds the channels.
    """
    first, middle, last = shape if len(shape) == 3 else (1, *shape)
    if len(shape) == 3 and last <= first:
        return last, first, middle, True
    return first, middle, last, False


def is_image(entry: spaces.Space, smallest: int) -> bool:
    """Whether an entry is an image of at least `smallest` pixels in height and width.

    That is a Box of rows and columns, and perhaps channels, of bytes. Other numbers, of which most
    matrices are no images, must lie within one finite range and have `SURE_SIZE` rows and columns.
    """
    if not isinstance(entry, spaces.Box) or len(entry.shape) not in (2, 3):
        return False
    side = min(image_size(entry.shape)[1:3])
    if entry.dtype == np.uint8:
        return side >= smallest
    low, high = entry.low.flat[0], entry.high.flat[0]
    one_range = (entry.low == low).all() and (entry.high == high).all() and low < high
    return bool(side >= max(smallest, SURE_SIZE) and one_range and np.isfinite([low, high]).all())


def make_normalizer(
    parts: Sequence[spaces.Space], images: Sequence[int], standardize: bool
) -> RunningNorm | ImageNorm | None:
    """From flat observations to a network's input: pixels within 0 and 1, all else standardised.

    Args:
        parts: entries of the observation.
        images: numbers of those that the network takes as images.
        standardize: by running statistics; else vectors stay as they are, and without an image
            there is nothing to do.
    """
    sizes = [spaces.flatdim(part) for part in parts]
    if not images:
        return RunningNorm(sum(sizes)) if standardize else None
    low, scale = [np.zeros(size) for size in sizes], [np.ones(size) for size in sizes]
    is_vector = [np.full(size, i not in images) for i, size in enumerate(sizes)]
    for i in images:
        box = parts[i]
        assert isinstance(box, spaces.Box)
        low[i] = box.low.reshape(-1).astype(float)
        width = box.high.reshape(-1).astype(float) - low[i]
        scale[i] = 1 / np.where(width > 0, width, 1)
    to_float = torch.get_default_dtype()
    return ImageNorm(
        torch.from_numpy(np.concatenate(low)).to(to_float),
        torch.from_numpy(np.concatenate(scale)).to(to_float),
        torch.from_numpy(np.concatenate(is_vector)).nonzero()[:, 0],
        standardize,
    )


def entry_names(space: spaces.Space) -> list[str]:
    """Names of the entries: keys of a Dict, numbers of a Tuple, with dots where they are nested."""
    space = original(space)
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return [""]
    keys = list(space) if isinstance(space, spaces.Dict) else range(len(space.spaces))
    pairs = zip(keys, children(space), strict=True)
    return [f"{key}.{name}".strip(".") for key, child in pairs for name in entry_names(child)]


def described(space: spaces.Space, images: Sequence[int]) -> str:
    """Which entries of an observation are taken as images, by number, and which as a vector."""
    texts: list[str] = []
    for name, entry in zip(entry_names(space), entries(space), strict=True):
        shape = "x".join(map(str, entry.shape or (spaces.flatdim(entry),)))
        texts.append(f"{name or 'the observation'} ({shape} {entry.dtype})")
    pictures = ", ".join(texts[i] for i in images)
    vector = ", ".join(text for i, text in enumerate(texts) if i not in images)
    return f"as images: {pictures}" + (f"; as a vector: {vector}" if vector else "")
