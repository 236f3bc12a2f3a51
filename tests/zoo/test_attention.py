"""Every implementation of attention is the textbook's, in value and gradient, under every mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo import ZooError
from zoo.ops.attention import Mask, attention, attention_reference, attention_weights, choose, splash

B, T, N, D = 2, 150, 4, 8  # more than one block, and not whole ones
TOLERANCE = 2e-5  # of the largest value, float32: sums in another order


def arrays(queries=T, keys=T, heads=N, key_heads=N, dtype=np.float32, width=D, value_width=None):
    rng = np.random.default_rng(0)
    shapes = [(B, queries, heads, width), (B, keys, key_heads, width), (B, keys, key_heads, value_width or width)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def segments(length, count=4):
    cuts = np.sort(np.random.default_rng(1).integers(0, length, (B, count)), axis=1)
    return jnp.asarray((np.arange(length) >= cuts[:, :, None]).sum(axis=1), jnp.int32)


PACKED = segments(T)
POSITIONS = jnp.asarray(np.stack([np.arange(20) + 100, np.arange(20) + 3]), jnp.int32)
CASES = {
    "cross": (Mask(), {"keys": 70}),
    "causal": (Mask(causal=True), {}),
    "grouped": (Mask(causal=True), {"key_heads": 2}),
    "multi-query": (Mask(causal=True), {"key_heads": 1}),
    "padding": (Mask(lengths=jnp.array([130, 7])), {}),
    "empty row": (Mask(lengths=jnp.array([0, 140])), {}),
    "window": (Mask(causal=True, window=40), {}),
    "both ways": (Mask(window=40), {}),
    "packed": (Mask(causal=True, segments=(PACKED, PACKED)), {}),
    "cached": (Mask(causal=True, positions=POSITIONS), {"queries": 20, "key_heads": 2}),
    "cached window": (Mask(causal=True, window=30, positions=POSITIONS), {"queries": 20}),
    "one side, before": (Mask(window=(30, None)), {}),
    "one side, after": (Mask(window=(None, 5)), {"keys": 70}),
    "uneven window": (Mask(window=(10, 3), lengths=jnp.array([130, 7])), {}),
    "causal uneven window": (Mask(causal=True, window=(10, 3)), {}),
    "wide values": (Mask(causal=True, lengths=jnp.array([130, 7])), {"value_width": 13, "key_heads": 2}),
    "few": (Mask(causal=True), {"queries": 5, "keys": 5}),
}


def close(ours, theirs, tolerance=TOLERANCE):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = max(float(jnp.abs(b).max()), 1e-3)
        assert float(jnp.abs(jnp.asarray(a, jnp.float32) - b).max()) <= tolerance * scale


def value_and_gradients(function, *inputs):
    out, back = jax.vjp(function, *inputs)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=out.shape), out.dtype)
    return out, back(weights)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("implementation", ["xla", "blocked"])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_values_and_gradients_are_the_references(case, implementation, soft_cap):
    mask, shapes = CASES[case]
    inputs = arrays(**shapes)

    @jax.jit
    def ours(*inputs):
        run = lambda *a: attention(*a, mask, soft_cap=soft_cap, implementation=implementation)  # noqa: E731
        return value_and_gradients(run, *inputs)

    @jax.jit
    def theirs(*inputs):
        return value_and_gradients(lambda *a: attention_reference(*a, mask, soft_cap=soft_cap), *inputs)

    close(ours(*inputs), theirs(*inputs))


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
def test_bfloat16_is_within_its_rounding(implementation):
    inputs = arrays(dtype=jnp.bfloat16)
    mask = Mask(causal=True)
    ours = attention(*inputs, mask, implementation=implementation)
    assert ours.dtype == jnp.bfloat16
    close(ours, attention_reference(*inputs, mask), 2**-7)


def test_a_bias_is_added_to_the_scores():
    inputs = arrays(20, 30)
    bias = jnp.asarray(np.random.default_rng(3).normal(size=(1, N, 20, 30)), jnp.float32)
    close(attention(*inputs, bias=bias), attention_reference(*inputs, bias=bias))
    uneven = value_and_gradients(lambda bias: attention(*inputs, bias=bias, scale=1.0), bias)
    close(uneven, value_and_gradients(lambda bias: attention_reference(*inputs, bias=bias, scale=1.0), bias))


def test_a_query_that_sees_no_key_gets_zeros():
    for implementation in ("xla", "blocked"):
        out = attention(*arrays(), Mask(lengths=jnp.array([0, T])), implementation=implementation)
        assert not np.asarray(out[0]).any()
        assert np.isfinite(out).all()


def test_weights_are_distributions_over_what_is_seen():
    query, key, _ = arrays(20, 20, key_heads=2)
    weights = np.asarray(attention_weights(query, key, Mask(causal=True)))
    assert weights.shape == (B, N, 20, 20)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert not np.triu(weights, 1).any()


@pytest.mark.parametrize("case", ["causal", "grouped", "padding", "window", "both ways", "packed"])
def test_the_tpu_kernel_interpreted_is_the_reference(case):
    mask, shapes = CASES[case]
    inputs = arrays(256, 256, key_heads=shapes.get("key_heads", N), width=64)
    if mask.segments is not None:
        packed = segments(256)
        mask = mask._replace(segments=(packed, packed))
    ours = jax.jit(lambda *a: value_and_gradients(lambda *a: splash(*a, mask, 0.2, interpret=True), *a))(*inputs)
    theirs = value_and_gradients(lambda *a: attention_reference(*a, mask, scale=0.2), *inputs)
    close(ours, theirs, 1e-4)  # its exponentials and sums are its own


@pytest.mark.parametrize("rows", [8, 3])  # an eighth for each device, and what eight do not divide
def test_the_tpu_kernel_runs_on_a_mesh(rows):
    """Interpreted, it is the reference, its batch still split; for a TPU, it lowers."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(rows, 128, 2, 64)).astype(np.float32) for _ in range(3)]
    ids = np.sort(rng.integers(0, 3, (rows, 128)).astype(np.int32), axis=1)
    place = NamedSharding(mesh, PartitionSpec("data" if rows == 8 else None))
    inputs = jax.device_put([*inputs, ids], place)

    def run(function, *inputs, **options):
        *arrays, ids = inputs
        mask = Mask(causal=True, segments=(ids, ids))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return value_and_gradients(lambda *arrays: function(*arrays, mask, scale=0.2, **options), *arrays)

    ours = jax.jit(functools.partial(run, splash, interpret=True))(*inputs)
    close(ours, run(attention_reference, *inputs), 1e-4)
    assert jax.tree.leaves(ours)[-1].sharding.is_equivalent_to(place, 4)
    lowered = jax.jit(functools.partial(run, splash)).trace(*inputs).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in lowered.as_text()


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's kernel needs a GPU")
@pytest.mark.parametrize("case", ["causal", "grouped", "padding", "window"])
def test_cudnn_is_the_reference(case):
    mask, shapes = CASES[case]
    inputs = arrays(dtype=jnp.bfloat16, width=64, **shapes)
    close(attention(*inputs, mask, implementation="cudnn"), attention_reference(*inputs, mask), 2**-6)


