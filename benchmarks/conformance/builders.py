"""How networks of torchvision, timm and transformers are built, with random weights.

Detectors are their tensor part: body, feature pyramid and heads, without anchors and boxes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def prepare_torchvision() -> None:
    """Declare two operators of torchvision's compiled part, so that its Python part imports without it.

    Its wheel is installed without dependencies next to any torch; no network here calls the operators.
    """
    if _LIBRARIES:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)


_LIBRARIES: list[Any] = []


def _models(path: str = "") -> Any:
    prepare_torchvision()
    return importlib.import_module(f"torchvision.models{path}")


def torchvision_model(name: str) -> nn.Module:
    given = (
        {"init_weights": True, "aux_logits": True} if name in ("googlenet", "inception_v3") else {}
    )
    made: nn.Module = _models().get_model(name, weights=None, **given)
    return made


def _segmentation(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        made: nn.Module = getattr(_models(".segmentation"), name)(
            weights=None, weights_backbone=None, num_classes=21
        )
        return made

    return make


def _video(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(_models(".video"), name)(weights=None)


def _s3d() -> nn.Module:
    """Return S3D with the last pooling as small as its input here (its own takes 224 x 224)."""
    made: nn.Module = _models(".video").s3d(weights=None)
    made.avgpool = nn.AvgPool3d((2, 2, 2), stride=1)
    return made


class _Detector(nn.Module):
    """The tensor part of a detector: body, feature pyramid and heads, without anchors and boxes."""

    def __init__(self, body: nn.Module, head: nn.Module, *, first: int = 99) -> None:
        super().__init__()
        self.body, self.head, self.first = body, head, first

    def forward(self, x: Tensor) -> Any:
        return self.head(list(self.body(x).values())[: self.first])


class _Rois(nn.Module):
    """The box or mask head of a two-stage detector, on one region of every level, pooled without boxes."""

    def __init__(self, head: nn.Module, predictor: nn.Module, size: int) -> None:
        super().__init__()
        self.head, self.predictor, self.size = head, predictor, size

    def forward(self, features: list[Tensor]) -> Any:
        pooled = [nn.functional.adaptive_avg_pool2d(x, self.size) for x in features]
        return self.predictor(self.head(torch.cat(pooled)))


def _fpn(name: str = "resnet18", **given: Any) -> Any:
    made = _models(".detection.backbone_utils")
    return made.resnet_fpn_backbone(backbone_name=name, weights=None, trainable_layers=5, **given)


def _retinanet() -> nn.Module:
    return _Detector(_fpn(), _models(".detection.retinanet").RetinaNetHead(256, 9, 11))


def _fcos() -> nn.Module:
    return _Detector(_fpn(), _models(".detection.fcos").FCOSHead(256, 1, 11))


def _rpn() -> nn.Module:
    return _Detector(_fpn("resnet50"), _models(".detection.rpn").RPNHead(256, 3))


def _faster() -> nn.Module:
    part = _models(".detection.faster_rcnn")
    box = _Rois(part.TwoMLPHead(256 * 49, 256), part.FastRCNNPredictor(256, 11), 7)
    return _Detector(_fpn(), box)


def _mask() -> nn.Module:
    part = _models(".detection.mask_rcnn")
    heads = part.MaskRCNNHeads(256, (256, 256), 1)
    return _Detector(_fpn(), _Rois(heads, part.MaskRCNNPredictor(256, 256, 11), 14))


def _ssd() -> nn.Module:
    made = _models(".detection").ssd300_vgg16(weights=None, weights_backbone=None)
    return _Detector(made.backbone, made.head)


def _ssdlite() -> nn.Module:
    made = _models(".detection").ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    return _Detector(made.backbone, made.head)


DETECTORS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "fcn_resnet50": (_segmentation("fcn_resnet50"), (3, 64, 64)),
    "deeplabv3_resnet50": (_segmentation("deeplabv3_resnet50"), (3, 64, 64)),
    "deeplabv3_mobilenet_v3_large": (_segmentation("deeplabv3_mobilenet_v3_large"), (3, 64, 64)),
    "lraspp_mobilenet_v3_large": (_segmentation("lraspp_mobilenet_v3_large"), (3, 64, 64)),
    "retinanet_resnet18_fpn": (_retinanet, (3, 64, 64)),
    "fcos_resnet18_fpn": (_fcos, (3, 64, 64)),
    "rpn_resnet50_fpn": (_rpn, (3, 64, 64)),
    "fasterrcnn_resnet18_fpn": (_faster, (3, 64, 64)),
    "maskrcnn_resnet18_fpn": (_mask, (3, 64, 64)),
    "ssd300_vgg16": (_ssd, (3, 300, 300)),
    "ssdlite320_mobilenet_v3_large": (_ssdlite, (3, 160, 160)),
    "r3d_18": (_video("r3d_18"), (3, 8, 32, 32)),
    "mc3_18": (_video("mc3_18"), (3, 8, 32, 32)),
    "s3d": (_s3d, (3, 16, 64, 64)),
}

# ---------------------------------------------------------------- timm, transformers


def timm_model(name: str, size: int | None) -> nn.Module:
    prepare_torchvision()
    timm = importlib.import_module("timm")
    given = {} if size is None else {"img_size": size}
    made: nn.Module = timm.create_model(name, pretrained=False, num_classes=11, **given)
    return made


class _Logits(nn.Module):
    """A model of transformers whose output is its tensor of scores."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).logits


