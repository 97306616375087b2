#!/usr/bin/env python
"""Train and evaluate the human parsing network, with Detectron2's own flags.

python train_net.py --config-file configs/quick_schedules/synthetic_people.yaml [--resume] [KEY VALUE …]
python train_net.py --config-file FILE --eval-only MODEL.WEIGHTS output/model_final.pth [TEST.AUG.ENABLED True]
"""

import argparse
import sys

# Through sst_d2 alone: it says what is missing where Detectron2 or OpenCV cannot be imported.
from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.config import inference_config, load_config
from sst_d2.engine import SSTTrainer
from sst_d2.errors import SSTError
from sst_d2.launch import launch, report_user_error
from sst_d2.run_setup import argument_parser, setup


def main(args: argparse.Namespace) -> None:
    """Train or evaluate in one process; `launch` calls it in each."""
    cfg = setup(args)
    if args.eval_only:
        model = SSTTrainer.build_model(inference_config(cfg))
        SSTCheckpointer(model, save_dir=cfg.OUTPUT_DIR).load_for_evaluation(cfg.MODEL.WEIGHTS, resume=args.resume)
        SSTTrainer.verify(cfg, SSTTrainer.evaluate(cfg, model))
        return
    trainer = SSTTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    arguments = argument_parser().parse_args()
    try:
        launch(
            main,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            device=load_config(arguments.config_file, arguments.opts).MODEL.DEVICE,
            args=(arguments,),
        )
    except SSTError as error:
        report_user_error(error)
        sys.exit(1)
