"""A run that takes a second or two: a network of one's own, on noise with a bright place."""

from pathlib import Path

import numpy as np

NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))

NUMBER = 7

class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.only = nn.Linear(64, 3)
    def forward(self, x):
        return self.only(x.flatten(1))

def fails():
    raise RuntimeError("no such luck")

def a_number():
    return 7

def squared(logits, y):
    return ((logits.softmax(1) - nn.functional.one_hot(y, 3)) ** 2).sum(1).mean()

def near(logits, y):
    return ((logits.argmax(1) - y).abs() <= 1).float()

def nan():
    net = make()
    with torch.no_grad():
        net[3].weight[0, 0] = float("nan")
    return net
"""


def write(folder: Path) -> None:
    """Write ``net.py``, ``data.npz`` and ``unlabelled.npz`` into ``folder``."""
    (folder / "net.py").write_text(NET)
    random = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = random.normal(size=(300, 1, 8, 8)).astype(np.float32)
    for c in range(3):
        x[y == c, :, 2 * c : 2 * c + 4] += 1.5
    np.savez(folder / "data.npz", x=x, y=y)
    np.savez(folder / "unlabelled.npz", x=x)


#: settings of a small run, as :class:`mint_deploy.settings.Request` takes them
SMALL = {"model": "net.py:make", "data": "npz:data.npz", "epochs": 2.0, "workers": 1}


def train(folder: Path) -> None:
    """Write ``net.safetensors``: weights of ``net.py:make`` that tell the classes apart."""
    from mint_deploy.data import load_data
    from mint_deploy.loading import save
    from mint_deploy.models import load_model
    from mint_deploy.recover import train_from_scratch

    net = load_model(f"{folder}/net.py:make").model
    data = load_data(f"npz:{folder}/data.npz")
    trained = train_from_scratch(net, data, epochs=15, batch=32, augment=False)
    save(trained, folder / "net.safetensors", metadata={})
