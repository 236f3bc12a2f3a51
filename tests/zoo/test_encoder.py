"""Encoders: published sizes, what comes out of them, padding, scanned layers, and what wrong input gets."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.errors import ZooError
from zoo.inputs.text import learn, read_tokenizer
from zoo.registry import abstract_variables
from zoo.transformer.layers import stacked, unstacked

PUBLISHED = {  # with the pooler
    **{"bert_base": 109_482_240, "bert_large": 335_141_888, "minilm_l6": 22_713_216, "minilm_l12": 33_360_000},
    **{"bge_small": 33_360_000, "bge_base": 109_482_240, "e5_base": 109_482_240, "mpnet_embedding": 109_486_464},
}
SMALL = {"vocab_size": 11, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "mlp_size": 24, "max_length": 8}
B, T = 3, 7
TOKENS = np.random.default_rng(0).integers(0, 11, (B, T)).astype(np.int32)
LENGTHS = np.array([7, 3, 1], np.int32)
OUTPUTS = [{"output": "hidden"}, {"output": "embedding"}, {"output": "tokens"}, {"num_classes": 4}]


@functools.cache
def tiny(**fields):
    """A tiny model and its variables, in which layers count for as much as embeddings."""
    model = zoo.create_model("bert_base", **{**SMALL, "dropout_rate": 0.0, **fields})
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS)
    return model, jax.tree.map(lambda leaf: 8 * leaf if leaf.ndim > 1 else leaf, variables)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    assert zoo.model_info(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_comes_out(dtype):
    shapes = [(B, T, 16), (B, 16), (B, T, 11), (B, 4)]
    for fields, shape in zip(OUTPUTS, shapes, strict=True):
        model = zoo.create_model("bert_base", **SMALL, **fields, dtype=dtype)
        variables = abstract_variables(model, [jax.ShapeDtypeStruct((2, 4), jnp.int32)])
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        out = jax.eval_shape(model.apply, variables, TOKENS)
        expected = "float32" if fields.get("output") == "embedding" else dtype
        assert (out.shape, out.dtype) == (shape, jnp.dtype(expected))


@pytest.mark.parametrize("fields", OUTPUTS)
def test_padding_changes_nothing(fields):
    model, variables = tiny(**fields)
    apply = jax.jit(model.apply)
    padded = apply(variables, TOKENS, lengths=LENGTHS)
    others = np.where(np.arange(T) < LENGTHS[:, None], TOKENS, 5)
    again = apply(variables, others, lengths=LENGTHS)
    for b, length in enumerate(LENGTHS):
        alone = model.apply(variables, TOKENS[b : b + 1, :length])[0]
        for out in (padded, again):
            own = out[b, :length] if out.ndim == 3 else out[b]
            np.testing.assert_allclose(own, alone, rtol=1e-5, atol=1e-5)


def test_embeddings_have_length_one_and_are_the_mean():
    model, variables = tiny(output="embedding")
    out = model.apply(variables, TOKENS, lengths=np.array([7, 3, 0]))
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), [1, 1, 0], rtol=1e-6, atol=1e-6)
    mean = model.clone(output="hidden").apply(variables, TOKENS[1:2, :3]).mean(axis=1)[0]
    np.testing.assert_allclose(out[1], mean / np.linalg.norm(mean), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_scanned_layers_are_the_same(remat):
    model, variables = tiny(num_classes=4)
    scanned = model.clone(scan_layers=True, remat=remat)
    params = stacked(variables["params"], abstract_variables(scanned, [jax.ShapeDtypeStruct((1, 2), int)])["params"])
    assert jax.tree.structure(unstacked(params)) == jax.tree.structure(variables["params"])

    def loss(model, params):
        return jnp.sum(jnp.sin(model.apply({"params": params}, TOKENS, lengths=LENGTHS)))

    expected = jax.jit(jax.grad(functools.partial(loss, model)))(variables["params"])
    gradients = jax.jit(jax.grad(functools.partial(loss, scanned)))(params)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), unstacked(gradients), dict(expected)
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        name = jax.tree_util.keystr(path)
        assert np.abs(leaf).max() > 0 or "['key']['bias']" in name  # a bias of all keys alike changes nothing


def test_types_and_features():
    model, variables = tiny()
    plain, seen = model.apply(variables, TOKENS, mutable=["features"])
    other = model.apply(variables, TOKENS, types=np.ones((B, T), np.int32))
    assert np.abs(plain - other).max() > 1e-2
    features = seen["features"]
    assert features["layers"]["layer1"]["attention"]["weights"].shape == (B, 4, T, T)
    np.testing.assert_array_equal(features["layers"]["layer1"]["hidden"], plain)
    assert features["pooled"].shape == (B, 16)


def test_errors():
    model, variables = tiny()
    with pytest.raises(ZooError, match="9 tokens are more than the model's max_length of 8"):
        model.apply(variables, np.zeros((1, 9), np.int32))
    with pytest.raises(ZooError, match="token 11 is outside the vocabulary of 11"):
        model.apply(variables, np.full((1, 2), 11))
    with pytest.raises(ZooError, match="hidden_size 16 must be a multiple of num_heads 3"):
        model.clone(num_heads=3).init(jax.random.key(0), TOKENS)
    with pytest.raises(ZooError, match="num_classes must be at least 1, not 0"):
        zoo.create_model("bert_base", num_classes=0)


@pytest.mark.parametrize("fields", [OUTPUTS[0], OUTPUTS[2], OUTPUTS[3]])
def test_folders_of_transformers(fields, tmp_path):
    model, variables = tiny(**fields)
    zoo.save_pretrained(model, variables, tmp_path / "a")
    again, same = zoo.from_pretrained(tmp_path / "a")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    for changed, match in [
        ({"architectures": ["BertForQuestionAnswering"]}, "unknown architecture 'BertForQuestionAnswering'; there are"),
        ({"hidden_act": "silu"}, "unknown activation 'silu'; there are gelu"),
        ({"position_embedding_type": "relative_key"}, 'must be "absolute", not "relative_key"'),
        ({"num_attention_heads": 3}, "hidden_size 16 must be a multiple of num_attention_heads 3"),
        ({"num_hidden_layers": 3}, "does not fit Encoder: missing: bert.encoder.layer.2"),
    ]:
        (tmp_path / "a" / "config.json").write_text(json.dumps({**config, **changed}))
        with pytest.raises(ZooError, match=match):
            zoo.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize("pooling", ["mean", "token", "max"])
@pytest.mark.parametrize("unit", [True, False])
def test_sentence_folders_give_embeddings(pooling, unit, tmp_path):
    model, variables = tiny(output="embedding", pooling=pooling, unit=unit)
    zoo.save_pretrained(model, variables, tmp_path / "a")
    again, _ = zoo.from_pretrained(tmp_path / "a")
    assert (again.output, again.pooling, again.unit) == ("embedding", pooling, unit)
    tokens = np.array([[2, 5, 3, 7], [4, 1, 6, 2]], np.int32)
    states = np.asarray(model.clone(output="hidden").apply(variables, tokens, lengths=np.array([4, 2])))
    rows = [states[0], states[1, :2]]
    of = {"mean": lambda row: row.mean(0), "token": lambda row: row[0], "max": lambda row: row.max(0)}
    expected = np.stack([of[pooling](row) for row in rows])
    if unit:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(model.apply(variables, tokens, lengths=np.array([4, 2])), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kinds", "config", "match"),
    [
        ("Transformer Pooling Dense", {}, "modules must be Transformer, Pooling and perhaps Normalize, not .*, Dense"),
        ("Transformer Pooling", {"pooling_mode": "lasttoken"}, "pooling must be one of mean, cls, max, not lasttoken"),
        ("Transformer Pooling", {"pooling_mode": ["mean", "max"]}, "not mean, max"),
        ("Transformer Pooling", {"pooling_mode_weightedmean_tokens": True}, "not pooling_mode_weightedmean_tokens"),
        ("Transformer Pooling", {"pooling_mode_mean_tokens": False}, "not none"),
        ("Transformer Pooling", [], "modules.json': "),
        ("", {}, "modules must be"),
    ],
)
def test_sentence_folders_of_another_kind_are_refused(kinds, config, match, tmp_path):
    zoo.save_pretrained(*tiny(output="embedding"), tmp_path / "a")
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds.split()]
    (tmp_path / "a" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "a" / "1_Pooling" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ZooError, match=match):
        zoo.from_pretrained(tmp_path / "a")


def test_pooling_files_of_both_ages_are_read(tmp_path):
    zoo.save_pretrained(*tiny(output="embedding"), tmp_path / "a")
    for config in ({"pooling_mode": "cls"}, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}):
        (tmp_path / "a" / "1_Pooling" / "config.json").write_text(json.dumps(config))
        assert zoo.from_pretrained(tmp_path / "a")[0].pooling == "token"


def test_the_same_texts_give_the_same_pieces():
    texts = [f"{a}{b}{c} {c}{a}" for a in "abcdef" for b in "ghij" for c in "klmn"]  # every pair as frequent as others
    first, *others = (learn("wordpiece", texts, 60, 8).vocabulary for _ in range(5))
    assert others == [first] * 4


def test_wordpiece(tmp_path):
    inputs = learn("wordpiece", ["The cat sat. The cats sit, unsettled."] * 5, 60, 6, ("good", "bad"))
    assert inputs.decode([inputs.mask]) == "[MASK]"
    tokens = inputs.encode("THE cat")
    assert [inputs.decode([token]) for token in (tokens[0], tokens[-1])] == ["[CLS]", "[SEP]"]
    batch = inputs.batch(["the cats sat, the cats sat", "cat"])
    assert batch["tokens"].shape == (2, 6)
    assert batch["length"][0] == 6
    assert inputs.decode(batch["tokens"][0][-1:]) == "[SEP]"  # what is cut keeps its end
    (tmp_path / "tokenizer.json").write_text(inputs.vocabulary)
    assert read_tokenizer(tmp_path, 6, ("good", "bad")) == inputs
    assert learn(str(tmp_path), [], 0, 6, ("good", "bad")) == inputs
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Syllables"}}))
    with pytest.raises(
        ZooError, match="is a tokenizer of kind Syllables; there are WordPiece, BPE, WordLevel, Unigram"
    ):
        read_tokenizer(tmp_path, 6)
    for broken in ("{", "[]", "{}"):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(ZooError, match="is not a tokenizer's JSON"):
            read_tokenizer(tmp_path, 6)
    with pytest.raises(ZooError, match="no tokenizer 'chars': give char, byte, bpe, word, wordpiece, unigram, or"):
        learn("chars", [], 0, 6)
    with pytest.raises(ZooError, match=r"a char vocabulary has no \[MASK\]; use wordpiece"):
        _ = learn("char", ["abc"], 0, 6).mask
