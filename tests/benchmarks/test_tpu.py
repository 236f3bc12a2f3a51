"""The traffic of a compiled program is counted by its trip counts; the largest batch is one that was compiled."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import zoo
from benchmarks import tpu
from benchmarks.__main__ import main
from benchmarks.flax_layers import attentive_params, flax_model
from benchmarks.hlo import group_size, sizes, traffic
from zoo.registry import abstract_variables, count_parameters

# As libtpu writes it: no trip count beside the loop, on-chip memory S(1), one all-gather that fusions go on with.
PROGRAM = """HloModule jit_f, is_scheduled=true

%fused_slice (param_0: f32[6,8,128], param_1: s32[]) -> f32[8,128] {
  %param_0 = f32[6,8,128]{2,1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)S(6)} parameter(1)
  %constant.9 = s32[]{:T(128)} constant(0)
  %dynamic-slice.1 = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%param_0, %param_1, %constant.9, %constant.9), dynamic_slice_sizes={1,8,128}
  ROOT %bitcast.1 = f32[8,128]{1,0:T(8,128)S(1)} bitcast(%dynamic-slice.1)
}

%fused_start (param_2: f32[8,128]) -> (f32[8,128], f32[16,128]) {
  %param_2 = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  %all-gather.1 = f32[16,128]{1,0:T(8,128)} all-gather(%param_2), channel_id=2, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dimensions={0}
  ROOT %custom-call.1 = (f32[8,128]{1,0:T(8,128)S(1)}, f32[16,128]{1,0:T(8,128)S(1)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (param_3: f32[8,128], param_4: f32[16,128]) -> (f32[8,128], f32[16,128]) {
  %param_3 = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  %param_4 = f32[16,128]{1,0:T(8,128)S(1)} parameter(1)
  %all-gather.2 = f32[16,128]{1,0:T(8,128)S(1)} all-gather(%param_3), channel_id=2, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dimensions={0}
  ROOT %tuple.9 = (f32[8,128]{1,0:T(8,128)S(1)}, f32[16,128]{1,0:T(8,128)S(1)}) tuple(%param_3, %param_4)
}

%body (param.1: (s32[], f32[6,8,128], s32[], s32[])) -> (s32[], f32[6,8,128], s32[], s32[]) {
  %param.1 = (s32[]{:T(128)}, f32[6,8,128]{2,1,0:T(8,128)}, s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %gte.1 = s32[]{:T(128)} get-tuple-element(%param.1), index=0
  %gte.2 = f32[6,8,128]{2,1,0:T(8,128)} get-tuple-element(%param.1), index=1
  %gte.3 = s32[]{:T(128)} get-tuple-element(%param.1), index=2
  %gte.4 = s32[]{:T(128)} get-tuple-element(%param.1), index=3
  %copy.1 = s32[]{:T(128)S(6)} copy(%gte.1)
  %fusion.1 = f32[8,128]{1,0:T(8,128)S(1)} fusion(%gte.2, %copy.1), kind=kLoop, calls=%fused_slice
  %all-reduce.1 = f32[8,128]{1,0:T(8,128)S(1)} all-reduce(%fusion.1), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  %add.1 = s32[]{:T(128)S(6)} add(%copy.1, %gte.3)
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[6,8,128]{2,1,0:T(8,128)}, s32[]{:T(128)}, s32[]{:T(128)}) tuple(%add.1, %gte.2, %gte.3, %gte.4)
}

%condition (param.2: (s32[], f32[6,8,128], s32[], s32[])) -> pred[] {
  %param.2 = (s32[]{:T(128)}, f32[6,8,128]{2,1,0:T(8,128)}, s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %gte.5 = s32[]{:T(128)} get-tuple-element(%param.2), index=0
  %gte.6 = s32[]{:T(128)} get-tuple-element(%param.2), index=3
  ROOT %lt.1 = pred[]{:T(512)} compare(%gte.5, %gte.6), direction=LT
}

ENTRY %main (param.3: f32[6,8,128], param.4: f32[8,128]) -> f32[6,8,128] {
  %param.3 = f32[6,8,128]{2,1,0:T(8,128)} parameter(0)
  %param.4 = f32[8,128]{1,0:T(8,128)S(1)} parameter(1)
  %constant.1 = s32[]{:T(128)} constant(1)
  %constant.2 = s32[]{:T(128)} constant(2)
  %constant.6 = s32[]{:T(128)} constant(6)
  %fusion.2 = (f32[8,128]{1,0:T(8,128)S(1)}, f32[16,128]{1,0:T(8,128)S(1)}) fusion(%param.4), kind=kCustom, calls=%fused_start
  %gte.7 = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%fusion.2), index=0
  %gte.8 = f32[16,128]{1,0:T(8,128)S(1)} get-tuple-element(%fusion.2), index=1
  %fusion.3 = (f32[8,128]{1,0:T(8,128)S(1)}, f32[16,128]{1,0:T(8,128)S(1)}) fusion(%gte.7, %gte.8), kind=kOutput, calls=%async_collective_fusion.1
  %tuple.2 = (s32[]{:T(128)}, f32[6,8,128]{2,1,0:T(8,128)}, s32[]{:T(128)}, s32[]{:T(128)}) tuple(%constant.1, %param.3, %constant.2, %constant.6)
  %while.1 = (s32[]{:T(128)}, f32[6,8,128]{2,1,0:T(8,128)}, s32[]{:T(128)}, s32[]{:T(128)}) while(%tuple.2), condition=%condition, body=%body
  ROOT %gte.9 = f32[6,8,128]{2,1,0:T(8,128)} get-tuple-element(%while.1), index=1
}
"""  # noqa: E501


def test_a_loop_counts_by_its_condition_and_on_chip_memory_does_not_count():
    found = traffic(PROGRAM)
    rounds, slice_bytes = 3, 8 * 128 * 4  # 1, 3, 5; one slice of the stack in main memory per round
    assert found.unknown_loops == 0
    assert found.bytes == rounds * (slice_bytes + 2 * 4)  # plus the counter and its step
    assert found.collectives == {"all-reduce": rounds, "all-gather": 1}
    assert found.payload == {"all-reduce": rounds * slice_bytes, "all-gather": 2 * slice_bytes}
    assert found.sent == rounds * slice_bytes * 2 * 3 / 4 + slice_bytes  # rings of four and of two


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    found = traffic(PROGRAM.replace("direction=LT", "direction=NE"))
    assert (found.unknown_loops, found.collectives["all-reduce"]) == (1, 1)


@functools.cache
def compiled_text():
    """A scan over six layers on eight devices, with gradients summed over the devices."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    def update(w, x):
        def loss(w):
            return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0] ** 2)

        return w - jax.grad(loss)(w)

    shapes = (
        jax.ShapeDtypeStruct((6, 32, 32), jnp.float32, sharding=whole),
        jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=rows),
    )
    return jax.jit(update, out_shardings=whole).lower(*shapes).compile().as_text()


