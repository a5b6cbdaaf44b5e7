"""A network of one's own, with data of one's own: run this, then compress what it wrote.

    python examples/own_network.py shapes
    mint-deploy compress examples/own_network.py:make_net --weights shapes/net.safetensors \
        --data npz:shapes/shapes.npz --macs 0.5 --target cpu
    mint-deploy compress examples/own_network.py:make_net --weights shapes/net.safetensors \
        --data imagefolder:shapes/images --out runs/images

It draws circles, squares and crosses, 16 x 16 pixels in colour, as arrays (with and without labels)
and as a folder of image files for each class, and trains a small network on them for a few seconds.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

CLASSES = ("circle", "cross", "square")
SIDE = 16


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same shape."""
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(inner)))


def make_net() -> nn.Module:
    """Return the network, untrained: this is what MODEL on the command line names."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        Block(16),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        Block(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, len(CLASSES)),
    )


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 images ``[count, 16, 16, 3]`` and their classes ``[count]``."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    down, right = np.mgrid[:SIDE, :SIDE]
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for image, label in zip(images, labels, strict=True):
        y, x = random.integers(5, SIDE - 5, 2)
        size = random.integers(3, 5)
        dy, dx = np.abs(down - y), np.abs(right - x)
        shape = {
            "circle": dy**2 + dx**2 <= size**2,
            "cross": (np.minimum(dy, dx) < 1) & (np.maximum(dy, dx) <= size),
            "square": np.maximum(dy, dx) < size,
        }[CLASSES[label]]
        image[:] = random.integers(0, 110, (SIDE, SIDE, 3))
        image[shape] = random.integers(120, 256, 3)
    return images, labels


def train(images: np.ndarray, labels: np.ndarray, steps: int = 60) -> nn.Module:
    """Return the network, trained on pixels in 0..1."""
    torch.manual_seed(0)
    net = make_net()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    y = torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randperm(len(x))[:64]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net.eval()


def main(folder: Path) -> None:
    """Write arrays, images and weights into ``folder``."""
    images, labels = draw(600, seed=0)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "shapes.npz", x=images, y=labels)
    np.savez_compressed(folder / "unlabelled.npz", x=images)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / "images" / CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:03}.png")
    save_file(train(images, labels).state_dict(), folder / "net.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "shapes"))
