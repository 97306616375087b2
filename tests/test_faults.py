"""One table of bad and unusual input. Training, evaluation and checker agree on each row: right, or refused by name.

A row that is right is compared with the truth, pixel by pixel; a row that is not must give the sentence, with the path
of the file, in all three.
"""

import importlib
from dataclasses import dataclass

import bad_input as bad
import numpy as np
import pytest
import torch
from bad_input import LABELS, PHOTO, Pair
from conftest import ROOT
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sst_d2.data import SSTDatasetMapper, build_sst_train_loader
from sst_d2.data.inspection import KINDS, inspect_sample
from sst_d2.errors import SSTDataError
from sst_d2.evaluation import SSTSemSegEvaluator
from sst_d2.label_domains import get_label_domain

ATR = get_label_domain("atr")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture
def pair(tmp_path):
    made = Pair(tmp_path / "photo.png", tmp_path / "labels.png", {}, PHOTO.copy(), LABELS.copy())
    made.keys["sem_seg_file_name"] = str(made.labels)
    made.save_photo(Image.fromarray(PHOTO))
    made.save_labels(Image.fromarray(LABELS))
    return made


@dataclass(frozen=True)
class Row:
    """What is done; the sentence that refuses it (None: it is right); the file that the sentence names; the kind."""

    change: object
    says: str | None = None
    names: str = "photo"
    kind: str | None = None
    warns: str | None = None  # the kind of the checker's warning of something that is right
    tolerance: int = 0  # of the photo's values, where the format is lossy


