"""`demo/web.py` in a real browser that can reach this computer alone: photo in, overlays, areas and label maps out."""

import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import torch
from conftest import DOMAINS, ROOT, tiny_cfg
from detectron2.modeling import build_model
from PIL import Image

from sst_d2 import SSTPredictor
from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.visualization import fitted, overlay

NEEDED = {
    'gradio (python -m pip install ".[web]")': importlib.util.find_spec("gradio"),
    "selenium (python -m pip install selenium)": importlib.util.find_spec("selenium"),
    "chromium (Debian: apt install chromium)": shutil.which("chromium"),
    "chromedriver (Debian: apt install chromium-driver)": shutil.which("chromedriver"),
}
MISSING = [name for name, found in NEEDED.items() if found is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"the page is tried in a browser; missing: {', '.join(MISSING)}"),
]

MAX_PIXELS = 3_000_000
OPTS = ["INPUT.MIN_SIZE_TEST", "96"]
WAIT = 240  # seconds at most, on a busy machine
# Runs in the server's process before all else: every address that it turns to becomes a line of a file.
WATCH = """
import os, sys
log = os.open(os.environ["SST_WATCH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def see(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        os.write(log, f"{arguments[1][0]}\\n".encode())
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        os.write(log, f"{arguments[0]}\\n".encode())
sys.addaudithook(see)
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def search_path(*folders):
    return os.pathsep.join([*map(str, folders), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def files_below(folder):
    return [path for path in folder.rglob("*") if not path.is_dir()]


def until(condition, what):
    """What the condition gives, as soon as it is something."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail(f"{what}: not after {WAIT} s")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained network, whose label maps are patchwork."""
    folder = tmp_path_factory.mktemp("network")
    cfg = tiny_cfg(DOMAINS, MODEL__SST__AUXILIARY__ENABLED=False)
    torch.manual_seed(0)
    SSTCheckpointer(build_model(cfg), str(folder), config=cfg.dump()).save("model")
    return folder / "model.pth"


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(256, size=(15, 12, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    Image.fromarray(pixels).save(folder / "somebody.jpg", quality=95)
    return folder / "somebody.jpg"


@pytest.fixture(scope="module")
def expected(checkpoint, photo):
    return SSTPredictor(checkpoint, device="cpu", opts=OPTS)(photo, "all")


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    """The command, in a folder of its own with a proxy that does not exist; what it turns to is watched."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    (folder / "watch").mkdir()
    (folder / "watch/sitecustomize.py").write_text(WATCH)
    for name in ("here", "temporary"):
        (folder / name).mkdir()
    environment = {
        **os.environ,
        **{"PYTHONPATH": search_path(folder / "watch"), "SST_WATCH": str(folder / "asked")},
        **{"TMPDIR": str(folder / "temporary"), "OMP_NUM_THREADS": "1"},
        **{"http_proxy": "http://203.0.113.1:9", "https_proxy": "http://203.0.113.1:9"},
    }
    command = [sys.executable, str(ROOT / "demo/web.py"), "--weights", str(checkpoint), "--port", str(port)]
    command += ["--device", "cpu", "--max-pixels", str(MAX_PIXELS), "--opts", *OPTS]
    with open(folder / "said", "w+", encoding="utf-8") as said:
        process = subprocess.Popen(
            command, cwd=folder / "here", env=environment, stdout=said, stderr=subprocess.STDOUT, text=True
        )
        said_so_far = (folder / "said").read_text
        try:
            until(lambda: "The page is at" in said_so_far() or process.poll() is not None, "the server")
            assert process.poll() is None, said_so_far()
            yield folder, f"http://127.0.0.1:{port}/"
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT) == 0, said_so_far()
        finally:
            process.kill()
            process.wait()
    assert said_so_far() == f"The page is at http://127.0.0.1:{port}/ (Ctrl-C ends it).\n"
    assert files_below(folder / "temporary") == [], "a photo is left behind"
    assert files_below(folder / "here") == []


class Page:
    """The page in the browser."""

    def __init__(self, driver, url, downloads):
        self.driver, self.url, self.downloads = driver, url, downloads

    def find(self, selector):
        """The one element, as soon as it is there."""
        return until(lambda: self.driver.find_elements("css selector", selector), selector)[0]

    def click(self, selector, words):
        """Press the one that says these words."""
        elements = lambda: self.driver.find_elements("css selector", selector)  # noqa: E731
        until(lambda: [e for e in elements() if words in e.text], words)[0].click()

    def open(self):
        self.driver.get(self.url)
        self.find("#photo input[type=file]")

    def upload(self, path):
        before = self.message()
        self.find("#photo input[type=file]").send_keys(str(path))
        until(lambda: self.message() not in ("", before), "an answer")

    def clear(self):
        self.find("#photo button[aria-label='Remove Image' i], #photo button[aria-label='Clear']").click()
        until(lambda: self.message() == "", "an empty page")

    def message(self):
        return self.driver.execute_script("return document.getElementById('message')?.innerText.trim() ?? ''")

    def sources(self):
        """Addresses of the overlays, by label domain."""
        images = {name: self.driver.find_elements("css selector", f"#domain_{name} img") for name in DOMAINS}
        return {name: found[0].get_attribute("src") for name, found in images.items() if found}

    def pictures(self, but_not=None):
        """The overlays, as soon as all are there, and others than those of these addresses."""
        until(lambda: len(self.sources()) == 3 and not set(self.sources().values()) & set(but_not or []), "overlays")
        return {name: read_picture(source) for name, source in self.sources().items()}

    def rows(self, name):
        """Class and percent of every row of the table."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].map(row => [...row.cells].map(c => c.textContent))"
        )
        return self.driver.execute_script(script, f"#domain_{name} table.areas tr:has(td)")

    def save(self, name):
        """Press the button; the file that comes."""
        self.find(f"#save_{name}:not([disabled])").click()
        path = self.downloads / f"somebody_{name}.png"
        until(path.is_file, path.name)
        return path


def read_picture(source):
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with without_proxy.open(source, timeout=30) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    """The page in a headless Chromium that knows no computer but this one; what it asked for is checked at the end."""
    from selenium import webdriver

    downloads, profile = tmp_path_factory.mktemp("downloads"), tmp_path_factory.mktemp("profile")
    options = webdriver.ChromeOptions()
    options.binary_location = NEEDED["chromium (Debian: apt install chromium)"]
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1400", "--lang=en-US"),
        *(
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--no-proxy-server",
            f"--user-data-dir={profile}",
        ),
        *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
    ):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.ChromeService(NEEDED["chromedriver (Debian: apt install chromium-driver)"])
    driver = webdriver.Chrome(options=options, service=service)
    try:
        page = Page(driver, server[1], downloads)
        page.open()
        yield page
    finally:
        driver.quit()


