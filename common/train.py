"""Fine-tuning on a small labelled data set, so that accuracy can be shown on real data.

``digits`` is scikit-learn's: 1,797 images of real handwriting, shipped in the package, so it needs no network.
``cifar10`` is downloaded by torchvision. Both become folders of PNG files, one folder a class, which are then read as any
photographs are: training, calibration and the stages see the same pixels.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from common.errors import EnvironmentFault
from common.files import atomic_path
from common.images import SUFFIXES, load_photograph
from common.models import needs

SIDE = 64  # of the PNG files, pixels
TEST_SHARE = 5  # every fifth image of a class is for testing
SCHEDULES = {"cpu": ((64, 5), (112, 2), (224, 0.7)), "cuda": ((64, 6), (112, 3), (224, 4))}
"""Image side and epochs: most of the learning is done on small images, which cost a twelfth. Each side has a learning rate
that rises and falls anew, or there would be none left to get used to the last one."""
BATCH, LEARNING_RATE = 32, 1e-3


def digits() -> tuple[list[np.ndarray], list[int], list[str]]:
    """Images (8×8 uint8), labels and class names."""
    datasets = needs("sklearn.datasets", "--train digits")
    found = datasets.load_digits()
    images = [(image * 255 / 16).astype(np.uint8) for image in found.images]
    return images, found.target.tolist(), [str(name) for name in found.target_names]


def cifar10() -> tuple[list[np.ndarray], list[int], list[str]]:
    """Images (32×32×3 uint8), labels and class names."""
    datasets = needs("torchvision.datasets", "--train cifar10")
    import tempfile

    try:
        with tempfile.TemporaryDirectory() as folder:
            parts = [datasets.CIFAR10(folder, train=train, download=True) for train in (True, False)]
    except Exception as error:  # a download can fail in as many ways as there are networks
        raise EnvironmentFault(f"CIFAR-10 could not be downloaded ({type(error).__name__}: {error}). "
                               "--train digits needs no network.") from None
    return ([image for part in parts for image in part.data], [label for part in parts for label in part.targets],
            list(parts[0].classes))


DATASETS = {"digits": digits, "cifar10": cifar10}


def write_folders(name: str, root: Path) -> list[str]:
    """``root``/train and ``root``/test, a folder of PNG files a class, unless they are there; returns the class names."""
    from PIL import Image

    images, labels, names = DATASETS[name]()
    if (root / "complete").exists():
        return names
    seen = [0] * len(names)
    for image, label in zip(images, labels):
        part = "test" if seen[label] % TEST_SHARE == 0 else "train"
        folder = root / part / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        picture.save(folder / f"{seen[label]:05d}.png")
        seen[label] += 1
    (root / "complete").touch()
    return names


def labelled_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The PNG and JPEG files of a labelled folder and each one's class, which is the name of its folder."""
    files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES)
    return files, [path.parent.name for path in files]


def load(files: list[Path], size: int) -> np.ndarray:
    """The images as the stages read them, N×3×size×size FP32."""
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(lambda path: load_photograph(path, size), files)))


def fine_tune(model_name: str, dataset: str, root: Path, weights: Path, seed: int, console: Console) -> float:
    """Train the model on ``root``/train and write its state dict with its class names; returns the accuracy on
    ``root``/test. Starts from seeded random weights."""
    torch = needs("torch", "training")
    torchvision = needs("torchvision", "training")
    names = write_folders(dataset, root)
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = getattr(torchvision.models, model_name)(weights=None, num_classes=len(names))
    model = model.to(device, memory_format=torch.channels_last)
    files, classes = labelled_files(root / "train")
    targets = torch.tensor([names.index(label) for label in classes], device=device)
    schedule = SCHEDULES[device]
    per_epoch = -(-len(files) // BATCH)
    steps = sum(round(epochs * per_epoch) for _, epochs in schedule)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    shuffle = np.random.default_rng(seed)
    model.train()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"training on {dataset}", total=steps)
        for size, epochs in schedule:
            images = torch.from_numpy(load(files, size))
            rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=round(epochs * per_epoch))
            order = np.concatenate([shuffle.permutation(len(files)) for _ in range(-(-round(epochs * per_epoch) // per_epoch))])
            for step in range(round(epochs * per_epoch)):
                chosen = order[step * BATCH : (step + 1) * BATCH]
                batch = images[chosen].to(device, memory_format=torch.channels_last)
                loss = torch.nn.functional.cross_entropy(model(batch), targets[chosen], label_smoothing=0.05)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                rates.step()
                progress.update(task, advance=1, description=f"training on {dataset}, {size}×{size}, loss {loss.item():.3f}")
    accuracy = evaluate(model.eval(), root / "test", names, device)
    with atomic_path(weights) as temporary:
        torch.save({"state_dict": model.to("cpu", memory_format=torch.contiguous_format).state_dict(), "labels": names},
                   str(temporary))
    return accuracy


def evaluate(model: Any, folder: Path, names: list[str], device: str) -> float:
    """Share of the images of a labelled folder that the model names rightly."""
    import torch

    files, classes = labelled_files(folder)
    right = 0
    with torch.inference_mode():
        for first in range(0, len(files), BATCH):
            images = torch.from_numpy(load(files[first : first + BATCH], 224)).to(device, memory_format=torch.channels_last)
            found = model(images).argmax(dim=1).tolist()
            right += sum(names[index] == label for index, label in zip(found, classes[first : first + BATCH]))
    return right / len(files)