def _hugging(model: str, config: str, **given: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        prepare_torchvision()
        package = importlib.import_module("transformers")
        return _Logits(getattr(package, model)(getattr(package, config)(num_labels=5, **given)))

    return make


_TEXT: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 40,
}
_VISION: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
TRANSFORMERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    "bert": (_hugging("BertForSequenceClassification", "BertConfig", **_TEXT), (12,), True),
    "distilbert": (
        _hugging(
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            vocab_size=120,
            dim=48,
            n_layers=2,
            n_heads=4,
            hidden_dim=96,
        ),
        (12,),
        True,
    ),
    "albert": (
        _hugging("AlbertForSequenceClassification", "AlbertConfig", **_TEXT, embedding_size=24),
        (12,),
        True,
    ),
    "gpt2": (
        _hugging(
            "GPT2ForTokenClassification",
            "GPT2Config",
            vocab_size=120,
            n_embd=48,
            n_layer=2,
            n_head=4,
            n_positions=40,
        ),
        (12,),
        True,
    ),
    "llama": (
        _hugging("LlamaForTokenClassification", "LlamaConfig", **_TEXT, num_key_value_heads=2),
        (12,),
        True,
    ),
    "vit": (_hugging("ViTForImageClassification", "ViTConfig", **_VISION), (3, 32, 32), False),
    "deit": (_hugging("DeiTForImageClassification", "DeiTConfig", **_VISION), (3, 32, 32), False),
    "resnet": (
        _hugging(
            "ResNetForImageClassification",
            "ResNetConfig",
            embedding_size=16,
            hidden_sizes=[16, 32, 48, 64],
            depths=[1, 1, 1, 1],
        ),
        (3, 64, 64),
        False,
    ),
    "mobilevit": (
        _hugging(
            "MobileViTForImageClassification",
            "MobileViTConfig",
            image_size=64,
            hidden_sizes=[32, 40, 48],
            neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64],
        ),
        (3, 64, 64),
        False,
    ),
    "convnext": (
        _hugging(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            hidden_sizes=[16, 24, 32, 48],
            depths=[1, 1, 2, 1],
        ),
        (3, 64, 64),
        False,
    ),
    "segformer": (
        _hugging(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            hidden_sizes=[16, 32, 48, 64],
            depths=[1, 1, 1, 1],
            decoder_hidden_size=32,
        ),
        (3, 64, 64),
        False,
    ),
    "regnet": (
        _hugging(
            "RegNetForImageClassification",
            "RegNetConfig",
            embedding_size=16,
            hidden_sizes=[16, 32, 48, 64],
            depths=[1, 1, 1, 1],
            groups_width=8,
        ),
        (3, 64, 64),
        False,
    ),
}
