"""Forecasting of the chaotic Mackey-Glass series (tau 17), six seconds ahead, by a GRU; offline.

    python -m train mackey-glass

    Data: the Mackey-Glass equation, computed
    Result: not run
    Time: not run

The benchmark of Jang 1993: 500 rows train, the next 500 test.
"""

from train import Config, Forecasting, LogConfig, ModelConfig, OptimizerConfig, SeriesData


def config() -> Config:
    return Config(
        workdir="runs/mackey-glass",
        steps=3000,
        batch_size=32,
        eval_every=500,
        model=ModelConfig("gru_forecaster", {"hidden_size": 64}),
        data=SeriesData("mackey-glass"),
        task=Forecasting(),
        optimizer=OptimizerConfig("adamw", 5e-3, warmup_steps=100, weight_decay=0.1, clip_norm=1.0, ema=0.99),
        log=LogConfig(every=100),
    )
