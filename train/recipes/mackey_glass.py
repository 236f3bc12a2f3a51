"""Forecasting of the chaotic Mackey-Glass series (tau 17), six seconds ahead, by a GRU; offline.

    python -m train mackey-glass

    Data: the Mackey-Glass equation, computed
    Result: test NRMSE 0.0109 (seeds 0, 1, 2)
    Time: 8 s

The benchmark of Jang 1993: 500 rows train (the last 50 of them validate here), the next 500 test. NRMSE is the root
mean squared error over the standard deviation of the series, there called NDEI. Jang's table has 0.007 for ANFIS, 0.02
for a back-propagation network, 0.06 for cascade correlation and 0.19 for an autoregressive model.
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
