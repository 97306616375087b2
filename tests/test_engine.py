"""`SSTTrainer`: it learns, resumes, evaluates, keeps the best, and stops at numbers that are none."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import tiny_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultPredictor
from detectron2.evaluation import SemSegEvaluator, inference_on_dataset
from detectron2.utils.visualizer import Visualizer

from sst_d2.data import register_dataset_cards
from sst_d2.engine import SSTTrainer
from sst_d2.errors import SSTConfigError, SSTNumericError
from sst_d2.run_setup import check_config, epochs_to_iterations
from sst_d2.visualization import color_map


@pytest.fixture
def cfg(make_dataset, tmp_path):
    sets = [("p", "pascal_person_part"), ("a", "atr")]
    cards = [str(make_dataset(name, domain=domain)) for name, domain in sets]
    cfg = tiny_cfg(
        domains=["pascal_person_part", "atr"],
        DATASETS__SST__CARDS=cards,
        DATASETS__TRAIN=("p", "a"),
        DATASETS__TEST=("p", "a"),
        SOLVER__MAX_ITER=4,
        SOLVER__STEPS=(),
        SOLVER__IMS_PER_BATCH=2,
        OUTPUT_DIR=str(tmp_path / "out"),
    )
    register_dataset_cards(cards)
    return cfg


def train(cfg, resume=False):
    torch.manual_seed(0)
    trainer = SSTTrainer(cfg)
    trainer.resume_or_load(resume)
    return trainer, trainer.train()


def metrics(cfg):
    return [json.loads(line) for line in open(f"{cfg.OUTPUT_DIR}/metrics.json")]


def losses(cfg):
    return [line for line in metrics(cfg) if "total_loss" in line]


def test_training_lowers_the_loss_and_evaluates_every_head(cfg):
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR = 60, 0.004
    _, results = train(cfg)
    history = losses(cfg)
    names, guessing = ("pascal_person_part", "atr"), math.log(7 * 18)
    assert sum(history[-1][f"loss_seg/{name}"] for name in names) < 0.9 * 10 * guessing
    assert sum(history[-1][f"loss_aux/{name}"] for name in names) < 0.9 * guessing
    assert set(results) == {"p", "a"} and results["p"]["sem_seg"]["mIoU"] > 0
    assert {"loss_seg/pascal_person_part", "loss_seg/atr", "lr", "total_loss"} <= set(history[-1])
    assert {"p/sem_seg/mIoU", "a/sem_seg/IoU-face"} <= {key for line in metrics(cfg) for key in line}
    assert list(Path(cfg.OUTPUT_DIR).glob("events.out.tfevents*"))


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(cfg, tmp_path):
    cfg.MODEL.SST.PIXEL_DECODER.DROPOUT = 0.3  # random numbers of torch's own are drawn in every step
    whole, _ = train(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "in_two")
    cfg.SOLVER.MAX_ITER = 2
    train(cfg)
    cfg.SOLVER.MAX_ITER = 4
    resumed, _ = train(cfg, resume=True)
    assert resumed.start_iter == 2
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.model.state_dict().items())


def test_without_resume_training_starts_anew(cfg):
    train(cfg)
    trainer = SSTTrainer(cfg)
    trainer.resume_or_load(False)
    assert trainer.start_iter == 0


def test_the_best_checkpoint_is_kept_apart_from_the_last(cfg, monkeypatch):
    scores = iter([10.0, 30.0, 20.0, 5.0])
    cfg.TEST.EVAL_PERIOD = 1
    monkeypatch.setattr(
        SSTTrainer,
        "test",
        classmethod(lambda *_: {"p": {"sem_seg": {"mIoU": next(scores)}}, "a": {"sem_seg": {"mIoU": 0.0}}}),
    )
    saves = []
    original = torch.save
    monkeypatch.setattr(
        torch, "save", lambda data, stream: (saves.append((stream.name, data.get("iteration"))), original(data, stream))
    )
    _trainer, _ = train(cfg)
    content = torch.load(Path(cfg.OUTPUT_DIR) / "model_best.pth", weights_only=True)
    assert len([path for path, _ in saves if "model_best" in path]) == 2 and content["trainer"]["iteration"] == 1
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_final.pth"
    state = torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)["trainer"]["hooks"]
    assert state["SaveBest"] == {"best": 15.0}


def test_a_resumed_run_remembers_the_best_value_of_an_evaluation_after_its_checkpoint(cfg, monkeypatch):
    scores = iter([90.0, 10.0, 5.0])
    cfg.TEST.EVAL_PERIOD = cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.DATASETS.TEST = ("p",)
    monkeypatch.setattr(SSTTrainer, "test", classmethod(lambda *_: {"sem_seg": {"mIoU": next(scores)}}))
    first = SSTTrainer(cfg)
    first.resume_or_load(False)

    def killed():
        if first.iter == 2:
            raise KeyboardInterrupt

    first.run_step, original = lambda: (killed(), original()), first.run_step
    with pytest.raises(KeyboardInterrupt):
        first.train()
    train(cfg, resume=True)
    best = torch.load(Path(cfg.OUTPUT_DIR) / "model_best.pth", weights_only=True)["trainer"]
    assert (best["hooks"]["SaveBest"]["best"], best["iteration"]) == (90.0, 1)


def test_a_best_checkpoint_of_an_earlier_run_is_laid_aside_and_a_damaged_one_does_not_stop_a_resume(cfg, caplog):
    cfg.DATASETS.TEST, best = ("p",), Path(cfg.OUTPUT_DIR) / "model_best.pth"
    train(cfg)
    train(cfg)
    assert (Path(cfg.OUTPUT_DIR) / "previous_run_1" / "model_best.pth").is_file() and best.is_file()
    best.write_bytes(b"damaged")
    train(cfg, resume=True)
    assert "the best checkpoint so far cannot be read" in caplog.text and best.stat().st_size > 1000


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the stand-in makes no step
def test_scaled_gradients_are_unscaled_before_anything_clips_them(cfg):
    class Scaler:
        calls = []

        def scale(self, loss):
            self.calls.append("scale")
            return loss

        def __getattr__(self, name):
            return lambda *_: self.calls.append(name)

        def state_dict(self):
            return {}

    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE, cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST = "norm", 1, ()
    trainer = SSTTrainer(cfg)
    trainer._trainer._scaler = Scaler()
    trainer.train()
    assert [call for call in Scaler.calls if call != "is_enabled"] == ["scale", "unscale_", "step", "update"]


def test_gradients_are_clipped_over_the_whole_model(cfg, monkeypatch):
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.05
    norms = []
    original = torch.optim.AdamW.step

    def step(optimizer, *args, **kwargs):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.stack([g.norm() for g in gradients]).norm().item())
        return original(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train(cfg)
    assert norms == pytest.approx([0.05] * 4, rel=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_training_by_name_with_finite_weights(cfg, value):
    cfg.SOLVER.CHECKPOINT_PERIOD = 1
    trainer = SSTTrainer(cfg)
    trainer.resume_or_load(False)
    original = trainer._trainer.model.losses.segmentation

    def poisoned(*args):
        terms = original(*args)
        if trainer.iter == 2:
            terms["loss_seg/atr"] = terms["loss_seg/atr"] * value
        return terms

    trainer._trainer.model.losses.segmentation = poisoned
    with pytest.raises(SSTNumericError, match=r"iteration 2: loss_seg/atr is (nan|inf)\. The weights were not changed"):
        trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_0000001.pth"
    with pytest.raises(FloatingPointError):
        raise SSTNumericError("also Detectron2's kind")


def spoil_embedding(branch, value):
    branch.enhancement["atr"].embedding.data[3, 5] = value


def spoil_projection(branch, value):
    branch.aggregation["atr"].projection.weight.data[3, 5] = value


def spoil_mapping(branch, value):
    branch.transfer["pascal_person_part-atr"].dataset.to_first.value.weight.data[3, 5] = value


def spoil_features(branch, value):
    """Of the first image, which is of pascal_person_part."""

    def spoil(module, arguments, given):
        features = {stride: maps.clone() for stride, maps in given["features"].items()}
        features[16][0, 0, 0, 0] = value
        return arguments, {**given, "features": features}

    branch.register_forward_pre_hook(spoil, with_kwargs=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (spoil_embedding, ["loss_aux/atr", "loss_scr_dataset/pascal_person_part-atr"]),
        (spoil_projection, ["loss_aux/atr", "loss_scr_image/pascal_person_part-atr"]),
        (spoil_mapping, ["loss_scr_dataset/pascal_person_part-atr"]),
        (spoil_features, ["loss_aux/pascal_person_part", "loss_scr_image/pascal_person_part-atr"]),
    ],
)
def test_numbers_that_are_none_in_the_branch_stop_training_with_loss_and_domains(cfg, spoil, named, value):
    cfg.SOLVER.CHECKPOINT_PERIOD, cfg.DATASETS.TEST = 1, ()
    trainer = SSTTrainer(cfg)
    trainer.resume_or_load(False)
    step, before = trainer.run_step, {}

    def poisoned():
        if trainer.iter == 2:
            spoil(trainer.model.auxiliary, value)
            before.update({name: weight.clone() for name, weight in trainer.model.state_dict().items()})
        step()

    trainer.run_step = poisoned
    with pytest.raises(SSTNumericError, match=r"iteration 2: .*The weights were not changed") as error:
        trainer.train()
    said = [clause.split(" is ")[0] for clause in str(error.value).split(": ", 1)[1].split(". ")[0].split(", ")]
    assert set(named) <= set(said) and not any(name.startswith("loss_seg") for name in said)
    if spoil is not spoil_features:
        assert "loss_aux/pascal_person_part" not in said
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name].nan_to_num(), weight.nan_to_num()) for name, weight in before.items())
    last = Path(cfg.OUTPUT_DIR) / (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text()
    assert last.name == "model_0000001.pth"
    kept = torch.load(last, weights_only=True)["model"]
    assert all(torch.isfinite(weight).all() for weight in kept.values() if weight.is_floating_point())


@pytest.mark.parametrize("clipping", ["full_model", "value", "off"])
def test_gradients_that_are_no_numbers_stop_training_too(cfg, clipping):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = clipping != "off"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value" if clipping == "value" else "full_model"
    trainer = SSTTrainer(cfg)
    trainer.model.heads["atr"].weight.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(SSTNumericError, match="the gradients are not finite"):
        trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_epochs_become_iterations(cfg):
    cfg.SOLVER.SST.MAX_EPOCHS, cfg.SOLVER.SST.EPOCH_STEPS, cfg.SOLVER.IMS_PER_BATCH = 5, [2, 4], 3
    epochs_to_iterations(cfg)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (15, (6, 12))  # 8 images: 3 iterations an epoch
    cfg.SOLVER.SST.EPOCH_STEPS = [5]
    with pytest.raises(SSTConfigError, match=r"EPOCH_STEPS: \[5\]; epochs between 0 and MAX_EPOCHS \(5\)"):
        epochs_to_iterations(cfg)
    cfg.SOLVER.SST.EPOCH_STEPS, cfg.DATASETS.TRAIN = [], ()
    with pytest.raises(SSTConfigError, match="DATASETS.TRAIN is empty"):
        epochs_to_iterations(cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.ENABLED needs a GPU, and MODEL.DEVICE is 'cpu'"),
        ("MODEL.SST.DOMAINS", ["atr"], "'p' has the label domain 'pascal_person_part', which is none of"),
        ("MODEL.SST.DOMAINS", [], "none of MODEL.SST.DOMAINS .empty."),
        ("SOLVER.SST.ACCUMULATE", 3, "SOLVER.SST.ACCUMULATE: 3 parts of 2 images per process; at most as many"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_built(cfg, key, value, message):
    cfg.merge_from_list([key, value])
    with pytest.raises(SSTConfigError, match=message):
        check_config(cfg)


def test_expected_results_are_verified_for_one_and_for_several_data_sets(cfg):
    results = {"p": {"sem_seg": {"mIoU": 50.0}}, "a": {"sem_seg": {"mIoU": 20.0}}}
    cfg.TEST.EXPECTED_RESULTS = [["a/sem_seg", "mIoU", 20.0, 0.1]]
    SSTTrainer.verify(cfg, results)
    cfg.TEST.EXPECTED_RESULTS = [["a/sem_seg", "mIoU", 25.0, 0.1]]
    with pytest.raises(SystemExit):
        SSTTrainer.verify(cfg, results)
    cfg.TEST.EXPECTED_RESULTS = [["sem_seg", "mIoU", 50.0, 0.1]]
    SSTTrainer.verify(cfg, {"p": results["p"]})


def test_detectron2s_evaluator_predictor_and_visualizer_run_on_the_model(cfg):
    trainer, _ = train(cfg)
    loader = SSTTrainer.build_test_loader(cfg, "a")
    theirs = inference_on_dataset(trainer.model, loader, SemSegEvaluator("a", distributed=False))
    cfg.DATASETS.TEST = ("a",)
    ours = SSTTrainer.evaluate(cfg, trainer.model)["a"]
    assert ours["sem_seg"]["fwIoU"] == pytest.approx(theirs["sem_seg"]["fwIoU"])
    assert ours["sem_seg"]["mACC"] == pytest.approx(theirs["sem_seg"]["mACC"])
    cfg.MODEL.WEIGHTS = f"{cfg.OUTPUT_DIR}/model_final.pth"
    predictor = DefaultPredictor(cfg)
    image = torch.zeros(40, 48, 3, dtype=torch.uint8).numpy()
    labels = predictor(image)["sem_seg"].argmax(0)
    assert labels.shape == (40, 48)
    drawn = Visualizer(image, predictor.metadata).draw_sem_seg(labels).get_image()
    assert drawn.shape == (40, 48, 3)
    assert color_map(labels.numpy(), trainer.model.domains["pascal_person_part"]).shape == (40, 48, 3)
    assert len(DatasetCatalog.get("a")) == 4
