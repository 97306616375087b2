"""`demo/web.py` without Gradio: what the page shows of a photo, and what is said before there is a page."""

import importlib
import os
import re
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from sst_d2 import Prediction
from sst_d2.errors import SSTConfigError, SSTDataError
from sst_d2.label_domains import get_label_domain
from sst_d2.visualization import overlay

HEIGHT, WIDTH = 300, 200
# Of the photo's first row of blocks; the rest is background.
IDS = {"atr": [1, 4, 4, 11], "cihp": [2, 5, 5, 13]}


@pytest.fixture
def modules(monkeypatch):
    """web_page and web, imported as the command finds them."""
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    monkeypatch.setitem(sys.modules, "gradio", None)  # an import would fail
    yield importlib.import_module("web_page"), importlib.import_module("web")
    for name in ("web_page", "web"):
        sys.modules.pop(name, None)


@pytest.fixture
def page(modules):
    return modules[0]


@pytest.fixture
def web(modules):
    return modules[1]


def labels_of(domain):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:50] = np.repeat(IDS[domain], 50)
    return labels


class Predictor:
    """Answers from `IDS`, and counts how often it is asked."""

    device = "cpu"

    def __init__(self, *domains):
        self.domains = {name: get_label_domain(name) for name in domains}
        self.calls = 0

    def __call__(self, image, domain):
        assert domain == "all"
        self.calls += 1
        if "broken" in str(image):
            raise SSTDataError(f"{image}: the image cannot be read <b>")
        photo, logits = np.asarray(Image.open(image).convert("RGB")), np.zeros((1, 1, 1), np.float32)
        return {
            name: Prediction(labels_of(name), record, photo, logits, (HEIGHT, WIDTH), (HEIGHT, WIDTH))
            for name, record in self.domains.items()
        }


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(6, 4, 3), dtype=np.uint8).repeat(50, 0).repeat(50, 1)
    path = tmp_path / "a photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def parsed(page, photo, tmp_path):
    return page.parse_photo(Predictor("atr", "cihp"), photo, tmp_path)


def text(html):
    return [" ".join(re.sub("<[^>]*>", " ", row).split()) for row in re.findall("<tr>(.*?)</tr>", html)]


def test_a_table_lists_what_occurs_largest_first_and_the_background_last(parsed):
    assert text(parsed.tables[0]) == [
        "4 of 18 classes % of the picture",
        "upper-clothes 8.3",
        "hat 4.2",
        "face 4.2",
        "background 83.3",
    ]
    colors = [tuple(map(int, color)) for color in re.findall(r"rgb\((\d+), (\d+), (\d+)\)", parsed.tables[1])]
    cihp = get_label_domain("cihp")
    assert colors == [cihp.colors[i] for i in (5, 2, 13)]  # none for the background, which stays as it is


def test_areas_that_would_be_rounded_to_nothing_say_so(page):
    labels = np.zeros((100, 100), np.uint8)
    labels[0, :3] = 4
    one = np.zeros((1, 1, 1), np.float32)
    prediction = Prediction(labels, get_label_domain("atr"), np.zeros((100, 100, 3), np.uint8), one, (1, 1), (1, 1))
    assert text(page.areas_table(prediction))[1] == "upper-clothes &lt; 0.1"


def test_names_of_classes_and_files_are_text_not_html(page, photo, tmp_path):
    record = get_label_domain("atr").to_dict()
    record["classes"][4] = "<script>"
    record["flip_pairs"], record["adjacency"] = [], None
    domain = type(get_label_domain("atr")).from_dict({k: v for k, v in record.items() if v is not None}, source="test")
    prediction = Prediction(labels_of("atr"), domain, np.zeros((1, 1, 3)), np.zeros((1, 1, 1)), (1, 1), (1, 1))
    assert "&lt;script&gt;" in page.areas_table(prediction) and "<script>" not in page.areas_table(prediction)
    strange = photo.rename(tmp_path / "<i>&.png")
    assert "&lt;i&gt;&amp;.png" in page.parse_photo(Predictor("atr"), strange, tmp_path).summary


def test_label_maps_are_palette_pictures_in_the_photos_own_size(parsed):
    assert [path.name for path in parsed.files] == ["a photo_atr.png", "a photo_cihp.png"]
    for path, name in zip(parsed.files, IDS, strict=True):
        with Image.open(path) as picture:
            assert picture.mode == "P"
            assert np.array_equal(np.asarray(picture), labels_of(name))


def test_two_photos_of_one_name_do_not_meet(page, photo, tmp_path):
    first, second = (page.parse_photo(Predictor("atr"), photo, tmp_path) for _ in range(2))
    assert first.files[0] != second.files[0] and first.files[0].is_file()


