"""Other decoders and backbones, chosen by configuration, train and predict as the paper's network does."""

import json
import math
from collections import ChainMap

import pytest
import torch
import torchvision
from conftest import DOMAINS, tiny_cfg
from detectron2.modeling import build_model
from torchvision.models import SwinTransformer

from sst_d2.data import register_dataset_cards
from sst_d2.engine import SSTTrainer, check_config
from sst_d2.errors import SSTConfigError
from sst_d2.optimizer import build_optimizer

DETECTRON2_R18 = {
    "MODEL__BACKBONE__NAME": "build_resnet_backbone",
    "MODEL__RESNETS__DEPTH": 18,
    "MODEL__RESNETS__STEM_OUT_CHANNELS": 64,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 64,
}
DETECTRON2_R50_DILATED = {
    "MODEL__BACKBONE__NAME": "build_resnet_backbone",
    "MODEL__RESNETS__DEPTH": 50,
    "MODEL__RESNETS__RES5_DILATION": 2,
    "MODEL__RESNETS__WIDTH_PER_GROUP": 32,
    "MODEL__RESNETS__STEM_OUT_CHANNELS": 32,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 32,
}
SEMANTIC_FPN = {"MODEL__SST__DECODER__NAME": "SemanticFPNDecoder", "MODEL__SST__DECODER__SEMANTIC_FPN__CONVS_DIM": 16}
DEEPLAB = {"MODEL__SST__DECODER__NAME": "DeepLabV3PlusDecoder"}
SWIN_T = {"MODEL__BACKBONE__NAME": "build_sst_swin_t_backbone"}
NETWORKS = {
    "semantic FPN": SEMANTIC_FPN,
    "DeepLabV3+": DEEPLAB,
    "DeepLabV3+, stride 16": {**DEEPLAB, **DETECTRON2_R50_DILATED},
    "Swin-T": SWIN_T,
    "Swin-T, semantic FPN": {**SWIN_T, **SEMANTIC_FPN},
    "Swin-T, DeepLabV3+": {**SWIN_T, **DEEPLAB},
    "ResNet-18": DETECTRON2_R18,
    "ResNet-18, semantic FPN": {**DETECTRON2_R18, **SEMANTIC_FPN},
}
CLASSES = dict(zip(DOMAINS, (7, 18, 20), strict=True))


@pytest.fixture(scope="module", params=NETWORKS.values(), ids=NETWORKS)
def network(request):
    torch.manual_seed(0)
    cfg = tiny_cfg(**request.param)
    return cfg, build_model(cfg)


@pytest.mark.parametrize("size", [(33, 47), (1, 5), (64, 31)])
def test_logits_have_the_size_of_an_odd_image_for_every_label_domain(network, size):
    model = network[1].eval()
    with torch.no_grad():
        by_domain = model([{"image": torch.zeros(3, *size), "label_domain": "all"}])[0]["sem_seg_by_domain"]
    assert {domain: tuple(logits.shape) for domain, logits in by_domain.items()} == {
        domain: (classes, *size) for domain, classes in CLASSES.items()
    }
    assert all(torch.isfinite(logits).all() for logits in by_domain.values())


def test_every_parameter_gets_a_gradient_and_is_in_the_optimiser_once(network):
    cfg, model = network
    # In evaluation mode stochastic depth and dropout leave nothing out; the losses are the same.
    model.eval().zero_grad()
    model.training = True
    samples = [
        {"image": torch.rand(3, 64, 64) * 255, "sem_seg": torch.randint(7, (64, 64)), "label_domain": domain}
        for domain in ("atr", "cihp")
    ]
    losses = model(samples)
    assert list(losses) == [f"loss_seg/{domain}" for domain in DOMAINS] and losses["loss_seg/pascal_person_part"] == 0
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    # The level embedding reaches the result through projections that begin at zero (Deformable DETR).
    without = {name for name, p in model.named_parameters() if not p.grad.any()} - {
        "decoder.pixel_decoder.level_embedding"
    }
    assert without == {"heads.pascal_person_part.weight", "heads.pascal_person_part.bias"}
    optimised = [p for group in build_optimizer(cfg, model).param_groups for p in group["params"]]
    assert len(optimised) == len(set(optimised)) and set(optimised) == set(model.parameters())


@pytest.mark.parametrize("overrides", [SEMANTIC_FPN, DEEPLAB, SWIN_T], ids=["semantic FPN", "DeepLabV3+", "Swin"])
def test_three_iterations_by_configuration_and_an_evaluation(overrides, make_dataset, tmp_path, monkeypatch):
    # A narrow one: writing and reading 27 M parameters takes seconds.
    monkeypatch.setattr(torchvision.models, "swin_t", lambda: SwinTransformer([4, 4], 12, [1] * 4, [1] * 4, [7, 7]))
    cards = [str(make_dataset(domain[:3], domain=domain, count=2)) for domain in DOMAINS]
    register_dataset_cards(cards)
    names = tuple(domain[:3] for domain in DOMAINS)
    cfg = tiny_cfg(
        **overrides,
        DATASETS__SST__CARDS=cards,
        DATASETS__TRAIN=names,
        DATASETS__TEST=names,
        SOLVER__MAX_ITER=3,
        SOLVER__STEPS=(),
        SOLVER__IMS_PER_BATCH=2,  # the domains take turns, so each batch lacks one
        OUTPUT_DIR=str(tmp_path / "out"),
    )
    trainer = SSTTrainer(cfg)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.resume_or_load(False)
    results = trainer.train()
    assert set(results) == set(names) and all("mIoU" in result["sem_seg"] for result in results.values())
    logged = ChainMap(*(json.loads(line) for line in open(f"{cfg.OUTPUT_DIR}/metrics.json")))
    assert all(math.isfinite(logged[f"loss_seg/{domain}"]) for domain in DOMAINS)
    assert [name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])] == []
    again = SSTTrainer(cfg)
    again.resume_or_load(True)
    assert again.start_iter == 3


def test_wrong_names_are_refused_with_the_known_ones():
    with pytest.raises(
        SSTConfigError, match=r"NAME: 'Deeplab' is not in .*: DeepLabV3PlusDecoder, .*SemanticFPNDecoder"
    ):
        build_model(tiny_cfg(MODEL__SST__DECODER__NAME="Deeplab"))
    with pytest.raises(SSTConfigError, match=r"'swin_t' is not registered; known: .*build_sst_swin_t_backbone"):
        check_config(tiny_cfg(MODEL__BACKBONE__NAME="swin_t"))
