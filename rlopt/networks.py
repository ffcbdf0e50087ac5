"""Networks: flat observations [B, d], standardised, to outputs [B, k].

Each is a Sequential whose last layer is linear; what goes into that one are the network's features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlopt import check
from rlopt.linalg import PASS_ROWS
from rlopt.observations import SURE_SIZE, image_size, is_image

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}
IMAGE_ROWS = 64  # through a network at a time
PASS_NUMBERS = 2**22  # of long vectors through a network at a time
NATURE_SIZE = 36  # of the smallest image that the three convolutions leave something of


def floats(x: Tensor) -> Tensor:
    """Whole numbers, as pixels are, in torch's default float type; others as they are."""
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def pass_rows(size: int) -> int:
    """How many observations of `size` numbers are passed through a network of vectors at a time."""
    return max(IMAGE_ROWS, min(PASS_ROWS, PASS_NUMBERS // size))


def in_passes(f: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """F of rows x [*, d] -> [*, k], `size` at a time: less memory, and half the time on many."""
    rows = x.reshape(-1, x.shape[-1])
    if torch.compiler.is_compiling() or len(rows) <= size:  # one program for any batch
        output = f(rows)
    else:
        output = torch.cat([f(part) for part in rows.split(size)])
    return output if x.dim() == 2 else output.view(*x.shape[:-1], output.shape[-1])


def mlp(
    sizes: Sequence[int], activation: str, output_gain: float, orthogonal_init: bool
) -> nn.Sequential:
    """A fully connected network; biases start at 0.

    Args:
        sizes: widths from the input to the output; two of them make a linear map.
        activation: a key of `ACTIVATIONS`.
        output_gain: small for a policy, which then starts near uniform; 1 for a value.
        orthogonal_init: orthogonal weights of gain sqrt 2, of `output_gain` in the last layer; else
            those that `nn.Linear` draws, uniform on +- 1 / sqrt(width), times `output_gain` there.

    Source: Andrychowicz et al. 2021, "What matters for on-policy deep actor-critic methods?",
    section 3.2.
    """
    check.one_of(list(ACTIVATIONS), activation=activation)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [initialized(nn.Linear(fan_in, fan_out), orthogonal_init)]
        layers += [ACTIVATIONS[activation]()]
    network = nn.Sequential(*layers[:-1])
    last = network[-1]
    assert isinstance(last, nn.Linear)
    if orthogonal_init:
        nn.init.orthogonal_(last.weight, output_gain)
    else:
        last.weight.data.mul_(output_gain)
    return network


def initialized(layer: nn.Linear | nn.Conv2d, orthogonal_init: bool) -> nn.Module:
    """The layer with biases of 0 and its weights, or orthogonal ones of gain sqrt 2."""
    if orthogonal_init:
        nn.init.orthogonal_(layer.weight, 2**0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class FourierFeatures(nn.Module):
    """Random Fourier features of observations: y_i = sin(sum_j P_ij s_j / nu + phi_i).

    P is standard normal, phi uniform on (-pi, pi); both stay as they are drawn. nu should be the
    mean distance of two observations, which is sqrt(2 d) for d standardised ones.

    Args:
        size: d.
        num_features: how many.
        bandwidth: nu in units of sqrt(2 d).

    Source: Rajeswaran et al. 2017, "Towards generalization and simplicity in continuous control",
    equation 4.
    """

    directions: Tensor
    phase: Tensor

    def __init__(self, size: int, num_features: int, bandwidth: float) -> None:
        super().__init__()
        check.whole(num_features=num_features)
        check.positive(bandwidth=bandwidth)
        nu = bandwidth * math.sqrt(2 * size)
        self.register_buffer("directions", torch.randn(size, num_features) / nu)
        self.register_buffer("phase", math.pi * (2 * torch.rand(num_features) - 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, d] -> [B, num_features]."""
        return torch.sin(torch.addmm(self.phase, x, self.directions))


class Residual(nn.Sequential):
    """x + f(x)."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return input + super().forward(input)


def nature(depths: Sequence[int], activation: str, orthogonal_init: bool) -> list[nn.Module]:
    """The three convolutions of Mnih et al. 2015, "Human-level control ...", methods.

    `depths` are those of the image and of each convolution.
    """
    layers: list[nn.Module] = []
    for pair, kernel, stride in zip(pairwise(depths), (8, 4, 3), (4, 2, 1), strict=True):
        layers += [initialized(nn.Conv2d(*pair, kernel, stride), orthogonal_init)]
        layers += [ACTIVATIONS[activation]()]
    return layers


def impala(depths: Sequence[int], activation: str, orthogonal_init: bool) -> list[nn.Module]:
    """The blocks of the large network of Espeholt et al. 2018, "IMPALA", figure 3.

    Each is a convolution, a pooling that halves the image, and two residual parts.
    """

    def conv(fan_in: int, fan_out: int) -> nn.Module:
        return initialized(nn.Conv2d(fan_in, fan_out, 3, padding=1), orthogonal_init)

    act, layers = ACTIVATIONS[activation], []
    for fan_in, depth in pairwise(depths):
        layers += [conv(fan_in, depth), nn.MaxPool2d(3, stride=2, padding=1)]
        layers += [Residual(act(), conv(depth, depth), act(), conv(depth, depth)) for _ in range(2)]
    return [*layers, act()]


CONVOLUTIONS = {"nature": (nature, [32, 64, 64]), "impala": (impala, [16, 32, 32])}


class AsImage(nn.Module):
    """Rows [B, d] of an image to [B, C, H, W]; of first and last dimension the smaller is C."""

    def __init__(self, image: spaces.Space) -> None:
        super().__init__()
        assert image.shape is not None
        self.depth, height, width, self.channels_last = image_size(image.shape)
        self.size = (self.depth, height, width)
        self.shape = (height, width, self.depth) if self.channels_last else self.size

    def forward(self, x: Tensor) -> Tensor:
        """The images."""
        x = x.reshape(-1, *self.shape)
        return x.permute(0, 3, 1, 2) if self.channels_last else x


def image_encoder(
    image: spaces.Space,
    convolutions: str,
    channels: Sequence[int] | None,
    activation: str,
    orthogonal_init: bool,
) -> nn.Sequential:
    """Rows of an image [B, d] to features [B, k]."""
    make, papers = CONVOLUTIONS[convolutions]
    as_image = AsImage(image)
    depths = [as_image.depth, *(channels or papers)]
    return nn.Sequential(as_image, *make(depths, activation, orthogonal_init), nn.Flatten())


def smallest_image(convolutions: str, channels: Sequence[int] | None) -> int:
    """Height and width that these convolutions need at least.

    Of `impala` so many that each of its poolings has something to halve.

    Raises:
        ValueError: a setting that is not one of them.
    """
    check.one_of(list(CONVOLUTIONS), convolutions=convolutions)
    check.sizes(channels=channels or [])
    papers = CONVOLUTIONS[convolutions][1]
    if convolutions == "impala":
        return 2 ** (len(channels or papers) - 1) + 1
    if channels is not None and len(channels) != len(papers):
        raise ValueError(f"channels must be {len(papers)} numbers for nature, got {channels!r}")
    return NATURE_SIZE


def find_images(
    parts: Sequence[spaces.Space], convolutions: str, channels: Sequence[int] | None
) -> list[int]:
    """Numbers of the entries of an observation that these convolutions take as images.

    Raises:
        ValueError: there is none (with what to write instead).
    """
    smallest = smallest_image(convolutions, channels)
    found = [i for i, part in enumerate(parts) if is_image(part, smallest)]
    if found:
        return found
    small = smallest_image("impala", None)
    for part in parts:
        if convolutions == "nature" and part.shape is not None and is_image(part, small):
            sides = "x".join(map(str, image_size(part.shape)[1:3]))
            raise ValueError(
                f"convolutions must be impala for an image of {sides}: nature needs "
                f"{NATURE_SIZE}x{NATURE_SIZE} at least"
            )
    kinds = ", ".join(f"{part.dtype} {part.shape}" for part in parts)
    raise ValueError(
        f"convolutions need an image, bytes of {smallest}x{smallest} at least or numbers within "
        f"one finite range of {SURE_SIZE}x{SURE_SIZE} at least, and the observation has none "
        f"({kinds}): use policy=mlp baseline=mlp"
    )


class Encoders(nn.Module):
    """One encoder for each image of an observation, and one for all of its other entries.

    Args:
        parts: the observation's entries, at least one of them an image.
        convolutions: `nature` or `impala`.
        channels: of each convolution or block, or None for the paper's.
        vector_sizes: widths of a perceptron for what is no image; none: it goes on as it is.
        activation: a key of `ACTIVATIONS`.
        orthogonal_init: as of `mlp`.

    Raises:
        ValueError: no image that is large enough for the convolutions.
    """

    def __init__(
        self,
        parts: Sequence[spaces.Space],
        convolutions: str,
        channels: Sequence[int] | None,
        vector_sizes: Sequence[int],
        activation: str,
        orthogonal_init: bool,
    ) -> None:
        super().__init__()
        check.one_of(list(ACTIVATIONS), activation=activation)
        check.sizes(vector_sizes=vector_sizes)
        found = find_images(parts, convolutions, channels)
        self.sizes = [spaces.flatdim(part) for part in parts]
        self.is_image = [i in found for i in range(len(parts))]
        self.images = nn.ModuleList(
            image_encoder(parts[i], convolutions, channels, activation, orthogonal_init)
            for i in found
        )
        num_vector = sum(size for i, size in enumerate(self.sizes) if i not in found)
        self.vector = nn.Sequential()
        if vector_sizes and num_vector:
            sizes = [num_vector, *vector_sizes]
            layers = mlp(sizes, activation, 2**0.5, orthogonal_init)
            self.vector = nn.Sequential(*layers, ACTIVATIONS[activation]())
        with torch.no_grad():
            self.num_outputs = self(torch.zeros(1, sum(self.sizes))).shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """[B, d] -> [B, num_outputs]: the images' features, then the others'."""
        columns = x.split(self.sizes, dim=-1)
        pictures = [part for part, image in zip(columns, self.is_image, strict=True) if image]
        vectors = [part for part, image in zip(columns, self.is_image, strict=True) if not image]
        outputs = [f(part) for f, part in zip(self.images, pictures, strict=True)]
        if vectors:
            outputs.append(self.vector(torch.cat(vectors, dim=-1)))
        return torch.cat(outputs, dim=-1)


def cnn(
    parts: Sequence[spaces.Space],
    num_outputs: int,
    *,
    convolutions: str,
    channels: Sequence[int] | None,
    vector_sizes: Sequence[int],
    hidden_sizes: Sequence[int],
    activation: str,
    output_gain: float,
    orthogonal_init: bool,
) -> nn.Sequential:
    """`Encoders` of the observation's entries, then a perceptron."""
    encoders = Encoders(parts, convolutions, channels, vector_sizes, activation, orthogonal_init)
    sizes = [encoders.num_outputs, *hidden_sizes, num_outputs]
    return nn.Sequential(encoders, *mlp(sizes, activation, output_gain, orthogonal_init))