def test_a_program_of_this_xla_is_read():
    found = traffic(compiled_text())
    weights = 6 * 32 * 32 * 4
    assert found.unknown_loops == 0
    assert found.payload == {"all-reduce": weights}  # at once, or one layer per round
    assert found.sent == weights * 2 * 7 / 8
    assert 3 * weights < found.bytes < 30 * weights  # read forward, backward and for the update


def test_shapes_and_groups_are_read():
    text = "(f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/bf16[5]{0}, pred[], u32[]{:S(2)})"
    assert sizes(text) == [(24, False), (10, True), (1, True), (4, False)]
    assert group_size("replica_groups={{0,1,2},{3,4,5}}, x") == 3
    assert group_size("replica_groups=[4,2]<=[2,4]T(1,0)") == 2
    assert group_size("replica_groups=mesh['a'=2,'b'=4] {'a', 'b'}, use_global_device_ids=true") == 8


@pytest.mark.parametrize(("bend", "best"), [(0, 3992), (1e-6, 3664)])
def test_the_largest_batch_was_compiled_and_fits(bend, best):
    compiled = {}

    def compile_at(batch_size):
        compiled[batch_size] = tpu.Compiled(batch_size, peak=1000 + 2.5 * batch_size + bend * batch_size**2.5)
        peak = compiled[batch_size].peak
        return compiled[batch_size] if peak <= 10_990 else tpu.Compiled(batch_size)

    found = tpu.largest(compile_at, compile_at(64), 8, 10_990)
    assert compiled[found.batch_size] == found
    assert found.peak <= 10_990
    assert best * (1 if bend == 0 else 0.95) <= found.batch_size <= best
    assert found.batch_size % 8 == 0
    assert len(compiled) <= 2 + tpu.CHECKS


