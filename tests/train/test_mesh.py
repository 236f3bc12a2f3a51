"""On a mesh every family computes what one device does, and communicates only what the layout needs."""

import dataclasses
import functools
import gc
import itertools
import re
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import train
import zoo
from benchmarks.hlo import traffic
from runs import assert_close
from train import Classification, Config, LanguageModel, ModelConfig, OptimizerConfig, TextData, Translation
from train.checkpoint import Checkpoints
from train.data.source import Dataset
from train.evaluate import make_eval_step
from train.mesh import check_model, mesh_sizes, where_it_fits
from train.optimizer import make_optimizer
from train.setup import Parts
from train.sharding import Layout, make_layout
from train.step import init_state, make_train_step
from train.tasks.task import Extra
from zoo import partition
from zoo.inputs.image import ImageInputs
from zoo.inputs.pairs import PairInputs
from zoo.inputs.text import TextInputs
from zoo.transformer.layers import PARTITION_RULES

LETTERS, LENGTH, BATCH = "abcdefghijklmnopqrstuvwxyz", 16, 8
MICRO = 3  # micro-batches
GPT = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_length": LENGTH}
VIT = {"hidden_size": 32, "num_layers": 1, "num_heads": 4, "image_size": 8, "patch_size": 2, "pooling": "mean"}
MODELS = {
    "cnn": ("resnet8", {"width": 8}),
    "lstm": ("lstm_lm", {"hidden_size": 32, "embedding_size": 32, "num_layers": 1}),
    "seq2seq": ("seq2seq_gru_attention", {"embedding_size": 16, "hidden_size": 32}),
    "gpt": ("nanogpt", GPT),
    "llama": ("smollm2_135m", {**GPT, "num_kv_heads": 2, "mlp_size": 64, "tied": False}),
    "scanned": ("nanogpt", {**GPT, "scan_layers": True, "remat": "full"}),
    "blocked": ("nanogpt", {**GPT, "attention": "blocked"}),
    "bert": ("bert_base", {**GPT, "mlp_size": 64, "num_classes": 5, "dropout_rate": 0.0}),
    "vit": ("vit_tiny16", VIT),
    "t5": ("t5_small", {**GPT, "head_dim": 8, "mlp_size": 64, "dropout_rate": 0.0}),
}
OPTIMIZER = OptimizerConfig("sgd", 0.05, args={"momentum": 0.9}, weight_decay=1e-3, clip_norm=1.0, ema=0.9)
SHARDED = "data=2,fsdp=4"
OF_TRANSFORMERS = ["data=2,fsdp=2,tensor=2", "data=2,context=4", "fsdp=2,context=2,tensor=2"]
CASES = [
    *((name, SHARDED) for name in MODELS if name not in ("blocked", "llama")),
    *((name, OF_TRANSFORMERS[0]) for name in ("gpt", "scanned", "bert", "vit", "t5")),
    *((name, OF_TRANSFORMERS[1]) for name in ("blocked", "vit", "t5")),
    *((name, OF_TRANSFORMERS[2]) for name in ("llama", "bert", "scanned")),
]


QUICK = ("cnn", "lstm", "gpt", "blocked", "llama")


@pytest.fixture(autouse=True)
def _small_arrays_are_large(monkeypatch):
    monkeypatch.setattr(partition, "LARGE", 2**8)


def of_images(model):
    rng = np.random.default_rng(0)
    inputs = ImageInputs((8, 8, 3), (0.3,) * 3, (0.4,) * 3, tuple("0123456789"))
    images = rng.integers(0, 256, (BATCH, 8, 8, 3), np.uint8)
    batch = {"image": images, "label": rng.integers(0, 10, BATCH, np.int32), "weight": np.ones(BATCH, np.float32)}
    return inputs, Classification(), {"num_classes": 10}, batch


def of_texts(model):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, len(LETTERS), (BATCH, LENGTH + 1), np.int32)
    if model.startswith("bert"):
        inputs = TextInputs("char", LETTERS, LENGTH, tuple("abcde"))
        lengths = rng.integers(1, LENGTH + 1, BATCH, np.int32)
        batch = {"tokens": tokens[:, :-1], "length": lengths, "label": tokens[:, 0] % 5}
        return inputs, Classification(), {}, {**batch, "weight": np.ones(BATCH, np.float32)}
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    batch |= {name: np.ones((BATCH, LENGTH), np.float32) for name in ("characters", "weight")}
    return TextInputs("char", LETTERS, LENGTH), LanguageModel(), {}, batch


