"""`SST`: the contract of its inputs and outputs in both modes; with the branch in test_branch_in_model.py."""

import pytest
import torch
from conftest import DOMAINS, tiny_cfg
from detectron2.modeling import build_model
from torch import nn

from sst_d2 import SST
from sst_d2.config import inference_config
from sst_d2.errors import LabelDomainError, SSTConfigError
from sst_d2.label_domains import get_label_domain
from sst_d2.modeling import SSTHeads, SSTLosses
from sst_d2.modeling.backbone import build_sst_resnet18_backbone
from sst_d2.modeling.losses import IGNORE, AuxiliaryTerms

CLASSES = {"pascal_person_part": 7, "atr": 18, "cihp": 20}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return plain_network()


def plain_network(**overrides):
    """Without the training-only branch."""
    return build_model(inference_config(tiny_cfg(**overrides)))


def batch(domains, size=(32, 32), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8),
            "sem_seg": torch.randint(CLASSES[domain], size, generator=generator),
            "label_domain": domain,
        }
        for domain in domains
    ]


def test_training_gives_the_same_keys_for_every_batch(model):
    model.train()
    expected = [f"loss_seg/{domain}" for domain in DOMAINS]
    for domains in (["atr"], ["cihp", "atr"], list(DOMAINS)):
        losses = model(batch(domains))
        assert list(losses) == expected
        assert [loss.item() > 0 for loss in losses.values()] == [domain in domains for domain in DOMAINS]


def test_every_parameter_gets_a_gradient_even_where_a_domain_is_absent(model):
    model.train().zero_grad()
    sum(model(batch(["atr"])).values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert torch.count_nonzero(model.heads["cihp"].weight.grad) == 0
    assert torch.count_nonzero(model.heads["atr"].weight.grad) > 0


def test_a_batch_of_ignored_pixels_gives_finite_zeros(model):
    sample = batch(["atr"])[0]
    sample["sem_seg"].fill_(255)
    losses = model.train()([sample])
    assert [loss.item() for loss in losses.values()] == [0.0, 0.0, 0.0]


def test_padding_to_a_common_size_is_ignored_in_the_loss(model):
    model.train()
    samples = batch(["atr"], size=(32, 32)) + batch(["cihp"], size=(40, 64), seed=1)
    labels = model._padded_labels(samples, ["atr", "cihp"], (64, 64))
    assert (labels[0, 32:] == IGNORE).all() and (labels[0, :, 32:] == IGNORE).all()
    assert torch.equal(labels[1, :40], samples[1]["sem_seg"])


def test_the_ignore_label_of_a_domain_becomes_the_networks_own():
    domain = get_label_domain("atr").__class__("toy", ("a", "b"), ((0, 0, 0),) * 2, ignore_label=9)
    stub = SST.__new__(SST)
    nn.Module.__init__(stub)
    stub.domains = {"toy": domain}
    stub.register_buffer("pixel_mean", torch.zeros(1))
    labels = stub._padded_labels([{"sem_seg": torch.tensor([[0, 9]])}], ["toy"], (2, 2))
    assert labels.tolist() == [[[0, IGNORE], [IGNORE, IGNORE]]]


def test_images_are_normalised_channel_by_channel(model):
    image = torch.tensor([124.0, 0.0, 255.0]).view(3, 1, 1).expand(3, 32, 32)
    normalised = model._normalised_images([{"image": image}]).tensor[0, :, 0, 0]
    expected = [(124.0 - 123.675) / 58.395, (0.0 - 116.28) / 57.12, (255.0 - 103.53) / 57.375]
    assert normalised.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 5), (70, 31)])
def test_prediction_has_the_size_of_the_input_or_the_size_asked_for(model, size):
    model.eval()
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    with torch.no_grad():
        plain, asked = model([{"image": image, "label_domain": "atr"}, {"image": image, "height": 21, "width": 13}])
    assert plain["sem_seg"].shape == (18, *size) and torch.isfinite(plain["sem_seg"]).all()
    assert asked["sem_seg"].shape == (7, 21, 13)  # the default domain is the first


