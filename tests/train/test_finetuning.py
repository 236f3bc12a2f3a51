"""Encoders learn: masked tokens, fine-tuning with rates by depth, low-rank updates."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zoo
from runs import finish
from train.config import Config
from train.data.text import TextData
from train.forward import Forward
from train.loop import run
from train.lora import lora
from train.optimizer import OptimizerConfig, check_patterns, make_optimizer, role
from train.step import init_state
from train.tasks.masked_language_model import MaskedLanguageModel, every_seventh
from zoo.__main__ import main
from zoo.errors import ZooError
from zoo.inputs.text import learn
from zoo.registry import abstract_variables
from zoo.transformer import Encoder
from zoo.transformer.layers import stacked

SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "mlp_size": 32, "dropout_rate": 0.0}
TEXT = "the cat sat on the mat. the dog lay by the door. " * 40
RUNS = "".join(f"{word} " * 24 for word in ["cat", "dog", "cow", "hen", "fox", "owl"] * 32)  # neighbours tell the word


def test_lora_is_the_sum_of_the_kernel_and_the_product():
    """After some steps W - W0 is alpha / rank A B, where A and B went down their own gradients."""
    rng = np.random.default_rng(0)
    start = {"kernel": jnp.asarray(rng.normal(size=(2, 5, 4)), jnp.float32)}
    x = jnp.asarray(rng.normal(size=(2, 7, 5)), jnp.float32)

    def loss(kernel):
        return jnp.mean(jnp.square(jnp.sin(x @ kernel) - 0.5))

    optimizer = lora(optax.adam(1e-2), rank=2, alpha=6.0, seed=0)
    params, state = start, optimizer.init(start)
    factors = (state.down["kernel"], state.up["kernel"])
    assert not factors[1].any()
    other = lora(optax.adam(1e-2), rank=2, alpha=6.0, seed=1).init(start).down["kernel"]
    assert np.abs(factors[0] - other).max() > 0.1
    inner = optax.adam(1e-2)
    inner_state = inner.init(factors)
    for _ in range(5):
        gradients = jax.grad(lambda params: loss(params["kernel"]))(params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        own = jax.grad(lambda factors: loss(start["kernel"] + 3.0 * factors[0] @ factors[1]))(factors)
        changes, inner_state = inner.update(own, inner_state, factors)
        factors = optax.apply_updates(factors, changes)
    assert np.abs(params["kernel"] - start["kernel"]).max() > 1e-3
    np.testing.assert_allclose(params["kernel"], start["kernel"] + 3.0 * factors[0] @ factors[1], rtol=1e-5, atol=1e-6)


@functools.cache
def params(scan_layers=False):
    model = zoo.create_model("bert_base", vocab_size=11, max_length=8, num_classes=3, scan_layers=scan_layers, **SIZES)
    return jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4), np.int32))["params"]


@pytest.mark.parametrize("scan_layers", [False, True])
def test_lora_moves_only_its_targets_and_the_head(scan_layers):
    config = OptimizerConfig("adamw", 0.1, "constant", lora_rank=2)
    check_patterns(config, params(scan_layers))
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(params(scan_layers))
    gradients = jax.tree.map(jnp.ones_like, params(scan_layers))
    updates, _ = jax.jit(optimizer.update)(gradients, state, params(scan_layers))
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        moves = name.startswith("head") or name.endswith(("query/kernel", "value/kernel"))
        assert bool(np.abs(leaf).max() > 0) == moves, name
        assert (role(config, name) == "frozen") == (not moves)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_rates_by_depth(scan_layers):
    optimizer = make_optimizer(
        OptimizerConfig("sgd", 1.0, "constant", layer_decay=0.5), 10, embeddings=Encoder.embeddings
    )
    gradients = jax.tree.map(jnp.ones_like, params())
    if scan_layers:
        gradients = stacked(gradients, params(True))
    updates, _ = optimizer.update(gradients, optimizer.init(gradients), gradients)
    rates = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for i, part in enumerate(leaf if "stacked" in name else [leaf]):
            rates.setdefault(name.split("/")[0] + (f"/layer{i}" if "stacked" in name else ""), set()).update(
                np.unique(-part).tolist()
            )
        if "layers/layer" in name:
            rates.setdefault("/".join(name.split("/")[:2]), set()).update(np.unique(-leaf).tolist())
    expected = {"layers/layer1": {1.0}, "layers/layer0": {0.5}, "head": {1.0}, "pooler": {1.0}}
    expected |= {name: {0.25} for name in ("embedding", "embedding_norm", "positions", "types")}
    assert {name: rates[name] for name in expected} == expected


def test_wrong_settings_are_refused():
    for fields, match in [
        ({"lora_rank": 0}, "lora-rank must be at least 1, not 0"),
        ({"lora_rank": 2, "freeze": ["head"]}, "lora-rank does not combine with freeze, rates and layer-decay"),
        ({"layer_decay": 1.5}, r"layer-decay must be in \(0, 1\], not 1.5"),
    ]:
        with pytest.raises(ZooError, match=match):
            Config("x", 10, 8, optimizer=OptimizerConfig(**fields)).check()
    with pytest.raises(ZooError, match=r"unknown pattern in optimizer\.lora-targets 'qury'"):
        check_patterns(OptimizerConfig(lora_rank=2, lora_targets=["qury"]), params())
    cnn = abstract_variables(zoo.create_model("lenet5"), *zoo.model_info("lenet5").example())["params"]
    with pytest.raises(ZooError, match="layer-decay is for models of layers"):
        check_patterns(OptimizerConfig(layer_decay=0.5), cnn)


def test_what_is_hidden_depends_only_on_the_row():
    inputs = learn("wordpiece", [TEXT], 64, 64)
    task, key = MaskedLanguageModel(), jax.random.key(3)
    tokens = np.random.default_rng(0).integers(5, inputs.vocab_size, (512, 64)).astype(np.int32)
    batch = {"tokens": jnp.asarray(tokens), "row": jnp.arange(512), "weight": jnp.ones((512, 64))}
    state = init_state({"params": params()}, optax.sgd(0.1), ema=False)
    forward = Forward(zoo.create_model("bert_base"), inputs, state.variables())
    prepared, extra = task.prepare(forward, state, batch, key)
    assert extra is state.extra
    hidden, shown = np.asarray(prepared["hidden"]), np.asarray(prepared["tokens"])
    np.testing.assert_array_equal(prepared["answers"], tokens)
    np.testing.assert_array_equal(shown[~hidden], tokens[~hidden])
    assert abs(hidden.mean() - 0.15) < 0.01
    assert abs((shown[hidden] == inputs.mask).mean() - 0.8) < 0.03
    assert 0.08 < (shown[hidden] == tokens[hidden]).mean() < 0.15  # unchanged, or drawn again by chance
    part, _ = task.prepare(forward, state, {name: leaf[100:104] for name, leaf in batch.items()}, key)
    np.testing.assert_array_equal(part["tokens"], shown[100:104])


def test_evaluation_hides_every_token_once_in_seven_passes():
    batch = {"tokens": jnp.zeros((14, 21), jnp.int32)}
    hidden = np.asarray(every_seventh(batch))
    assert (hidden.sum(axis=1) == 3).all()
    assert (hidden[:7].sum(axis=0) == 1).all()


def masked(tmp_path, **changes):
    (tmp_path / "text.txt").write_text(RUNS)
    data = TextData(path=str(tmp_path / "text.txt"), tokenizer="wordpiece", vocab_size=64, context=16)
    optimizer = OptimizerConfig("adam", 1e-2, warmup_steps=10)
    config = Config(str(tmp_path / "run"), 400, 8, data=data, task=MaskedLanguageModel(), optimizer=optimizer)
    model = dataclasses.replace(config.model, name="bert_base", args=SIZES)
    return dataclasses.replace(config, eval_every=400, model=model, **changes)


@pytest.mark.slow
def test_a_masked_language_model_learns_and_fills(tmp_path, capsys):
    result = run(masked(tmp_path, steps=1000))
    assert result["validation"]["accuracy"] > 0.8  # guessing gives 0.17; seeds 0, 1, 2: 0.95, 0.95, 0.85
    capsys.readouterr()
    text = "owl owl owl [MASK] owl owl owl owl owl"
    assert main(["predict", str(tmp_path / "run"), text, "--top-k", "1"]) == 0
    assert capsys.readouterr().out.startswith(f"{text}: owl ")
    assert main(["predict", str(tmp_path / "run"), "owl", "--top-k", "1"]) == 2
    assert "'owl' has no [MASK]" in capsys.readouterr().err


def test_masked_language_modelling_needs_a_mask_and_an_encoder(tmp_path):
    config = masked(tmp_path)
    with pytest.raises(ZooError, match=r"a char vocabulary has no \[MASK\]"):
        run(dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer="char")))
    model = dataclasses.replace(config.model, name="gpt2", args={})
    with pytest.raises(ZooError, match="Decoder predicts no masked tokens"):
        run(dataclasses.replace(config, workdir=str(tmp_path / "c"), model=model))


@pytest.mark.slow
def test_fine_tuning_from_a_folder_of_transformers(tmp_path):
    """config.json gives the sizes, tokenizer.json the tokens; the head is new; LoRA leaves the rest unchanged."""
    inputs = learn("wordpiece", [TEXT], 64, 16)
    model = zoo.create_model("bert_base", vocab_size=inputs.vocab_size, max_length=32, **SIZES)
    variables = jax.jit(model.init)(jax.random.key(1), np.zeros((1, 4), np.int32))
    folder = tmp_path / "bert"
    zoo.save_pretrained(model, variables, folder)
    (folder / "tokenizer.json").write_text(inputs.vocabulary)
    rows = [f"the {who} sat on the mat\t{who}" for who in ("cat", "dog")] * 40
    (tmp_path / "rows.tsv").write_text("\n".join(rows))
    args = ["bert-sst2", "--workdir", tmp_path / "run", "--data.path", tmp_path / "rows.tsv"]
    args += ["--data.tokenizer", folder]
    args += ["--data.context", 16, "--model.weights", folder, "--model.args", "dropout_rate=0.0", "--steps", 60]
    args += ["--batch-size", 8, "--optimizer.warmup-steps", 5, "--optimizer.learning-rate", 0.02, "--eval-every", 60]
    finish(*args, "--optimizer.lora-rank", 2, "--log.no-tensorboard")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["validation"]["accuracy"] == 1.0
    tuned = zoo.load(tmp_path / "run")
    assert (tuned.model.max_length, tuned.model.num_classes) == (32, 2)
    before, after = variables["params"], tuned.variables["params"]
    np.testing.assert_array_equal(after["embedding"], before["embedding"])
    kernels = [of["layers"]["layer0"]["attention"]["query"]["kernel"] for of in (before, after)]
    assert np.linalg.matrix_rank(np.asarray(kernels[1] - kernels[0]), tol=1e-4) == 2
    zoo.save_pretrained(*gpt2(), tmp_path / "gpt2")
    failed = finish(*args, "--model.weights", tmp_path / "gpt2", "--workdir", tmp_path / "other", status=2)
    assert "are of gpt2, not of bert_base" in failed.stderr


def gpt2():
    model = zoo.create_model("gpt2", vocab_size=11, hidden_size=16, num_layers=1, num_heads=2, max_length=8)
    return model, jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4), np.int32))