@pytest.mark.skipif(jax.default_backend() != "tpu", reason="the compiled kernel needs a TPU")
def test_the_tpu_kernel_is_the_reference():
    inputs = arrays(256, 256, width=64)
    mask = Mask(causal=True)
    close(attention(*inputs, mask, implementation="pallas"), attention_reference(*inputs, mask), 1e-2)


def test_the_choice_by_platform_and_shape():
    causal = Mask(causal=True)
    assert choose("cpu", 64, 64, 32, jnp.float32, causal, True) == "xla"
    assert choose("cpu", 1, 4096, 32, jnp.float32, causal, True) == "xla"  # one token reads a cache
    assert choose("cpu", 1024, 1024, 32, jnp.float32, causal, True) == "blocked"
    assert choose("cpu", 1024, 1024, 32, jnp.float32, causal, False) == "xla"
    assert choose("gpu", 1024, 1024, 64, jnp.bfloat16, causal, True) == "cudnn"
    assert choose("gpu", 1024, 1024, 64, jnp.float32, causal, True) == "blocked"
    assert choose("tpu", 1024, 1024, 64, jnp.bfloat16, causal, True) == "pallas"
    assert choose("tpu", 1000, 1000, 64, jnp.bfloat16, causal, True) == "blocked"


def test_blocked_never_holds_the_whole_matrix():
    def largest(length):
        inputs = [jax.ShapeDtypeStruct((1, length, 1, D), jnp.float32)] * 3

        def loss(*inputs):
            return attention(*inputs, Mask(causal=True), implementation="blocked").sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*inputs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert largest(4096) < 1.2 * 2 * largest(2048)  # linear in the length
    assert largest(4096) < 4096 * 4096  # a quarter of the float32 matrix


