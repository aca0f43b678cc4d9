import pytest
import torch

from workflow_scripts.records.flop_counter import FlopTable


class Layers(torch.nn.Module):
    """Two convolutions; returns a list, like nnU-Net's deep supervision."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv3d(1, 4, 3, padding=1)
        self.second = torch.nn.Conv3d(4, 8, 3, padding=1, stride=2)

    def forward(self, x):
        return [self.second(self.first(x))]


VOXELS = 8 * 6 * 4
FIRST = 2 * VOXELS * 1 * 4 * 27
SECOND = 2 * (VOXELS // 8) * 4 * 8 * 27


def test_forward_counts_two_operations_a_multiply_and_add():
    table = FlopTable(Layers(), channels=1)
    assert table.validation_step(3, (8, 6, 4)) == 3 * (FIRST + SECOND)


def test_backward_adds_the_gradients_of_weights_and_of_inner_inputs():
    table = FlopTable(Layers(), channels=1)
    assert table.training_step(3, (8, 6, 4)) == 3 * (2 * FIRST + 3 * SECOND)


def test_the_network_itself_stays_where_it_is():
    network = Layers()
    FlopTable(network, channels=1).training_step(1, (8, 6, 4))
    assert network.first.weight.device.type == "cpu"
    assert network.first.weight.grad is None


def test_a_bottleneck_of_one_voxel_is_counted():
    """InstanceNorm refuses it in training, but the journal's curricula use it."""
    layers = torch.nn.Sequential(
        torch.nn.Conv3d(1, 2, 3, padding=1, stride=2), torch.nn.InstanceNorm3d(2, affine=True)
    )
    assert FlopTable(layers, channels=1).training_step(1, (2, 2, 2)) == 2 * (2 * 2 * 27)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        layers(torch.zeros(1, 1, 2, 2, 2))


def test_a_training_step_is_counted_where_gradients_are_off():
    with torch.no_grad():
        table = FlopTable(Layers(), channels=1)
        assert table.training_step(1, (8, 6, 4)) == 2 * FIRST + 3 * SECOND