@pytest.fixture
def parsed(page, photo):
    """The page with the photo on it."""
    page.open()
    page.upload(photo)
    page.pictures()
    return page


def test_a_photo_comes_back_in_all_label_systems_with_its_areas(parsed, expected):
    assert parsed.message().startswith("somebody.jpg: 192 × 240 pixels")
    pictures = parsed.pictures()
    for name, prediction in expected.items():
        sides = {"min_side": 512, "max_side": 1024}
        photo, labels = fitted(prediction.image, **sides), fitted(prediction.labels, **sides)
        assert np.abs(pictures[name] - overlay(photo, labels, prediction.domain)).mean() < 3  # JPEG
        areas = {class_name: 100 * share for class_name, share in prediction.areas().items() if share >= 0.0005}
        shown = {class_name: float(percent) for class_name, percent in parsed.rows(name) if percent[0].isdigit()}
        assert shown == pytest.approx(areas, abs=0.051)


def test_the_opacity_slider_changes_the_pictures(parsed, expected):
    number, before = parsed.find("#opacity input[type=number]"), parsed.sources().values()
    parsed.driver.execute_script("arguments[0].select()", number)
    number.send_keys("0\n")
    for picture in parsed.pictures(but_not=before).values():
        assert np.abs(picture - fitted(expected["atr"].image, 512)).mean() < 3


def test_the_saved_label_map_holds_the_ids_that_were_predicted(parsed, expected):
    for name, prediction in expected.items():
        with Image.open(parsed.save(name)) as picture:
            assert picture.mode == "P"
            assert np.array_equal(np.asarray(picture), prediction.labels)


def test_a_photo_that_is_refused_leaves_a_sentence_and_the_next_one_is_welcome(parsed, photo, tmp_path):
    broken, huge = tmp_path / "broken.jpg", tmp_path / "huge.png"
    broken.write_bytes(photo.read_bytes()[:2000])
    Image.new("RGB", (2001, 1500)).save(huge)
    for path, sentence in ((broken, "cannot be read"), (huge, f"more than TEST.SST.MAX_PIXELS {MAX_PIXELS} allows")):
        parsed.clear()
        parsed.upload(path)
        assert parsed.message().startswith(f"{path.name}: ") and sentence in parsed.message()
        until(lambda: not parsed.sources(), "no overlays")
        assert parsed.rows("atr") == []
    parsed.clear()
    parsed.upload(photo)
    assert len(parsed.pictures()) == 3


def test_a_photo_of_the_webcam_is_parsed(page):
    page.open()
    page.find("#photo button[aria-label='Capture from camera']").click()
    page.click("#photo button", "Webcam")
    until(lambda: page.driver.execute_script("return document.querySelector('#photo video')?.videoWidth"), "a film")
    page.find("#photo button[aria-label='capture photo']").click()
    assert len(page.pictures()) == 3


def test_neither_page_nor_program_turns_to_another_computer(parsed, server):
    folder, url = server
    events = [json.loads(entry["message"])["message"] for entry in parsed.driver.get_log("performance")]
    asked = {
        event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
    } | {event["params"]["url"] for event in events if event["method"] == "Network.webSocketCreated"}
    assert any(address.endswith(".js") for address in asked)
    assert [address for address in asked if not address.startswith((url, "data:", f"blob:{url}", "chrome"))] == []
    hosts = set((folder / "asked").read_text().split("\n")) - {""}
    assert hosts and hosts <= {"127.0.0.1", "localhost"}, hosts


@pytest.mark.parametrize("mistake", ["weights", "port"])
def test_mistakes_on_the_command_line_are_one_sentence(mistake, checkpoint, server, tmp_path):
    weights = str(tmp_path / "absent.pth") if mistake == "weights" else str(checkpoint)
    port = str(free_port()) if mistake == "weights" else server[1].rsplit(":", 1)[1].strip("/")
    command = [sys.executable, str(ROOT / "demo/web.py"), "--weights", weights, "--port", port]
    environment = {**os.environ, "PYTHONPATH": search_path(), "TMPDIR": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    sentence = "absent.pth: there is no such file" if mistake == "weights" else f"--port {port}: another program"
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ") and sentence in result.stderr
    assert files_below(tmp_path) == []
