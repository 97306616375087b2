"""Preparing PASCAL-Person-Part from its three kinds of labels: the rule of painting, the colours, what is refused."""

import numpy as np
import pytest
from downloads import contents, label_of, read_list, script, write_labels, write_photo
from PIL import Image

from sst_d2.label_domains import get_label_domain

scipy_io = pytest.importorskip("scipy.io")
pascal = script("prepare_pascal_person_part")
annotations = script("preparation.part_annotations")
FileFault = annotations.FileFault
SIZE = (4, 6)
# Digits are ids: 0 background, 1 head, 2 torso, 3 upper arm, 4 lower arm, 5 upper leg, 6 lower leg.
ALL_PARTS = {
    "head": 1, "hair": 1, "lear": 1, "rear": 1, "leye": 1, "reye": 1, "lebrow": 1, "rebrow": 1, "nose": 1, "mouth": 1,
    "torso": 2, "neck": 2, "luarm": 3, "ruarm": 3, "llarm": 4, "rlarm": 4, "lhand": 4, "rhand": 4,
    "luleg": 5, "ruleg": 5, "llleg": 6, "rlleg": 6, "lfoot": 6, "rfoot": 6,
}  # fmt: skip


def grid(text):
    """A mask or a label map from rows of digits."""
    return np.array([[int(digit) for digit in row] for row in text.split()], np.uint8)


def structs(*records):
    """A MATLAB struct array of one row, as SciPy reads and writes it."""
    array = np.empty((1, len(records)), [(name, object) for name in records[0]])
    for place, record in enumerate(records):
        array[0, place] = tuple(record.values())
    return array


def part(name, mask):
    return {"part_name": name, "mask": grid(mask) if isinstance(mask, str) else mask}


def thing(*parts, name="person", index=15, mask=None):
    whole = np.ones(SIZE, np.uint8) if mask is None else mask
    return {
        "class": name,
        "class_ind": np.array([[index]], np.uint8),
        "mask": whole,
        "parts": structs(*parts) if parts else np.zeros((0, 0)),
    }


