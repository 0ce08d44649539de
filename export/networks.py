"""torchvision's classifiers with the ladder's weights, as PyTorch modules: what is exported, trained and compared with."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.errors import EnvironmentFault, UsageFault, reason
from export.models import needs
from export.random_weights import load_into, random_model


def create_model(name: str, weights: str, seed: int) -> tuple[Any, list[str]]:
    """A torchvision classifier in evaluation mode and its class names ([] when it has none).

    ``weights`` is ``random`` (seeded), ``imagenet`` (torchvision's own; downloaded once by torch) or a file with a
    state dict, which may have class names beside it (``{"state_dict": …, "labels": […]}``).
    """
    torch, torchvision = (needs(package, "exporting a model") for package in ("torch", "torchvision"))
    builder = getattr(torchvision.models, name)
    published = torchvision.models.get_model_weights(builder).DEFAULT
    known = list(published.meta["categories"])
    if weights == "imagenet":
        try:
            return builder(weights=published).eval(), known
        except Exception as error:  # a download can fail in as many ways as there are networks
            why = f"torchvision could not fetch the ImageNet weights ({type(error).__name__}: {error})"
            remedy = f"Where there is a network, download {published.url} and pass the file: --weights FILE"
            raise EnvironmentFault(f"{why}. {remedy}; or use --weights random.") from None
    if weights == "random":
        model = builder(weights=None).eval()
        load_into(model, random_model(name, seed))
        return model, []
    try:
        saved = torch.load(weights, map_location="cpu", weights_only=True)
        state, labels = (saved["state_dict"], list(saved["labels"])) if "state_dict" in saved else (saved, [])
        classes = len(list(state.values())[-1])  # the last entry is the classifier's bias
        model = builder(weights=None, num_classes=classes)
        model.load_state_dict(state)
    except Exception as error:
        raise UsageFault(f"--weights {weights} is not a state dict of {name}: {reason(error)}") from None
    return model.eval(), labels or (known if classes == len(known) else [])


def logits(network: Any, images: np.ndarray) -> np.ndarray:
    """N×C FP32 of a PyTorch model on the CPU for images N×3×S×S FP32, 16 at a time."""
    torch = needs("torch", "a PyTorch model")
    with torch.inference_mode():
        parts = np.split(images, range(16, len(images), 16))
        return np.concatenate([network(torch.from_numpy(part)).numpy() for part in parts])
