"""Every key of ours, in nodes named ``SST`` below Detectron2's own."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode as CN


def add_sst_config(cfg: CN) -> None:
    """Add the nodes ``MODEL.SST``, ``INPUT.SST``, ``DATASETS.SST``, ``DATALOADER.SST``, ``SOLVER.SST``, ``TEST.SST``.

    No default of Detectron2's changes. Calling it twice changes nothing.
    """
    if "SST" in cfg.MODEL:
        return
    cfg.MODEL.SST = _model_node()
    cfg.INPUT.SST = _input_node()
    cfg.DATASETS.SST = CN(
        {
            # Dataset card files, or globs of them, to register besides the built-in ones. Relative to the working
            # directory.
            "CARDS": [],
            # Share of each training set that is used, above 0, to 1 (Table 5 of the paper). SEED and the data set's
            # name choose the images; OUTPUT_DIR/train_subset.json names them.
            "TRAIN_FRACTION": 1.0,
        }
    )
    cfg.DATALOADER.SST = CN(
        {
            # "balanced": the domains take turns; "weighted": in the shares of WEIGHTS; "proportional": one pool of all.
            "SAMPLER": "balanced",
            # For "weighted": one positive number per entry of MODEL.SST.DOMAINS.
            "WEIGHTS": [],
        }
    )
    cfg.SOLVER.SST = CN(
        {
            # Factor of the learning rate of the backbone's parameters.
            "BACKBONE_MULTIPLIER": 0.1,
            # Length of training in epochs; 0: SOLVER.MAX_ITER and SOLVER.STEPS count, as they stand.
            # One epoch = ceil(number of training images / SOLVER.IMS_PER_BATCH) iterations, whatever the sampler.
            "MAX_EPOCHS": 0,
            # Epochs after which the learning rate is multiplied by SOLVER.GAMMA; read with MAX_EPOCHS only.
            "EPOCH_STEPS": [],
            # Parts of a batch that go through the network one after the other; their gradients add up. For small GPUs:
            # SOLVER.IMS_PER_BATCH stays the total, and the segmentation losses are those of the whole batch.
            "ACCUMULATE": 1,
            # Type of the autocast when SOLVER.AMP.ENABLED: "float16" or "bfloat16".
            "AMP_DTYPE": "float16",
        }
    )
    cfg.TEST.SST = CN(
        {
            # Write every predicted label map as a PNG below OUTPUT_DIR/inference when evaluating.
            "SAVE_PREDICTIONS": False,
            # In training, images of each test set that TensorBoard shows after every evaluation, the first ones of the
            # set: photo, ground truth and prediction side by side. 0: none.
            "PICTURES": 2,
            # With TEST.AUG.ENABLED: factors of the image's size, each seen plain and, with TEST.AUG.FLIP, mirrored, as
            # in Graphonomy and Grapy-ML. TEST.AUG.MIN_SIZES and MAX_SIZE, lengths of edges, are not read.
            "SCALES": [0.5, 0.75, 1.0, 1.25, 1.5, 1.75],
            # SSTPredictor refuses photos of more pixels than this, before it decodes them.
            "MAX_PIXELS": 50_000_000,
        }
    )


def _input_node() -> CN:
    return CN(
        {
            # Smallest and largest factor of the random resize.
            "SCALE_RANGE": [0.5, 2.0],
            # True: height and width are scaled apart (Graphonomy, Grapy-ML); False: by one factor.
            "SCALE_PER_AXIS": False,
            # (height, width) of the training crop in pixels; smaller images are padded (image 0, label: ignore).
            "CROP_SIZE": [512, 512],
            # Training images or label maps that cannot be read or do not fit: "stop", or "skip": take another image
            # of the same label domain in their place. Evaluation always stops.
            "BAD_SAMPLES": "stop",
            # With "skip": the most bad files per process; one more stops the run.
            "MAX_BAD_SAMPLES": 100,
        }
    )


def _model_node() -> CN:
    return CN(
        {
            # Label domains, each a name or the path of a domain's YAML file. One head each, in this order.
            "DOMAINS": [],
            # The domain of inputs that name none; "": the first of DOMAINS.
            "DEFAULT_DOMAIN": "",
            # Deformable-attention encoder over strides 8, 16 and 32, as in Mask2Former (A2 in docs/DECISIONS.md).
            "PIXEL_DECODER": {
                "LAYERS": 6,
                "HEADS": 8,
                "POINTS": 4,
                "FFN_DIM": 1024,
                "DROPOUT": 0.0,
            },
            "DECODER": {
                # A name in SST_DECODER_REGISTRY.
                "NAME": "SSTDecoder",
                # D: channels of the encoder and of the three feature maps that the decoder gives.
                "DIM": 256,
                # Swin blocks of the stages at strides 16, 8 and 4; shifted windows in every second one.
                "BLOCKS": [2, 2, 2],
                "HEADS": 8,
                # Side of the attention windows, in feature pixels.
                "WINDOW": 8,
                "MLP_RATIO": 2.0,
                # Of the convolutions of SemanticFPNDecoder and DeepLabV3PlusDecoder: "GN", "BN", "SyncBN" or "" (none).
                # BLOCKS, HEADS, WINDOW, MLP_RATIO and PIXEL_DECODER are SSTDecoder's alone.
                "NORM": "GN",
                # Channels of SemanticFPNDecoder's convolutions that bring the pyramid to stride 4.
                "SEMANTIC_FPN": {"CONVS_DIM": 128},
                "DEEPLAB": {
                    # Channels that res2, res3, res4 are projected to before they are fused; as many maps are fused.
                    # [48]: as in DeepLabV3+; [32, 64]: as in Panoptic-DeepLab.
                    "PROJECT_CHANNELS": [48],
                    # Three, in pixels of res5.
                    "ASPP_DILATIONS": [6, 12, 18],
                    "ASPP_DROPOUT": 0.1,
                },
            },
            # Weights of the losses: alpha, beta and lambda of Eq. (12), (13).
            "LOSS_WEIGHTS": {"SEG": 10.0, "AUX": 1.0, "SCR": 5.0},
            "AUXILIARY": _auxiliary_node(),
            # Dedicated training, step two: the one label domain of DOMAINS learns from a trained, frozen network.
            # WEIGHTS: its checkpoint (model_final.pth of step one); "": universal training. Where MODEL.WEIGHTS is
            # empty, training also starts from its trunk. DOMAINS: the label domains that it must have; []: any.
            "SOURCE": {"WEIGHTS": "", "DOMAINS": []},
        }
    )


def _auxiliary_node() -> dict[str, Any]:
    return {
        # Train with MSA, MSE and MST beside the network. Evaluation and prediction build none, whatever stands here.
        # With False nothing else in this node is read.
        "ENABLED": True,
        # Where MSA pools: "ground_truth": in the label map's regions; "prediction": in those that the head predicts.
        "REGIONS": "ground_truth",
        # True: MSE keeps to neighbours on the body, M_intra (Eq. 6); False: all categories see all (Eq. 5).
        "ADJACENCY": True,
        # Pairs of label domains that MST bridges: "full": all; "progressive": a chain from coarse to fine; "pairs":
        # those of PAIRS; "none": no MST.
        "STRATEGY": "full",
        # Read with "progressive" only: the chain, every domain once; []: by number of classes.
        "ORDER": [],
        # Read with "pairs" only: e.g. [["pascal_person_part", "cihp"]].
        "PAIRS": [],
        # Factors of LOSS_WEIGHTS.SCR for Eq. (10), data sets, and Eq. (11), images; 0: that level is not built.
        "DATASET_LEVEL": 1.0,
        "IMAGE_LEVEL": 1.0,
        # Factor of LOSS_WEIGHTS.SEG for a consistency of predictions, which the paper does not have; 0: not built. What
        # one domain's head predicts on another's images is brought into their label system by a learnt map, and
        # compared with their labels; for the pairs of STRATEGY, both ways. DATASET_LEVEL and IMAGE_LEVEL may then be 0.
        "PREDICTION": 0.0,
        # M_static of pairs without published values: text file of word vectors (GloVe, fastText), relative to the
        # working directory; "": the body lexicon.
        "WORD_VECTORS": "",
        # Controls for experiments, in the place of M_static: "lexicon": the body lexicon for all pairs; "identity": 1
        # where two classes have the same name, else 0; "random": even in [0, 1], by SEED and pair. "": none of them.
        "RELATIONS": "",
        # Standard deviation of the random X_0.
        "EMBEDDING_STD": 0.02,
        # What the next four keys are where they are left open. "paper": "none", "classes", "sum", 0, as the paper
        # writes it; "stable": "target", "present", "mean", 300, what did not degenerate in small trials.
        "PRESET": "paper",
        # Between X and the other domain's view of it: "none": both learn; "target": the view alone, X is taken as it
        # stands. "": the preset's.
        "STOP_GRADIENT": "",
        # Mean over a domain's categories: "classes": all, an absent one counts 1 (Eq. 11); "present": those that
        # occur in the image. "": the preset's.
        "NORMALIZE": "",
        # Over scales and pairs of domains: "sum" (Eq. 11), or "mean". "": the preset's.
        "REDUCE": "",
        # Iterations over which LOSS_WEIGHTS.SCR grows from 0; 0: full from the start. -1: the preset's.
        "RAMP": -1,
        # Once per evaluation, log the norm of every loss's gradient on F too: a backward pass per loss, in that
        # iteration alone. Training stays the same, bit by bit.
        "LOG_GRADIENTS": False,
    }
