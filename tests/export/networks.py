"""A small network and photos for the tests of exported files."""

import torch
from conftest import tiny_cfg
from detectron2.modeling import build_model

from sst_d2.config import inference_config

# None is the size that traces are taken of: one window, several, multiples of 32 and others.
SIZES = [(1, 1), (32, 64), (33, 47), (70, 130)]


def small_model(domains=("pascal_person_part", "atr"), seed=0, **overrides):
    """A network in evaluation mode, whose classes differ clearly."""
    torch.manual_seed(seed)
    model = build_model(inference_config(tiny_cfg(domains, **overrides))).eval()
    with torch.no_grad():
        for head in model.heads.values():
            head.weight *= 100
    return model


def photo(size, seed=1):
    """(1, 3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=generator)


def logits_of(model, image):
    """What the model itself says, by domain, (K, H, W); ``image`` (1, 3, H, W) in its order of channels."""
    with torch.no_grad():
        return model([{"image": image[0], "label_domain": "all"}])[0]["sem_seg_by_domain"]
