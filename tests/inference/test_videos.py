"""Videos in and out by OpenCV: frames, rate and size kept; damage is a sentence; no half video is left."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DOMAINS, ROOT, tiny_cfg
from detectron2.modeling import build_model
from PIL import Image

from sst_d2 import SSTPredictor
from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.errors import SSTDataError
from sst_d2.inference import videos
from sst_d2.inference.videos import VideoFile, VideoSource, frame_sheet

cv2 = pytest.importorskip("cv2", reason="videos need OpenCV", exc_type=ImportError)
spec = importlib.util.spec_from_file_location("demo", ROOT / "demo/demo.py")
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)

RATE = 29.97


def write_video(path, count=10, size=(64, 48), codec="MJPG", noise=0):
    """Frames whose grey value tells their number; noise makes the file large beside its header."""
    generator = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), RATE, size)
    if not writer.isOpened():
        pytest.skip(f"this OpenCV cannot write {codec}")
    for number in range(count):
        frame = np.full((size[1], size[0], 3), 20 + 20 * number, np.uint8)
        frame[:, : size[0] // 2, 0] = 0  # blue is missing on the left
        frame += generator.integers(noise + 1, size=frame.shape, dtype=np.uint8)
        writer.write(frame)
    writer.release()
    return str(path)


def facts(path):
    capture = cv2.VideoCapture(str(path))
    return round(capture.get(cv2.CAP_PROP_FPS), 2), frames_of(path)


def frames_of(path):
    with VideoSource(str(path)) as source:
        return [frame for batch in source.batches(3) for frame in batch]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    cfg = tiny_cfg(MODEL__SST__AUXILIARY__ENABLED=False)
    torch.manual_seed(0)
    model = build_model(cfg)
    folder = tmp_path_factory.mktemp("training")
    SSTCheckpointer(model, str(folder), config=cfg.dump()).save("model_final")
    return str(folder / "model_final.pth")


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "film.avi")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run(weights, out):
    def call(*arguments):
        return demo.main(["--weights", weights, "--output", str(out), *map(str, arguments)])

    return call


def cut(path):
    Path(path).write_bytes(Path(path).read_bytes()[: Path(path).stat().st_size // 2])


def written(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_frames_come_in_order_and_in_batches(video):
    with VideoSource(video) as source:
        batches = list(source.batches(4))
        assert (round(source.rate, 2), source.expected, source.read, source.shortfall()) == (RATE, 10, 10, "")
    assert [len(batch) for batch in batches] == [4, 4, 2]
    values = [frame[:, -1, 0].mean() for batch in batches for frame in batch]
    assert np.allclose(values, 20 + 20 * np.arange(10), atol=4)


@pytest.mark.parametrize("ending", videos.VIDEO_CODECS)
def test_what_is_written_has_the_rate_the_size_and_the_colours(tmp_path, ending):
    file = VideoFile(tmp_path / f"new.clip{ending}", RATE)
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[..., 0] = 200  # red
    for _ in range(5):
        file.write(picture)
    assert not file.path.exists()
    file.finish()
    file.discard()
    rate, frames = facts(file.path)
    assert rate == RATE and len(frames) == 5 and frames[0].shape == (48, 64, 3)
    assert frames[0][..., 2].mean() > 180 and frames[0][..., 0].mean() < 30
    assert written(tmp_path) == [f"new.clip{ending}"]


def test_a_video_becomes_a_video(run, video, out, capsys):
    assert run("--video-input", video, "--domain", "all", "--save", "overlay", "side-by-side", "labels") is True
    labels = [f"labels/{name}/film/{number:06d}.png" for name in DOMAINS for number in range(1, 11)]
    overlays = [f"overlay/{name}/film.mp4" for name in DOMAINS]
    assert written(out) == sorted([*labels, *overlays, "side-by-side/film.mp4"])
    for path in overlays:
        rate, frames = facts(out / path)
        assert rate == RATE and len(frames) == 10 and frames[0].shape == (48, 64, 3)
    rate, frames = facts(out / "side-by-side/film.mp4")
    assert rate == RATE and len(frames) == 10 and frames[0].shape[1] > 4 * 64
    assert capsys.readouterr().out.startswith("10 frames in ")


def test_label_maps_are_those_of_the_frames_as_opencv_gives_them(run, video, out, weights):
    assert run("--video-input", video, "--save-labels", "--batch-size", 4)
    assert len(written(out)) == 10
    for number in (0, 9):
        expected = SSTPredictor(weights)(frames_of(video)[number], channel_order="BGR").labels
        assert np.array_equal(np.asarray(Image.open(out / f"film/{number + 1:06d}.png")), expected)


def test_files_of_later_frames_are_left_and_counted_whosever_they_are(run, video, out, capsys):
    assert run("--video-input", video, "--save-labels")
    assert "were here before" not in capsys.readouterr().err
    write_video(video, count=4)
    with pytest.raises(SSTDataError, match="film: exists; --overwrite"):
        run("--video-input", video, "--save-labels")
    assert len(written(out)) == 10
    (out / "film/000099.png").write_text("mine")
    assert run("--video-input", video, "--save-labels", "--overwrite") and len(written(out)) == 11
    assert (out / "film/000099.png").read_text() == "mine"
    words = "film/000005.png: 7 such files of frames after 4, the last one, were here before and are left; delete"
    assert words in capsys.readouterr().err


def test_a_video_of_any_legal_name_is_written(tmp_path):
    file = VideoFile(tmp_path / ("n" * 251 + ".avi"), RATE)
    file.write(np.zeros((48, 64, 3), np.uint8))
    file.finish()
    assert written(tmp_path) == [file.path.name]


def test_a_video_that_ends_early_keeps_what_was_read_and_fails(run, video, out, capsys):
    cut(write_video(video, noise=40))
    assert run("--video-input", video) is False
    read = len(frames_of(video))
    assert 0 < read < 9 and written(out) == ["film.mp4"] and len(frames_of(out / "film.mp4")) == read
    assert f"film.avi: ends early, {read} of 10 frames can be read" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no video", None])
def test_what_is_no_video_is_one_sentence(run, tmp_path, out, content):
    path = tmp_path / "bad.mp4"
    if content is None:
        cut(write_video(path, codec="mp4v"))
    else:
        path.write_bytes(content)
    with pytest.raises(SSTDataError, match=r"bad\.mp4: cannot be opened by OpenCV; it may be damaged, cut off or no"):
        run("--video-input", path)
    with pytest.raises(SSTDataError, match=r"none\.mp4: there is no such file"):
        run("--video-input", tmp_path / "none.mp4")
    assert not out.exists()


def test_a_run_that_is_stopped_leaves_no_video(run, video, out, monkeypatch):
    real = VideoFile.write

    def write(self, picture):
        real(self, picture)
        if self._frames == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(VideoFile, "write", write)
    with pytest.raises(KeyboardInterrupt):
        run("--video-input", video)
    assert written(out) == []


def test_a_video_that_is_not_whole_on_the_disk_gets_no_name(tmp_path):
    file = VideoFile(tmp_path / "new.mp4", RATE)
    for _ in range(5):
        file.write(np.zeros((48, 64, 3), np.uint8))
    file._writer.release()
    cut(file._partial)  # as on a full disk, of which OpenCV says nothing
    with pytest.raises(SSTDataError, match=r"new\.mp4: cannot be written whole; make room"):
        file.finish()
    file.discard()
    assert written(tmp_path) == []


def test_nothing_is_replaced_unasked_and_the_video_itself_never(run, video, weights, out, tmp_path):
    def to(output, *more):
        return demo.main(["--weights", weights, "--video-input", video, "--output", str(output), *more])

    (tmp_path / "own.mp4").write_text("mine")
    for output, more, words in (
        (tmp_path / "own.mp4", [], r"own\.mp4: exists; --overwrite"),
        (video, ["--overwrite"], r"film\.avi: the result would replace the video"),
        (tmp_path / "new.gif", [], r"new\.gif: videos are written as \.mp4"),
        (tmp_path / "new.mp4", ["--save", "overlay", "labels"], r"new\.mp4: is one file, and several"),
        (tmp_path / "own.mp4" / "x", [], "cannot be written to"),
    ):
        with pytest.raises(SSTDataError, match=words):
            to(output, *more)
    assert (tmp_path / "own.mp4").read_text() == "mine"
    assert to(tmp_path / "own.mp4", "--overwrite") and len(frames_of(tmp_path / "own.mp4")) == 10
    assert written(tmp_path) == ["film.avi", "own.mp4"]


def test_sheets_of_all_frames_have_one_even_size(weights):
    predictor = SSTPredictor(weights)
    noise = np.random.default_rng(0).integers(256, size=(41, 33, 3)).astype(np.uint8)
    shapes = {frame_sheet(predictor(frame, "all")).shape for frame in (noise, np.zeros_like(noise))}
    assert len(shapes) == 1 and all(side % 2 == 0 for side in next(iter(shapes))[:2])


def test_shown_videos_stop_at_the_key(weights, video, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(demo, "check_windows", lambda: None)
    monkeypatch.setattr(demo, "show", lambda picture, wait: shown.append(picture) or len(shown) < 4)
    assert demo.main(["--weights", weights, "--video-input", video]) is True
    assert len(shown) == 4 and capsys.readouterr().out.startswith("4 frames in ")