def test_a_causal_mask_halves_the_work_of_blocked():
    """The loop over keys of a block of queries ends where the mask begins."""
    from zoo.ops.blocked_attention import _bounds

    places = jnp.arange(256, 320)[None]
    assert [int(x) for x in _bounds(True, None, places, jnp.array(1024), 64)] == [0, 5]
    assert [int(x) for x in _bounds(True, 100, places, jnp.array(1024), 64)] == [2, 5]
    assert [int(x) for x in _bounds(False, None, places, jnp.array(130), 64)] == [0, 3]


def test_shapes_and_implementations_that_do_not_go_together():
    query, key, value = arrays()
    with pytest.raises(ZooError, match=r"attention of \[2, 150, 4, 8\] to keys \[2, 150, 3, 8\]"):
        attention(query, key[:, :, :3], value[:, :, :3])
    with pytest.raises(ZooError, match="attention 'blocked' takes no bias; take 'xla'"):
        attention(query, key, value, bias=jnp.zeros((1, N, T, T)), implementation="blocked")
    with pytest.raises(ZooError, match="multiples of 128, not 150 and 150"):
        attention(query, key, value, implementation="pallas")
    with pytest.raises(ZooError, match="attention 'pallas' takes no values of width 5; take 'xla'"):
        attention(query, key, value[..., :5], implementation="pallas")
    with pytest.raises(ZooError, match=r"bias \[4, 150, 150\] does not broadcast to the scores \[2, 4, 150, 150\]"):
        attention(query, key, value, bias=jnp.zeros((N, T, T)))
    with pytest.raises(ZooError, match="a Mask or boolean, not float32; numbers to add are the bias"):
        attention(query, key, value, jnp.zeros((1, 1, T, T)))
    for window in (0, (-1, 0), (1, 2, 3)):
        with pytest.raises(ZooError, match=r"must be 1 or more, or \(before, after\)"):
            attention(query, key, value, Mask(window=window))


def by_hand(query, key, value, seen, bias):
    """In float64, each query over the keys that it sees, one by one; seen and bias are [B, N, T, S]."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros((*query.shape[:3], value.shape[3]))
    for b, t, n in np.ndindex(*query.shape[:3]):
        mine = seen[b, n, t] & (bias[b, n, t] > -np.inf)
        if mine.any():
            head = n // (query.shape[2] // key.shape[2])
            scores = key[b, mine, head] @ query[b, t, n] / np.sqrt(query.shape[3]) + bias[b, n, t, mine]
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights / weights.sum() @ value[b, mine, head]
    return out


@pytest.mark.parametrize("seed", range(4))
def test_any_mask_and_bias_is_the_sum_over_the_keys_seen(seed):
    """Random shapes; lengths, windows, boolean masks and biases with -inf, over one head, row, query or key or all."""
    rng = np.random.default_rng(seed)
    queries, keys, key_heads = int(rng.integers(1, 9)), int(rng.integers(1, 9)), int(rng.choice([1, 2, 4]))
    inputs = arrays(queries, keys, key_heads=key_heads, value_width=int(rng.integers(1, 9)))
    full = B, N, queries, keys
    boolean, numbers = (rng.random([int(rng.choice([1, size])) for size in full]) for _ in range(2))
    boolean, numbers = boolean < 0.5, np.where(numbers < 0.3, -np.inf, numbers).astype(np.float32)
    sides = [None if rng.random() < 0.4 else int(rng.integers(0, 5)) for _ in range(2)]
    lengths, ahead = rng.integers(0, keys + 1, B), np.arange(keys) - np.arange(queries)[:, None]
    inside = (ahead >= -(99 if sides[0] is None else sides[0])) & (ahead <= (99 if sides[1] is None else sides[1]))
    inside = np.broadcast_to((inside & (np.arange(keys) < lengths[:, None, None]))[:, None], full)
    mask, seen, no = (
        Mask(window=tuple(sides), lengths=jnp.asarray(lengths)),
        np.broadcast_to(boolean, full),
        np.zeros(full),
    )
    boolean, numbers, bias = jnp.asarray(boolean), jnp.asarray(numbers), np.broadcast_to(numbers, full)
    cases = [
        ({"bias": boolean}, by_hand(*inputs, seen, no)),
        ({"mask": boolean}, by_hand(*inputs, seen, no)),
        ({"mask": boolean, "bias": numbers}, by_hand(*inputs, seen, bias)),
        ({"mask": mask, "bias": boolean}, by_hand(*inputs, seen & inside, no)),
        ({"mask": mask, "bias": numbers}, by_hand(*inputs, inside, bias)),
    ]

    @jax.jit
    def run(query, key, value):
        results = []
        for options, _ in cases:
            ours, theirs = (
                value_and_gradients(lambda *a, f=f, o=options: f(*a, **o), query, key, value)
                for f in (attention, attention_reference)
            )
            weights = attention_weights(query, key, **options)
            weighed = jnp.einsum("bnts,bsnv->btnv", weights, jnp.repeat(value, N // key_heads, axis=2))
            results.append((ours, theirs, weighed))
        return results

    for (ours, theirs, weighed), (_, expected) in zip(run(*inputs), cases, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE), ours, theirs)
        close(ours[0], expected)
        close(weighed, expected)


@pytest.mark.parametrize("lowest", [-np.inf, np.finfo(np.float32).min, -1e30])
def test_a_bias_that_hides_every_key(lowest):
    """Of -inf it is a mask; of finite numbers, however low, it is the softmax's mean over all keys."""
    inputs = arrays(3, 5)
    bias = jnp.zeros((1, 1, 3, 5)).at[0, 0, 1].set(lowest)

    @jax.jit
    def run(*inputs):
        return [
            value_and_gradients(lambda *a, f=f: f(*a, bias=bias), *inputs) for f in (attention, attention_reference)
        ]

    (out, gradients), theirs = run(*inputs)
    expected = np.zeros((B, N, D)) if lowest == -np.inf else np.asarray(inputs[2]).mean(axis=1)
    np.testing.assert_allclose(out[:, 1], expected, rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in gradients)
    close((out, gradients), theirs)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (2, N, 1, 8), (2, 1, 8, 1)])
