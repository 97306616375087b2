"""`SSTPredictor`: photos of any kind and size in, label maps of the network in them out."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import DOMAINS, tiny_cfg
from detectron2.modeling import build_model
from PIL import Image

from sst_d2 import Prediction, SSTPredictor, SSTWithTTA
from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.config import inference_config
from sst_d2.data import SSTDatasetMapper
from sst_d2.errors import SSTConfigError, SSTDataError, SSTNumericError
from sst_d2.inference import predictor as module

SIZES = [(40, 33), (64, 64), (33, 60), (70, 20), (50, 50), (64, 40), (1, 5)]


def photo(height=40, width=33, seed=0):
    """Coarse patches, so that there are regions."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(256, size=(-(-height // 8), -(-width // 8), 3))
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a training, with its branch; heads that tell random features apart."""
    cfg = tiny_cfg()
    torch.manual_seed(0)
    model = build_model(cfg)
    for head in model.heads.values():
        torch.nn.init.normal_(head.weight)
    folder = tmp_path_factory.mktemp("training")
    SSTCheckpointer(model, str(folder), config=cfg.dump()).save("model_final")
    return str(folder / "model_final.pth")


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return SSTPredictor(checkpoint)


@pytest.fixture(scope="module")
def network(checkpoint):
    """The same network, built and loaded by hand."""
    model = build_model(inference_config(tiny_cfg())).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"], strict=False)
    return model


def logits_by_hand(network, image, **keys):
    """Of one photo, RGB."""
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    sample = {"image": tensor, "height": image.shape[0], "width": image.shape[1], **keys}
    with torch.no_grad():
        return network([sample])[0]["sem_seg"]


def assert_same(prediction, logits):
    """Labels and logits are these; where two logits are equal within rounding, either label."""
    np.testing.assert_allclose(prediction.logits(), logits.numpy(), atol=1e-4)
    highest = logits.topk(2, dim=0).values
    clear = (highest[0] - highest[1] > 1e-3).numpy()
    assert clear.mean() > 0.95
    assert np.array_equal(prediction.labels[clear], logits.argmax(0).numpy()[clear])


@pytest.mark.parametrize("name", DOMAINS)
@pytest.mark.parametrize("size", SIZES)
def test_labels_are_the_arg_max_of_the_networks_logits_at_the_photos_size(predictor, network, name, size):
    image = photo(*size)
    prediction = predictor(image, domain=name)
    assert isinstance(prediction, Prediction) and prediction.domain == predictor.domains[name]
    assert prediction.labels.shape == size and prediction.labels.dtype == np.uint8
    assert np.array_equal(prediction.image, image)
    assert_same(prediction, logits_by_hand(network, image, label_domain=name))


def test_the_tests_network_sees_several_classes(predictor):
    assert all(len(np.unique(p.labels)) > 3 for p in predictor(photo(64, 64), "all").values())


def test_all_label_domains_come_from_one_pass_through_the_trunk(predictor, monkeypatch):
    calls = []
    hook = predictor.model.decoder.register_forward_hook(lambda *_: calls.append(1))
    together = predictor(photo(), "all")
    hook.remove()
    assert list(together) == list(predictor.domains) == list(DOMAINS) and len(calls) == 1
    for name, prediction in together.items():
        assert prediction.domain.name == name
        assert np.array_equal(prediction.labels, predictor(photo(), name).labels)
    assert np.array_equal(predictor(photo()).labels, together[predictor.default_domain].labels)


def test_an_unknown_label_domain_is_refused_with_the_known_ones(predictor):
    for wrong in ("lip", "", 3, ["atr"]):
        with pytest.raises(SSTConfigError, match="the network knows pascal_person_part, atr, cihp, and 'all'"):
            predictor(photo(), wrong)


def test_all_ways_to_give_a_photo_give_the_same(predictor, tmp_path):
    image = photo()
    Image.fromarray(image).save(tmp_path / "x.png")
    expected = predictor(image).labels
    ways = [str(tmp_path / "x.png"), tmp_path / "x.png", Image.fromarray(image), Image.open(tmp_path / "x.png")]
    for way in [*ways, [image], (image,)]:
        answer = predictor(way)
        answer = answer[0] if isinstance(way, (list, tuple)) else answer
        assert np.array_equal(answer.labels, expected)
    assert np.array_equal(predictor(image[:, :, ::-1], channel_order="BGR").labels, expected)
    assert not np.array_equal(predictor(image, channel_order="BGR").labels, expected)
    for grey in (image[:, :, 1], Image.fromarray(image[:, :, 1])):
        assert np.array_equal(predictor(grey).labels, predictor(np.stack([image[:, :, 1]] * 3, 2)).labels)


def test_a_turned_photo_has_an_upright_label_map(predictor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(photo())).save(tmp_path / "x.png", exif=exif)
    prediction = predictor(tmp_path / "x.png")
    assert np.array_equal(prediction.image, photo()) and prediction.labels.shape == (40, 33)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_a_list_of_mixed_sizes_gives_what_each_gives_alone_in_its_order(checkpoint, network, batch_size):
    predictor = SSTPredictor(checkpoint, batch_size=batch_size)
    images = [photo(*size, seed=seed) for seed, size in enumerate(SIZES * 2)]
    batches = []
    hook = predictor.model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    answers = predictor(images, "atr")
    hook.remove()
    assert sum(batches) == len(images) and max(batches) == min(batch_size, 10)  # 10 are padded to 64 x 64
    for image, answer in zip(images, answers, strict=True):
        assert_same(answer, logits_by_hand(network, image, label_domain="atr"))


def test_of_a_list_with_all_label_domains_each_photo_gives_a_dict(checkpoint):
    answers = SSTPredictor(checkpoint, batch_size=2)([photo(), photo(50, 40)], "all")
    assert [[p.labels.shape for p in answer.values()] for answer in answers] == [[(40, 33)] * 3, [(50, 40)] * 3]


def test_an_empty_list_gives_an_empty_list(predictor):
    assert predictor([]) == [] == predictor(())
    with pytest.raises(SSTConfigError, match="the network knows"):
        predictor([], "lip")


def test_what_is_wrong_in_a_list_is_named_by_its_place_or_path(predictor, tmp_path):
    with pytest.raises(SSTDataError, match="^image 1 of the list: an array of shape"):
        predictor([photo(), photo() / 255])
    with pytest.raises(SSTDataError, match=r"absent\.jpg: the image does not exist"):
        predictor([photo(), tmp_path / "absent.jpg"])


@pytest.mark.parametrize(("shortest", "longest"), [(48, 1333), (100, 90), (20, 1000)])
def test_a_network_that_sees_resized_photos_gets_them_as_in_evaluation(
    checkpoint, network, shortest, longest, tmp_path
):
    edges = ("INPUT.MIN_SIZE_TEST", shortest, "INPUT.MAX_SIZE_TEST", longest)
    predictor = SSTPredictor(checkpoint, opts=edges)
    cfg = tiny_cfg()
    cfg.merge_from_list(edges)
    mapper = SSTDatasetMapper(cfg, is_train=False)
    for size in ((40, 33), (33, 60), (64, 64), (7, 50)):
        path = str(tmp_path / "x.png")
        Image.fromarray(photo(*size)).save(path)
        with torch.no_grad():
            logits = network([mapper({"file_name": path, "label_domain": "cihp"})])[0]["sem_seg"]
        assert logits.shape[1:] == size
        assert_same(predictor(path, "cihp"), logits)


def test_a_very_thin_photo_is_seen_one_pixel_wide_and_sizes_that_nothing_is_left_of_are_refused(checkpoint):
    thin = photo(300, 2)
    edges = ["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 64]
    assert SSTPredictor(checkpoint, opts=edges)(thin).labels.shape == (300, 2)
    for key, value in (("MIN_SIZE_TEST", -5), ("MAX_SIZE_TEST", 0)):
        with pytest.raises(SSTConfigError, match=f"^INPUT.{key}: {value}; allowed: a whole number of pixels from"):
            SSTPredictor(checkpoint, opts=["INPUT.MIN_SIZE_TEST", 64, f"INPUT.{key}", value])


def test_a_network_of_blue_green_red_gets_its_order(checkpoint, predictor):
    other = SSTPredictor(checkpoint, opts=["INPUT.FORMAT", "BGR"])
    image = photo()
    assert np.array_equal(other(image[:, :, ::-1]).labels, predictor(image).labels)
    assert np.array_equal(other(image, channel_order="BGR").image, image[:, :, ::-1])


def test_photos_of_too_many_pixels_are_refused_by_a_limit_that_may_be_set(checkpoint, predictor):
    assert predictor.max_pixels == 50_000_000
    for limited in (
        SSTPredictor(checkpoint, max_pixels=1000),
        SSTPredictor(checkpoint, opts=["TEST.SST.MAX_PIXELS", 1000]),
    ):
        assert limited(photo(25, 40)).labels.shape == (25, 40)
        with pytest.raises(SSTDataError, match="the image: 26 x 40 pixels.*TEST.SST.MAX_PIXELS 1000 allows"):
            limited(photo(26, 40))
    for wrong in (0, -1, 1.5, "many"):
        with pytest.raises(SSTConfigError, match="max_pixels: .*a whole number from 1 on"):
            SSTPredictor(checkpoint, max_pixels=wrong)
        with pytest.raises(SSTConfigError, match="batch_size: .*a whole number from 1 on"):
            SSTPredictor(checkpoint, batch_size=wrong)


def test_of_very_large_photos_it_says_once_how_the_network_sees_less(checkpoint, monkeypatch, caplog):
    monkeypatch.setattr(module, "_MANY_PIXELS", 1000)
    for opts, times in (([], 1), (["INPUT.MIN_SIZE_TEST", 20], 0)):
        predictor = SSTPredictor(checkpoint, opts=opts)
        caplog.clear()
        predictor([photo(10, 10), photo(40, 33), photo(64, 64)])
        assert caplog.text.count("INPUT.MIN_SIZE_TEST 512 lets it see less") == times


@pytest.mark.parametrize("how", [{"tta": True}, {"opts": ["TEST.AUG.ENABLED", True]}])
def test_test_time_augmentation_comes_on_request(checkpoint, network, how):
    small = ["TEST.SST.SCALES", [0.5, 1.0], *how.get("opts", [])]
    predictor = SSTPredictor(checkpoint, batch_size=2, **{**how, "opts": small})
    augmented = SSTWithTTA(network, scales=[0.5, 1.0])
    # The first two are padded to the same size, their halves are not.
    images = [photo(65, 40), photo(96, 40), photo(65, 40, seed=1)]
    answers = predictor(images, "all")
    for image, answer in zip(images, answers, strict=True):
        for name, prediction in answer.items():
            assert_same(prediction, logits_by_hand(augmented, image, label_domain=name))
    assert np.array_equal(predictor(images[0], "atr").labels, answers[0]["atr"].labels)
    assert not np.allclose(answers[0]["atr"].logits(), SSTPredictor(checkpoint)(images[0], "atr").logits(), atol=1e-3)
    plain = SSTPredictor(checkpoint, tta=False, opts=small)
    assert plain(images[0], "atr").coarse_logits.shape == (18, 24, 16)


def test_nothing_outside_changes_and_no_gradients_are_kept(checkpoint):
    torch.manual_seed(3)
    np.random.seed(3)

    def outside():
        state = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]
        return [*state, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()]

    before = outside()
    predictor = SSTPredictor(checkpoint, opts=["INPUT.MIN_SIZE_TEST", 48])
    predictor(photo())
    assert outside() == before
    assert not any(module.training for module in predictor.model.modules())
    assert not any(name.startswith("auxiliary") for name, _ in predictor.model.named_modules())


def test_it_may_be_called_from_several_threads(predictor):
    images = [photo(*size, seed=seed) for seed, size in enumerate(SIZES * 3)]
    expected = [predictor(image, "all") for image in images]
    barrier = threading.Barrier(4)

    def work(start):
        barrier.wait()
        return {place: predictor(images[place], "all") for place in range(start, len(images), 4)}

    with ThreadPoolExecutor(4) as pool:
        answers = {place: answer for part in pool.map(work, range(4)) for place, answer in part.items()}
    for place, answer in answers.items():
        for name, prediction in answer.items():
            assert np.array_equal(prediction.labels, expected[place][name].labels)


def test_predictions_of_a_kept_array_stay_when_the_array_changes(predictor):
    frame = photo()
    prediction = predictor(frame)
    frame[:] = 0
    assert np.array_equal(prediction.image, photo())


def test_a_network_of_damaged_weights_does_not_answer(checkpoint):
    predictor = SSTPredictor(checkpoint)
    with torch.no_grad():
        predictor.model.heads["atr"].bias[3] = float("nan")
    assert predictor(photo(), "cihp").labels.any()
    for domain in ("atr", "all"):
        with pytest.raises(SSTNumericError, match="'atr': the network answers with infinite numbers or NaN"):
            predictor(photo(), domain)


@pytest.mark.parametrize(
    "reason",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_too_little_memory_is_a_sentence_with_the_remedy(checkpoint, reason, monkeypatch):
    predictor = SSTPredictor(checkpoint)

    def fail(_):
        raise reason

    monkeypatch.setattr(predictor.model, "forward", fail)
    with pytest.raises(SSTDataError, match=r"40 x 33 pixels.*memory of cpu does not suffice.*INPUT\.MIN_SIZE_TEST 512"):
        predictor(photo())
    reason = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        predictor(photo())
