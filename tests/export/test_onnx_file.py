"""ONNX files in onnxruntime: right at every size, for every kind of network; a file for one size refuses others."""

import importlib.util

import pytest
import torch
from networks import SIZES, logits_of, photo, small_model

from sst_d2.errors import SSTConfigError
from sst_d2.export import OPSETS, ExportedNetwork, check_packages, onnx_file, open_onnx, write_onnx

needs_packages = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")),
    reason="onnx and onnxruntime are not installed (the extra `export`)",
)
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.* is deprecated", "ignore:You are using the legacy TorchScript-based ONNX export"
)
OTHERS = {
    "semantic FPN": {
        "MODEL__SST__DECODER__NAME": "SemanticFPNDecoder",
        "MODEL__SST__DECODER__SEMANTIC_FPN__CONVS_DIM": 16,
    },
    "DeepLabV3+": {"MODEL__SST__DECODER__NAME": "DeepLabV3PlusDecoder"},
    "Swin-T": {"MODEL__BACKBONE__NAME": "build_sst_swin_t_backbone"},
}


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def every_size(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "every_size.onnx"
    write_onnx(path, ExportedNetwork(model, list(model.domains), False, "RGB"), None, {"text": "ü", "list": ["ü", 1]})
    return path


def assert_right(model, path, size, seed=1):
    image = photo(size, seed)
    found = open_onnx(path, threads=1)(image)
    for domain, expected in logits_of(model, image).items():
        assert min(size) == 1 or expected.std() > 0.2
        torch.testing.assert_close(found[f"logits_{domain}"][0], expected, rtol=1e-3, atol=1e-3)


@needs_packages
@pytest.mark.parametrize("size", SIZES)
def test_one_file_says_at_every_size_what_the_model_says(model, every_size, size):
    assert_right(model, every_size, size)


@needs_packages
def test_a_file_for_one_size_refuses_others(model, tmp_path):
    import onnxruntime

    path = tmp_path / "one_size.onnx"
    write_onnx(path, ExportedNetwork(model, ["atr"], True, "RGB"), (40, 72), {}, input_type="float32")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("image", "tensor(float)", [1, 3, 40, 72])
    assert (answer.name, answer.type, answer.shape) == ("labels_atr", "tensor(uint8)", [1, 40, 72])
    image = photo((40, 72))
    expected = logits_of(model, image)["atr"].argmax(0)
    run = open_onnx(path)
    assert (run(image)["labels_atr"][0] == expected).double().mean() >= 0.999
    for size in [(40, 73), (72, 40), (64, 64)]:
        with pytest.raises(SSTConfigError, match=rf"on {size[0]} x {size[1]} pixels: .*[Ii]nvalid dimensions"):
            run(photo(size))
    assert len(list(tmp_path.iterdir())) == 1


@needs_packages
@pytest.mark.slow
@pytest.mark.parametrize("opset", OPSETS)
def test_the_oldest_and_the_newest_opset_are_right(model, tmp_path, opset):
    import onnx

    write_onnx(tmp_path / "a.onnx", ExportedNetwork(model, list(model.domains), False, "RGB"), None, {}, opset=opset)
    assert onnx.load(tmp_path / "a.onnx").opset_import[0].version == opset
    assert_right(model, tmp_path / "a.onnx", (33, 47))


@needs_packages
@pytest.mark.slow
@pytest.mark.parametrize("overrides", OTHERS.values(), ids=OTHERS)
def test_other_decoders_and_backbones_are_right_at_every_size(tmp_path, overrides):
    other = small_model(**overrides)
    write_onnx(tmp_path / "a.onnx", ExportedNetwork(other, list(other.domains), False, "RGB"), None, {})
    for size in SIZES:
        assert_right(other, tmp_path / "a.onnx", size)


@needs_packages
def test_metadata_and_names_are_in_the_file(every_size):
    import onnx

    written = onnx.load(every_size)
    assert {entry.key: entry.value for entry in written.metadata_props} == {"text": "ü", "list": '["ü", 1]'}
    (given,) = written.graph.input
    assert [side.dim_param or side.dim_value for side in given.type.tensor_type.shape.dim] == [1, 3, "height", "width"]
    assert [output.name for output in written.graph.output] == ["logits_pascal_person_part", "logits_atr"]


@needs_packages
def test_the_model_is_as_it_was(model, every_size):
    assert not model.training and not any("forward" in vars(module) for module in model.modules())


def test_without_the_packages_the_sentence_names_them(monkeypatch):
    monkeypatch.setattr(onnx_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        SSTConfigError, match=r'packages onnx and onnxruntime, not installed .*pip install "onnx>=1\.16" "onnxr'
    ):
        check_packages()
