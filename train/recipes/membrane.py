"""Membranes of cells in electron microscopy: a small U-Net on twenty sections, from random pieces, deformed.

python -m train membrane

Data: ISBI 2012 membranes (TFDS set isbi_membrane: 20, 4 and 6 sections)
Result: not run
Time: not run
"""

from train import Config, DeformConfig, LogConfig, ModelConfig, OptimizerConfig, Segmentation, SegmentationData


def config() -> Config:
    return Config(
        workdir="runs/membrane",
        steps=900,
        batch_size=2,
        eval_every=450,
        model=ModelConfig("unet_small"),
        data=SegmentationData("isbi_membrane", tile=192),
        task=Segmentation(
            class_weights={"membrane": 2.0},
            rand=True,
            augment=DeformConfig(flip=True, turn=True, contrast=0.1, brightness=0.1),
        ),
        optimizer=OptimizerConfig("adamw", 2e-3, warmup_steps=100, weight_decay=1e-2, ema=0.99),
        log=LogConfig(every=50),
    )
