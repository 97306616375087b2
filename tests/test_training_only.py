"""The branch serves training alone: evaluation builds and imports none of it, and gives the same without it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny_cfg
from detectron2.modeling import build_backbone, build_model
from torch.utils.flop_counter import FlopCounterMode

from sst_d2 import SST
from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.config import inference_config
from sst_d2.data import register_dataset_cards
from sst_d2.engine import SSTTrainer
from sst_d2.errors import SSTCheckpointError
from sst_d2.label_domains import get_label_domain
from sst_d2.modeling import SSTHeads, SSTLosses
from sst_d2.modeling.decoder import build_sst_decoder

NETWORKS = {
    "the paper's": {},
    "semantic FPN": {"MODEL__SST__DECODER__NAME": "SemanticFPNDecoder"},
    "DeepLabV3+": {"MODEL__SST__DECODER__NAME": "DeepLabV3PlusDecoder"},
}


@pytest.fixture
def cfg(make_dataset, tmp_path):
    """Universal training of two label domains, with the branch."""
    sets = [("p", "pascal_person_part"), ("a", "atr")]
    cards = [str(make_dataset(name, domain=domain)) for name, domain in sets]
    register_dataset_cards(cards)
    return tiny_cfg(
        domains=["pascal_person_part", "atr"],
        DATASETS__SST__CARDS=cards,
        DATASETS__TRAIN=("p", "a"),
        DATASETS__TEST=("p", "a"),
        SOLVER__MAX_ITER=3,
        SOLVER__STEPS=(),
        SOLVER__BASE_LR=0.01,
        SOLVER__IMS_PER_BATCH=2,
        OUTPUT_DIR=str(tmp_path / "out"),
    )


def train(cfg, resume=False):
    trainer = SSTTrainer(cfg)
    trainer.resume_or_load(resume)
    return trainer, trainer.train()


def content(cfg, name):
    return torch.load(Path(cfg.OUTPUT_DIR) / f"{name}.pth", weights_only=True)


def load_and_evaluate(cfg, name):
    model = SSTTrainer.build_model(inference_config(cfg))
    SSTCheckpointer(model).load_for_evaluation(f"{cfg.OUTPUT_DIR}/{name}.pth")
    return SSTTrainer.evaluate(cfg, model)


# train_net.py and a predictor in one new process: configuration, weights, photo.
EVALUATE_AND_PREDICT = f"""
import runpy, sys
import cv2
from detectron2.engine import DefaultPredictor
from sst_d2.config import inference_config, load_config
_, config, weights, photo = sys.argv
sys.argv = ["train_net.py", "--eval-only", "--config-file", config, "MODEL.WEIGHTS", weights]
runpy.run_path({str(ROOT / "train_net.py")!r}, run_name="__main__")
predictor = DefaultPredictor(inference_config(load_config(config, ["MODEL.WEIGHTS", weights])))
assert predictor.model.auxiliary is None
assert len(predictor(cv2.imread(photo))["sem_seg"]) == 7
print("imported:", [name for name in sys.modules if name.startswith("sst_d2.modeling.auxiliary")])
"""


def scores(cfg):
    """What an evaluation has written, confusion matrices included; taken away."""
    paths = [Path(cfg.OUTPUT_DIR) / "inference" / name / "sem_seg_evaluation.json" for name in cfg.DATASETS.TEST]
    texts = [path.read_text() for path in paths]
    for path in paths:
        path.unlink()
    return texts


def test_evaluation_and_prediction_import_nothing_of_it_and_the_scores_are_those_of_the_training(cfg, tmp_path):
    trainer, _ = train(cfg)
    assert trainer.model.auxiliary is not None and "sst_d2.modeling.auxiliary" in sys.modules
    expected, config = scores(cfg), tmp_path / "run.yaml"
    config.write_text(cfg.dump())
    photo = next((tmp_path / "p" / "images").iterdir())
    command = [sys.executable, "-c", EVALUATE_AND_PREDICT, config, f"{cfg.OUTPUT_DIR}/model_final.pth", photo]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=240)
    assert result.stdout.splitlines()[-1:] == ["imported: []"], result.stderr
    assert scores(cfg) == expected


def plain_network(cfg):
    """The parsing network, put together by hand."""
    domains = [get_label_domain(name) for name in cfg.MODEL.SST.DOMAINS]
    backbone = build_backbone(cfg)
    decoder = build_sst_decoder(cfg, backbone.output_shape())
    heads = SSTHeads(decoder.out_channels, domains)
    means = {"pixel_mean": cfg.MODEL.PIXEL_MEAN, "pixel_std": cfg.MODEL.PIXEL_STD}
    return SST(backbone=backbone, decoder=decoder, heads=heads, domains=domains, losses=SSTLosses(), **means)


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def macs(model):
    """Of a prediction in all label domains, as PyTorch counts the operations that it carries out."""
    image = torch.zeros(3, 64, 96)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()([{"image": image, "label_domain": "all"}])
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("overrides", NETWORKS.values(), ids=NETWORKS)
def test_the_evaluation_network_is_the_plain_parsing_network(overrides):
    cfg = tiny_cfg(**overrides)
    plain, trained, evaluated = plain_network(cfg), build_model(cfg), build_model(inference_config(cfg))
    assert evaluated.auxiliary is None and shapes(evaluated) == shapes(plain)
    of_branch = {name for name in shapes(trained) if name.startswith("auxiliary.")}
    assert of_branch and {n: s for n, s in shapes(trained).items() if n not in of_branch} == shapes(plain)
    assert macs(evaluated) == macs(plain) == macs(trained) > 10**6
    assert [type(module) for module in evaluated.modules()] == [type(module) for module in plain.modules()]


def test_logits_are_the_same_bits_with_and_without_it_in_the_checkpoint(cfg):
    trainer, _ = train(cfg)
    samples = [{"image": torch.randint(256, (3, 40, 56)), "label_domain": "all"}]

    def logits(model):
        with torch.no_grad():
            return model.eval()(samples)[0]["sem_seg_by_domain"]

    expected = logits(trainer.model)
    for name in ("model_final", "model_inference"):
        for network in (plain_network(cfg), build_model(inference_config(cfg))):
            SSTCheckpointer(network).load_for_evaluation(f"{cfg.OUTPUT_DIR}/{name}.pth")
            assert all(torch.equal(value, expected[domain]) for domain, value in logits(network).items())


def test_the_end_of_a_training_writes_the_checkpoint_for_inference(cfg):
    _, results = train(cfg)
    whole, bare = content(cfg, "model_final"), content(cfg, "model_inference")
    assert set(bare) == {"model", "label_domains", "config", "sst_format"}
    assert all(bare[key] == whole[key] for key in ("label_domains", "config", "sst_format"))
    assert {key for key in whole["model"] if not key.startswith("auxiliary.")} == set(bare["model"])
    assert all(torch.equal(value, whole["model"][key]) for key, value in bare["model"].items())
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_final.pth"
    assert load_and_evaluate(cfg, "model_inference") == results


def test_it_starts_another_training_but_is_none_to_go_on_with(cfg, tmp_path):
    trainer, _ = train(cfg)
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}/model_inference.pth", str(tmp_path / "next")
    other = SSTTrainer(cfg)
    other.resume_or_load(False)
    trained = trainer.model.state_dict()
    for name, value in other.model.state_dict().items():
        assert name.startswith("auxiliary.") or torch.equal(value, trained[name])
    cfg.OUTPUT_DIR = str(Path(cfg.MODEL.WEIGHTS).parent)
    (Path(cfg.OUTPUT_DIR) / "last_checkpoint").write_text("model_inference.pth")
    with pytest.raises(SSTCheckpointError, match=r"model_inference\.pth: .*missing: auxiliary|no state of training"):
        SSTTrainer(cfg).resume_or_load(True)


def test_a_resumed_run_writes_its_own(cfg):
    train(cfg)
    first = content(cfg, "model_inference")["model"]
    cfg.SOLVER.MAX_ITER = 5
    train(cfg, resume=True)
    whole, bare = content(cfg, "model_final")["model"], content(cfg, "model_inference")["model"]
    assert all(torch.equal(value, whole[key]) for key, value in bare.items())
    assert not torch.equal(first["heads.atr.weight"], bare["heads.atr.weight"])


class Killed(BaseException):
    """Ends a run where it stands, as a kill would."""


@pytest.mark.parametrize("moment", ["in the last step", "before it is written", "while it is written"])
def test_an_interrupted_run_writes_none_and_a_resumed_one_makes_up_for_it(cfg, moment, monkeypatch):
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    trainer = SSTTrainer(cfg)
    trainer.resume_or_load(False)
    trainer.after_train = lambda: None
    original = torch.save

    def kill(*_):
        raise Killed

    def kill_half_way(data, stream):
        original(data, stream)
        if "trainer" not in data:
            raise Killed

    if moment == "in the last step":
        step = trainer.run_step
        trainer.run_step = lambda: kill() if trainer.iter == 2 else step()
    elif moment == "before it is written":
        trainer.checkpointer.save_for_inference = kill
    else:
        monkeypatch.setattr(torch, "save", kill_half_way)
    with pytest.raises(Killed):
        trainer.train()
    monkeypatch.undo()
    assert not list(Path(cfg.OUTPUT_DIR).glob("model_inference*"))
    train(cfg, resume=True)
    whole, bare = content(cfg, "model_final")["model"], content(cfg, "model_inference")["model"]
    assert all(torch.equal(value, whole[key]) for key, value in bare.items())


def test_a_mistake_in_training_writes_none(cfg):
    trainer = SSTTrainer(cfg)
    trainer.model.heads["atr"].weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert not list(Path(cfg.OUTPUT_DIR).glob("model_*"))


def test_a_training_without_the_branch_writes_one_too(cfg):
    cfg.MODEL.SST.AUXILIARY.ENABLED = False
    train(cfg)
    assert set(content(cfg, "model_inference")) == {"model", "label_domains", "config", "sst_format"}
    assert load_and_evaluate(cfg, "model_inference") == load_and_evaluate(cfg, "model_final")
