"""Small networks, one for each pattern that a tracer meets, and the zoo's at small images.

``build(name)`` -> ``(model, inputs)``: the model in eval mode, seeded, with BatchNorm statistics
and scales redrawn so that no two channels compute alike; ``inputs`` a tuple of tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import attention_nets as attention
import norm_nets as norms
import pattern_nets as patterns
import torch
from torch import Tensor, nn
from yolo_net import small_yolo

from mint_deploy.models import cifar_resnet, densenet, mobilenet, resnet
from mint_deploy.models.vgg import vgg_features


class Case(NamedTuple):
    """A factory and the shapes of its inputs, without the batch."""

    factory: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    #: torch-pruning 1.6.1 handles it exactly, so it can serve as an oracle
    plain: bool = False


class VGGCifar(nn.Module):
    """VGG16-BN for 32 x 32; ``literal`` writes the 512 of the last stage into the view."""

    def __init__(self, *, literal: bool = False) -> None:
        super().__init__()
        self.features = vgg_features()
        self.classifier = nn.Linear(512, 10)
        self.literal = literal

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.view(-1, 512) if self.literal else x.flatten(1)
        return self.classifier(x)


def vgg16_bn_cifar() -> nn.Module:
    return VGGCifar()


def vgg16_bn_literal_view() -> nn.Module:
    return VGGCifar(literal=True)


IMAGE = ((3, 32, 32),)
LARGE = ((3, 64, 64),)

#: what the issue names first: real architectures
ZOO_NETS: dict[str, Case] = {
    "resnet8": Case(cifar_resnet.resnet8, ((1, 8, 8),)),
    "resnet20": Case(cifar_resnet.resnet20, IMAGE),
    "resnet56": Case(cifar_resnet.resnet56, IMAGE),
    "vgg16_bn": Case(vgg16_bn_cifar, IMAGE, plain=True),
    "vgg16_bn_literal_view": Case(vgg16_bn_literal_view, IMAGE, plain=True),
    "resnet50": Case(resnet.resnet50, LARGE, plain=True),
    "mobilenet_v2": Case(mobilenet.mobilenet_v2, LARGE, plain=True),
    "densenet121": Case(densenet.densenet121, LARGE, plain=True),
}

#: one pattern each, small enough for every test
PATTERN_NETS: dict[str, Case] = {
    "flatten_linear": Case(patterns.FlattenLinear, ((3, 8, 8),), plain=True),
    "option_b": Case(patterns.OptionB, ((3, 8, 8),), plain=True),
    "unet": Case(patterns.UNet, ((3, 16, 16),)),
    "squeeze_excite": Case(patterns.SqueezeExcite, ((3, 8, 8),)),
    "spatial_gate": Case(patterns.SpatialGate, ((3, 8, 8),)),
    "channel_shuffle": Case(patterns.ChannelShuffle, ((3, 8, 8),)),
    "shuffle_v2": Case(patterns.ShuffleV2, ((3, 8, 8),)),
    "c2f": Case(patterns.C2f, ((3, 8, 8),)),
    "inception": Case(patterns.Inception, ((3, 8, 8),)),
    "pixel_shuffle": Case(patterns.PixelShuffle, ((3, 8, 8),)),
    "depthwise": Case(patterns.Depthwise, ((3, 8, 8),)),
    "depthwise_twice": Case(patterns.DepthwiseTwice, ((3, 8, 8),)),
    "grouped": Case(patterns.Grouped, ((3, 8, 8),)),
    "siamese": Case(patterns.Siamese, ((3, 8, 8), (3, 8, 8))),
    "lstm": Case(norms.LSTMClassifier, ((6, 12),)),
    "attention": Case(norms.Attention, ((3, 8, 8),)),
    "literal_split": Case(patterns.LiteralSplit, ((3, 8, 8),)),
    "literal_slice": Case(patterns.LiteralSlice, ((3, 8, 8),)),
    "literal_view": Case(patterns.LiteralView, ((3, 8, 8),)),
    "computed_view": Case(patterns.ComputedView, ((3, 8, 8),)),
    "layer_norm": Case(norms.LayerNormNet, ((3, 8, 8),)),
    "group_norm": Case(norms.GroupNormNet, ((3, 8, 8),)),
    "convnext": Case(norms.ConvNeXt, ((3, 8, 8),)),
    "in_place_slices": Case(patterns.InPlaceSlices, ((3, 8, 8),)),
    "weighted_fusion": Case(norms.WeightedFusion, ((3, 16, 16),)),
    "weight_norm": Case(norms.WeightNorm, ((3, 8, 8),)),
    "buffer": Case(norms.Buffer, ((3, 8, 8),)),
    "item_escape": Case(norms.ItemEscape, ((3, 8, 8),)),
    "channel_max": Case(norms.ChannelMax, ((3, 8, 8),)),
    "two_outputs": Case(norms.TwoOutputs, ((3, 8, 8),)),
    "one_layer": Case(norms.OneLayer, ((3, 8, 8),)),
    "multihead": Case(attention.MultiheadNet, ((7, 6),)),
    "multihead_unbiased": Case(attention.Unbiased, ((7, 6),)),
    "multihead_time_first": Case(attention.multihead_time_first, ((7, 6),)),
    "multihead_with_weights": Case(attention.multihead_with_weights, ((7, 6),)),
    "cross_attention": Case(attention.CrossAttention, ((7, 6), (5, 7))),
    "encoder": Case(attention.Encoder, ((7, 6),)),
    "encoder_post_norm": Case(attention.encoder_post_norm, ((7, 6),)),
    "encoder_causal": Case(attention.encoder_causal, ((7, 6),)),
    "seq2seq": Case(attention.Seq2Seq, ((7, 6), (5, 7))),
    "fused_attention": Case(attention.Fused, ((7, 6),)),
    "width_from_input": Case(attention.WidthFromInput, ((7, 6),)),
    "normed_attention": Case(attention.Normed, ((7, 6),)),
    "separate_attention": Case(attention.Separate, ((7, 6),)),
    "grouped_queries": Case(attention.GroupedQueries, ((7, 6),)),
    "relative_bias": Case(attention.RelativeBias, ((7, 6),)),
    "channel_attention": Case(attention.ChannelAttention, ((7, 6),)),
    "rotary": Case(attention.Rotary, ((7, 6),)),
    "yolo": Case(small_yolo, ((3, 64, 64),)),
}

NETS: dict[str, Case] = {**ZOO_NETS, **PATTERN_NETS}


def build(
    name: str, *, batch: int = 2, seed: int = 0, lively: bool = True
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the named net in eval mode and example inputs; the global random state is kept."""
    case = NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = case.factory().eval()
        if lively:
            enliven(model)
        inputs = tuple(torch.randn(batch, *shape) for shape in case.shapes)
    return model, inputs


def enliven(model: nn.Module) -> None:
    """Redraw the scales, shifts and running statistics of every BatchNorm, in place."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
