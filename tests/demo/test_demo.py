"""`demo/demo.py`: what it writes, that it replaces nothing unasked, passes over what it cannot read, names mistakes."""

import os
import weakref
from pathlib import Path

import numpy as np
import pytest
from conftest import DOMAINS, tiny_cfg
from demo_desk import demo, patches, picture, written
from PIL import Image

from sst_d2 import SSTPredictor
from sst_d2.errors import SSTConfigError, SSTDataError, SSTError
from sst_d2.inference import photo_run, videos, windows
from sst_d2.visualization import files, side_by_side

pytest_plugins = ["demo_desk"]


def test_a_folder_becomes_a_folder_of_overlays(run, photos, out, capsys):
    assert run("--input", photos) is True
    assert written(out) == ["a.jpg", "b.jpg", "sub/c.jpg"]
    assert picture(out / "a.jpg").shape == (40, 33, 3)
    line = capsys.readouterr().out
    assert line.startswith("3 images in ") and f"images/s, written to {out}" in line


def test_everything_that_is_written_is_what_the_predictor_says(run, photos, out, weights):
    assert run("--input", photos / "a.png", "--domain", "all", "--save", "side-by-side", "labels", "--save-logits")
    answers = SSTPredictor(weights)(photos / "a.png", "all")
    kinds = [f"{kind}/{name}/a.{end}" for kind, end in (("labels", "png"), ("logits", "npz")) for name in DOMAINS]
    assert written(out) == sorted([*kinds, "side-by-side/a.jpg"])
    for name, answer in answers.items():
        labels = Image.open(out / "labels" / name / "a.png")
        assert labels.mode == "P" and np.array_equal(np.asarray(labels), answer.labels)
        with np.load(out / "logits" / name / "a.npz") as stored:
            assert np.array_equal(stored["logits"], answer.logits()) and str(stored["domain"]) == name
            assert tuple(stored["classes"]) == answer.classes
    expected = side_by_side(answers["atr"].image, {one.domain: one.labels for one in answers.values()})
    assert picture(out / "side-by-side/a.jpg").shape == expected.shape
    assert np.abs(picture(out / "side-by-side/a.jpg").astype(int) - expected).mean() < 6  # JPEG


def test_one_kind_and_one_domain_need_no_folders_and_name_photos_alone(run, photos, out):
    assert run("--input", photos, "--save-labels", "--domain", "atr")
    assert written(out) == ["a.png", "b.png", "sub/c.png"]


def test_one_photo_may_become_one_file(weights, photos, out, capsys):
    start = ["--weights", weights, "--input", str(photos / "a.png"), "--output"]
    assert demo.main([*start, str(out / "new.png"), "--save", "side-by-side"])
    assert written(out) == ["new.png"]
    for name, more, words in (
        ("x.jpg", ["--save-labels"], r"x\.jpg: 'labels' is written as \.png"),
        ("x.png", ["--domain", "all"], r"x\.png: is one file, and 3 are to be written; name a folder"),
        ("new.png/", [], r"new\.png: exists; --overwrite"),
    ):
        with pytest.raises(SSTDataError, match=words):
            demo.main([*start, f"{out}/{name}", *more])
    assert demo.main([*start, str(out / "v1.2")]) and written(out) == ["new.png", "v1.2/a.jpg"]  # no ending of a file


def test_what_exists_stays_unless_it_may_be_replaced_and_is_found_before_the_work(run, photos, out, monkeypatch):
    (out / "sub").mkdir(parents=True)
    (out / "sub/c.jpg").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(demo, "run_here", lambda *_: pytest.fail("it computes"))
        with pytest.raises(SSTDataError, match=r"sub/c\.jpg: exists; --overwrite replaces"):
            run("--input", photos)
    assert written(out) == ["sub/c.jpg"] and (out / "sub/c.jpg").read_text() == "mine"
    assert run("--input", photos, "--overwrite") and picture(out / "sub/c.jpg").ndim == 3


