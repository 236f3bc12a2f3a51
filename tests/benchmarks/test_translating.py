"""PyTorch's decoding gives the same targets as ours, and the rows of the benchmark."""

import csv
import functools

import jax
import numpy as np
import pytest

import zoo
from benchmarks import translating
from benchmarks.__main__ import main
from zoo import ZooError

SIZES = {"vocab_size": 12, "source_vocab_size": 9, "dropout_rate": 0.0}
RECURRENT = {"embedding_size": 6, "hidden_size": 8, "num_layers": 2, "attention_size": 7, "maxout_size": 5}
TRANSFORMER = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "mlp_size": 24, "max_length": 16}
TINY = {
    "gru": ("seq2seq_gru_attention", RECURRENT),
    "transformer": ("transformer_base", TRANSFORMER),
    "norm_first": ("transformer_base", {**TRANSFORMER, "norm_first": True, "source_vocab_size": None}),
}
LENGTHS = np.array([5, 2, 1, 4, 3, 5, 5, 2], np.int32)
SOURCE = np.random.default_rng(0).integers(0, 9, (len(LENGTHS), 5)).astype(np.int32)


@functools.cache
def tiny(kind):
    """A model that ends some targets early."""
    name, fields = TINY[kind]
    model = zoo.create_model(name, **{**SIZES, **fields})
    variables = jax.jit(model.init)(jax.random.key(0), SOURCE)
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [leaf + 0.6 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    variables = jax.tree.unflatten(structure, moved)
    if kind == "transformer":  # otherwise it generates token 10 forever
        table = variables["params"]["embedding"]
        variables["params"]["embedding"] = table.at[2].set(1.1 * table[10])
    return model, variables


@pytest.mark.parity
@pytest.mark.parametrize("kind", TINY)
def test_logits_are_those_of_torch(kind):
    torch = pytest.importorskip("torch", reason="the peer needs torch: pip install '.[benchmarks]'")
    from benchmarks.torch_seq2seq import torch_model

    model, variables = tiny(kind)
    tokens = np.random.default_rng(1).integers(0, 12, (len(LENGTHS), 6))
    ours = np.asarray(model.apply(variables, tokens, source=SOURCE, source_lengths=LENGTHS))
    theirs = torch_model(model, variables).eval()(*map(torch.from_numpy, (tokens, SOURCE, LENGTHS.astype(np.int64))))
    assert np.abs(ours - theirs.detach().numpy()).max() <= 1e-5 * np.abs(ours).max()


@pytest.mark.parity
@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("beams", [1, 3])
def test_targets_are_those_of_torch(kind, beams):
    pytest.importorskip("torch", reason="the peer needs torch: pip install '.[benchmarks]'")
    model, variables = tiny(kind)
    config, batches = translating.TranslatingConfig(length=9), [(SOURCE, LENGTHS)]
    ours, scores = translating.our_decoding(config, model, variables, batches, beams)()
    theirs, others = translating.peer_decoding(config, model, variables, batches, beams)()
    np.testing.assert_array_equal(theirs, ours)
    if beams > 1:
        assert np.abs(others - scores).max() <= 1e-5 * np.abs(scores).max()
    assert (ours == 2).any()


RECIPE = """
from train import Config, ModelConfig, PairData, Translation

def config():
    data = PairData({path!r}, vocab_size=40)
    return Config("", 1, 2, model=ModelConfig("seq2seq_gru_attention", {fields!r}), data=data, task=Translation())
"""


@pytest.mark.slow
@pytest.mark.parametrize("peer", [False, pytest.param(True, marks=pytest.mark.parity)])
def test_rows(peer, tmp_path):
    if peer:
        pytest.importorskip("torch", reason="the peer needs torch: pip install '.[benchmarks]'")
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(path="dates", fields=RECURRENT))
    sizes = {"sentences": 6, "batch_size": 4, "source_length": 6, "length": 5, "rounds": 2}
    output = str(tmp_path / "x.csv")
    rows = translating.run(translating.TranslatingConfig(str(recipe), peer=peer, output=output, **sizes))
    assert [row["beams"] for row in rows] == [1, 5]
    assert all(0 < row["ours_p10"] <= row["ours_sentences_per_s"] <= row["ours_p90"] for row in rows)
    assert all((row["equal"] >= 0.8) if peer else np.isnan(row["speedup"]) for row in rows)
    assert [row["beams"] for row in csv.DictReader((tmp_path / "x.csv").open())] == ["1", "5"]


def test_other_targets_are_refused():
    ours = np.array([[5, 2], [6, 2], [7, 2]]), np.array([-1.0, -2.0, -3.0])
    theirs = np.array([[5, 2], [6, 2], [8, 2]]), np.array([-1.0, -2.0, -3.0001])
    assert translating.check_targets(ours, theirs, 5) == pytest.approx(2 / 3)  # the last two have about equal scores
    with pytest.raises(ZooError, match="1 of 3 targets of beam size 5 differ from PyTorch's"):
        translating.check_targets(ours, (theirs[0], np.array([-1.0, -2.0, -3.1])), 5)
    with pytest.raises(ZooError, match="1 of 3 targets of beam size 1 differ"):
        translating.check_targets(ours, (theirs[0], np.full(3, np.nan)), 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["translating", "--beams", "5", "0"], "error: beams must be at least 1, not 0"),
        (["translating", "--seed", "-1"], "error: seed must be at least 0, not -1"),
        (
            ["translating", "--recipe", "cnn"],
            "error: translating needs a recipe of pairs, such as multi30k-gru, not cnn",
        ),
        (["translating", "--run", "nowhere"], "error: 'nowhere' does not exist"),
    ],
)
def test_mistakes_get_one_line(args, message, capsys):
    assert main(args) == 2
    assert capsys.readouterr().err.startswith(message)
