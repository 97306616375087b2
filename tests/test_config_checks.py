"""Every value that nothing can be built from is refused by key."""

import pytest
from conftest import ROOT, tiny_cfg
from detectron2.modeling import build_model

from sst_d2.config import inference_config
from sst_d2.config_checks import check_values
from sst_d2.errors import SSTConfigError

FASHIONISTA = str(ROOT / "tests" / "label_domains" / "fashionista7.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.DEVICE", "gpu"),
        ("MODEL.DEVICE", "cuda:x"),
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
        ("MODEL.SST.DECODER.NORM", "FrozenBN"),
        ("MODEL.SST.DECODER.SEMANTIC_FPN.CONVS_DIM", 30),
        ("MODEL.SST.DECODER.DEEPLAB.PROJECT_CHANNELS", []),
        ("MODEL.SST.DECODER.DEEPLAB.PROJECT_CHANNELS", [50]),
        ("MODEL.SST.DECODER.DEEPLAB.PROJECT_CHANNELS", [8, 8, 8, 8]),
        ("MODEL.SST.DECODER.DEEPLAB.ASPP_DILATIONS", [6, 12]),
        ("MODEL.SST.DECODER.DEEPLAB.ASPP_DROPOUT", 1.0),
        ("MODEL.RESNETS.RES5_DILATION", 4),
        ("INPUT.FORMAT", "L"),
        ("INPUT.RANDOM_FLIP", "vertical"),
        ("INPUT.MIN_SIZE_TEST", -5),
        ("INPUT.MAX_SIZE_TEST", 0),
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
        ("SOLVER.LR_SCHEDULER_NAME", "Nope"),
        ("SOLVER.WARMUP_METHOD", "nope"),
        ("SOLVER.STEPS", (5, 2)),
        ("SOLVER.BASE_LR", -1.0),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", -1.0),
        ("TEST.EVAL_PERIOD", -5),
        ("TEST.SST.MAX_PIXELS", 0),
        ("TEST.EXPECTED_RESULTS", [["sem_seg", "mIoU"]]),
        ("MODEL.PIXEL_MEAN", [1.0, 2.0]),
        ("MODEL.PIXEL_STD", [1.0, 2.0, 0.0]),
        ("MODEL.RESNETS.DEPTH", 49),
        ("MODEL.SST.PIXEL_DECODER.FFN_DIM", 0),
        ("MODEL.SST.DECODER.MLP_RATIO", 0),
        ("MODEL.SST.LOSS_WEIGHTS.SEG", -1),
        ("MODEL.SST.LOSS_WEIGHTS.AUX", -1),
        ("MODEL.SST.LOSS_WEIGHTS.SCR", -1),
        ("MODEL.SST.AUXILIARY.REGIONS", "guess"),
        ("MODEL.SST.AUXILIARY.STRATEGY", "fullest"),
        ("MODEL.SST.AUXILIARY.ORDER", [3]),
        ("MODEL.SST.AUXILIARY.PAIRS", [["atr"]]),
        ("MODEL.SST.AUXILIARY.PAIRS", ["atr", "cihp"]),
        ("MODEL.SST.AUXILIARY.DATASET_LEVEL", -1.0),
        ("MODEL.SST.AUXILIARY.IMAGE_LEVEL", "high"),
        ("MODEL.SST.AUXILIARY.PREDICTION", -0.5),
        ("MODEL.SST.AUXILIARY.PREDICTION", "on"),
        ("MODEL.SST.AUXILIARY.RELATIONS", "glove"),
        ("MODEL.SST.AUXILIARY.EMBEDDING_STD", -0.02),
        ("MODEL.SST.AUXILIARY.EMBEDDING_STD", 0.0),
        ("MODEL.SST.AUXILIARY.PRESET", "safe"),
        ("MODEL.SST.AUXILIARY.STOP_GRADIENT", "source"),
        ("MODEL.SST.AUXILIARY.NORMALIZE", "all"),
        ("MODEL.SST.AUXILIARY.REDUCE", "max"),
        ("MODEL.SST.AUXILIARY.RAMP", -2),
        ("MODEL.SST.SOURCE.DOMAINS", [3]),
        ("DATASETS.SST.TRAIN_FRACTION", 0),
        ("DATASETS.SST.TRAIN_FRACTION", 1.5),
        ("DATASETS.TEST", (3,)),
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
    cfg = tiny_cfg(MODEL__SST__DECODER__WINDOW=0, MODEL__SST__PIXEL_DECODER__LAYERS=0, SOLVER__LR_SCHEDULER_NAME="Own")
    with pytest.raises(SSTConfigError, match=r"(?s)LAYERS: 0.*WINDOW: 0") as error:
        build_model(cfg)
    assert "SOLVER" not in str(error.value)  # the solver of a user's own script is the user's


