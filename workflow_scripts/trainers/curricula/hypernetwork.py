"""A hypernetwork that makes the weights of a rescaled U-Net for any scale factor.

Source: "Scale-Space Hypernetworks for Efficient Biomedical Image Analysis" (NeurIPS 2023). Theirs
is dense: a linear layer from the last hidden one to every weight. This is the same with a last
hidden layer of `rank` units, since the scale factor is one number and the weights that it leads to
are a curve, for which a few dimensions are enough; with the authors' width a full nnU-Net would
have 2.9 billion parameters.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from .rescaled_unet import RescaledUNet
from .scales import check_hypernetwork

HIDDEN = (16, 64)
FIRST_SPREAD = 0.1
"""Initial size of all that the scale factor changes, relative to nnU-Net's initial weights."""


class ScaleSpaceNetwork(nn.Module):
    """A rescaled U-Net with weights W(phi) = W0 + sum_r u_r(phi) M_r of its scale factor phi.

    W0 are the primary network's own parameters, from nnU-Net's initialisation; u is a small
    perceptron of phi. All parameters are modulated: convolutions, norms, biases, output layers.
    With rank 0 the weights do not depend on phi, and the network is the primary one.

    Attributes:
        primary: the network whose weights are made.
        modulation: M, rank x parameters of the primary network (in their order).
        scale_factor: of the next forward passes.
    """

    def __init__(
        self,
        primary: RescaledUNet,
        rank: int,
        bounds: tuple[float, float],
        unit_norm: bool = True,
        scale_encoding: str = "linear",
    ) -> None:
        """Wrap a primary network.

        Args:
            primary: an initialised network.
            rank: dimensions in which the weights can follow the scale factor.
            bounds: scale factors that the encoding maps to 0 and 1.
            unit_norm: scale u to length 1, so that every phi and rank trains at the same rate; else
                u is the perceptron's last layer after its non-linearity, as the authors have it,
                whose initial length is anything from 0 to 1.8.
            scale_encoding: `linear` (x, 1 - x), the authors'; `circular` (cos, sin) of x pi/2.

        Raises ValueError where `scales.check_hypernetwork` does.
        """
        super().__init__()
        check_hypernetwork(rank, unit_norm, scale_encoding)
        self.primary, self.rank = primary, rank
        self._bounds, self._unit_norm, self._encoding = bounds, unit_norm, scale_encoding
        self._frozen: Mapping[str, torch.Tensor] | None = None
        if rank:
            self.modulation = nn.Parameter(_initial_modulation(primary, rank))
            widths = (2, *HIDDEN, rank)
            layers: list[nn.Module] = []
            for width, following in pairwise(widths):
                linear = nn.Linear(width, following)
                nn.init.kaiming_normal_(linear.weight, a=0.01, mode="fan_out")
                nn.init.zeros_(linear.bias)
                layers += [linear, nn.LeakyReLU(0.01)]
            self.perceptron = nn.Sequential(*(layers[:-1] if unit_norm else layers))

    @property
    def decoder(self) -> nn.Module:
        """The primary network's decoder, whose `deep_supervision` nnU-Net's trainer sets."""
        return self.primary.decoder

    @property
    def scale_factor(self) -> float:
        """The primary network's; setting it decides the next forward passes."""
        return self.primary.scale_factor

    @scale_factor.setter
    def scale_factor(self, value: float) -> None:
        self.primary.scale_factor = value

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Make the weights once, and return the primary network's output for the whole batch."""
        if not self.rank:
            return self.primary(x)
        weights = self.weights(self.scale_factor) if self._frozen is None else self._frozen
        # Some modules have two names. Under both, `tie_weights` would swap their weights twice and
        # put back the wrong ones.
        return functional_call(self.primary, dict(weights), (x,), tie_weights=False)

    def coordinates(self, scale_factor: float) -> torch.Tensor:
        """Return u (one row of `rank` numbers)."""
        low, high = self._bounds
        x = (scale_factor - low) / (high - low)
        encoded = (x, 1 - x)
        if self._encoding == "circular":
            encoded = (math.cos(x * math.pi / 2), math.sin(x * math.pi / 2))
        u = self.perceptron(self.modulation.new_tensor([encoded]))
        return u / (u.norm() + 1e-6) if self._unit_norm else u

    def weights(self, scale_factor: float) -> dict[str, torch.Tensor]:
        """Return the primary network's parameters by name, in full precision."""
        own: dict[str, torch.Tensor] = dict(self.primary.named_parameters())
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

    @contextlib.contextmanager
    def frozen(self, scale_factor: float) -> Iterator[None]:
        """Have a fixed network for the duration: the weights of one scale factor, made once."""
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
        # Blocks of nnU-Net's networks have some modules under two names.
        every = self.primary.named_parameters(remove_duplicate=False)
        return {name: made[names[id(p)]].detach().clone() for name, p in every}


def _initial_modulation(primary: nn.Module, rank: int) -> torch.Tensor:
    """Normal for the weights of convolutions, 0 for biases and norms; rank x parameters."""
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
