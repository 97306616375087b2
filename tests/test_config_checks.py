"""Every value that nothing can be built from is refused by key."""

import pytest
from conftest import tiny_cfg
from detectron2.modeling import build_model

from sst_d2.config_checks import check_values
from sst_d2.errors import SSTConfigError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.DEVICE", "gpu"),
        ("MODEL.RESNETS.NORM", "ZZ"),
        ("MODEL.SST.DOMAINS", [1]),
        ("MODEL.SST.PIXEL_DECODER.LAYERS", 0),
        ("MODEL.SST.PIXEL_DECODER.POINTS", 0),
        ("MODEL.SST.PIXEL_DECODER.HEADS", 5),
        ("MODEL.SST.PIXEL_DECODER.DROPOUT", 1.0),
        ("MODEL.SST.DECODER.DIM", 34),
        ("MODEL.SST.DECODER.BLOCKS", [2, 2]),
        ("MODEL.SST.DECODER.BLOCKS", [2, 2, 0]),
        ("MODEL.SST.DECODER.HEADS", 3),
        ("MODEL.SST.DECODER.WINDOW", 0),
        ("INPUT.FORMAT", "L"),
        ("INPUT.RANDOM_FLIP", "vertical"),
        ("INPUT.SST.SCALE_RANGE", [2.0, 0.5]),
        ("INPUT.SST.SCALE_RANGE", [1.0]),
        ("INPUT.SST.CROP_SIZE", [64.5, 64.5]),
        ("INPUT.SST.CROP_SIZE", [0, 0]),
        ("DATASETS.TRAIN", (3,)),
        ("DATASETS.SST.CARDS", [3]),
        ("DATALOADER.NUM_WORKERS", -1),
        ("DATALOADER.SST.SAMPLER", "fair"),
        ("DATALOADER.SST.WEIGHTS", ["a", "b"]),
        ("SOLVER.IMS_PER_BATCH", 0),
        ("SOLVER.MAX_ITER", 0),
        ("SOLVER.CHECKPOINT_PERIOD", 0),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "nope"),
        ("SOLVER.SST.MAX_EPOCHS", -1),
        ("SOLVER.SST.EPOCH_STEPS", ["a"]),
        ("SOLVER.SST.AMP_DTYPE", "int8"),
        ("SEED", 2**32),
    ],
)
def test_a_wrong_value_is_refused_by_key_and_value(key, value):
    cfg = tiny_cfg()
    check_values(cfg)
    *nodes, name = key.split(".")
    node = cfg
    for part in nodes:
        node = node[part]
    node[name] = value
    with pytest.raises(SSTConfigError) as error:
        check_values(cfg)
    assert str(error.value).startswith(f"{key}: {value!r}; allowed: ")


def test_several_wrong_values_are_said_at_once_and_to_a_users_own_script_too():
    cfg = tiny_cfg(INPUT__FORMAT="XYZ", SOLVER__MAX_ITER=0)
    with pytest.raises(SSTConfigError, match=r"(?s)INPUT.FORMAT: 'XYZ'.*SOLVER.MAX_ITER: 0"):
        build_model(cfg)
