"""Test-time augmentation: an average of logits over sizes and mirror images, for our model and for others'."""

import importlib.util
import json
import logging
import weakref

import numpy as np
import pytest
import torch
from conftest import DOMAINS, ROOT, tiny_cfg
from detectron2.modeling import build_model
from torch import nn

from sst_d2 import SSTWithTTA
from sst_d2.config import inference_config
from sst_d2.config_checks import check_values
from sst_d2.data import register_dataset_cards
from sst_d2.engine import SSTTrainer
from sst_d2.errors import LabelDomainError, SSTConfigError
from sst_d2.inference import tta
from sst_d2.label_domains import get_label_domain, known_label_domains
from sst_d2.launch import launch
from sst_d2.run_setup import argument_parser

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def logits_of(image, height, width, classes):
    """A network that is no friend of mirrors: each class weighs the colours otherwise, and looks to the right."""
    weights = np.random.default_rng(0).normal(size=(classes, 3))
    rows, columns = (np.arange(n) * have // n for n, have in ((height, image.shape[1]), (width, image.shape[2])))
    picked = image[:, rows][:, :, columns] / 255
    return np.tensordot(weights, picked, 1) + np.arange(classes)[:, None, None] * np.linspace(0, 1, width) ** 2


class Foreign(nn.Module):
    """Somebody else's model: knows one label system and nothing of its name."""

    def __init__(self, classes):
        super().__init__()
        self.classes, self.sizes = classes, []

    def forward(self, inputs):
        self.sizes.append([tuple(sample["image"].shape[1:]) for sample in inputs])
        return [
            {"sem_seg": torch.from_numpy(logits_of(s["image"].double().numpy(), s["height"], s["width"], self.classes))}
            for s in inputs
        ]


def resized(image, height, width):
    """Bilinear, with a wider triangle when it shrinks, as Pillow's; one output pixel at a time."""
    for axis, size in ((1, height), (2, width)):
        step = image.shape[axis] / size
        support = max(step, 1)
        slices = []
        for i in range(size):
            distance = abs(np.arange(image.shape[axis]) + 0.5 - (i + 0.5) * step) / support
            weights = np.maximum(1 - distance, 0)
            slices.append(np.tensordot(image, weights / weights.sum(), (axis, 0)))
        image = np.stack(slices, axis)
    return image


def looped(image, height, width, domain, scales, mirrors):
    """The protocol, one pass after the other, classes swapped by their names."""
    partner = {**dict(domain.flip_pairs), **{right: left for left, right in domain.flip_pairs}}
    passes = []
    for scale in scales:
        view = resized(image, max(1, int(image.shape[1] * scale)), max(1, int(image.shape[2] * scale)))
        for mirror in mirrors:
            logits = logits_of(view[:, :, ::-1] if mirror else view, height, width, domain.num_classes)
            if mirror:
                logits = np.stack([logits[domain.index(partner.get(name, name))] for name in domain.classes])[..., ::-1]
            passes.append(logits)
    return np.mean(passes, axis=0)


def photo(height=23, width=31, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)


def swapped(logits, name):
    """Mirrored, left and right swapped, by the ids of the papers."""
    pairs = {"atr": [(9, 10), (12, 13), (14, 15)], "cihp": [(14, 15), (16, 17), (18, 19)], "pascal_person_part": []}
    order = list(range(len(logits)))
    for left, right in pairs[name]:
        order[left], order[right] = right, left
    return logits.flip(-1)[order]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(tiny_cfg()).eval()


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("name", ["atr", "pascal_person_part"])
def test_equals_a_plain_loop_around_a_foreign_model(name, flip):
    domain, images = get_label_domain(name), [photo(), photo(2, 40, seed=1)]
    sizes = [(23, 31), (37, 11)]
    inputs = [{"image": images[0]}, {"image": images[1], "height": 37, "width": 11}]
    augmented = SSTWithTTA(Foreign(domain.num_classes).eval(), flip=flip, default_domain=name)
    outputs = augmented(inputs)
    for image, size, output in zip(images, sizes, outputs, strict=True):
        expected = looped(image.double().numpy(), *size, domain, SCALES, [False, True] if flip else [False])
        assert list(output) == ["sem_seg"] and output["sem_seg"].dtype == torch.float64
        np.testing.assert_allclose(output["sem_seg"].numpy(), expected, atol=1e-6)
    scaled = [[(int(23 * s), int(31 * s)), (int(2 * s), int(40 * s))] for s in SCALES]
    assert augmented.model.sizes == [size for size in scaled for _ in range(1 + flip)]


def test_an_image_never_shrinks_to_nothing():
    foreign = Foreign(7).eval()
    assert SSTWithTTA(foreign, scales=[0.1], default_domain="pascal_person_part")([{"image": photo(3, 40)}])
    assert foreign.sizes == [[(1, 4)], [(1, 4)]]


@pytest.mark.parametrize("name", known_label_domains())
def test_left_and_right_change_places_in_every_built_in_label_domain(name):
    domain = get_label_domain(name)

    class Counting(nn.Module):
        def forward(self, inputs):
            return [{"sem_seg": torch.arange(float(domain.num_classes))[:, None, None].expand(-1, 2, 2)}]

    logits = SSTWithTTA(Counting().eval())([{"image": photo(2, 2), "label_domain": name}])[0]["sem_seg"]
    expected = list(map(float, range(domain.num_classes)))
    for pair in domain.flip_pairs:
        for side in pair:
            expected[domain.index(side)] = (domain.index(pair[0]) + domain.index(pair[1])) / 2
    assert logits[:, 0, 0].tolist() == expected


@pytest.mark.parametrize("name", DOMAINS)
@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_at_scale_1_mirroring_the_input_mirrors_and_swaps_the_output_exactly(model, name, size):
    augmented, image = SSTWithTTA(model, scales=[1.0]), photo(*size)
    plain, mirrored = (
        augmented([{"image": view, "label_domain": name, "height": 50, "width": 41}])[0]["sem_seg"]
        for view in (image, image.flip(-1))
    )
    assert torch.equal(mirrored, swapped(plain, name)) and plain.shape[1:] == (50, 41)
    with torch.no_grad():
        two = [
            model([{"image": view, "label_domain": name, "height": 50, "width": 41}])[0]["sem_seg"]
            for view in (image, image.flip(-1))
        ]
    assert torch.equal(plain, (two[0] + swapped(two[1], name)) / 2)


@pytest.mark.parametrize("name", DOMAINS)
def test_at_other_scales_it_does_to_1e_4_of_the_logits(model, name):
    augmented, image = SSTWithTTA(model), photo(45, 61)
    plain, mirrored = (
        augmented([{"image": view, "label_domain": name}])[0]["sem_seg"] for view in (image, image.flip(-1))
    )
    assert (mirrored - swapped(plain, name)).abs().max() <= 1e-4 * plain.abs().max()


@pytest.mark.parametrize("scale", [0.3, *SCALES])
def test_resizing_the_mirrored_image_gives_the_mirrored_resized_image(scale):
    image = photo(97, 131)
    mirrored = tta._view(image.flip(-1), scale, mirrored=True)
    assert (mirrored.float() - tta._view(image, scale, mirrored=False)).abs().max() < 2e-5  # of 255


def test_all_label_domains_at_once_equal_each_by_itself(model):
    augmented, image = SSTWithTTA(model, scales=[0.5, 1.0]), photo()
    together = augmented([{"image": image, "label_domain": "all"}])[0]
    assert list(together["sem_seg_by_domain"]) == list(DOMAINS)
    for name, logits in together["sem_seg_by_domain"].items():
        assert torch.equal(logits, augmented([{"image": image, "label_domain": name}])[0]["sem_seg"])
    assert torch.equal(together["sem_seg"], together["sem_seg_by_domain"]["pascal_person_part"])
    assert torch.equal(together["sem_seg"], augmented([{"image": image}])[0]["sem_seg"])  # the model's default domain


@pytest.mark.parametrize("scales", [[1.0], SCALES * 2])
def test_passes_come_one_at_a_time_whatever_their_number_and_without_gradients(scales):
    class Watching(Foreign):
        earlier, calls = [], 0

        def forward(self, inputs):
            assert not torch.is_grad_enabled()
            assert [reference() for reference in self.earlier] == [None] * len(self.earlier)
            outputs = super().forward(inputs)
            self.calls += 1
            self.earlier = [weakref.ref(item["sem_seg"]) for item in outputs]
            self.earlier += [weakref.ref(item["image"]) for item in inputs]
            return outputs

    watching = Watching(18).eval()
    inputs = [{"image": photo(seed=seed), "label_domain": "atr"} for seed in range(3)]
    # Off the factor 1, at which the view is the input itself and stays.
    SSTWithTTA(watching, scales=[scale * 1.1 for scale in scales])(inputs)
    assert watching.calls == 2 * len(scales)


def test_inputs_and_answers_of_the_model_are_not_changed():
    kept = torch.ones(7, 4, 5)

    class Constant(nn.Module):
        def forward(self, inputs):
            return [{"sem_seg": kept} for _ in inputs]

    sample = {"image": photo(4, 5), "label_domain": "pascal_person_part", "file_name": "a.jpg"}
    image, keys = sample["image"].clone(), list(sample)
    output = SSTWithTTA(Constant().eval())([sample])[0]["sem_seg"]
    assert torch.equal(output, kept) and output.data_ptr() != kept.data_ptr()
    assert list(sample) == keys and torch.equal(sample["image"], image) and (kept == 1).all()


def test_logits_of_half_precision_are_summed_in_single():
    class Half(nn.Module):
        def forward(self, inputs):
            return [{"sem_seg": torch.full((7, 2, 2), 60000.0, dtype=torch.float16)}]

    output = SSTWithTTA(Half().eval(), default_domain="pascal_person_part")([{"image": photo(2, 2)}])[0]["sem_seg"]
    assert output.dtype == torch.float32 and (output == 60000).all()


def test_the_models_mode_stays_as_it_is_and_training_is_refused_by_name():
    foreign = Foreign(7)
    augmented = SSTWithTTA(foreign, default_domain="pascal_person_part")
    with pytest.raises(SSTConfigError, match=r"the model \(Foreign\) is in training mode; call eval\(\) first"):
        augmented([{"image": photo()}])
    assert foreign.training and augmented.training and not SSTWithTTA(foreign.eval()).training


def test_a_label_domain_is_needed_and_must_be_known():
    augmented = SSTWithTTA(Foreign(7).eval())
    with pytest.raises(
        SSTConfigError, match=r"a\.jpg: .*give the input `label_domain`, or SSTWithTTA `default_domain`"
    ):
        augmented([{"image": photo(), "file_name": "a.jpg"}])
    with pytest.raises(LabelDomainError, match="unknown label domain 'mars'"):
        augmented([{"image": photo(), "label_domain": "mars"}])
    own = get_label_domain("atr").__class__("mars", ("a", "b"), ((0, 0, 0),) * 2, flip_pairs=(("a", "b"),))
    by_record = SSTWithTTA(Foreign(2).eval(), scales=[1], domains=[own])
    output = by_record([{"image": photo(), "label_domain": "mars"}])[0]["sem_seg"]
    np.testing.assert_allclose(output, looped(photo().double().numpy(), 23, 31, own, [1], [False, True]))


@pytest.mark.parametrize(
    ("answer", "asked", "words"),
    [
        ({"panoptic": 1}, "atr", r"\['panoptic'\]; `sem_seg` is needed"),
        ({"sem_seg": torch.zeros(18, 4, 5)}, "all", r"\['sem_seg'\]; `sem_seg_by_domain` is needed"),
        ({"sem_seg_by_domain": {"cihp": torch.zeros(20, 4, 5)}}, "all", r"of \['cihp'\], without 'atr'"),
        ({"sem_seg": torch.zeros(7, 4, 5)}, "atr", r"\(7, 4, 5\); label domain 'atr'.*= \(18, 4, 5\)"),
        ({"sem_seg": torch.zeros(18, 2, 2)}, "atr", r"\(18, 2, 2\).*= \(18, 4, 5\)"),
    ],
)
def test_answers_that_cannot_be_averaged_are_refused_by_name(answer, asked, words):
    class Odd(nn.Module):
        def forward(self, inputs):
            return [answer]

    with pytest.raises(SSTConfigError, match=rf"the model \(Odd\) answers with .*{words}"):
        SSTWithTTA(Odd().eval(), default_domain="atr")([{"image": photo(4, 5), "label_domain": asked}])


def test_scales_and_mirror_come_from_the_configuration_and_must_be_positive(model):
    cfg = tiny_cfg()
    assert SSTWithTTA(cfg, model).passes == [(scale, mirrored) for scale in SCALES for mirrored in (False, True)]
    assert not cfg.TEST.AUG.ENABLED
    cfg.merge_from_list(["TEST.AUG.FLIP", False, "TEST.SST.SCALES", [1.0, 2]])
    assert SSTWithTTA(cfg, model).passes == [(1.0, False), (2, False)]
    for wrong in ([], [1.0, 0.0], [-0.5]):
        with pytest.raises(SSTConfigError, match=r"TEST\.SST\.SCALES: \["):
            SSTWithTTA(model, scales=wrong)
        cfg.TEST.SST.SCALES = wrong
        with pytest.raises(SSTConfigError, match=r"TEST\.SST\.SCALES: \[.*; allowed: "):
            check_values(cfg)


@pytest.fixture
def cfg(make_dataset, tmp_path):
    cards = [str(make_dataset(name, domain=domain)) for name, domain in (("p", "pascal_person_part"), ("a", "atr"))]
    register_dataset_cards(cards)
    return tiny_cfg(
        domains=["pascal_person_part", "atr"],
        DATASETS__SST__CARDS=cards,
        DATASETS__TRAIN=("p", "a"),
        DATASETS__TEST=("p", "a"),
        SOLVER__MAX_ITER=2,
        SOLVER__STEPS=(),
        SOLVER__IMS_PER_BATCH=2,
        TEST__EVAL_PERIOD=1,
        TEST__AUG__ENABLED=True,
        TEST__SST__SCALES=[0.5, 1.0],
        OUTPUT_DIR=str(tmp_path / "out"),
    )


def test_an_evaluation_gives_both_numbers_and_says_which_is_which(cfg, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        results = SSTTrainer.evaluate(cfg, build_model(inference_config(cfg)))
    assert {name: list(tasks) for name, tasks in results.items()} == {n: ["sem_seg", "sem_seg_TTA"] for n in "pa"}
    assert "Evaluation with test-time augmentation: 4 passes per image, scales [0.5, 1.0], each mirrored" in caplog.text
    for name, tasks in results.items():
        assert f"'{name}' with test-time augmentation: mIoU {tasks['sem_seg_TTA']['mIoU']:.2f}" in caplog.text
        for folder, task in (("inference", "sem_seg"), ("inference_TTA", "sem_seg_TTA")):
            written = json.loads((tmp_path / "out" / folder / name / "sem_seg_evaluation.json").read_text())
            assert written["sem_seg"]["mIoU"] == tasks[task]["mIoU"]
    assert any(
        tasks["sem_seg"]["IoU-background"] != tasks["sem_seg_TTA"]["IoU-background"] for tasks in results.values()
    )


def test_a_training_ends_with_one_evaluation_more_and_periodic_ones_stay_plain(cfg):
    cfg.TEST.EXPECTED_RESULTS = [["a/sem_seg_TTA", "mIoU", 50.0, 50.0]]
    trainer = SSTTrainer(cfg)
    results = trainer.train()
    lines = [json.loads(line) for line in open(f"{cfg.OUTPUT_DIR}/metrics.json")]
    plain, augmented = ([line for line in lines if key in line] for key in ("a/sem_seg/mIoU", "a/sem_seg_TTA/mIoU"))
    assert len(plain) == 2 and augmented == plain[1:]
    assert augmented[0]["a/sem_seg_TTA/mIoU"] == results["a"]["sem_seg_TTA"]["mIoU"]
    assert trainer.model.training


def test_eval_only_of_the_trained_weights_gives_the_trainings_own_number(cfg, tmp_path):
    trained = SSTTrainer(cfg).train()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "train_net.py")
    train_net = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train_net)
    arguments = ["MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/model_final.pth", "OUTPUT_DIR", str(tmp_path / "again")]
    arguments = ["--config-file", str(tmp_path / "config.yaml"), "--eval-only", *arguments]
    train_net.main(argument_parser().parse_args(arguments))
    written = json.loads((tmp_path / "again/inference_TTA/a/sem_seg_evaluation.json").read_text())["sem_seg"]
    assert written["mIoU"] == trained["a"]["sem_seg_TTA"]["mIoU"]
    assert "4 passes per image" in (tmp_path / "again/log.txt").read_text()