KEY = "MODEL.SST.AUXILIARY."


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([KEY + "ORDER", ["atr", "cihp"]], "ORDER: .*'atr', 'cihp'.* is read with STRATEGY progressive only.* 'full'"),
        ([KEY + "PAIRS", [["atr", "cihp"]]], "PAIRS: .* is read with STRATEGY pairs only, and STRATEGY is 'full'"),
        ([KEY + "PAIRS", [["atr", "cihp"]], KEY + "STRATEGY", "progressive"], "PAIRS: .* STRATEGY is 'progressive'"),
        (
            [KEY + "PREDICTION", 0.5, KEY + "STRATEGY", "none"],
            r"PREDICTION: 0\.5 .*, and STRATEGY is 'none'; set .*STRATEGY full, .*IMAGE_LEVEL 0; or PREDICTION 0$",
        ),
        (
            [KEY + "RELATIONS", "identity", KEY + "WORD_VECTORS", "g.txt"],
            "WORD_VECTORS: 'g.txt' is not read with REL.*",
        ),
        ([KEY + "RELATIONS", "random", "SEED", -1], "RELATIONS: 'random' draws by SEED, and SEED -1 .*set SEED to 0"),
        (["DATASETS.SST.TRAIN_FRACTION", 0.5, "SEED", -1], "SEED: -1 is drawn anew .*TRAIN_FRACTION 0.5"),
    ],
)
def test_values_that_do_not_go_together_are_refused(pairs, message):
    cfg = tiny_cfg()
    cfg.merge_from_list(pairs)
    with pytest.raises(SSTConfigError, match=message):
        check_values(cfg)


@pytest.mark.parametrize(
    "pairs",
    [
        [KEY + "ORDER", ["atr", "cihp"], KEY + "STRATEGY", "progressive"],
        [KEY + "PAIRS", [["atr", "cihp"]], KEY + "STRATEGY", "pairs"],
        [KEY + "PAIRS", [["atr", "cihp"]], KEY + "ENABLED", False],  # nothing of the node is read
        [KEY + "PREDICTION", 0.5, KEY + "STRATEGY", "none", KEY + "ENABLED", False],
        [KEY + "PREDICTION", 0.5, KEY + "DATASET_LEVEL", 0.0, KEY + "IMAGE_LEVEL", 0.0],
        [KEY + "RELATIONS", "identity", "SEED", -1],
        ["DATASETS.SST.TRAIN_FRACTION", 1.0, "SEED", -1],
    ],
)
def test_values_that_go_together_pass(pairs):
    cfg = tiny_cfg()
    cfg.merge_from_list(pairs)
    check_values(cfg)


@pytest.mark.parametrize("domains", [["atr", FASHIONISTA], ["atr", "cihp"]], ids=["read", "not read"])
def test_word_vectors_that_are_nowhere_are_refused(domains):
    cfg = tiny_cfg(domains, MODEL__SST__AUXILIARY__WORD_VECTORS="nowhere.txt")
    with pytest.raises(SSTConfigError, match=r"WORD_VECTORS: there is no file nowhere\.txt"):
        build_model(cfg)
    assert build_model(inference_config(cfg)).auxiliary is None


def test_one_label_domain_alone_is_told_what_to_do():
    with pytest.raises(SSTConfigError, match="'full' bridges label domains, and there is only atr; .*set it to none"):
        build_model(tiny_cfg(["atr"]))
    assert build_model(tiny_cfg(["atr"], MODEL__SST__AUXILIARY__STRATEGY="none")).auxiliary is not None
    assert build_model(tiny_cfg(["atr"], MODEL__SST__AUXILIARY__ENABLED=False)).auxiliary is None
    assert build_model(inference_config(tiny_cfg(["atr"]))).auxiliary is None


def test_with_no_level_and_no_prediction_there_is_nothing_to_compare():
    alone = {"MODEL__SST__AUXILIARY__DATASET_LEVEL": 0.0, "MODEL__SST__AUXILIARY__IMAGE_LEVEL": 0.0}
    with pytest.raises(SSTConfigError, match="both 0, so MST has nothing to compare; .*STRATEGY none, .* PREDICTION"):
        build_model(tiny_cfg(**alone))
    assert build_model(tiny_cfg(MODEL__SST__AUXILIARY__PREDICTION=0.5, **alone)).auxiliary.prediction is not None