EMPTY = "is no image file that Pillow can open, or an empty one"
CUT_PHOTO, CUT_LABELS = "the image cannot be read, it may be damaged", "the label map cannot be read, it may be damaged"
MODE = "a label map of mode {}; allowed are one-channel 8-bit images"
TABLE = {
    # The thirteen kinds.
    "truncated image": Row(bad.jpeg(bad.cut("photo", 0.5)), CUT_PHOTO, kind="damaged"),
    "empty image": Row(bad.with_bytes("photo", b""), EMPTY, kind="damaged"),
    "missing image": Row(bad.absent("photo"), "the image does not exist", kind="missing_image"),
    "missing label": Row(bad.absent("labels"), "the label map does not exist", "labels", "missing_label"),
    "missing key": Row(bad.key(sem_seg_file_name=...), "no label map is named", "photo", "missing_key"),
    "P label": Row(bad.palette_labels()),
    "I;16 label": Row(bad.labels_16_bit, MODE.format("I;16"), "labels", "wrong_mode"),
    "RGB label": Row(bad.labels_as("RGB"), MODE.format("RGB"), "labels", "wrong_mode"),
    "RGBA label": Row(bad.labels_as("RGBA"), MODE.format("RGBA"), "labels", "wrong_mode"),
    "CMYK photo": Row(bad.jpeg(mode="CMYK"), tolerance=12),
    "grey photo": Row(bad.photo("png", "L", truth=bad.grey)),
    "EXIF-rotated photo": Row(bad.turned(6)),
    "size mismatch": Row(
        bad.other_size, r"40 x 47 pixels \(height x width\) and its image 40 x 48", "labels", "size_mismatch"
    ),
    # Photos, further.
    "as it should be": Row(lambda pair: None),
    "JPEG": Row(bad.jpeg(), tolerance=12),
    "grey JPEG": Row(bad.jpeg(mode="L"), tolerance=12),
    "JPEG without its end": Row(bad.jpeg(bad.without_end("photo", 2)), CUT_PHOTO, kind="damaged"),
    "JPEG with something behind its end": Row(bad.jpeg(bad.with_tail("photo")), tolerance=12),
    "JPEG, header only": Row(bad.jpeg(bad.cut("photo", 0.2)), CUT_PHOTO, kind="damaged"),
    "truncated PNG photo": Row(bad.cut("photo", 0.5), CUT_PHOTO, kind="damaged"),
    "altered PNG photo": Row(bad.altered("photo", 40), CUT_PHOTO, kind="damaged"),
    "text for a photo": Row(bad.with_bytes("photo", b"<html>404</html>"), "is no image file", kind="damaged"),
    "a folder for a photo": Row(bad.folder("photo"), CUT_PHOTO, kind="damaged"),
    "photo of no pixels": Row(
        bad.with_bytes("photo", bad.chunked_png(0, 40, 8, b"")), "is no image file", kind="damaged"
    ),
    "PNG photo of a header alone": Row(
        bad.with_bytes("photo", bad.chunked_png(48, 40, 8, None)), CUT_PHOTO, kind="damaged"
    ),
    "palette photo without its palette": Row(
        bad.palette_photo_without_palette, "a palette image without its palette", kind="damaged"
    ),
    "16-bit photo": Row(bad.photo_16_bit, "more than 8 bits per channel", kind="wrong_mode"),
    "RGBA photo, opaque": Row(bad.photo("png", "RGBA")),
    "RGBA photo, transparent": Row(bad.transparent_photo, warns="transparent"),
    "LA photo": Row(bad.photo("png", "LA", truth=bad.grey)),
    "palette photo": Row(bad.photo("png", "P", truth=lambda picture: np.asarray(picture.convert("RGB")))),
    "1-bit photo": Row(bad.photo("png", "1", truth=bad.grey)),
    "GIF photo": Row(bad.photo("gif", "P", truth=lambda picture: np.asarray(picture.convert("RGB")))),
    "WebP photo": Row(bad.photo("webp", lossless=True)),
    "TIFF photo": Row(bad.photo("tif")),
    "BMP photo": Row(bad.photo("bmp")),
    "animated photo": Row(bad.animated_photo, warns="frames"),
    "photo with a preview": Row(bad.photo_with_preview, tolerance=12),
    "photo turned upside down by EXIF": Row(bad.turned(3), warns="exif"),
    "EXIF-rotated photo, labels as stored": Row(
        bad.turned(6, labels_as_stored=True),
        r"its image 48 x 40.*EXIF tag of .*photo\.png turns.*turn the label map", "labels", "size_mismatch",
    ),
    # Label maps, further.
    "truncated label": Row(bad.cut("labels", 0.5), CUT_LABELS, "labels", "damaged"),
    "label cut in its last data": Row(bad.without_end("labels", 15), CUT_LABELS, "labels", "damaged"),
    "label without its end": Row(bad.without_end("labels", 12), CUT_LABELS, "labels", "damaged"),
    "label with one bit altered": Row(bad.altered("labels", 30), CUT_LABELS, "labels", "damaged"),
    "label with something behind its end": Row(bad.with_tail("labels")),
    "empty label": Row(bad.with_bytes("labels", b""), EMPTY, "labels", "damaged"),
    "a folder for a label": Row(bad.folder("labels"), CUT_LABELS, "labels", "damaged"),
    "label of no pixels": Row(
        bad.with_bytes("labels", bad.chunked_png(0, 40, 8, b"")), "is no image file", "labels", "damaged"
    ),
    "label of a header alone": Row(
        bad.with_bytes("labels", bad.chunked_png(48, 40, 8, None)), CUT_LABELS, "labels", "damaged"
    ),
    "key without a value": Row(bad.key(sem_seg_file_name=None), "no label map is named", "photo", "missing_key"),
    "1-bit label": Row(bad.labels_as("1"), MODE.format("1"), "labels", "wrong_mode"),
    "LA label": Row(bad.labels_as("LA"), MODE.format("LA"), "labels", "wrong_mode"),
    "4-bit grey label": Row(
        bad.with_bytes("labels", bad.chunked_png(48, 40, 4, (b"\0" + b"\x12" * 24) * 40)),
        "fewer than 8 bits", "labels", "wrong_mode",
    ),
    "P label of 4 bits": Row(bad.palette_labels(bits=4)),
    "P label of 2 bits": Row(bad.palette_labels(bits=2)),
    "P label of 1 bit": Row(bad.palette_labels(bits=1)),
    "grey label with a transparent id": Row(bad.labels_as(transparency=5)),
    "P label with transparent ids": Row(bad.palette_labels(transparency=bytes([0] + [255] * 255))),
    "animated label": Row(bad.animated_labels, "an animated PNG", "labels", "wrong_format"),
    "label with an EXIF tag": Row(bad.turned_labels, "a label map with an EXIF tag", "labels", "wrong_format"),
    "JPEG label": Row(bad.labels_as(format="JPEG"), "in the format JPEG; PNG is allowed", "labels", "wrong_format"),
    "BMP label": Row(bad.labels_as(format="BMP"), "in the format BMP; PNG is allowed", "labels", "wrong_format"),
    "id out of range": Row(bad.strange_id, r"the ids \[18\] do not belong to label domain 'atr'", "labels", "ids"),
}  # fmt: skip


# ------------------------------------------------------------------ the three readers


def train(sample, domain=ATR):
    """What the training loader gives, without augmentation: (photo, labels)."""
    mapper = SSTDatasetMapper(True, domains=[domain], augmentations=[])
    loader = build_sst_train_loader([sample], mapper=mapper, domains=[domain.name], total_batch_size=1)
    (mapped,) = next(iter(loader))
    return mapped["image"].permute(1, 2, 0).numpy(), mapped["sem_seg"].numpy()


def evaluate(sample, name, answer, domain=ATR):
    """The photo as the model meets it, and the scores of a model that gives ``answer``."""
    mapped = SSTDatasetMapper(False, domains=[domain], augmentations=[])(sample)
    evaluator = SSTSemSegEvaluator(name, distributed=False)
    ids = np.where(answer == domain.ignore_label, 0, answer).astype(np.int64)
    logits = torch.nn.functional.one_hot(torch.from_numpy(ids), domain.num_classes).permute(2, 0, 1).float()
    whole = torch.zeros(domain.num_classes, mapped["height"], mapped["width"])
    if whole.shape == logits.shape:
        whole = logits
    evaluator.process([mapped], [{"sem_seg": whole}])
    return mapped["image"].permute(1, 2, 0).numpy(), evaluator.evaluate()["sem_seg"]


