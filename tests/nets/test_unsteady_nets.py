"""Whether an embedding is a function of the image: what is distinguished from rounding, and what is not."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from image_encoders.nets.custom import Tapped, why_unsteady


class Pooled(nn.Module):
    """The pooled output of a net of transformers."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.features = nn.Identity()

    def forward(self, x):
        return self.features(self.net(x).last_hidden_state)


def plain(depth: int, activation: type[nn.Module]) -> nn.Module:
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), activation()) for _ in range(depth)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers)


class Signs(nn.Module):
    """Where rounding that changes a number's sign changes it altogether."""

    def forward(self, x):
        return torch.sign(x - x.mean((2, 3), keepdim=True))


small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 64}
ORDINARY = {
    "resnet": lambda: Pooled(
        transformers.ResNetModel(transformers.ResNetConfig(hidden_sizes=[16, 16, 32, 32], depths=[1, 2, 1, 1]))
    ),
    "convnext": lambda: Pooled(
        transformers.ConvNextModel(transformers.ConvNextConfig(hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 2, 1]))
    ),
    "swin": lambda: Pooled(
        transformers.SwinModel(transformers.SwinConfig(embed_dim=24, depths=[1, 2, 1, 1], image_size=64, window_size=2))
    ),
    "vit": lambda: Pooled(transformers.ViTModel(transformers.ViTConfig(**small))),
    "dinov2": lambda: Pooled(transformers.Dinov2Model(transformers.Dinov2Config(**small))),
    "thirty layers": lambda: plain(30, nn.ReLU),
    "saturated": lambda: nn.Sequential(plain(10, nn.Tanh), nn.Softmax(1)),
    "signs": lambda: nn.Sequential(plain(3, Signs), nn.Conv2d(8, 8, 1)),
    "nothing but rounding": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8)),
    "zeros": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Threshold(1e9, 0)),
    "not a number": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Threshold(1e9, float("nan"))),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_rounding_makes_no_ordinary_net_unsteady(name):
    torch.manual_seed(0)
    net = ORDINARY[name]().eval().requires_grad_(False)
    tapped = Tapped(net, "features" if isinstance(net, Pooled) else "")
    assert why_unsteady(tapped, torch.rand(2, 3, 64, 64)) is None


def test_a_twin_of_the_same_numbers_is_no_matter_and_one_of_others_is():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 16)
    one, other = (nn.Sequential(nn.Conv2d(3, 8, 3)).eval().requires_grad_(False) for _ in range(2))
    same = nn.Sequential(nn.Conv2d(3, 8, 3)).eval().requires_grad_(False)
    same.load_state_dict(one.state_dict())
    assert why_unsteady(Tapped(one, ""), images, Tapped(same, "")) is None
    reason = why_unsteady(Tapped(one, ""), images, Tapped(other, ""))
    assert reason
    assert reason.startswith("differs each time the class is constructed")


def test_what_a_net_raises_is_raised():
    with pytest.raises(RuntimeError, match="channels"):
        why_unsteady(Tapped(nn.Sequential(nn.Conv2d(4, 8, 3)).eval(), ""), torch.rand(2, 3, 16, 16))