def test_a_batch_that_does_not_fit_is_halved_first_and_none_may_fit():
    def compile_at(batch_size, least=0.0):
        peak = least + batch_size
        return tpu.Compiled(batch_size, peak=peak) if peak <= 100 else tpu.Compiled(batch_size)

    assert tpu.largest(compile_at, compile_at(512), 8, 100).batch_size == 96
    never = functools.partial(compile_at, least=1000)
    assert tpu.largest(never, never(512), 8, 100) is None


@pytest.mark.parametrize("recipe", ["lstm", "gpt2-medium"])
def test_models_of_flaxs_layers_have_our_parameters_and_shapes(recipe):
    fields = {"vocab_size": 11, "hidden_size": 8, "num_layers": 2}
    if recipe == "lstm":
        ours = zoo.create_model("lstm_lm", **fields)
    else:
        ours = zoo.create_model("gpt2_medium", num_heads=2, max_length=16, scan_layers=True, **fields)
    tokens = jax.ShapeDtypeStruct((3, 16), jnp.int32)
    theirs = flax_model(ours)
    variables = [abstract_variables(model, [tokens]) for model in (ours, theirs)]
    assert count_parameters(variables[0]) == count_parameters(variables[1])
    assert jax.eval_shape(lambda v, x: theirs.apply(v, x, train=True), variables[1], tokens).shape == (3, 16, 11)


@pytest.mark.slow
def test_a_seq2seq_model_of_flaxs_layers_computes_the_same():
    """From the same weights: Flax's cells have separate gates, and its attention separate layers."""
    sizes = {"embedding_size": 6, "hidden_size": 8, "attention_size": 7, "maxout_size": 5}
    ours = zoo.create_model("seq2seq_gru_attention", vocab_size=12, source_vocab_size=9, dropout_rate=0.3, **sizes)
    theirs = flax_model(ours)
    rng = np.random.default_rng(0)
    tokens, source, lengths = rng.integers(0, 12, (3, 6)), rng.integers(0, 9, (3, 5)), np.array([5, 2, 3])
    p = ours.init(jax.random.key(0), tokens)["params"]
    p = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(leaf.dtype), p)
    params = attentive_params(p)
    a, b = (
        model.apply({"params": params}, tokens, source=source, source_lengths=lengths)
        for model, params in ((ours, p), (theirs, params))
    )
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert jax.tree.structure(theirs.init(jax.random.key(0), tokens)["params"]) == jax.tree.structure(params)


def test_a_resnet_of_flaxs_layers_has_our_parameters():
    ours = zoo.create_model("resnet50")
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    counts = {count_parameters(abstract_variables(m, [image])) for m in (ours, flax_model(ours))}
    assert len(counts) == 1


def test_without_libtpu_the_error_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["tpu", "--recipe", "lstm"]) == 2
    assert capsys.readouterr().err == "error: compiling for TPUs needs libtpu, not a TPU: pip install '.[tpu]'\n"


def test_an_unknown_recipe_is_named(capsys):
    assert main(["tpu", "--recipe", "lsmt"]) == 2
    assert "lsmt" in capsys.readouterr().err


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install '.[tpu]'"
)


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Rows of the command; the environment is restored."""
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return lambda **fields: tpu.run(tpu.TpuConfig(largest=False, output=str(tmp_path / "tpu.csv"), **fields))


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "most"), [("lstm", 100), ("multi30k-gru", 200)])
def test_the_recurrent_recipes_compile_for_eight_chips(measure, recipe, most):
    ours, theirs = measure(recipe=(recipe,))
    assert ours["parameters"] == theirs["parameters"]
    for row in (ours, theirs):
        assert row["fits"]
        assert 0 < row["arguments_mb"] < row["peak_mb"] < most
        assert row["unknown_loops"] == 0
        assert row["collectives"].startswith("1 all-reduce")  # of all gradients at once; rows are not gathered
        assert row["roofline_ms"] == max(row[f"{name}_ms"] for name in ("compute", "memory", "interconnect"))


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "mesh", "gb"),
    [("v5e:2x4", None, 16), ("v5e:4x4", "data=4,fsdp=4", 16), ("v5p:2x2x2", "data=2,fsdp=4", 95)],
)
def test_the_gpt2_medium_recipe_fits_its_chips(measure, topology, mesh, gb):
    [row] = measure(recipe=("gpt2-medium",), topology=topology, mesh=mesh, peer=False)
    assert row["fits"]
    assert row["peak_mb"] < 1000 * gb
    assert ("all-gather" in row["collectives"]) == (mesh is not None)
