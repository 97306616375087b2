"""Other decoders and backbones, chosen by configuration, train with SST and predict as the paper's network does."""

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
from sst_d2.engine import SSTTrainer
from sst_d2.errors import SSTConfigError
from sst_d2.optimizer import build_optimizer
from sst_d2.run_setup import check_config

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


PAIRS = ["pascal_person_part-atr", "pascal_person_part-cihp", "atr-cihp"]
LOSSES = [f"{kind}/{domain}" for kind in ("loss_seg", "loss_aux") for domain in DOMAINS]
LOSSES += [f"{kind}/{pair}" for kind in ("loss_scr_dataset", "loss_scr_image") for pair in PAIRS]


def batch(domains):
    """One image per domain, of four squares in three classes; colours go with the classes."""
    samples = []
    for domain in domains:
        labels = torch.tensor([[0, 1], [2 + DOMAINS.index(domain), 0]])
        labels = labels.repeat_interleave(32, 0).repeat_interleave(32, 1)
        image = torch.stack([labels * 60.0, 255 - labels * 60.0, torch.full_like(labels, 90)])
        samples.append({"image": image, "sem_seg": labels, "label_domain": domain})
    return samples


def train_mode_without_chance(model):
    """In evaluation mode stochastic depth and dropout leave nothing out; the losses are the same."""
    model.eval().zero_grad()
    model.training = True
    return model


def test_every_parameter_gets_a_gradient_and_is_in_the_optimiser_once(network):
    cfg, model = network
    losses = train_mode_without_chance(model)(batch(["atr", "cihp"]))
    assert list(losses) == LOSSES and losses["loss_seg/pascal_person_part"] == 0
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    # The level embedding reaches the result through projections that begin at zero (Deformable DETR).
    without = {name for name, p in model.named_parameters() if not p.grad.any()} - {
        "decoder.pixel_decoder.level_embedding"
    }
    # Of the domain that the batch lacks its X_0 and M_static's layer learn all the same, the rest does not.
    absent = {name for name, _ in model.named_parameters() if "pascal_person_part" in name}
    learning = {name for name in absent if "transfer" in name and ".dataset." in name}
    assert without == absent - learning - {"auxiliary.enhancement.pascal_person_part.embedding"}
    optimised = [p for group in build_optimizer(cfg, model).param_groups for p in group["params"]]
    assert len(optimised) == len(set(optimised)) and set(optimised) == set(model.parameters())


@pytest.fixture
def narrow_swin(monkeypatch):
    """Training, writing and reading 27 M parameters takes seconds."""
    monkeypatch.setattr(torchvision.models, "swin_t", lambda: SwinTransformer([4, 4], 12, [1] * 4, [1] * 4, [7, 7]))


@pytest.mark.parametrize("overrides", NETWORKS.values(), ids=NETWORKS)
def test_sst_trains_it_and_a_few_steps_lower_the_losses_of_a_aux(overrides, narrow_swin):
    torch.manual_seed(0)
    cfg = tiny_cfg(**overrides, MODEL__SST__AUXILIARY__EMBEDDING_STD=0.5)  # that large, few steps suffice
    model, samples = train_mode_without_chance(build_model(cfg)), batch(DOMAINS)
    optimizer, history = torch.optim.AdamW(model.parameters(), 1e-3), []
    for _ in range(5):
        optimizer.zero_grad()
        losses = model(samples)
        assert list(losses) == LOSSES and all(loss > 0 for loss in losses.values())
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        history.append(sum(loss.item() for name, loss in losses.items() if name.startswith("loss_aux")))
    assert [n for n, p in model.named_parameters() if not p.grad.any() and not n.endswith("level_embedding")] == []
    assert history[-1] < 0.75 * history[0]


@pytest.mark.parametrize("kind", ["loss_aux", "loss_scr_image"])
def test_the_branch_teaches_every_trunk(network, kind):
    model = train_mode_without_chance(network[1])
    losses = model(batch(DOMAINS))
    sum(loss for name, loss in losses.items() if name.startswith(kind)).backward()
    for part in (model.backbone, model.decoder):
        assert max(p.grad.abs().max() for p in part.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("overrides", [SEMANTIC_FPN, DEEPLAB, SWIN_T], ids=["semantic FPN", "DeepLabV3+", "Swin"])
def test_three_iterations_by_configuration_and_an_evaluation(overrides, make_dataset, tmp_path, narrow_swin):
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
    assert all(math.isfinite(logged[name]) for name in LOSSES)
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