def test_a_photo_is_never_replaced_by_its_result(weights, photos, tmp_path):
    Image.fromarray(patches()).save(photos / "d.jpg")
    before = (photos / "d.jpg").read_bytes()
    os.link(photos / "d.jpg", tmp_path / "other_name.jpg")
    for output in (photos, photos / "d.jpg", tmp_path / "other_name.jpg"):
        with pytest.raises(SSTDataError, match="a result would replace the photo"):
            demo.main(["--weights", weights, "--input", f"{photos}/d.jpg", "--output", str(output), "--overwrite"])
    assert (photos / "d.jpg").read_bytes() == before


def test_what_cannot_be_read_is_passed_over_named_and_counted(run, photos, out, capsys):
    (photos / "text.jpg").write_text("hello")
    (photos / "half.png").write_bytes((photos / "a.png").read_bytes()[:60])
    Image.fromarray(patches(60, 60)).save(photos / "large.png")
    os.symlink("nowhere", photos / "broken.jpg")
    os.mkfifo(photos / "pipe.jpg")
    assert run("--input", photos, "--max-pixels", 2000, "--batch-size", 2) is False
    assert written(out) == ["a.jpg", "b.jpg", "sub/c.jpg"]
    lines = capsys.readouterr().err.splitlines()
    skipped = [line for line in lines if line.startswith("skipped: ")]
    for line, words in zip(
        skipped,
        (
            *("broken.jpg: the image does not exist", "half.png: ", "large.png: 60 x 60 pixels"),
            *("pipe.jpg: is no file", "text.jpg: is no image file"),
        ),
        strict=True,
    ):
        assert words in line
    assert "5 skipped, and named above" in lines


def test_photos_that_the_memory_does_not_suffice_for_are_named_and_the_others_written(run, photos, out, capsys):
    real = SSTPredictor._predict

    def predict(self, group, domain):
        if any(np.array_equal(one, patches(seed=1)) for one in group):
            raise SSTDataError("the memory does not suffice")
        return real(self, group, domain)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SSTPredictor, "_predict", predict)
        assert run("--input", photos, "--batch-size", 3) is False
    assert written(out) == ["a.jpg", "sub/c.jpg"]
    assert f"skipped: {photos}/b.png: the memory does not suffice" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "ending"), [("logits", "npz"), ("overlay", "jpg"), ("labels", "png")])
def test_a_result_that_cannot_be_written_ends_the_run_and_leaves_no_half_file(
    run, photos, out, monkeypatch, kind, ending
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SSTDataError, match=rf"a\.{ending}: cannot be written \(.*No space left on device"):
        run("--input", photos, "--save", kind)
    assert written(out) == []


def test_a_photo_whose_overlay_is_too_wide_for_a_jpeg_is_passed_over_and_its_other_results_written(
    run, photos, out, monkeypatch, capsys
):
    monkeypatch.setattr(files, "_LONGEST_SIDE", {"JPEG": 64})
    real = Image.Image.save

    def save(self, stream, format, **keys):  # as libjpeg, with a smaller limit
        if format == "JPEG" and max(self.size) > 64:
            raise OSError("broken data stream when writing image file")
        real(self, stream, format=format, **keys)

    Image.fromarray(patches(20, 65)).save(photos / "aa.png")
    monkeypatch.setattr(Image.Image, "save", save)
    assert run("--input", photos, "--save", "overlay", "labels") is False
    expected = [f"{kind}/{name}.{end}" for kind, end in (("labels", "png"), ("overlay", "jpg")) for name in "ab"]
    expected += ["labels/aa.png", "labels/sub/c.png", "overlay/sub/c.jpg"]
    assert written(out) == sorted(expected)
    err = capsys.readouterr().err
    assert f"skipped: {photos}/aa.png: {out}/overlay/aa.jpg: a picture of 65 x 20 pixels (width x height)" in err
    assert "(it holds at most 64 pixels a side); scale it down" in err and "1 skipped, and named above" in err


