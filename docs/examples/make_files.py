"""Make the files of the example: images, arrays, and a network trained on them.

    python make_files.py [FOLDER]

writes ``photos/{train,val,test}/<class>/*.png``, ``unlabelled/*.png``, ``arrays.npz`` (x and y),
``unlabelled.npz`` (x alone) and ``own_net.safetensors``. The images are scikit-learn's digits; the
network sees those under ``photos/train`` and no others. It takes a few seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from own_net import make_net
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

MEAN, STD = 0.3, 0.37


def main(folder: Path) -> None:
    """Write everything into ``folder``."""
    digits = load_digits()
    x = np.rint(digits.images * 255 / 16).astype(np.uint8)
    y = digits.target
    train, rest = train_test_split(np.arange(len(x)), stratify=y, test_size=0.4, random_state=0)
    val, test = train_test_split(rest, stratify=y[rest], test_size=0.5, random_state=0)
    for name, rows in (("train", train), ("val", val), ("test", test)):
        for row in rows:
            place = folder / "photos" / name / str(y[row])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x[row]).save(place / f"{row:04}.png")
    (folder / "unlabelled").mkdir(exist_ok=True)
    for row in train[:400]:
        Image.fromarray(x[row]).save(folder / "unlabelled" / f"{row:04}.png")
    np.savez(folder / "arrays.npz", x=x[rest][..., None], y=y[rest])  # not seen in training
    np.savez(folder / "unlabelled.npz", x=x[rest][..., None])
    fit(x[train], y[train], folder / "own_net.safetensors")


def fit(x: np.ndarray, y: np.ndarray, path: Path) -> None:
    """Train the network on images ``[N, 8, 8]`` and write its state dict."""
    torch.manual_seed(0)
    model = make_net().train()
    samples = (torch.from_numpy(x).float()[:, None] / 255 - MEAN) / STD
    labels = torch.from_numpy(y)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    for _ in range(12):
        for rows in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(samples[rows]), labels[rows]).backward()
            optimizer.step()
    save_file(model.state_dict(), path)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