def test_a_broadcast_bias_on_a_mesh_of_queries_and_heads(shape):
    inputs = arrays(8, 8)
    bias = jnp.asarray(np.random.default_rng(3).random(shape) < 0.7)
    mask = Mask(causal=True, window=(3, None))
    expected = attention_reference(*inputs, mask, bias=bias)
    with jax.set_mesh(Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("context", "tensor"))):
        close(jax.jit(lambda *a: attention(*a[:3], mask, bias=a[3]))(*inputs, bias), expected)


PRESENT = np.arange(T) < np.array([[5], [130]])  # [B, T]
SQUARE = (PRESENT[:, None] & PRESENT[..., None])[:, None]  # hides every key from queries that are padding too
PADDED = {
    "lengths": ("xla", Mask(lengths=jnp.array([5, 130])), None),
    "lengths in blocks": ("blocked", Mask(lengths=jnp.array([5, 130])), None),
    "causal in blocks": ("blocked", Mask(causal=True, lengths=jnp.array([5, 130])), None),
    "boolean": ("xla", jnp.asarray(PRESENT[:, None, None]), None),
    "square": ("xla", jnp.asarray(SQUARE), None),
    "bias": ("xla", Mask(), jnp.where(SQUARE, 0, -jnp.inf)),
}


@pytest.mark.parametrize("case", PADDED)
def test_nan_in_padding_changes_nothing(case):
    """Neither the results of queries that are no padding nor any gradient."""
    implementation, mask, bias = PADDED[case]
    options = {"implementation": implementation, "bias": bias}
    present = PRESENT[..., None, None]

    def padded(with_):
        inputs = [jnp.where(present, x, with_) for x in arrays(key_heads=2)]

        def loss(*inputs):
            out = jnp.where(present, attention(*inputs, mask, **options), 0)
            return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape))), out

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)

    clean = padded(0.0)
    for with_ in (jnp.nan, jnp.inf):
        jax.tree.map(np.testing.assert_array_equal, padded(with_), clean)


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
def test_nan_that_is_no_padding_is_seen(implementation):
    query, key, value = arrays()
    mask = Mask(lengths=jnp.array([5, 130]))
    for i in range(3):
        inputs = [query, key, value]
        inputs[i] = inputs[i].at[1, 3].set(jnp.nan)
        out = attention(*inputs, mask, implementation=implementation)
        assert np.isnan(out[1, 3]).all()
        assert np.isfinite(out[0]).all()
