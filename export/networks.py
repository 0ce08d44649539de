"""torchvision's classifiers with the ladder's weights, as PyTorch modules: what is exported, trained and compared with."""

from __future__ import annotations

from typing import Any

from common.errors import EnvironmentFault, UsageFault
from export.models import needs
from export.random_weights import load_into, random_model


def create_model(name: str, weights: str, seed: int) -> tuple[Any, list[str]]:
    """A torchvision classifier in evaluation mode and its class names ([] when it has none).

    ``weights`` is ``random`` (seeded), ``imagenet`` (torchvision's own; downloaded once by torch) or a file with a
    state dict, which may have class names beside it (``{"state_dict": …, "labels": […]}``).
    """
    torch = needs("torch", "exporting a model")
    torchvision = needs("torchvision", "exporting a model")
    builder = getattr(torchvision.models, name)
    published = torchvision.models.get_model_weights(builder).DEFAULT
    if weights == "imagenet":
        try:
            return builder(weights=published).eval(), list(published.meta["categories"])
        except Exception as error:  # a download can fail in as many ways as there are networks
            raise EnvironmentFault(
                f"torchvision could not fetch the ImageNet weights ({type(error).__name__}: {error}). Where there is a "
                f"network, download {published.url} and pass the file: --weights FILE; or use --weights random."
            ) from None
    if weights == "random":
        model = builder(weights=None).eval()
        load_into(model, random_model(name, seed))
        return model, []
    try:
        saved = torch.load(weights, map_location="cpu", weights_only=True)
        state, labels = (saved["state_dict"], list(saved["labels"])) if "state_dict" in saved else (saved, [])
        model = builder(weights=None, num_classes=len(list(state.values())[-1]))  # the last entry is the classifier's bias
        model.load_state_dict(state)
    except Exception as error:
        raise UsageFault(f"--weights {weights} is not a state dict of {name}: {str(error).splitlines()[0]}") from None
    classes, known = len(list(state.values())[-1]), list(published.meta["categories"])
    return model.eval(), labels or (known if classes == len(known) else [])
