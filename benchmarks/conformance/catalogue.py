"""Which architectures: a name, where it comes from, and how it is built at a small legal image size.

``torchvision/...``, ``timm/...``, ``transformers/...`` come from those packages with random weights;
``zoo/...`` and ``pattern/...`` are the networks of this package's tests. The shapes stand without the batch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from conformance.builders import DETECTORS, TRANSFORMERS, timm_model, torchvision_model

BATCH = 2
SEED = 0
TESTS = Path(__file__).parents[2] / "tests"


class Case(NamedTuple):
    """How to build it, and the shapes of its inputs (``ids``: whole numbers below 100 instead)."""

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    ids: bool = False


#: name -> image size
CLASSIFIERS = """
    alexnet 64, vgg11 64, vgg16_bn 64, resnet18 64, resnet50 64, resnext50_32x4d 64, wide_resnet50_2 64,
    densenet121 64, densenet201 64, squeezenet1_1 64, googlenet 64, inception_v3 96, mobilenet_v2 64,
    mobilenet_v3_small 64, mobilenet_v3_large 64, mnasnet0_5 64, shufflenet_v2_x0_5 64,
    shufflenet_v2_x1_0 64, efficientnet_b0 64, efficientnet_v2_s 64, regnet_x_400mf 64, regnet_y_400mf 64,
    convnext_tiny 64, vit_b_16 224, swin_t 64, swin_v2_t 64, maxvit_t 224
"""
#: name -> image size; ``*``: the package is told the size
TIMM = """
    resnetv2_18 64, resnetv2_50x1_bit 64, resnetv2_50d_gn 64, gernet_s 64, repvgg_a0 64, mobileone_s0 64,
    ghostnet_050 64, ghostnetv2_100 64, hardcorenas_a 64, mobilenetv4_conv_small 64,
    mobilenetv4_hybrid_medium 64, tf_efficientnet_b0 64, fbnetc_100 64, fbnetv3_b 64, mixnet_s 64, dla34 64,
    hrnet_w18_small 64, res2net50_26w_4s 64, skresnet18 64, resnest14d 64, cspresnet50 64, cspdarknet53 64,
    darknet53 64, cs3darknet_s 64, ese_vovnet19b_slim 64, xception41 96, legacy_xception 96,
    eca_nfnet_l0 64, nf_regnet_b0 64, convmixer_768_32 64, convnextv2_atto 64, convnext_atto_ols 64,
    coatnet_nano_rw_224 64*, cait_xxs24_224 64*, deit_tiny_patch16_224 64*, deit3_small_patch16_224 64*,
    vit_tiny_patch16_224 64*, swin_tiny_patch4_window7_224 224, mixer_s32_224 224, gmlp_ti16_224 224,
    resmlp_12_224 224, poolformer_s12 64, pvt_v2_b0 64, edgenext_xx_small 64, mobilevit_xxs 64,
    mobilevitv2_050 64, fastvit_t8 64, levit_128s 224, efficientformer_l1 224, efficientformerv2_s0 224,
    efficientvit_b0 64, efficientvit_m0 224, selecsls42b 64, rexnet_100 64, dpn48b 64, lcnet_050 64,
    tresnet_m 64, regnetz_b16 64, regnety_002 64, seresnet50 64, ecaresnet26t 64, resnet26d 64,
    botnet26t_256 256, inception_v4 96, inception_next_atto 64, starnet_s1 64, repvit_m0_9 64, repghostnet_050 64,
    hgnetv2_b0 64, visformer_tiny 224, xcit_nano_12_p16_224 224, caformer_s18 64, focalnet_tiny_srf 64,
    vgg11_bn 64, tiny_vit_5m_224 64, crossvit_9_240 240, fasternet_t0 64, mambaout_femto 64,
    test_vit 64*, twins_svt_small 64*, nest_tiny 224, pit_ti_224 64*, beit_base_patch16_224 64*
"""
#: of the tests' zoo; their patterns are all taken
ZOO = "resnet20 resnet56 vgg16_bn vgg16_bn_literal_view resnet50 mobilenet_v2 densenet121"


def cases() -> dict[str, Case]:
    """Return every architecture by name; none is built yet."""
    made: dict[str, Case] = {}
    for name, size, _ in _listed(CLASSIFIERS):
        made[f"torchvision/{name}"] = Case(lambda n=name: torchvision_model(n), ((3, size, size),))
    for name, (make, shape) in DETECTORS.items():
        made[f"torchvision/{name}"] = Case(make, (shape,))
    for name, size, told in _listed(TIMM):
        made[f"timm/{name}"] = Case(
            lambda n=name, s=size if told else None: timm_model(n, s), ((3, size, size),)
        )
    for name, (make, shape, ids) in TRANSFORMERS.items():
        made[f"transformers/{name}"] = Case(make, (shape,), ids)
    nets = _nets()
    for kind, names in (("zoo", ZOO.split()), ("pattern", nets.PATTERN_NETS)):
        for name in names:
            made[f"{kind}/{name}"] = Case(nets.NETS[name].factory, nets.NETS[name].shapes)
    return made


def build(case: Case) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the network in evaluation mode, made lively, and inputs; all seeded."""
    torch.manual_seed(SEED)
    model = case.build().eval()
    enliven(model)
    if case.ids:
        return model, tuple(torch.randint(0, 100, (BATCH, *s)) for s in case.shapes)
    return model, tuple(torch.randn(BATCH, *s) for s in case.shapes)


def enliven(model: nn.Module) -> None:
    """Redraw, in place, what an untrained network has in common: no two channels compute alike then.

    Running statistics, and every parameter that is constant or has one dimension: zeros that hide a whole
    branch (``zero_init``), layer scales of 1e-6, shifts of zero.
    """
    with torch.no_grad():
        for module in model.modules():
            for name, low, high in (("running_var", 0.5, 1.5), ("running_mean", -0.5, 0.5)):
                if isinstance(getattr(module, name, None), Tensor):
                    getattr(module, name).uniform_(low, high)
            for name, x in [*module.named_parameters(recurse=False), *_norm_buffers(module)]:
                constant = x.numel() > 1 and bool((x == x.flatten()[0]).all())
                if not x.is_floating_point() or not (constant or x.dim() == 1):
                    continue
                if "bias" in name or (x.dim() > 1 and bool((x == 0).all())):
                    x.normal_(0, 0.3)
                else:
                    x.uniform_(0.5, 1.5)


def _norm_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Scales and shifts that a frozen BatchNorm keeps as buffers."""
    if not hasattr(module, "running_var"):
        return []
    return [(n, b) for n, b in module.named_buffers(recurse=False) if n in ("weight", "bias")]


def _listed(text: str) -> list[tuple[str, int, bool]]:
    rows = [row.split() for row in text.replace("\n", " ").split(",")]
    return [(name, int(size.rstrip("*")), size.endswith("*")) for name, size in rows]


# ---------------------------------------------------------------- our own


def _nets() -> Any:
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    return importlib.import_module("nets")
