"""What earlier versions exported is read for ever: `exports/VERSION/FAMILY/`, with the logits that it gave then.

A new version adds its own, by hand: python -c "import test_kept_exports as kept; kept.write_exports()"
"""

import pathlib
import shutil
import tempfile

import jax
import numpy as np
import pytest

import zoo

EXPORTS = pathlib.Path(__file__).parent / "exports"
IMAGE = (np.arange(64, dtype=np.uint8) * 37).reshape(8, 8, 1)
RAWS = {"cnn": IMAGE, "lstm": "7 green", "seq2seq": "abcd", "transformer": "7 green bottles hanging"}


def write_exports():
    """Trains a tiny model of each family and keeps its export/, an input's arrays and its logits."""
    import train
    from train import Config, ImageData, LanguageModel, ModelConfig, OptimizerConfig, PairData, TextData

    with tempfile.TemporaryDirectory() as place:
        bottles, pairs = pathlib.Path(place) / "bottles.txt", pathlib.Path(place) / "pairs.tsv"
        bottles.write_text("".join(f"{i} green bottles hanging on the wall,\n" for i in range(300)))
        words = ["".join("abcd"[i // 4**k % 4] for k in range(4)) for i in range(256)]
        pairs.write_text("".join(f"{word}\t{word[::-1].upper()}\n" for word in words))
        cnn = ModelConfig("simple_cnn", {"widths": (4,), "hidden_size": 8})
        lstm = ModelConfig("lstm_lm", {"hidden_size": 8, "num_layers": 1})
        sizes = {"embedding_size": 8, "hidden_size": 8, "attention_size": 8, "maxout_size": 8}
        seq2seq = ModelConfig("seq2seq_gru_attention", sizes)
        transformer = ModelConfig("nanogpt", {"hidden_size": 8, "num_layers": 2, "num_heads": 2})
        runs = {
            "cnn": {"model": cnn, "data": ImageData("digits")},
            "lstm": {"model": lstm, "data": TextData(path=str(bottles), context=16), "task": LanguageModel()},
            "seq2seq": {"model": seq2seq, "data": PairData(path=str(pairs)), "task": train.Translation()},
            "transformer": {
                "model": transformer,
                "data": TextData(path=str(bottles), context=16, tokenizer="word", vocab_size=64),
                "task": LanguageModel(),
            },
        }
        for family, parts in runs.items():
            folder, workdir = EXPORTS / zoo.__version__ / family, pathlib.Path(place) / family
            train.run(Config(str(workdir), 40, 16, optimizer=OptimizerConfig("adam", 1e-2), **parts))
            shutil.copytree(workdir / "export", folder)
            batch, logits = inputs_and_logits(folder)
            np.savez(folder / "expected.npz", logits=logits, **batch)


def inputs_and_logits(folder):
    """The arrays of the family's raw input, and what the exported model makes of them."""
    run = zoo.load(folder)
    batch = run.inputs.batch([RAWS[folder.name]])
    if "source" in batch:
        batch["target"] = batch["source"]
    arguments, named = run.inputs.arguments(batch)
    return batch, np.asarray(jax.jit(run.model.apply)(run.variables, *arguments, **named))


@pytest.mark.parametrize("folder", sorted(EXPORTS.glob("*/*")), ids=lambda folder: "-".join(folder.parts[-2:]))
def test_a_kept_export_gives_what_it_gave(folder):
    batch, logits = inputs_and_logits(folder)
    expected = dict(np.load(folder / "expected.npz"))
    largest = np.abs(expected["logits"]).max()
    assert largest > 0.1
    np.testing.assert_allclose(logits, expected.pop("logits"), rtol=0, atol=1e-5 * largest)
    assert batch.keys() == expected.keys()
    for name, array in batch.items():
        np.testing.assert_array_equal(array, expected[name])


def test_a_loaded_model_with_scanned_layers_gives_the_same_logits():
    folder = EXPORTS / zoo.__version__ / "transformer"
    plain, scanned = zoo.load(folder), zoo.load(folder, scan_layers=True, remat="full")
    assert (scanned.model.scan_layers, scanned.model.remat, scanned.inputs) == (True, "full", plain.inputs)
    tokens = plain.inputs.batch([RAWS["transformer"]])["tokens"]
    expected, found = (np.asarray(jax.jit(run.model.apply)(run.variables, tokens)) for run in (plain, scanned))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_this_version_keeps_one_of_each_family():
    assert {path.name for path in (EXPORTS / zoo.__version__).iterdir()} == {"cnn", "lstm", "seq2seq", "transformer"}