def of_pairs(model):
    rng = np.random.default_rng(0)
    side = TextInputs("char", LETTERS, LENGTH)
    inputs = PairInputs(side, side)
    batch = {name: rng.integers(4, 24, (BATCH, LENGTH), np.int32) for name in ("source", "target")}
    lengths = {name: rng.integers(1, LENGTH + 1, BATCH, np.int32) for name in ("source_length", "length")}
    return inputs, Translation(), {}, {**batch, **lengths, "weight": np.ones(BATCH, np.float32)}


@functools.cache
def parts(case):
    """Settings, model, inputs, a batch, and the state before the first step."""
    name, args = MODELS[case]
    kind = of_images if case in ("cnn", "vit") else of_pairs if case in ("seq2seq", "t5") else of_texts
    inputs, task, fields, batch = kind(name)
    model = zoo.create_model(name, **{**inputs.model_args(), **args, **fields})
    config = Config("", 10, BATCH, model=ModelConfig(name, args), task=task, optimizer=OPTIMIZER, data=TextData())
    args, kwargs = jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), inputs.example())
    variables = jax.jit(model.init)(jax.random.key(0), *args, **kwargs)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = init_state(variables, optimizer, ema=True, extra=Extra(carry=task.carry(model, BATCH)))
    batch = {**batch, "row": np.arange(BATCH, dtype=np.int32)}
    return config, model, inputs, optimizer, jax.tree.map(np.array, state), batch


@functools.cache
def compiled(case, mesh):
    config, model, inputs, optimizer, state, batch = parts(case)
    layout = make_layout("jit" if mesh is None else "mesh", BATCH, 1, mesh, partition.rules_of(model))
    state, batch = layout.put_state(state), layout.put_batch(batch)
    step = layout.compile_train(
        make_train_step(config.task, model, inputs, optimizer, config.optimizer, config.seed), state
    )
    return layout, step.lower(state, batch).compile()


@functools.cache
def steps(case, mesh, n=3):
    """State and metrics after n steps, and the sums of an evaluation, on the host; and the state's shardings."""
    config, model, inputs, _, state, batch = parts(case)
    layout, step = compiled(case, mesh)
    state, batch, seen = layout.put_state(state), layout.put_batch(batch), []
    for _ in range(n):
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        seen.append(layout.fetch(metrics))
    evaluate = layout.compile_eval(make_eval_step(config.task, model, inputs))
    sums, _ = evaluate(state.eval_variables(), state.extra.carry, batch)
    return (layout.fetch(state), seen, layout.fetch(sums)), jax.tree.map(lambda leaf: leaf.sharding, state)


@pytest.mark.parametrize(
    ("case", "mesh"),
    [pytest.param(*case, marks=() if case[0] in QUICK else pytest.mark.slow) for case in CASES],
)
def test_a_mesh_agrees_with_one_device(case, mesh):
    assert_close(steps(case, None)[0], steps(case, mesh)[0])


def large(tree):
    """Leaves above the size from which fsdp splits them, by path."""
    return {path: leaf for path, leaf in zoo.arrays.named_leaves(tree).items() if leaf.size > partition.LARGE}


@pytest.mark.parametrize("case", ["cnn", "lstm", "seq2seq", "scanned"])
def test_fsdp_splits_parameters_momentum_and_average_alike(case):
    _, placed = steps(case, SHARDED)
    state = parts(case)[4]
    ways = [large(tree) for tree in (state.params, state.ema["params"])]
    assert ways[0]
    whole, shards = zoo.arrays.named_leaves(state), zoo.arrays.named_leaves(placed)
    for path, leaf in large(state.params).items():
        alike = {name: shards[name] for name in whole if name.endswith(f"/{path}")}
        assert len(alike) == 3, path  # the parameter, its momentum, its average
        assert len({sharding.spec for sharding in alike.values()}) == 1
        assert next(iter(alike.values())).shard_shape(leaf.shape) != leaf.shape


