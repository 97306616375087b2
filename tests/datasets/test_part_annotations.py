"""PASCAL-Part's annotations as label maps: the rule of painting, what is refused, what is doubted."""

import numpy as np
import pytest
from downloads import script
from mat_files import SIZE, grid, part, scipy_io, structs, thing, write_mat
from PIL import Image

from sst_d2.label_domains import get_label_domain

annotations = script("preparation.part_annotations")
FileFault = annotations.FileFault
# Digits are ids: 0 background, 1 head, 2 torso, 3 upper arm, 4 lower arm, 5 upper leg, 6 lower leg.
ALL_PARTS = {
    "head": 1, "hair": 1, "lear": 1, "rear": 1, "leye": 1, "reye": 1, "lebrow": 1, "rebrow": 1, "nose": 1, "mouth": 1,
    "torso": 2, "neck": 2, "luarm": 3, "ruarm": 3, "llarm": 4, "rlarm": 4, "lhand": 4, "rhand": 4,
    "luleg": 5, "ruleg": 5, "llleg": 6, "rlleg": 6, "lfoot": 6, "rfoot": 6,
}  # fmt: skip


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
            assert str(error).count(str(path)) == 1
            refused += 1
    assert refused > 0.9 * len(spoiled)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("cut.mat", "damaged", "the annotation cannot be read, it may be damaged or cut off"),
        ("empty.mat", "damaged", "the annotation cannot be read"),
        ("7.3.mat", "wrong_format", "a MATLAB 7.3 file; save it in MATLAB with the option -v7"),
        ("other.mat", "wrong_format", "has no variable 'anno'"),
        ("two.mat", "wrong_format", "'anno' holds 2 structs; one is expected"),
        ("none.mat", "missing_label", "the annotation does not exist"),
    ],
)
def test_a_fault_has_its_kind_and_names_the_file_once(tmp_path, domain, name, kind, words):
    write_mat(tmp_path / "cut.mat", thing(part("head", "100000 000000 000000 000000")))
    (tmp_path / "cut.mat").write_bytes((tmp_path / "cut.mat").read_bytes()[:200])
    (tmp_path / "empty.mat").write_bytes(b"")
    (tmp_path / "7.3.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\0" * 400)
    scipy_io.savemat(tmp_path / "other.mat", {"labels": np.zeros(SIZE)})
    scipy_io.savemat(tmp_path / "two.mat", {"anno": structs({"imname": "a"}, {"imname": "b"})})
    path = str(tmp_path / name)
    with pytest.raises(FileFault) as error:
        annotations.read_part_annotation(path, SIZE, domain)
    assert error.value.kind == kind
    assert str(error.value).startswith(f"{path}: {words}")
    assert str(error.value).count(path) == 1


@pytest.mark.parametrize("mistake", [NameError, AttributeError, KeyError, TypeError, ValueError])
def test_a_mistake_of_ours_does_not_read_as_damage(tmp_path, domain, monkeypatch, mistake):
    def _fail(part):
        raise mistake("ours")

    monkeypatch.setattr(annotations, "_part", _fail)
    with pytest.raises(mistake, match="ours"):
        annotations.read_part_annotation(write_mat(tmp_path / "x.mat", thing(part("head", "1"))), SIZE, domain)


def test_an_image_without_persons_is_doubted(tmp_path, domain):
    path = write_mat(tmp_path / "x.mat", thing(part("tail", "1"), name="cat", index=8))
    labels, doubts = annotations.read_part_annotation(path, SIZE, domain)
    assert labels.shape == SIZE and not labels.any()
    assert ["shows no person" in doubt.message for doubt in doubts] == [True]
    labels, doubts = annotations.read_part_annotation(write_mat(tmp_path / "y.mat", imname="z"), SIZE, domain)
    assert [doubt.kind for doubt in doubts] == ["no_person", "other_name"]


def test_every_real_annotation_is_read(real_data, domain):
    for path in sorted((real_data / "pascal_part" / "Annotations_Part").iterdir()):
        with Image.open(real_data / "pascal_part" / "JPEGImages" / f"{path.stem}.jpg") as photo:
            labels, doubts = annotations.read_part_annotation(str(path), photo.size[::-1], domain)
        assert labels.shape == photo.size[::-1]
        assert labels.any() != any(doubt.kind == "no_person" for doubt in doubts)