def test_with_one_data_set_the_keys_are_detectron2s(cfg):
    cfg.DATASETS.TEST, cfg.TEST.EXPECTED_RESULTS = ("a",), [["sem_seg_TTA", "mIoU", 50.0, 50.0]]
    results = SSTTrainer.evaluate(cfg, build_model(cfg))
    assert list(results["a"]) == ["sem_seg", "sem_seg_TTA"]
    SSTTrainer.verify(cfg, results)
    assert list(SSTTrainer.test_with_TTA(cfg, build_model(cfg))) == ["sem_seg_TTA"]


def _train(cfg):
    register_dataset_cards(cfg.DATASETS.SST.CARDS)
    torch.manual_seed(0)
    SSTTrainer(cfg).train()


@pytest.mark.slow
def test_two_processes_unwrap_the_model_and_share_the_images(cfg):
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = 0.0, 1
    torch.manual_seed(0)
    alone = SSTTrainer.evaluate(cfg, build_model(cfg))
    launch(_train, 2, args=(cfg,))
    line = json.loads(open(f"{cfg.OUTPUT_DIR}/metrics.json").readlines()[-1])
    for name, tasks in alone.items():
        assert line[f"{name}/sem_seg_TTA/mIoU"] == tasks["sem_seg_TTA"]["mIoU"]
