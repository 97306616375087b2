"""`observe_relations` against plain loops over images and pairs of images."""

import math

import numpy as np
import pytest
import torch
from conftest import tiny_cfg
from detectron2.modeling import build_model

from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.config import inference_config
from sst_d2.errors import SSTCheckpointError
from sst_d2.pictures import observe_relations

CLASSES = {"pascal_person_part": 7, "atr": 18}
PAIR = ("pascal_person_part", "atr")


def samples():
    """Training inputs in which some categories are absent, others are in one image only."""
    generator = torch.Generator().manual_seed(3)
    inputs = []
    for row, name in enumerate(["atr", "pascal_person_part", "atr", "pascal_person_part", "atr"]):
        labels = torch.randint(row % 3 + 2, CLASSES[name] - 1, (12, 12), generator=generator)
        labels[:2] = 255
        labels = labels.repeat_interleave(4, 0).repeat_interleave(4, 1)
        image = torch.randint(256, (3, 48, 48), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "sem_seg": labels, "label_domain": name})
    return inputs


def new_model(**overrides):
    torch.manual_seed(0)
    return build_model(tiny_cfg(list(CLASSES), MODEL__SST__PIXEL_DECODER__DROPOUT=0.5, **overrides)).train()


def watched(*representations):
    """What MSA and MSE make of every image, (domain, its scales), one after the other."""
    seen = []
    for module in representations:

        def represent(features, regions, rows, original=module.represent):
            own = original(features, regions, rows)
            seen.extend((name, scales) for name, scales in own.items() if len(scales[0].present))
            return own

        module.represent = represent
    return seen


def cosines(rows):
    rows = rows.detach().double().numpy()
    return np.array([[a @ b / math.sqrt(a @ a) / math.sqrt(b @ b) for b in rows] for a in rows])


def check_dynamic(found, transfer, seen):
    for scale in range(3):
        total, count = np.zeros((18, 7)), np.zeros((18, 7))
        first, second = (
            maps[scale].weight.detach().double().numpy()
            for maps in (transfer.associate_first, transfer.associate_second)
        )
        for image_1 in [scales[scale] for name, scales in seen if name == PAIR[0]]:
            for image_2 in [scales[scale] for name, scales in seen if name == PAIR[1]]:
                s_1, s_2 = (one.semantics[0].detach().double().numpy() for one in (image_1, image_2))
                both = np.outer(image_2.present[0], image_1.present[0])
                total += both * ((s_2 @ second.T) @ (s_1 @ first.T).T)
                count += both
        expected = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        assert np.isnan(expected).any() and len(np.unique(count)) > 2
        assert found[scale] == pytest.approx(expected, rel=1e-5, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("regions", ["ground_truth", "prediction"])
def test_cosines_and_dynamic_relations_are_those_of_plain_loops(regions):
    model = new_model(MODEL__SST__AUXILIARY__REGIONS=regions)
    seen = watched(model.auxiliary)
    relations = observe_relations(model, samples())
    assert relations.images == {"atr": 3, "pascal_person_part": 2} and list(relations.dynamic) == [PAIR]
    for name, k in CLASSES.items():
        assert relations.x0[name] == pytest.approx(cosines(model.auxiliary.enhancement[name].embedding), abs=1e-6)
        each = [cosines(scales[-1].categories[0]) for own, scales in seen if own == name]
        assert relations.x3[name].shape == (k, k) and relations.x3[name] == pytest.approx(sum(each) / len(each))
    check_dynamic(relations.dynamic[PAIR], model.auxiliary.transfer["-".join(PAIR)].image, seen)


def test_the_network_stays_as_it_was_and_draws_no_random_numbers():
    model = new_model(MODEL__SST__AUXILIARY__PRESET="stable")
    before, generator = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    first, second = observe_relations(model, samples()), observe_relations(model, samples())
    assert np.array_equal(first.x3["atr"], second.x3["atr"])  # no dropout
    assert torch.equal(generator, torch.get_rng_state()) and all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_without_image_level_there_are_cosines_alone():
    assert observe_relations(new_model(MODEL__SST__AUXILIARY__IMAGE_LEVEL=0.0), samples()).dynamic == {}
    none = observe_relations(new_model(MODEL__SST__AUXILIARY__STRATEGY="none"), samples())
    assert none.dynamic == {} and list(none.x0) == list(CLASSES)


def test_in_dedicated_training_every_image_is_one_of_the_sources_too(tmp_path):
    cfg = tiny_cfg([PAIR[0]], MODEL__SST__AUXILIARY__STRATEGY="none")
    SSTCheckpointer(build_model(cfg), str(tmp_path), config=cfg.dump()).save("step1")
    cfg = tiny_cfg([PAIR[1]], MODEL__SST__SOURCE__WEIGHTS=str(tmp_path / "step1.pth"))
    model = build_model(cfg).train()
    seen = watched(model.auxiliary, model.auxiliary.source.auxiliary)
    relations = observe_relations(model, [one for one in samples() if one["label_domain"] == PAIR[1]])
    assert relations.images == {PAIR[1]: 3} and list(relations.x0) == list(relations.x3) == [PAIR[1]]
    assert [name for name, _ in seen].count(PAIR[0]) == 3
    check_dynamic(relations.dynamic[PAIR], model.auxiliary.transfer["-".join(PAIR)].image, seen)


def test_a_network_without_the_branch_is_refused():
    model = build_model(inference_config(tiny_cfg(list(CLASSES))))
    with pytest.raises(SSTCheckpointError, match="no training-only branch"):
        observe_relations(model, samples())