def test_only_one_batch_is_in_memory_and_photos_of_one_size_meet_in_it(run, tmp_path, out, monkeypatch):
    photos = tmp_path / "mixed"
    photos.mkdir()
    for number in range(8):
        picture = Image.fromarray(patches(*((40, 33), (33, 100))[number % 2], seed=number))
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 7 else 1  # lies on its side: goes alone
        picture.save(photos / f"{number}.png", exif=exif)
    alive, seen = weakref.WeakValueDictionary(), []
    read, predict = photo_run.as_photo, SSTPredictor._predict

    def as_photo(path, *rest):
        alive[path] = photo = read(path, *rest)
        return photo

    def counted(self, group, domain):
        seen.append((len(alive), len(written(out)), sorted({one.shape[:2] for one in group})))
        return predict(self, group, domain)

    monkeypatch.setattr(photo_run, "as_photo", as_photo)
    monkeypatch.setattr(SSTPredictor, "_predict", counted)
    assert run("--input", photos, "--batch-size", 2)
    tall, wide = [(40, 33)], [(33, 100)]
    assert seen == [(2, 0, tall), (2, 2, wide), (2, 4, tall), (1, 6, wide), (1, 7, [(100, 33)])]


def test_a_second_run_does_not_predict_its_own_results(weights, photos, capsys):
    listed = sorted(map(str, photos.iterdir()))
    for given in (["{}/**/*"], ["{}/*"], listed, [*listed, "{}/out"]):
        given = [text.format(photos) for text in given]
        assert demo.main(["--weights", weights, "--input", *given, "--output", f"{photos}/out", "--overwrite"])
        assert written(photos / "out") == ["a.jpg", "b.jpg", "sub/c.jpg"]
    assert f"left out: {photos}/out, the folder of the results" in capsys.readouterr().err


def test_batches_change_nothing(run, photos, out, weights):
    Image.fromarray(patches(50, 70)).save(photos / "wide.png")
    assert run("--input", photos, "--save-labels", "--batch-size", 3)
    predictor = SSTPredictor(weights)
    for name in ("a", "b", "sub/c", "wide"):
        assert np.array_equal(picture(out / f"{name}.png"), predictor(photos / f"{name}.png").labels)


def test_configuration_options_device_and_tta_reach_the_network(weights, photos, out, monkeypatch):
    seen = {}

    def predictor(**keys):
        seen.update(keys)
        raise SSTConfigError("enough")

    monkeypatch.setattr(demo, "SSTPredictor", predictor)
    start = ["--input", str(photos), "--output", str(out), "--tta", "--device", "cpu"]
    for more, expected in (
        (["--weights", "w"], ("w", None, ())),
        (["--config-file", "c", "--weights", "w"], ("c", "w", ())),
        (["--config-file", "c", "--opts", "MODEL.WEIGHTS", "w"], ("c", None, ("MODEL.WEIGHTS", "w"))),
    ):
        with pytest.raises(SSTConfigError, match="enough"):
            demo.main([*start, *more])
        assert (seen["config"], seen["weights"], seen["opts"]) == expected
        assert seen["tta"] is True and seen["device"] == "cpu"


def test_a_configuration_with_weights_gives_the_same(weights, photos, out, run):
    config = str(Path(weights).with_name("config.yaml"))
    start = ["--config-file", config, "--input", str(photos), "--save-labels", "--output"]
    assert demo.main([*start, f"{out}2", "--opts", "MODEL.WEIGHTS", weights]) and run(
        "--input", photos, "--save-labels"
    )
    assert [picture(out / n).tolist() for n in written(out)] == [picture(f"{out}2/{n}").tolist() for n in written(out)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "{photos}", "--domain", "lip"], "--domain: 'lip'; the network has pascal_person_part, atr, cihp"),
        (["--input", "none.jpg"], "none.jpg: there is no such file or folder"),
        (["--input", "{photos}/sub/../empty"], "no photo lies in it"),
        (["--input", "{photos}", "--num-gpus", "99"], r"--num-gpus: 99; torch sees \d+"),
        (["--input", "{photos}", "--opts", "MODEL.NONE", "1"], "MODEL.NONE"),
        (["--input", "{photos}", "--output", "{photos}"], "is the folder of the photos and of the results"),
        (["--input", "{photos}", "--output", "{photos}/a.png/x"], "x: cannot be written to"),
        (["--input", "{photos}", "--output", "{photos}/plain"], "plain: is a file; name a folder"),
        (["--input", "{photos}", "--weights", "none.pth"], "none.pth: there is no such file"),
    ],
)
def test_mistakes_are_one_sentence(run, photos, out, arguments, words):
    (photos / "empty").mkdir()
    (photos / "plain").write_text("")
    with pytest.raises(SSTError, match=words):
        run(*(argument.format(photos=photos) for argument in arguments))
    assert written(out) == [] if out.exists() else True