@pytest.mark.parametrize("case", ["cnn", "lstm", "seq2seq", "scanned", "vit"])
def test_a_first_state_drawn_on_a_mesh_equals_that_of_one_device(case):
    """Bit for bit."""
    config, model, inputs, optimizer, state, _ = parts(case)
    layout = make_layout("mesh", BATCH, 1, "data=2,fsdp=4", partition.rules_of(model))
    args, kwargs = jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), inputs.example())
    drawn = layout.draw(partial(model.init, **kwargs), jax.random.key(config.seed), *args)
    dataset = Dataset("none", None, None, None, inputs)
    begun = layout.begin(Parts(config, dataset, layout, {}, model, optimizer).begin, drawn)
    jax.tree.map(np.testing.assert_array_equal, layout.fetch(begun), state)
    assert jax.tree.map(lambda leaf: leaf.sharding, begun) == layout.shardings(state)


def bytes_held():
    """Bytes of live arrays on the device that holds the most."""
    gc.collect()
    shards = [shard for array in jax.live_arrays() for shard in array.addressable_shards]
    return max(sum(s.data.nbytes for s in shards if s.device == device) for device in jax.devices())


@pytest.mark.parametrize("weights", [None, "model.safetensors"])
def test_a_run_begins_with_each_device_holding_only_its_part(weights, tmp_path, monkeypatch):
    """An eighth, and the small arrays, of weights that were drawn or read."""
    args, begin, whole, most = {"widths": (64,), "hidden_size": 512}, Layout.begin, [], []
    if weights:
        model = zoo.create_model("simple_cnn", **args, num_classes=10)
        variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
        zoo.save_weights(variables, weights := str(tmp_path / weights))
        del variables
    before = bytes_held()

    def watched(layout, init, variables):
        most.append(bytes_held() - before)
        state = begin(layout, init, variables)
        whole.append(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        most.append(bytes_held() - before)
        raise KeyboardInterrupt

    monkeypatch.setattr(Layout, "begin", watched)
    model = ModelConfig("simple_cnn", args, weights=weights)
    with pytest.raises(KeyboardInterrupt):
        train.run(Config(str(tmp_path / "run"), 1, 16, mesh="fsdp=8", model=model))
    assert whole[0] > 5e6
    assert max(most) < 0.2 * whole[0]


@pytest.mark.parametrize(
    ("case", "mesh", "most"),
    [*((case, "fsdp=8", 0.2) for case in ("cnn", "lstm", "seq2seq", "gpt")), ("gpt", "fsdp=2", 0.55)],
)
def test_fsdp_divides_the_bytes_per_device(case, mesh, most):
    """To an eighth, or a half, except for small arrays and the batch."""
    mesh = mesh if "8" in mesh else f"{mesh},data=4"
    one, many = (compiled(case, of)[1].memory_analysis().argument_size_in_bytes for of in (None, mesh))
    assert many < most * one


def gathers(case, mesh):
    """The shapes of the compiled step's all-gathers."""
    text = compiled(case, mesh)[1].as_text()
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", text)
    assert "all-to-all" not in text
    return [tuple(int(n) for n in shape.removeprefix("1,").split(",")) for shape in shapes]


@pytest.mark.parametrize(("case", "mesh"), [(case, "fsdp=8") for case in ("cnn", "lstm", "seq2seq", "gpt", "scanned")])
def test_fsdp_gathers_a_parameter_at_most_twice_and_nothing_else(case, mesh):
    sizes = {**dict.fromkeys(partition.AXES, 1), "fsdp": 8}
    model, params = parts(case)[1], parts(case)[4].params
    specs = zoo.arrays.named_leaves(partition.specs(params, sizes, partition.rules_of(model)))
    sharded = [leaf.shape for path, leaf in zoo.arrays.named_leaves(params).items() if any(specs[path])]
    of_layer = {shape: shape[1:] for shape in sharded if case == "scanned" and len(shape) == 3}
    sharded = [of_layer.get(shape, shape) for shape in sharded]
    found = gathers(case, mesh)
    assert found
    for shape in set(found):
        assert found.count(shape) <= 2 * sharded.count(shape), shape


@pytest.mark.parametrize(("case", "times"), [("gpt", 2), ("scanned", 2 * MICRO)])
def test_accumulation_gathers_no_more_than_it_must(case, times):
    """Twice a step; twice a micro-batch where layers are gathered one at a time."""
    config, model, inputs, optimizer, state, batch = parts(case)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, accumulate=MICRO))
    layout = make_layout("mesh", MICRO * BATCH, MICRO, "fsdp=8", partition.rules_of(model))
    batch = layout.put_batch(jax.tree.map(lambda x: np.concatenate([x] * MICRO), batch))
    step = layout.compile_train(
        make_train_step(config.task, model, inputs, optimizer, config.optimizer, config.seed), state
    )
    found = traffic(step.lower(layout.put_state(state), batch).compile().as_text())
    layers = GPT["num_layers"] if case == "scanned" else 1
    arrays = sum(layers if path.startswith("layers") else 1 for path in large(state.params))
    assert found.unknown_loops == 0
    assert 0 < found.collectives["all-gather"] <= times * arrays


