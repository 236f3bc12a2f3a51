"""Blood cells: red and white cells and platelets found and counted in photos of smears, by Faster R-CNN from scratch.

    python -m train bccd

    Data: BCCD
    Result: not run
    Time: not run

`benchmarks quality` has no row of it yet. A run of seed 0 by itself, 2,585 s on two busy cores: test mAP@0.5 0.909 (red
0.821, white 0.986, platelets 0.919), COCO's mAP 0.597. The number of red cells in a photo, of 12 on average, was off by
3.4, that of white ones by 0.06 and that of platelets by 0.36; not all red cells are labelled.
"""

from train import BoxAugmentConfig, Config, Detection, DetectionData, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    return Config(
        workdir="runs/bccd",
        steps=1280,
        batch_size=8,
        eval_every=256,
        model=ModelConfig(
            "fasterrcnn_resnet50_fpn",
            {
                "backbone_name": "resnet18",
                "backbone_args": {"stage_sizes": (1, 1, 2), "width": 32},
                "stages": ("stage1", "stage2", "stage3"),
                "width": 64,
                "hidden_size": 256,
                "anchors": ((24,), (52,), (100,), (160,)),
                "canonical_size": 80,
                "train_proposals": (400, 200),
                "num_proposals": (200, 100),
                "anchor_samples": 128,
                "region_samples": 48,
            },
        ),
        data=DetectionData("bccd", image_size="240x320"),
        task=Detection(augment=BoxAugmentConfig(flip=True, flip_vertical=True, zoom=0.3, colour=0.2)),
        optimizer=OptimizerConfig("adamw", 1e-3, warmup_steps=100, weight_decay=5e-2, ema=0.998),
        log=LogConfig(every=64),
    )