@pytest.fixture
def register():
    """Makes a sample a data set, and gives its name."""

    def make(sample, domain=ATR):
        DatasetCatalog.register("faults", lambda: [sample])
        MetadataCatalog.get("faults").set(label_domain=domain.name)
        return "faults"

    return make


@pytest.fixture(scope="module")
def checker():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "datasets"))
        yield importlib.import_module("check_dataset")


def same_photo(found, expected, tolerance):
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= tolerance


@pytest.fixture(params=TABLE, ids=lambda name: name.replace(" ", "-"))
def row(request):
    return TABLE[request.param]


def test_training_reads_it_right_or_refuses_it_by_name(row, pair):
    row.change(pair)
    if row.says is None:
        image, labels = train(pair.sample())
        assert same_photo(image, pair.true_photo, row.tolerance) and np.array_equal(labels, pair.true_labels)
    else:
        with pytest.raises(SSTDataError, match=f"^{getattr(pair, row.names)}: .*{row.says}"):
            train(pair.sample())


def test_evaluation_reads_it_right_or_refuses_it_by_name(row, pair, register):
    row.change(pair)
    name = register(pair.sample())
    if row.says is None:
        image, scores = evaluate(pair.sample(), name, pair.true_labels)
        assert same_photo(image, pair.true_photo, row.tolerance) and scores["mIoU"] == scores["pACC"] == 100
        wrong = (pair.true_labels + 1) % 2  # labels that were not read would not matter
        assert evaluate(pair.sample(), name, wrong)[1]["pACC"] < 60
    else:
        with pytest.raises(SSTDataError, match=f"{getattr(pair, row.names)}: .*{row.says}"):
            evaluate(pair.sample(), name, pair.true_labels)


def test_the_checker_reads_it_right_or_names_it(row, pair, register, checker, capsys):
    row.change(pair)
    status = checker.main([register(pair.sample()), "--workers", "1"])
    lines = capsys.readouterr().out.splitlines()
    inspection = inspect_sample(pair.sample(), ATR)
    if row.says is None:
        assert status == 0 and not [line for line in lines if line.startswith("error")]
        assert [finding.kind for finding in inspection.findings] == ([row.warns] if row.warns else [])
        assert inspection.pixels.tolist() == [int((pair.true_labels == i).sum()) for i in range(256)]
    else:
        (finding,) = inspection.findings
        path = str(getattr(pair, row.names))
        assert (finding.severity, finding.kind, finding.path) == ("error", row.kind, path)
        assert status == 1 and f"error  {row.kind}  {path}: {finding.message}" in lines
    assert {finding.kind for finding in inspection.findings} <= set(KINDS)


def test_the_table_covers_the_thirteen_kinds_and_every_kind_that_one_sample_can_have():
    of_sets = {"card", "listed_twice", "two_splits", "unlisted", "order", "left_right", "unlabelled"}
    of_preparation = {"two_files", "no_person", "other_name"}
    per_sample = set(KINDS) - of_sets - of_preparation
    assert {row.kind or row.warns for row in TABLE.values()} - {None} == per_sample


# ------------------------------------------------------------------ ids


@pytest.mark.parametrize("name", ["atr", "cihp", "lip", "pascal_person_part"])
def test_every_single_wrong_pixel_is_reported_by_all_three(name, tmp_path, register):
    domain = get_label_domain(name)
    generator = np.random.default_rng(1)
    Image.fromarray(PHOTO[:9, :11]).save(tmp_path / "photo.png")
    path = tmp_path / "labels.png"
    sample = {"file_name": str(tmp_path / "photo.png"), "sem_seg_file_name": str(path), "label_domain": name}
    data_set = register(sample, domain)
    for value in range(256):
        labels = generator.integers(domain.num_classes, size=(9, 11)).astype(np.uint8)
        labels[generator.integers(9), generator.integers(11)] = value
        Image.fromarray(labels).save(path)
        findings = inspect_sample(sample, domain).findings
        if value < domain.num_classes or value == domain.ignore_label:
            assert not findings and np.array_equal(train(sample, domain)[1], labels)
            assert evaluate(sample, data_set, labels, domain)[1]["pACC"] == 100
            continue
        sentence = rf"{path}: the ids \[{value}\] do not belong to label domain '{name}'"
        assert [(finding.kind, finding.path) for finding in findings] == [("ids", str(path))]
        with pytest.raises(SSTDataError, match=sentence):
            train(sample, domain)
        with pytest.raises(SSTDataError, match=sentence):
            evaluate(sample, data_set, labels % domain.num_classes, domain)
