"""Membranes of cells in electron microscopy: a small U-Net on twenty sections, from pieces that are flipped and turned.

    python -m train membrane

    Data: ISBI 2012 membranes (TFDS set isbi_membrane: 20, 4 and 6 sections)
    Result: test mean IoU 0.782, validation 0.795 (seed 0)
    Time: 1,122 s

4.2 nominal minutes; the machine had other work. `python -m
benchmarks membrane` on the same test sections: membrane IoU 0.445 by
a threshold of the smoothed image, 0.563 by a random forest on filter
responses; with `network --run RUN` 0.665 by this recipe, seed 0.
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
