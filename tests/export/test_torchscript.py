"""TorchScript files: right at every size, without sst_d2; what they are not made for is refused."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from networks import SIZES, logits_of, photo, small_model

from sst_d2.errors import SSTConfigError
from sst_d2.export import ExportedNetwork, open_torchscript, read_metadata, write_torchscript

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated")


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def every_size(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("torchscript") / "every_size.pt"
    write_torchscript(path, ExportedNetwork(model, list(model.domains), False, "RGB"), None, {"a": ["ü", 1]})
    return path


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", SIZES)
def test_one_file_says_at_every_size_what_the_model_says(model, every_size, size, dtype):
    image = photo(size)
    found = open_torchscript(every_size)(image.to(dtype))
    assert list(found) == ["logits_pascal_person_part", "logits_atr"]
    for domain, expected in logits_of(model, image).items():
        torch.testing.assert_close(found[f"logits_{domain}"][0], expected, rtol=1e-4, atol=1e-4)


def test_a_call_keeps_nothing_for_a_backward_pass(model, every_size):
    assert next(model.parameters()).requires_grad  # also of a network that could still be trained
    network = torch.jit.load(str(every_size))
    assert not network(photo((40, 60)))["logits_atr"].requires_grad and torch.is_grad_enabled()


def test_it_runs_where_neither_sst_d2_nor_detectron2_can_be_imported(model, every_size, tmp_path):
    arrays = {f"image_{n}": photo(size, seed=5).numpy() for n, size in enumerate(SIZES)}
    for n in range(len(SIZES)):
        arrays[f"atr_{n}"] = logits_of(model, torch.from_numpy(arrays[f"image_{n}"]))["atr"].numpy()
    np.savez(tmp_path / "photos.npz", **arrays)
    code = (
        "import sys; sys.modules.update(sst_d2=None, detectron2=None)\n"
        "import numpy as np, torch; torch.set_num_threads(1)\n"
        f"network, arrays = torch.jit.load({str(every_size)!r}), np.load('photos.npz')\n"
        f"for n in range({len(SIZES)}):\n"
        "    found = network(torch.from_numpy(arrays[f'image_{n}']))['logits_atr'][0].numpy()\n"
        "    assert np.allclose(found, arrays[f'atr_{n}'], rtol=1e-4, atol=1e-4), n\n"
        "print('fine')"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "fine", result.stderr


def test_a_file_for_one_size_refuses_others_by_name(model, tmp_path):
    path = tmp_path / "one_size.pt"
    write_torchscript(path, ExportedNetwork(model, ["atr"], True, "RGB"), (40, 72), {})
    network = torch.jit.load(str(path))
    labels = network(photo((40, 72)))["labels_atr"]
    assert labels.dtype == torch.uint8 and labels.shape == (1, 40, 72)
    assert (labels[0] == logits_of(model, photo((40, 72)))["atr"].argmax(0)).double().mean() >= 0.999
    for size in [(40, 73), (72, 40), (64, 64)]:
        with pytest.raises(torch.jit.Error, match=rf"{size[0]} x {size[1]} pixels .* exported for 40 x 72 alone"):
            network(photo(size))
    assert not list(tmp_path.glob(".*")) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(2, 3, 8, 8), "shape .2, 3, 8, 8.; expected is .1, 3, H, W."),
        (torch.zeros(3, 8, 8), "shape .3, 8, 8."),
        (torch.zeros(1, 3, 0, 8), "shape .1, 3, 0, 8."),
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), "neither uint8 nor float32"),
    ],
)
def test_what_is_no_photo_is_refused(every_size, image, message):
    with pytest.raises(torch.jit.Error, match=message):
        torch.jit.load(str(every_size))(image)


def test_no_device_is_written_into_it(every_size):
    """Else it would run only where it was exported: on a CPU, whatever it is moved to."""
    graph = str(torch.jit.load(str(every_size)).trace.inlined_graph)
    assert "prim::device" in graph and ": Device = prim::Constant" not in graph


def test_metadata_come_back(every_size):
    assert read_metadata(every_size) == {"a": ["ü", 1]}


def test_a_model_that_wants_blue_first_gets_it(tmp_path):
    model, image = small_model(["atr"], seed=2), photo((32, 40))
    path = tmp_path / "bgr.pt"
    write_torchscript(path, ExportedNetwork(model, ["atr"], False, "BGR"), None, {})
    found = open_torchscript(path)(image)["logits_atr"][0]
    torch.testing.assert_close(found, logits_of(model, image.flip(1))["atr"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, logits_of(model, image)["atr"], atol=1e-2)


def test_a_network_with_a_size_frozen_into_it_is_found_by_name(tmp_path):
    class Frozen(ExportedNetwork):
        def _output(self, features, domain, padded):
            logits = super()._output(features, domain, padded)
            return logits + torch.zeros(int(logits.shape[-2]), 1)

    path = tmp_path / "frozen.pt"
    write_torchscript(path, Frozen(small_model(["atr"]), ["atr"], False, "RGB"), None, {})
    with pytest.raises(
        SSTConfigError, match=r"^TorchScript cannot run what was written on 32 x 40 pixels: .*size.*\S$"
    ):
        open_torchscript(path)(photo((32, 40)))
