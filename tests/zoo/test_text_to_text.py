"""Folders of published encoder-decoders without torch: what their files choose is decoded so, and wrong files get a
line. `tests/parity/test_bart.py` and `test_t5.py` compare texts with transformers'."""

import json

import jax
import numpy as np
import pytest
from test_vocabulary_files import folder_of, trained

import zoo
from zoo.__main__ import main
from zoo.inputs import TextToTextInputs, inputs_from_json

FIELDS = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "mlp_size": 12, "max_length": 40}
CHOSEN = {
    **{"decoder_start_token_id": 0, "eos_token_id": [1, 2], "max_length": 9, "num_beams": 3, "length_penalty": 1.5},
    **{"forced_eos_token_id": 1, "bad_words_ids": [[5], [6, 7]], "no_repeat_ngram_size": 2, "min_length": 4},
}


@pytest.fixture(scope="module")
def spm():
    return trained("unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


@pytest.fixture
def folder(spm, tmp_path):
    size = zoo.inputs.text.read_tokenizer(folder_of("T5Tokenizer", spm, tmp_path / "vocabulary"), 8).vocab_size
    model = zoo.create_model("t5_small", vocab_size=size + 3, **FIELDS)  # more rows than tokens
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4), np.int32))
    zoo.save_pretrained(model, variables, tmp_path / "t5")
    folder_of("T5Tokenizer", spm, tmp_path / "t5")
    (tmp_path / "t5" / "generation_config.json").write_text(json.dumps(CHOSEN))
    return tmp_path / "t5"


def changed(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_folder_decodes_as_its_generation_config_says(folder, capsys):
    run = zoo.load(folder)
    assert isinstance(run.inputs, TextToTextInputs)
    assert (run.inputs.first, run.inputs.end, run.inputs.target.length) == (0, 1, 8)
    assert dict(run.inputs.decoding) == {
        **{"beam_size": 3, "length_penalty": 1.5, "length_penalty_form": "length", "early_stopping": False},
        **{"min_length": 3, "no_repeat_ngram": 2, "banned": (5,), "end_after": 7},
    }
    tokens = run.inputs.encode("the café")
    assert tokens[-1] == 1
    assert run.inputs.decode([*tokens, 7, 7]) == "the café"  # up to the end
    ((found,),) = zoo.translate(run, ["the café"])
    ids = run.inputs.target.encode(found.text)
    assert not {5} & {*ids.tolist()}
    assert main(["translate", str(folder), "the café"]) == 0
    assert capsys.readouterr().out == found.text + "\n"
    assert main(["translate", str(folder), "the café", "--beam-size", "1"]) == 0
    greedy = zoo.translate(run, ["the café"], beam_size=1)[0][0].text
    assert capsys.readouterr().out == greedy + "\n"


def test_its_inputs_are_json(folder):
    inputs = zoo.load(folder).inputs
    assert inputs_from_json(json.loads(json.dumps(inputs.to_json()))) == inputs
    unknown = TextToTextInputs(inputs.source, inputs.target, 0, 1, (), (4, 2))
    assert {*unknown.encode("the café").tolist()} <= {1, 2, 3}
    assert inputs_from_json(json.loads(json.dumps(unknown.to_json()))) == unknown
    for wrong in ((4,), (4, 2.5), ("a", "b")):
        with pytest.raises(zoo.ZooError, match="unknown must be two ids, or None"):
            TextToTextInputs(inputs.source, inputs.target, 0, 1, (), wrong)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("generation_config.json", {"decoder_start_token_id": "a"}, "first must be a token's id, not 'a'"),
        ("generation_config.json", {"length_penalty": "b"}, "does not say how its model decodes: ValueError"),
        ("generation_config.json", {"max_new_tokens": [3]}, "does not say how its model decodes: TypeError"),
        ("config.json", {"vocab_size": 60}, r"tokens in its vocabulary, more than the model, which has 60"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_a_line(folder, name, values, message):
    changed(folder, name, **values)
    with pytest.raises(zoo.ZooError, match=message) as caught:
        zoo.load(folder)
    assert "\n" not in str(caught.value)