def test_data_parallel_gathers_nothing():
    for case in ("cnn", "lstm", "seq2seq", "gpt"):
        assert gathers(case, "data=8") == []


def test_context_gathers_only_keys_and_values():
    """And the small table of learned positions, of which each device adds its own part."""
    rows, layers = BATCH // 2, GPT["num_layers"]
    found = gathers("gpt", "data=2,context=4")
    assert found.count((rows, LENGTH, GPT["hidden_size"])) <= 2 * layers
    assert set(found) <= {(rows, LENGTH, GPT["hidden_size"]), (LENGTH, GPT["hidden_size"])}


def test_the_rules_split_the_parameters_that_they_name():
    params = parts("llama")[4].params
    sizes = {**dict.fromkeys(partition.AXES, 1), "tensor": 2, "fsdp": 2}
    specs = zoo.arrays.named_leaves(partition.specs(params, sizes, PARTITION_RULES))
    assert specs["layers/layer0/attention/query/kernel"] == P("fsdp", "tensor")
    assert specs["layers/layer0/attention/out/kernel"] == P("tensor", "fsdp")
    assert specs["layers/layer0/mlp/down/kernel"] == P("tensor", "fsdp")
    assert specs["embedding"] == P("tensor", "fsdp")
    assert not any(specs["layers/layer0/norm1/scale"])
    odd = {"odd": np.zeros((33, 35), np.float32), "head": {"kernel": np.zeros((32, 35), np.float32)}}
    assert partition.specs(odd, sizes, PARTITION_RULES) == {"odd": P(None, None), "head": {"kernel": P("fsdp", None)}}


def test_without_a_mesh_nothing_happens():
    x = np.ones((4, 8, 2), np.float32)
    assert partition.lying(x, "rows", "context") is x
    assert partition.gathered({"x": x}, ())["x"] is x
    assert partition.over_shards(len, ()) is len
    assert partition.by_device(len, None, None) is len


def test_the_sizes_of_a_mesh():
    assert mesh_sizes("tensor=2,fsdp=2", 8) == {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
    assert mesh_sizes(None, 3)["data"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model=2", "'model=2' does not"),
        ("data=0", "'data=0' does not"),
        ("data=2,data=4", "such as data=2,fsdp=4"),
        ("", "'' does not"),
        ("fsdp=3", "is one of 6 devices; there are 8; --mesh None names none"),
        ("data=2,fsdp=2", "is one of 4 devices; there are 8"),
    ],
)
def test_an_impossible_mesh_is_refused(text, message):
    with pytest.raises(zoo.ZooError, match=message):
        mesh_sizes(text, 8)


@pytest.mark.parametrize(
    ("case", "mesh", "message"),
    [
        ("cnn", "tensor=2", "mesh tensor=2 is for Transformers; ResNet takes data and fsdp"),
        ("lstm", "context=2", "mesh context=2 is for Transformers"),
        ("gpt", "tensor=8", "mesh tensor=8 does not divide the model's num_heads, 4"),
        ("llama", "tensor=4", "mesh tensor=4 does not divide the model's num_kv_heads, 2"),
    ],
)
def test_a_model_that_a_mesh_does_not_divide_is_refused(case, mesh, message):
    _, model, inputs, *_ = parts(case)
    family = zoo.model_info(MODELS[case][0]).family
    with pytest.raises(zoo.ZooError, match=message):
        check_model(model, family, inputs.shape, mesh_sizes(mesh, 8))


