"""A hypernetwork that generates the weights of a rescaled U-Net for any scale factor.

Source: "Scale-Space Hypernetworks for Efficient Biomedical Image Analysis" (NeurIPS 2023). The
authors' hypernetwork is dense: a linear layer from the last hidden layer to every weight. This one
is the same, but its last hidden layer has `rank` units. The scale factor is a single number, so the
weights form a curve, for which a few dimensions are enough. With the authors' width, a full nnU-Net
would have 2.9 billion parameters.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ..schedules.scale_factors import ScaleSpaceSettings
from .rescaled_unet import RescaledUNet

HIDDEN = (16, 64)
FIRST_SPREAD = 0.1
"""Initial size of the scale-dependent part, relative to nnU-Net's initial weights."""


class ScaleSpaceNetwork(nn.Module):
    """A rescaled U-Net with weights W(phi) = W0 + sum_r u_r(phi) M_r of its scale factor phi.

    W0 are the primary network's own parameters, from nnU-Net's initialisation; u is a small
    perceptron of phi. All parameters are modulated: convolutions, norms, biases, output layers.
    With rank 0 the weights do not depend on phi, and the network is the primary one. With `film`
    only those of the norms do; they scale and shift the features of each channel: w (1 + g(phi))
    and b (1 + g(phi)) + s(phi), with g = s = 0 initially.

    Attributes:
        primary: the network whose weights are generated.
        modulation: M, rank x parameters of the primary network (in their order).
        scale_factor: scale factor of the next forward passes.
    """

    perceptron: Any
    film: Any

    def __init__(self, primary: RescaledUNet, settings: ScaleSpaceSettings) -> None:
        """Wrap an initialised primary network."""
        super().__init__()
        self.primary, self.rank, self._settings = primary, settings.rank, settings
        rank, unit_norm = settings.rank, settings.unit_norm
        self._frozen: Mapping[str, torch.Tensor] | None = None
        if settings.film:
            channels = sum(norm.weight.numel() for norm in _norms(primary).values())
            self.film = _perceptron(2 * channels)[:-1]
            nn.init.zeros_(self.film[-1].weight)
        if rank:
            self.modulation = nn.Parameter(_initial_modulation(primary, rank))
            layers = _perceptron(rank)
            self.perceptron = layers[:-1] if unit_norm else layers

    def _encoded(self, scale_factors: torch.Tensor) -> torch.Tensor:
        """Return the perceptron's input for n scale factors (n x 2)."""
        low, high = self._settings.smallest_scale, self._settings.largest_scale
        x = (scale_factors - low) / (high - low)
        if self._settings.scale_encoding == "circular":
            return torch.stack((torch.cos(x * math.pi / 2), torch.sin(x * math.pi / 2)), dim=1)
        return torch.stack((x, 1 - x), dim=1)

    @property
    def decoder(self) -> nn.Module:
        """The primary network's decoder, whose `deep_supervision` nnU-Net's trainer sets."""
        return self.primary.decoder

    @property
    def scale_factor(self) -> float:
        """The primary network's scale factor, used by the next forward passes."""
        return self.primary.scale_factor

    @scale_factor.setter
    def scale_factor(self, value: float) -> None:
        self.primary.scale_factor = value

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Return the primary network's output; weights are generated once for the whole batch."""
        if not self.rank and not self._settings.film:
            return self.primary(x)
        weights = self.weights(self.scale_factor) if self._frozen is None else self._frozen
        # Some modules have two names. `tie_weights` would swap their weights under both names and
        # then restore the wrong ones.
        return functional_call(self.primary, dict(weights), (x,), tie_weights=False)

    def coordinates(self, scale_factor: float) -> torch.Tensor:
        """Return u (one row of `rank` numbers)."""
        scale = torch.tensor([scale_factor], dtype=torch.float64)
        encoded = self._encoded(scale).to(self.modulation)
        u = self.perceptron(encoded)
        return u / (u.norm() + 1e-6) if self._settings.unit_norm else u

    def weights(self, scale_factor: float) -> dict[str, torch.Tensor]:
        """Return the primary network's parameters by name, in full precision."""
        own: dict[str, torch.Tensor] = dict(self.primary.named_parameters())
        if self._settings.film:
            return own | self._modulated_norms(scale_factor)
        if not self.rank:
            return own
        device = self.modulation.device.type
        device = device if torch.amp.is_autocast_available(device) else "cpu"
        with torch.autocast(device, enabled=False):
            change = (self.coordinates(scale_factor) @ self.modulation).squeeze(0)
            parts = change.split([parameter.numel() for parameter in own.values()])
            return {
                name: parameter + part.view_as(parameter)
                for (name, parameter), part in zip(own.items(), parts, strict=True)
            }

    def _modulated_norms(self, scale_factor: float) -> dict[str, torch.Tensor]:
        """Return the parameters of the norms, which scale and shift features, by name."""
        norms = _norms(self.primary)
        device = next(self.film.parameters()).device
        autocast = device.type if torch.amp.is_autocast_available(device.type) else "cpu"
        with torch.autocast(autocast, enabled=False):
            made = self.film(self._encoded(torch.tensor([scale_factor])).to(device)).squeeze(0)
            sizes = [norm.weight.numel() for norm in norms.values()]
            gains, shifts = (half.split(sizes) for half in made.chunk(2))
            return {
                f"{name}.{kind}": value
                for (name, norm), gain, shift in zip(norms.items(), gains, shifts, strict=True)
                for kind, value in (
                    ("weight", norm.weight * (1 + gain)),
                    ("bias", norm.bias * (1 + gain) + shift),
                )
            }

    @contextlib.contextmanager
    def frozen(self, scale_factor: float) -> Iterator[None]:
        """Fix the network within the block: weights of one scale factor, generated once."""
        former, self.scale_factor = self.scale_factor, scale_factor
        with torch.no_grad():
            self._frozen = self.weights(scale_factor)
        try:
            yield
        finally:
            self._frozen, self.scale_factor = None, former

    def baked_state(self, scale_factor: float) -> dict[str, torch.Tensor]:
        """Return the state dict of a `RescaledUNet` with the weights of a scale factor."""
        with torch.no_grad():
            made = self.weights(scale_factor)
        names = {id(parameter): name for name, parameter in self.primary.named_parameters()}
        # Some modules in the blocks of nnU-Net's networks have two names.
        every = self.primary.named_parameters(remove_duplicate=False)
        return {name: made[names[id(p)]].detach().clone() for name, p in every}


def _perceptron(outputs: int) -> nn.Sequential:
    """Return a perceptron 2 -> `outputs` with Kaiming initialisation and zero biases."""
    layers: list[nn.Module] = []
    for width, following in pairwise((2, *HIDDEN, outputs)):
        linear = nn.Linear(width, following)
        nn.init.kaiming_normal_(linear.weight, a=0.01, mode="fan_out")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers)


def _norms(network: nn.Module) -> dict[str, Any]:
    """Return the affine norms of a network by name (the first one, as in `named_parameters`)."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _InstanceNorm) and module.affine
    }


def _initial_modulation(primary: nn.Module, rank: int) -> torch.Tensor:
    """Return rank x parameters: normal for convolution weights, 0 for biases and norms."""
    spread = {
        id(module.weight): math.sqrt(2 / (1 + 0.01**2) / (module.weight[0].numel()))
        for module in primary.modules()
        if isinstance(module, _ConvNd)
    }
    rows = [
        torch.randn(rank, parameter.numel())
        * (FIRST_SPREAD / math.sqrt(rank) * spread.get(id(parameter), 0.0))
        for parameter in primary.parameters()
    ]
    return torch.cat(rows, dim=1)