@pytest.mark.parametrize("opacity", [0, 60, 100])
def test_overlays_are_drawn_from_what_was_kept(page, parsed, tmp_path, opacity):
    paths = page.draw_overlays(parsed, opacity, tmp_path)
    assert [path.name for path in paths] == ["atr.jpg", "cihp.jpg"]
    for path, (domain, labels) in zip(paths, parsed.labels.items(), strict=True):
        drawn = np.asarray(Image.open(path)).astype(int)
        expected = overlay(parsed.image, labels, domain, opacity / 100)
        assert np.abs(drawn - expected).mean() < 2  # JPEG
    with pytest.raises(SSTDataError, match="alpha"):
        page.draw_overlays(parsed, 101, tmp_path)


@pytest.mark.parametrize(("size", "shown"), [((300, 200), (512, 341)), ((3000, 1500), (1024, 512))])
def test_what_is_kept_is_neither_tiny_nor_huge(page, tmp_path, size, shown, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "HEIGHT", size[0])
    monkeypatch.setattr(sys.modules[__name__], "WIDTH", size[1])
    monkeypatch.setattr(sys.modules[__name__], "labels_of", lambda name: np.zeros(size, np.uint8))
    path = tmp_path / "photo.png"
    Image.new("RGB", size[::-1]).save(path)
    parsed = page.parse_photo(Predictor("atr"), path, tmp_path)
    assert parsed.image.shape[:2] == shown == next(iter(parsed.labels.values())).shape
    assert parsed.summary.startswith(f"photo.png: {size[1]} × {size[0]} pixels")


@pytest.fixture
def functions(web, tmp_path):
    """What happens when a photo comes and when it is drawn, for label domains; and their predictor."""

    def make(*domains):
        predictor = Predictor(*domains)
        return *web.page_functions(SimpleNamespace(update=dict), predictor, str(tmp_path)), predictor

    return make


@pytest.mark.parametrize("domains", [["atr"], ["atr", "cihp"]])
def test_a_photo_is_predicted_once_however_often_it_is_drawn(functions, photo, domains):
    predict, draw, predictor = functions(*domains)
    parsed, message, *rest = predict({"path": str(photo)})
    assert message == parsed.summary and rest[: len(domains)] == list(parsed.tables)
    assert [button["interactive"] for button in rest[len(domains) :]] == [True] * len(domains)
    pictures = [draw(parsed, opacity) for opacity in (0, 50)]
    assert predictor.calls == 1
    assert all(map(os.path.isfile, pictures if len(domains) == 1 else [*pictures[0], *pictures[1]]))


def test_a_photo_that_cannot_be_read_leaves_its_sentence_and_nothing_else(functions, photo):
    predict, draw, _ = functions("atr", "cihp")
    broken = photo.rename(photo.with_name("broken.png"))
    parsed, message, *rest = predict({"path": str(broken)})
    assert parsed is None and draw(parsed, 60) == [None, None]
    assert "broken.png: the image cannot be read &lt;b&gt;" in message and str(broken.parent) not in message
    no_file = {"value": None, "interactive": False}
    assert rest == ["", "", no_file, no_file]
    assert predict(None)[:2] == [None, ""]


def test_a_path_that_was_not_uploaded_is_not_read(functions, photo, tmp_path_factory):
    predict, _, predictor = functions("atr")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "photo.png"
    photo.rename(elsewhere)
    for path in (elsewhere, photo.parent / ".." / elsewhere.parent.name / "photo.png"):
        parsed, message, *_ = predict({"path": str(path)})
        assert parsed is None and "was not uploaded to this page" in message
    assert predictor.calls == 0


@pytest.mark.parametrize(
    ("version", "reason"), [(None, "demo/web.py needs Gradio"), ("5.49.1", "too old"), ("6.9.0", "too old")]
)
def test_without_gradio_the_command_to_get_it_is_named(web, monkeypatch, tmp_path, version, reason):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "gradio", version and SimpleNamespace(__version__=version))
    with pytest.raises(SSTConfigError, match=reason) as caught:
        web.import_gradio(str(tmp_path), "127.0.0.1")
    assert f'python -m pip install "{web.GRADIO}"' in str(caught.value)
    project, docstring = (ROOT / "pyproject.toml").read_text(encoding="utf-8"), web.__doc__
    assert f'web = ["{web.GRADIO}"]' in project and f'"{web.GRADIO}"' in docstring


def test_gradio_is_told_beforehand_to_tell_nobody_anything(web, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {"NO_PROXY": "intranet"})
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace(__version__="6.31.0"))
    web.import_gradio(str(tmp_path), "0.0.0.0")
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == os.environ["GRADIO_RUN_HISTORY"] == "False"
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "intranet,localhost,127.0.0.1,0.0.0.0"


def test_a_port_in_use_and_a_strange_address_are_named(web):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SSTConfigError, match=f"--port {port}: another program .* --port {port + 1}"):
            web.check_address("127.0.0.1", port)
    web.check_address("127.0.0.1", port)
    for host, port in (("203.0.113.1", 7860), ("127.0.0.1", 70000)):
        with pytest.raises(SSTConfigError, match=f"--host {host} --port {port}: no page can be there"):
            web.check_address(host, port)
