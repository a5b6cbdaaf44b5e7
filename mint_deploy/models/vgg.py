"""VGG-16 with batch normalisation (Simonyan and Zisserman, 2014, configuration D), for ImageNet and CIFAR-10.

Names of the tensors: features.0, features.1, ..., classifier.0, classifier.3, classifier.6.
"""

from __future__ import annotations

from torch import Tensor, nn

from mint_deploy.models._zoo import CIFAR10_CLASSES, IMAGENET_MEAN, IMAGENET_STD, Entry

__all__ = ["VGG", "ZOO", "CifarVGG", "vgg16_bn"]

#: channels of the 3 x 3 convolutions of each stage; a 2 x 2 maximum ends a stage
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Thirteen convolutions, then three fully connected layers on a 7 x 7 average."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.features = vgg_features()
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` -> logits ``[N, classes]``."""
        x = self.avgpool(self.features(x))
        return self.classifier(x.flatten(1))  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


class CifarVGG(nn.Module):
    """The thirteen convolutions on 32 x 32 pixels, and one linear layer (Li et al. 2017 and those after them)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = vgg_features()
        self.classifier = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, 32, 32]`` -> logits ``[N, classes]``."""
        return self.classifier(self.features(x).flatten(1))  # type: ignore[no-any-return]  # as above


def vgg_features() -> nn.Sequential:
    """Return the thirteen convolutions: ``[N, 3, H, W]`` -> ``[N, 512, H/32, W/32]``."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in STAGES:
        for width in stage:
            convolution = nn.Conv2d(channels, width, 3, padding=1)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def vgg16_bn() -> VGG:
    """Return VGG16-BN for ImageNet (138,365,992 parameters)."""
    return VGG()


ZOO = {
    "vgg16-bn": Entry(
        factory=vgg16_bn, input_shape=(3, 224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD
    ),
    "vgg16-bn-cifar10": Entry(
        factory=CifarVGG,
        input_shape=(3, 32, 32),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        class_names=CIFAR10_CLASSES,
    ),
}