def test_all_domains_come_from_one_pass_and_equal_the_single_ones(model):
    model.eval()
    image = torch.randint(256, (3, 40, 33), dtype=torch.uint8)
    calls = []
    hook = model.decoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        together = model([{"image": image, "label_domain": "all"}])[0]
        assert len(calls) == 1
        single = {d: model([{"image": image, "label_domain": d}])[0]["sem_seg"] for d in DOMAINS}
    hook.remove()
    assert list(together["sem_seg_by_domain"]) == list(DOMAINS)
    assert all(torch.equal(together["sem_seg_by_domain"][d], single[d]) for d in DOMAINS)
    assert torch.equal(together["sem_seg"], single["pascal_person_part"])


@pytest.mark.parametrize("size", [(40, 33), (64, 32), (1, 5)])
@pytest.mark.parametrize("asked", [{}, {"height": 50, "width": 20}])
def test_labels_are_the_arg_max_of_the_logits_with_what_makes_logits_of_them_again(model, size, asked):
    model.eval()
    sample = {"image": torch.randint(256, (3, *size), dtype=torch.uint8), "label_domain": "all", **asked}
    with torch.no_grad():
        logits = model([sample])[0]["sem_seg_by_domain"]
        answer = model([{**sample, "output": "labels"}])[0]
        single = model([{**sample, "output": "labels", "label_domain": "atr"}])[0]
    assert list(answer["labels_by_domain"]) == list(answer["logits_by_domain"]) == list(DOMAINS)
    for name, labels in answer["labels_by_domain"].items():
        assert labels.dtype == torch.uint8 and labels.shape == logits[name].shape[1:]
        highest = logits[name].topk(2, dim=0).values
        clear = highest[0] - highest[1] > 1e-6
        assert torch.equal(labels[clear].long(), logits[name].argmax(0)[clear]) and clear.float().mean() > 0.9
        assert answer["logits_by_domain"][name].shape[1:] == (answer["padded"][0] // 4, answer["padded"][1] // 4)
    assert torch.equal(answer["labels"], answer["labels_by_domain"]["pascal_person_part"])
    assert torch.equal(answer["logits"], answer["logits_by_domain"]["pascal_person_part"])
    assert sorted(single) == ["crop", "labels", "logits", "padded"] and single["crop"] == size
    assert torch.equal(single["labels"], answer["labels_by_domain"]["atr"])


def test_an_unknown_output_is_refused(model):
    with pytest.raises(SSTConfigError, match="`output` is 'label'; allowed: 'logits', 'labels'"):
        model.eval()([{"image": torch.zeros(3, 32, 32), "output": "label"}])


def test_records_of_label_domains_go_before_the_names_in_the_configuration():
    record = get_label_domain("atr").__class__("mars", ("a", "b"), ((0, 0, 0),) * 2)
    model = SST(inference_config(tiny_cfg(domains=["/gone/mars.yaml"])), domains=[record])
    assert list(model.domains.values()) == [record] and model.heads["mars"].out_channels == 2


def test_images_of_a_batch_do_not_change_each_others_prediction(model):
    model.eval()
    first, second = (torch.randint(256, (3, 32, 32), dtype=torch.uint8) for _ in range(2))
    with torch.no_grad():
        alone = model([{"image": first}])[0]["sem_seg"]
        together = model([{"image": first}, {"image": second, "label_domain": "cihp"}])[0]["sem_seg"]
    assert torch.allclose(alone, together, atol=1e-4)


def test_unknown_domains_are_refused_in_both_modes(model):
    sample = batch(["atr"])[0]
    with pytest.raises(SSTConfigError, match="label_domain is 'lip'.*pascal_person_part, atr, cihp, and 'all'"):
        model.eval()([{**sample, "label_domain": "lip"}])
    model.train()
    for wrong in ("all", None):
        with pytest.raises(SSTConfigError, match=f"label_domain is {wrong!r}"):
            model([{**sample, "label_domain": wrong}])


def test_plain_arguments_build_the_same_network_as_a_configuration():
    cfg = inference_config(tiny_cfg())
    configured = build_model(cfg)
    domains = [get_label_domain(name) for name in DOMAINS]
    decoder = configured.decoder
    plain = SST(
        backbone=configured.backbone,
        decoder=decoder,
        heads=SSTHeads(decoder.out_channels, domains),
        domains=domains,
        losses=SSTLosses(),
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        default_domain="cihp",
    )
    plain.load_state_dict(configured.state_dict())
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = configured.eval()([{"image": image, "label_domain": "cihp"}])[0]["sem_seg"]
        assert torch.equal(plain.eval()([{"image": image}])[0]["sem_seg"], expected)
    with pytest.raises(SSTConfigError, match="DEFAULT_DOMAIN: 'lip' is none of MODEL.SST.DOMAINS"):
        build_model(tiny_cfg(MODEL__SST__DEFAULT_DOMAIN="lip"))


def test_an_auxiliary_module_joins_the_losses_in_training_only():
    class Auxiliary(nn.Module):
        def forward(self, *, images, features, labels, domains, logits, heads):
            assert images.shape == (2, 3, 32, 32) and labels.shape == (2, 32, 32) and domains == ["atr", "cihp"]
            assert {stride: tuple(maps.shape) for stride, maps in features.items()} == {
                stride: (2, 32, 32 // stride, 32 // stride) for stride in (16, 8, 4)
            }
            assert {name: len(maps) for name, maps in logits.items()} == {"pascal_person_part": 0, "atr": 1, "cihp": 1}
            assert torch.equal(heads(features[4][1:], "cihp"), logits["cihp"])
            rows = features[16].mean()[None]
            return AuxiliaryTerms(logits, {("atr", "cihp"): (rows, rows)}, {}, {})

    model = plain_network()
    model.auxiliary = Auxiliary()
    losses = model.train()(batch(["atr", "cihp"]))
    names = [f"{kind}/{domain}" for kind in ("loss_seg", "loss_aux") for domain in DOMAINS]
    assert list(losses) == [*names, "loss_scr_dataset/atr-cihp"]
    assert losses["loss_aux/atr"].item() == pytest.approx(losses["loss_seg/atr"].item() / 10, rel=1e-6)
    model.auxiliary.forward = None
    with torch.no_grad():
        assert "sem_seg" in model.eval()(batch(["atr", "cihp"]))[0]


def test_domains_are_needed_and_must_exist():
    with pytest.raises(SSTConfigError, match="MODEL.SST.DOMAINS is empty"):
        build_model(tiny_cfg(domains=[]))
    with pytest.raises(LabelDomainError, match="unknown label domain 'mars'"):
        build_model(tiny_cfg(domains=["mars"]))
    with pytest.raises(SSTConfigError, match="none of them twice"):
        build_model(tiny_cfg(domains=["atr", "atr"]))


def test_names_that_modules_cannot_have_are_refused(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("name: train\nclasses: [background, hat]\n")
    with pytest.raises(SSTConfigError, match="'train': the name is an attribute"):
        build_model(tiny_cfg(domains=["atr", str(path)]))


def test_the_small_backbone_has_any_width_and_the_usual_strides():
    from detectron2.layers import ShapeSpec

    cfg = tiny_cfg(MODEL__RESNETS__NORM="BN", MODEL__RESNETS__RES2_OUT_CHANNELS=6, MODEL__RESNETS__STEM_OUT_CHANNELS=4)
    backbone = build_sst_resnet18_backbone(cfg, ShapeSpec(channels=3))
    shapes = {name: (spec.channels, spec.stride) for name, spec in backbone.output_shape().items()}
    assert shapes == {"res2": (6, 4), "res3": (12, 8), "res4": (24, 16), "res5": (48, 32)}
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert tuple(maps["res5"].shape) == (1, 48, 2, 3)