def test_weights_of_other_label_domains_are_refused(weights, photos, out, tmp_path):
    (tmp_path / "other.yaml").write_text(tiny_cfg(["atr", "lip"]).dump())
    with pytest.raises(SSTError, match="its label domains are pascal_person_part, atr, cihp; the configuration asks"):
        demo.main(
            ["--config-file", f"{tmp_path}/other.yaml", "--weights", weights, "--input", str(photos), "--output=o"]
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "one of the arguments --input --video-input --webcam is required"),
        (["--input", "a"], "--weights FILE is needed"),
        (["--weights", "w", "--input", "a", "--video-input", "b"], "not allowed with argument"),
        (["--weights", "w", "--webcam", "--output", "o"], "--webcam shows a window and writes nothing"),
        (["--weights", "w", "--input", "a", "--save-labels"], "label maps and logits are written, not shown"),
        (["--weights", "w", "--input", "a", "--num-processes", "2"], "they need --input and --output"),
        (["--weights", "w", "--video-input", "a", "--output", "o", "--num-gpus", "2"], "they need --input"),
        (["--weights", "w", "--input", "a", "--output", "o", "--num-gpus", "2", "--device", "cpu"], "--device out"),
        (["--weights", "w", "--input", "a", "--output", "o", "--num-gpus", "0"], "allowed are whole numbers from 1"),
        (["--weights", "w", "--input", "a", "--output", "o", "--save", "mask"], "invalid choice"),
    ],
)
def test_wrong_arguments_end_with_status_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        demo.main(arguments)
    assert end.value.code == 2 and words in capsys.readouterr().err


def test_without_a_display_one_sentence_says_how_to_go_on(weights, photos, monkeypatch):
    pytest.importorskip("cv2", exc_type=ImportError)
    monkeypatch.setattr(windows, "_TRIAL", "import os; os.abort()")  # as OpenCV's Qt does
    with pytest.raises(SSTConfigError, match="no window can be opened.*--output FILE_OR_FOLDER"):
        demo.main(["--weights", weights, "--input", str(photos)])


def test_with_a_display_photos_are_shown_one_after_the_other(weights, photos, monkeypatch, capsys):
    shown = []
    (photos / "text.jpg").write_text("hello")
    monkeypatch.setattr(demo, "check_windows", lambda: None)
    monkeypatch.setattr(demo, "show", lambda shape, wait: shown.append(shape) or wait)
    assert demo.main(["--weights", weights, "--input", str(photos)]) is False
    assert [one.shape for one in shown] == [(40, 33, 3)] * 3 and "text.jpg: is no image" in capsys.readouterr().err
    monkeypatch.setattr(demo, "show", lambda picture, wait: shown.append(picture))  # q
    demo.main(["--weights", weights, "--input", str(photos), "--domain", "all"])
    assert len(shown) == 4 and shown[3].shape[1] > 4 * 200


def test_without_opencv_photos_work_and_videos_say_what_to_install(run, photos, weights, monkeypatch):
    monkeypatch.setattr(videos, "import_module", lambda name: __import__("no_opencv_here"))
    assert run("--input", photos)
    for arguments in (["--video-input", "v.mp4", "--output", "o"], ["--webcam"], ["--input", str(photos)]):
        with pytest.raises(SSTConfigError, match="python -m pip install opencv-python; on a machine without libGL"):
            demo.main(["--weights", weights, *arguments])


def test_a_camera_that_is_not_there_is_named(weights):
    pytest.importorskip("cv2", exc_type=ImportError)
    with pytest.raises(SSTDataError, match=r"camera 99: cannot be opened by OpenCV; is it there, and free\?"):
        demo.main(["--weights", weights, "--webcam", "99"])