def test_a_sequence_that_context_does_not_divide_is_refused():
    vit = zoo.create_model("vit_tiny16", image_size=8, patch_size=2)  # 16 patches and a class token
    with pytest.raises(zoo.ZooError, match="context=2 does not divide a sequence of 17 tokens"):
        check_model(vit, "transformer", (8, 8, 3), mesh_sizes("context=2", 8))


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_a_mesh_needs_parallel_mesh(parallel):
    with pytest.raises(zoo.ZooError, match=f"mesh fsdp=8 goes with parallel mesh, not {parallel}; --mesh None"):
        Config("x", 10, 8, parallel=parallel, mesh="fsdp=8").check()
    Config("x", 10, 8, mesh="fsdp=8").check()


@pytest.mark.parametrize(
    ("mesh", "parallel", "fits"),
    [
        ("data=2,fsdp=4", "auto", True),
        ("fsdp=2", "mesh", True),
        (None, "jit", True),
        ("data=2,fsdp=4", "jit", False),
        ("data=2,fsdp=2", "auto", False),
        ("fsdp=16", "mesh", False),
    ],
)
def test_a_runs_mesh_is_left_out_where_it_does_not_fit(mesh, parallel, fits, recwarn):
    assert where_it_fits(mesh, parallel) == (mesh if fits else None)
    message = [f"the run's mesh {mesh} is left out: it does not fit (parallel {parallel}, devices: 8)"]
    assert [str(warning.message) for warning in recwarn] == ([] if fits else message)


def test_only_data_and_fsdp_divide_a_batch():
    assert make_layout("mesh", 4, 1, "fsdp=4,tensor=2").sizes["data"] == 1
    with pytest.raises(zoo.ZooError, match="batch-size 6 does not divide among 4 devices; 4 or 8 does"):
        make_layout("mesh", 6, 1, "data=2,fsdp=2,tensor=2")


LAYOUTS = ["jit", "data=8", "fsdp=8", "fsdp=4 of 4", "pmap"]


def layout_named(layout, monkeypatch):
    """A layout of all devices, or of the first ones."""
    mesh, _, devices = layout.partition(" of ")
    if devices:
        some = jax.devices()[: int(devices)]
        monkeypatch.setattr(jax, "devices", lambda: some)
    parallel = mesh if mesh in ("jit", "pmap") else "mesh"
    return make_layout(parallel, BATCH, 1, mesh if parallel == "mesh" else None, PARTITION_RULES)


@pytest.mark.parametrize(("before", "after"), [*itertools.pairwise([*LAYOUTS, LAYOUTS[0]]), ("fsdp=8", "data=8")])
def test_a_checkpoint_of_any_layout_is_read_by_any_other(before, after, tmp_path, monkeypatch):
    """Bit for bit, directly to its place: no device holds an array of fsdp whole."""
    state = parts("cnn")[4]
    with monkeypatch.context() as patch:
        layout = layout_named(before, patch)
        checkpoints = Checkpoints(tmp_path, 1)
        checkpoints.save(layout.stored(layout.put_state(state)), 1, None, {"interval": {"steps": 0, "sums": {}}})
        checkpoints.close()
    with monkeypatch.context() as patch:
        layout = layout_named(after, patch)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
        checkpoints = Checkpoints(tmp_path, 1)
        read, meta = checkpoints.restore(layout.template(shapes))
        placed = layout.restored(read)
        checkpoints.close()
        assert meta["step"] == 1
        jax.tree.map(np.testing.assert_array_equal, layout.fetch(placed), state)
        if after != "pmap":
            assert jax.tree.map(lambda leaf: leaf.sharding, read) == layout.shardings(state)
            assert all(leaf._npy_value is None for leaf in jax.tree.leaves(read) if len(leaf.sharding.device_set) > 1)
