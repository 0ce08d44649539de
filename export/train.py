"""Fine-tuning on a small labelled data set, so that accuracy can be shown on real data.

``digits`` is scikit-learn's: 1,797 images of real handwriting, shipped in the package, so it needs no network.
``cifar10`` is downloaded by torchvision. Both become folders of PNG files, one folder a class, which are then read as any
photographs are: training, calibration and the stages see the same pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from common.console import err
from common.errors import EnvironmentFault, UsageFault, reason
from common.files import atomic_path
from common.images import converted
from common.photographs import load_pixels
from common.pictures import SUFFIXES
from export.models import MODELS, needs

SIDE = 64  # of the PNG files, pixels
TEST_SHARE = 5  # every fifth image of a class is for testing
SCHEDULES = {"cpu": ((64, 5), (112, 2), (224, 0.7)), "cuda": ((64, 6), (112, 3), (224, 4))}
"""Image side, of a model that takes 224, and epochs: most of the learning is done on small images, which cost a twelfth. Each
side has a learning rate that rises and falls anew, or there would be none left to get used to the last one."""
BATCH, LEARNING_RATE = 32, 1e-3

Labelled = Iterator[tuple[str, str, np.ndarray]]
"""Each image's part (train or test), its class, and itself (H×W or H×W×3 uint8)."""


def digits() -> Labelled:
    """The data set has no split of its own: every fifth image of a class tests."""
    found = needs("sklearn.datasets", "--train digits").load_digits()
    numbers = [count() for _ in found.target_names]
    for image, label in zip(found.images, found.target):
        yield "train" if next(numbers[label]) % TEST_SHARE else "test", str(label), (image * 255 / 16).astype(np.uint8)


def cifar10() -> Labelled:
    datasets = needs("torchvision.datasets", "--train cifar10")
    try:
        with tempfile.TemporaryDirectory() as folder:
            parts = {part: datasets.CIFAR10(folder, train=part == "train", download=True) for part in ("train", "test")}
    except Exception as error:  # a download can fail in as many ways as there are networks
        raise EnvironmentFault(f"CIFAR-10 could not be downloaded ({error!r}). --train digits needs no network.") from None
    for part, found in parts.items():
        yield from ((part, found.classes[label], image) for image, label in zip(found.data, found.targets))


DATASETS = {"digits": digits, "cifar10": cifar10}


def write_folders(name: str, root: Path) -> None:
    """``root``/train and ``root``/test, a folder of PNG files a class, unless they are there."""
    from PIL import Image

    if (root / "complete").exists():
        return
    root.mkdir(parents=True, exist_ok=True)  # found out before a download that it cannot be written
    for number, (part, label, image) in enumerate(DATASETS[name]()):
        path = root / part / label / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(path)
    (root / "complete").touch()


def labelled_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The PNG and JPEG files of a labelled folder and each one's class, which is the name of its folder."""
    files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES)
    return files, [path.parent.name for path in files]


def load(files: list[Path], size: int) -> np.ndarray:
    """The images as the stages read them, N×3×size×size FP32. Raises ``UsageFault`` for one that is none."""

    def pixels(path: Path) -> np.ndarray:
        try:
            return load_pixels(path, size, size)
        except Exception as error:  # of whatever decodes it
            raise UsageFault(f"{path}: {reason(error)}") from None

    with ThreadPoolExecutor() as pool:
        return converted(np.stack([*pool.map(pixels, files)]), np.float32)


def drawn(shuffle: np.random.Generator, count: int, steps: int) -> Iterator[np.ndarray]:
    """The numbers of ``BATCH`` of ``count`` images for each of ``steps``, all in a new order in each epoch."""
    order = np.concatenate([shuffle.permutation(count) for _ in range(ceil(steps * BATCH / count))])
    yield from np.split(order[: steps * BATCH], steps)


def fine_tune(model_name: str, dataset: str, root: Path, weights: Path, seed: int) -> float:
    """Train on ``root``/train, from ImageNet's weights where torch has them already, else from seeded random ones; write the
    weights with the class names; returns the accuracy on ``root``/test."""
    torch, _ = (needs(package, "training") for package in ("torch", "torchvision"))  # before a download
    write_folders(dataset, root)
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    files, classes = labelled_files(root / "train")
    names = sorted(set(classes))
    model = pretrained(model_name, len(names)).to(device, memory_format=torch.channels_last).train()
    targets = torch.tensor([names.index(label) for label in classes], device=device)
    per_epoch = ceil(len(files) / BATCH)
    side = MODELS[model_name]
    schedule = [(size * side // 224, round(epochs * per_epoch)) for size, epochs in SCHEDULES[device]]
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    shuffle, doing = np.random.default_rng(seed), f"training on {dataset}"
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(doing, total=sum(steps for _, steps in schedule))
        for size, steps in schedule:
            rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
            for chosen in drawn(shuffle, len(files), steps):
                images = torch.from_numpy(load([files[index] for index in chosen], size))
                batch = images.to(device, memory_format=torch.channels_last)
                loss = torch.nn.functional.cross_entropy(model(batch), targets[chosen], label_smoothing=0.05)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                rates.step()
                progress.update(task, advance=1, description=f"{doing}, {size}×{size}, loss {loss.item():.3f}")
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_path(weights) as temporary:
        torch.save({"state_dict": state, "labels": names}, str(temporary))
    return evaluate(model.eval(), root / "test", names, device, side)


def pretrained(name: str, classes: int) -> Any:
    """A torchvision model for so many classes, with ImageNet's weights below its classifier where they are on this machine."""
    torch, models = needs("torch", "training"), needs("torchvision.models", "training")
    model, url = models.get_model(name, num_classes=classes), models.get_model_weights(name).DEFAULT.url
    own, file = model.state_dict(), Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if file.exists():
        found = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict({**own, **{key: value for key, value in found.items() if own[key].shape == value.shape}})
    err.print(f"starting from {file if file.exists() else 'random weights'}", markup=False)
    return model


def evaluate(model: Any, folder: Path, names: list[str], device: str, side: int) -> float:
    """Share of the images of a labelled folder that the model names rightly, seen at ``side``×``side`` pixels."""
    torch, (files, classes) = needs("torch", "training"), labelled_files(folder)
    found: list[int] = []
    with torch.inference_mode():
        for first in range(0, len(files), BATCH):
            images = torch.from_numpy(load(files[first : first + BATCH], side)).to(device, memory_format=torch.channels_last)
            found += model(images).argmax(dim=1).tolist()
    return sum(names[index] == label for index, label in zip(found, classes)) / len(files)