def write_mat(path, *things, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = structs(*things) if things else np.zeros((0, 0))
    scipy_io.savemat(path, {"anno": structs({"imname": path.stem, "objects": objects, **fields})}, do_compression=True)
    return str(path)


@pytest.fixture
def domain():
    return get_label_domain("pascal_person_part")


@pytest.fixture
def paint(tmp_path, domain):
    """The label map of an image with these objects."""
    return lambda *things: annotations.read_part_annotation(write_mat(tmp_path / "x.mat", *things), SIZE, domain)[0]


# ------------------------------------------------------------------ the rule


def test_the_last_part_wins_and_the_last_person(paint):
    first = thing(
        part("torso", "011100 011100 011100 000000"),
        part("head", "111000 000000 000000 000000"),
        part("llarm", "000000 000000 001111 000000"),
        part("lhand", "000000 000000 000011 000000"),
    )
    second = thing(part("ruleg", "000000 000000 000001 000001"), part("rfoot", "000000 000000 000000 000001"))
    truth = grid("111200 022200 024445 000006")
    assert np.array_equal(paint(first, second), truth)
    assert np.array_equal(paint(second, first), grid("111200 022200 024444 000006"))


def test_painting_equals_a_plain_loop(paint):
    generator = np.random.default_rng(0)
    things, truth = [], np.zeros(SIZE, int)
    for _ in range(4):
        names = generator.permutation(list(ALL_PARTS))[:5]
        masks = generator.integers(2, size=(5, *SIZE)).astype(np.uint8)
        things.append(thing(*(part(str(name), mask) for name, mask in zip(names, masks))))
        for name, mask in zip(names, masks):
            for row in range(SIZE[0]):
                for column in range(SIZE[1]):
                    if mask[row, column]:
                        truth[row, column] = ALL_PARTS[name]
    assert np.array_equal(paint(*things), truth)


@pytest.mark.parametrize(("name", "identifier"), ALL_PARTS.items())
def test_every_part_has_its_class(paint, name, identifier):
    assert set(np.unique(paint(thing(part(name, "110000 000000 000000 000000"))))) == {0, identifier}


def test_other_objects_and_their_parts_do_not_count(paint):
    horse = thing(
        part("head", "111111 111111 111111 111111"),
        part("tail", "000000 0" + "00000 000000 000000"),
        name="horse",
        index=13,
    )
    person = thing(part("torso", "010000 000000 000000 000000"))
    assert np.array_equal(paint(person, horse), grid("020000 000000 000000 000000"))


def test_a_person_without_parts_is_background(paint):
    assert not paint(thing()).any()
    assert np.array_equal(
        paint(thing(), thing(part("neck", "000001 000000 000000 000000")), thing()), grid("000002 000000 000000 000000")
    )


@pytest.mark.parametrize(
    "mask",
    [
        np.eye(*SIZE, dtype=bool),
        np.eye(*SIZE, dtype=np.uint16) * 65535,
        np.eye(*SIZE) * 1.0,
        np.eye(*SIZE, dtype=np.uint8) * 255,
        np.eye(*SIZE, dtype=np.int8) * -1,
        np.asfortranarray(np.eye(*SIZE, dtype=np.uint8)),
    ],
    ids=["bool", "uint16", "double", "255", "int8", "column order"],
)
def test_masks_of_any_kind(paint, mask):
    assert np.array_equal(paint(thing({"part_name": "Hair", "mask": mask})), np.eye(*SIZE))


def test_sparse_masks_and_cells_of_structs(tmp_path, domain):
    from scipy.sparse import csc_matrix

    cells = np.empty((1, 2), object)
    wrapped = np.empty((1, 1), object)
    wrapped[0, 0] = np.eye(*SIZE, dtype=np.uint8)
    name = np.empty((1, 1), object)
    name[0, 0] = np.array([[" LLarm "]])
    cells[0, 0] = structs(thing({"part_name": name, "mask": wrapped}, name="Person"))
    cells[0, 1] = structs(thing({"part_name": "head", "mask": csc_matrix(np.fliplr(np.eye(*SIZE)))}, index=15.0))
    path = tmp_path / "x.mat"
    scipy_io.savemat(path, {"anno": structs({"imname": "x", "objects": cells})})
    truth = np.where(np.fliplr(np.eye(*SIZE)), 1, np.eye(*SIZE) * 4)
    assert np.array_equal(annotations.read_part_annotation(str(path), SIZE, domain)[0], truth)


def test_files_made_here_are_built_as_real_ones(real_data, tmp_path):
    def shape_of(value):
        if isinstance(value, np.ndarray) and value.dtype.names:
            return (value.ndim, {name: shape_of(value.ravel()[0][name]) for name in value.dtype.names})
        return (value.ndim, value.dtype.kind)

    real = scipy_io.loadmat(real_data / "pascal_part" / "Annotations_Part" / "2008_000652.mat")["anno"]
    made = scipy_io.loadmat(write_mat(tmp_path / "x.mat", thing(part("head", "1"))))["anno"]
    assert shape_of(made) == shape_of(real)


# ------------------------------------------------------------------ what is refused, and doubted


def _with(name, **changes):
    record = {**thing(part("head", "100000 000000 000000 000000")), **changes}
    return [record] if name is None else [{key: value for key, value in record.items() if key != name}]


STRANGE = {
    "unknown part": ([thing(part("tail", "100000 000000 000000 000000"))], "the part 'tail', which is none of .*head"),
    "part without a side": ([thing(part("larm", "100000 000000 000000 000000"))], "the part 'larm'"),
    "mask of several values": (
        [thing(part("head", "120000 000000 000000 000000"))],
        r"holds several values \(\[0, 1, 2\]\)",
    ),
    "mask with NaN": ([thing(part("head", np.full(SIZE, np.nan)))], "holds several values"),
    "mask of text": ([thing(part("head", np.array(["yes"])))], "no matrix of numbers"),
    "masks of two sizes": ([thing(part("head", "10 01"), mask=np.ones((4, 6)))], "differ in size: 2 x 2 and 4 x 6"),
    "masks of another size": ([thing(part("head", "10 01"), mask=np.ones((2, 2)))], "2 x 2 pixels .* 4 x 6"),
    "person with another index": ([thing(index=14)], "class 'person' with the index 14"),
    "no class": (_with("class", class_ind="15"), "'class_ind' is no number"),
    "no parts": (_with("parts"), "no field 'parts'; fields: class, class_ind, mask"),
    "parts of numbers": (_with(None, parts=np.ones((2, 2))), "'parts' is no struct"),
    "name of numbers": ([thing({"part_name": 3.0, "mask": np.ones(SIZE)})], "'part_name' is no text"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_files_are_refused_by_name(tmp_path, domain, kind):
    things, words = STRANGE[kind]
    path = write_mat(tmp_path / "odd.mat", *things)
    with pytest.raises(FileFault, match=words) as error:
        annotations.read_part_annotation(path, SIZE, domain)
    assert str(error.value).startswith(f"{path}: ")


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path, domain):
    path = write_mat(tmp_path / "x.mat", thing(part("head", "100000 000000 000000 000000")))
    truth, refused = annotations.read_part_annotation(path, SIZE, domain)[0], 0
    content = (tmp_path / "x.mat").read_bytes()
    spoiled = [content[:cut] for cut in (0, 1, 60, 127, 140, 200, len(content) - 5)]
    generator = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(content)
        changed[generator.integers(124, len(content))] ^= 1 << generator.integers(8)
        spoiled.append(bytes(changed))
    spoiled += [b"\x89HDF\r\n\x1a\n" + b"\0" * 600, b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\0" * 400]
    for number, wrong in enumerate(spoiled):
        path = tmp_path / f"{number}.mat"
        path.write_bytes(wrong)
        try:  # a changed bit may lie where it means nothing
            assert np.array_equal(annotations.read_part_annotation(str(path), SIZE, domain)[0], truth)
        except FileFault as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
    assert refused > 0.9 * len(spoiled)
    scipy_io.savemat(tmp_path / "other.mat", {"labels": np.zeros(SIZE)})
    for name, words in (("other.mat", "has no variable 'anno'"), ("none.mat", "does not exist")):
        with pytest.raises(FileFault, match=words):
            annotations.read_part_annotation(str(tmp_path / name), SIZE, domain)


def test_an_image_without_persons_is_doubted(tmp_path, domain):
    path = write_mat(tmp_path / "x.mat", thing(part("tail", "1"), name="cat", index=8))
    labels, doubts = annotations.read_part_annotation(path, SIZE, domain)
    assert labels.shape == SIZE and not labels.any()
    assert ["shows no person" in doubt.message for doubt in doubts] == [True]
    labels, doubts = annotations.read_part_annotation(write_mat(tmp_path / "y.mat", imname="z"), SIZE, domain)
    assert [doubt.kind for doubt in doubts] == ["no_person", "other_name"]


# ------------------------------------------------------------------ colours

# Grapy-ML's order: 3 lower arm, 4 upper arm, 5 lower leg, 6 upper leg; the ids are those of the label domain.
COLOURS = {
    (0, 0, 0): 0, (126, 0, 0): 1, (127, 0, 0): 1, (0, 128, 0): 2, (1, 128, 0): 2,
    (126, 126, 1): 4, (0, 0, 128): 3, (126, 1, 128): 6, (0, 128, 128): 5,
}  # fmt: skip


def write_colours(path, colours, mode="RGBA"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.array([[(*color, 255)[: len(mode)] for color in colours]], np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.mark.parametrize("mode", ["RGBA", "RGB"])
def test_colours_become_ids(tmp_path, domain, mode):
    read = script("preparation.colour_labels").read_colour_labels
    labels, doubts = read(write_colours(tmp_path / "x.png", COLOURS, mode), None, domain)
    assert labels.tolist() == [list(COLOURS.values())]
    assert doubts == []


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        ([[(0, 0, 0, 255), (64, 0, 0, 255), (1, 2, 99, 255)]], r"\(1, 2, 99\), \(64, 0, 0\) are in no table"),
        ([[(0, 0, 0, 255), (0, 128, 0, 0)]], "transparent"),
        ([[0, 1]], "mode L"),
    ],
)
def test_other_colours_are_refused_by_value_and_path(tmp_path, domain, pixels, words):
    Image.fromarray(np.array(pixels, np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(FileFault, match=f"x.png: .*{words}"):
        script("preparation.colour_labels").read_colour_labels(str(tmp_path / "x.png"), None, domain)


# ------------------------------------------------------------------ the command

TRAIN, VAL = ["2008_000003", "2008_000008"], ["2008_000023"]


def prepare(download, output, *more):
    return pascal.main([str(download), "--output", str(output), "--workers", "1", *map(str, more)])


@pytest.fixture
def output(tmp_path):
    return tmp_path / "prepared"


@pytest.fixture
def download(tmp_path):
    """Photos as in VOC2010's archive, and lists; the tests add labels."""
    root = tmp_path / "download"
    for name in [*TRAIN, *VAL]:
        write_photo(root / "VOCdevkit" / "VOC2010" / "JPEGImages" / f"{name}.jpg", SIZE)
    (root / "list").mkdir()
    (root / "list" / "train_id.txt").write_text("\n".join(TRAIN))
    (root / "list" / "val_id.txt").write_text("\n".join(VAL))
    return root


def write_mats(folder):
    for name in [*TRAIN, *VAL]:
        write_mat(
            folder / f"{name}.mat",
            thing(part("head", "110000 000000 000000 000000"), part("rlleg", "000000 000000 000000 110000")),
        )
    return grid("110000 000000 000000 660000")


def test_from_annotations(download, output, capsys):
    truth = write_mats(download / "trainval" / "Annotations_Part")
    assert prepare(download, output) == 0
    assert (read_list(output, "train"), read_list(output, "val")) == (TRAIN, VAL)
    for name in [*TRAIN, *VAL]:
        assert np.array_equal(label_of(output, name), truth)
        assert not (output / "labels" / f"{name}.png").is_symlink()
        assert (output / "images" / f"{name}.jpg").is_symlink()
    assert "the published number is 1,716" in capsys.readouterr().out
    assert prepare(download, output) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_from_index_files_and_the_lists_that_come_with_them(download, output):
    """The zip of the index PNGs holds path lists; 255 stays 'ignore'."""
    root = download / "pascal_person_part"
    for name in [*TRAIN, *VAL]:
        write_labels(root / "pascal_person_part_gt" / f"{name}.png", (0, 6, 255, 3), SIZE, palette=True)
    (root / "pascal_person_part_trainval_list").mkdir()
    for split, names in (("train", TRAIN), ("val", VAL)):
        (download / "list" / f"{split}_id.txt").unlink()
        lines = [f"/JPEGImages/{name}.jpg /pascal_person_part_gt/{name}.png\n" for name in names]
        (root / "pascal_person_part_trainval_list" / f"{split}.txt").write_text("".join(lines))
    (download / "VOCdevkit" / "VOC2010" / "ImageSets" / "Segmentation").mkdir(parents=True)
    (download / "VOCdevkit" / "VOC2010" / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000032\n")
    assert prepare(download, output) == 0
    assert (read_list(output, "train"), read_list(output, "val")) == (TRAIN, VAL)
    assert label_of(output, VAL[0])[:, 0].tolist() == [0, 6, 255, 3]


def test_from_colour_files(download, output):
    for name in [*TRAIN, *VAL]:
        pixels = np.zeros((*SIZE, 4), np.uint8) + np.array([126, 126, 1, 255], np.uint8)
        (download / "pascal" / "SegmentationPart").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(download / "pascal" / "SegmentationPart" / f"{name}.png")
    assert prepare(download, output) == 0
    assert (label_of(output, VAL[0]) == 4).all()


def test_colours_of_the_voc_palette_itself_need_a_word(download, output, capsys):
    for name in [*TRAIN, *VAL]:
        pixels = np.zeros((*SIZE, 3), np.uint8) + np.array([128, 128, 0], np.uint8)
        (download / "SegmentationPart").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(download / "SegmentationPart" / f"{name}.png")
    assert prepare(download, output) == 1
    assert "the order of arms and legs is not certain" in capsys.readouterr().err
    assert prepare(download, output, "--labels-from", "grapy-colours") == 0
    assert (label_of(output, VAL[0]) == 4).all()


def test_several_labels_need_a_choice(download, output, capsys):
    truth = write_mats(download / "Annotations_Part")
    for name in [*TRAIN, *VAL]:
        write_labels(download / "pascal_person_part_gt" / f"{name}.png", (1,), SIZE)
    assert prepare(download, output) == 1
    error = capsys.readouterr().err
    assert "--labels-from" in error and "(mat)" in error and "(index)" in error
    assert prepare(download, output, "--labels-from", "mat") == 0
    assert np.array_equal(label_of(output, VAL[0]), truth)
    assert prepare(download, output, "--labels-from", "index") == 1  # another source: --force
    assert prepare(download, output, "--labels", download / "pascal_person_part_gt", "--force") == 0
    assert (label_of(output, VAL[0]) == 1).all()


def test_bad_annotations_are_named_by_their_own_path(download, output, capsys):
    write_mats(download / "Annotations_Part")
    bad = download / "Annotations_Part" / f"{TRAIN[0]}.mat"
    write_mat(bad, thing(part("tail", "110000 000000 000000 000000")))
    write_photo(download / "VOCdevkit" / "VOC2010" / "JPEGImages" / f"{TRAIN[1]}.jpg", (5, 6))
    for more in ([], ["--check-only"]):
        assert prepare(download, output, *more) == 1
        error = capsys.readouterr().err
        assert f"error: {bad}: a person has the part 'tail'" in error
        assert f"error: {bad.with_stem(TRAIN[1])}: its masks have 4 x 6 pixels" in error
    assert not list(output.rglob(f"{TRAIN[0]}.*"))


def test_check_only_reads_annotations_and_writes_nothing(download, output, capsys):
    write_mats(download / "Annotations_Part")
    before = contents(download)
    assert prepare(download, output, "--check-only") == 0
    assert "head 8.3%" in capsys.readouterr().out
    assert contents(download) == before
    assert not output.exists()


def test_listed_images_without_persons_stay_and_are_told(download, output, capsys):
    write_mats(download / "Annotations_Part")
    write_mat(download / "Annotations_Part" / f"{VAL[0]}.mat", thing(name="cow", index=10))
    assert prepare(download, output) == 0
    assert f"{VAL[0]}.mat: shows no person" in capsys.readouterr().err
    assert not label_of(output, VAL[0]).any()


def test_without_lists_the_remedy_is_named(download, output, tmp_path, capsys):
    write_mats(download / "Annotations_Part")
    for split in ("train", "val"):
        (download / "list" / f"{split}_id.txt").rename(tmp_path / f"{split}.txt")
    assert prepare(download, output) == 1
    error = capsys.readouterr().err
    assert "--train-ids FILE --val-ids FILE" in error and "1,716" in error and "1,817" in error
    assert prepare(download, output, "--train-ids", tmp_path / "train.txt", "--val-ids", tmp_path / "val.txt") == 0
    assert read_list(output, "train") == TRAIN


def test_photos_elsewhere(download, output, tmp_path, capsys):
    write_mats(download / "Annotations_Part")
    (download / "VOCdevkit").rename(tmp_path / "elsewhere")
    assert prepare(download, output) == 1
    assert "--images DIR" in capsys.readouterr().err
    assert prepare(download, output, "--images", tmp_path / "elsewhere" / "VOC2010" / "JPEGImages") == 0


def test_of_several_years_voc2010_counts(download, output):
    write_mats(download / "Annotations_Part")
    (download / "VOCdevkit" / "VOC2012" / "JPEGImages").mkdir(parents=True)
    assert prepare(download, output) == 0
    assert "VOC2010" in str((output / "images" / f"{VAL[0]}.jpg").resolve())


def test_nothing_there_says_what_was_looked_for(download, output, capsys):
    assert prepare(download, output) == 1
    error = capsys.readouterr().err
    assert "Annotations_Part" in error and "VOCdevkit" in error


def test_the_list_of_grapy_ml_is_not_the_canonical_one(capsys):
    report = script("preparation.report")
    text = report._published(pascal.PASCAL, "val", 1831, 1831)
    assert "the published number is 1,817" in text and "Grapy-ML's list" in text
    assert report._published(pascal.PASCAL, "val", 1817, 1817) == ", as published"


# ------------------------------------------------------------------ real data


@pytest.mark.parametrize(
    ("name", "more", "count"),
    [
        ("pascal_part", [], 5),
        ("pascal_person_part", ["--labels-from", "grapy-colours"], 5),
        ("pascal_person_part", ["--labels-from", "index"], 18),
    ],
)
def test_real_labels_agree_with_the_index_files(real_data, tmp_path, output, name, more, count):
    before = contents(real_data / name)
    photos = (real_data / name / "JPEGImages").iterdir()
    (tmp_path / "ids.txt").write_text("\n".join(path.stem for path in photos))
    assert prepare(real_data / name, output, "--train-ids", tmp_path / "ids.txt", "--skip-bad", *more) == 0
    written = {path.name: np.array(Image.open(path)) for path in (output / "labels").iterdir()}
    truth = {
        path.name: np.array(Image.open(path))
        for path in (real_data / "pascal_person_part" / "pascal_person_part_gt").iterdir()
    }
    compared = sorted(set(written) & set(truth))
    assert len(compared) == count
    assert [file for file in compared if not np.array_equal(written[file], truth[file])] == []
    assert contents(real_data / name) == before


def test_every_real_annotation_is_read(real_data, domain):
    for path in sorted((real_data / "pascal_part" / "Annotations_Part").iterdir()):
        with Image.open(real_data / "pascal_part" / "JPEGImages" / f"{path.stem}.jpg") as photo:
            labels, doubts = annotations.read_part_annotation(str(path), photo.size[::-1], domain)
        assert labels.shape == photo.size[::-1]
        assert labels.any() != any(doubt.kind == "no_person" for doubt in doubts)
