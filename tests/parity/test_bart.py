"""BART and Marian of transformers, both ways: logits, hidden states of both halves, greedy decoding and beam search."""

import functools
import json

import jax
import numpy as np
import pytest
from peers import close, drawn, there_and_back, torch, transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import zoo

pytestmark = pytest.mark.parity
B, T, S, V = 3, 9, 12, 37
LENGTHS = np.array([12, 5, 2], np.int32)
PRESENT = np.arange(S) < LENGTHS[:, None]
SIZES = {
    **{"vocab_size": V, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "max_position_embeddings": 20},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24},
    **{"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None},
}
PEERS = {
    "bart": (transformers.BartForConditionalGeneration, {}),
    "bart-scaled": (
        transformers.BartForConditionalGeneration,
        {"scale_embedding": True, "activation_function": "relu"},
    ),
    "marian": (transformers.MarianMTModel, {"scale_embedding": True, "activation_function": "swish"}),
    "marian-separate": (
        transformers.MarianMTModel,
        {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 31, "activation_function": "gelu"},
    ),
}


def peer(name):
    torch.manual_seed(0)
    kind, fields = PEERS[name]
    model = drawn(kind(kind.config_class(**SIZES, **fields)))
    torch.nn.init.normal_(model.final_logits_bias)
    if name.startswith("marian"):  # whose positions are no weights
        for half in (model.model.encoder, model.model.decoder):
            half.embed_positions.weight.data.copy_(half.embed_positions.create_weight())
    return model


def tokens(steps, most=31):
    return np.random.default_rng(steps).integers(3, most, (B, steps))


def compare(model, variables, other):
    inputs = {"input_ids": tokens(S), "attention_mask": PRESENT.astype(int), "decoder_input_ids": tokens(T)}
    with torch.no_grad():
        theirs = other(**{key: torch.from_numpy(value) for key, value in inputs.items()}, output_hidden_states=True)
    apply = functools.partial(model.apply, source=tokens(S), source_lengths=LENGTHS, mutable=["features"])
    logits, seen = jax.jit(apply)(variables, tokens(T))
    close(logits, theirs.logits)
    for half, states, rows in (
        ("encoder", theirs.encoder_hidden_states, PRESENT),
        ("decoder", theirs.decoder_hidden_states, np.ones((B, T), bool)),
    ):
        features = seen["features"][half]
        hidden = [features["embedded"], *(layer["hidden"] for _, layer in sorted(features["layers"].items()))]
        for ours, expected in zip(hidden, states, strict=True):
            close(np.asarray(ours)[rows], expected[torch.from_numpy(rows)])


@pytest.mark.parametrize("name", PEERS)
def test_theirs_to_ours_and_back(name, tmp_path):
    other = peer(name)
    there_and_back(other, PEERS[name][0], compare, tmp_path)


def test_a_file_of_the_body_alone_has_no_bias_of_the_head(tmp_path):
    """As those of facebook/bart-base and bart-large; old ones have the number of a version."""
    other = peer("bart")
    other.model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BartModel"]
    other.final_logits_bias.zero_()
    compare(*zoo.from_pretrained(tmp_path), other)
    tensors = zoo.weights.read_safetensors(tmp_path / "model.safetensors")
    zoo.weights.write_safetensors({**tensors, "encoder.version": np.float32([3])}, tmp_path / "old.safetensors")
    model, _ = zoo.from_pretrained(tmp_path)
    compare(model, zoo.load_weights(model, tmp_path / "old.safetensors"), other)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["bart", "marian"])
def test_decoding_gives_their_tokens(name, beams, tmp_path):
    other = peer(name)
    other.save_pretrained(tmp_path)
    model, variables = zoo.from_pretrained(tmp_path)
    inputs = {"input_ids": torch.from_numpy(tokens(S)), "attention_mask": torch.from_numpy(PRESENT.astype(int))}
    settings = {"num_beams": beams, "length_penalty": 1.3, "no_repeat_ngram_size": 2, "early_stopping": True}
    theirs = other.generate(**inputs, do_sample=False, max_new_tokens=T, **settings)[:, 1:].numpy()
    ours = zoo.decode.beam.decode_sources(
        model, variables, tokens(S), LENGTHS, first=2, end=2, max_length=T, beam_size=beams, length_penalty=1.3,
        length_penalty_form="length", early_stopping=True, no_repeat_ngram=2,
    )  # fmt: skip
    found = np.asarray(ours.tokens)[:, 0]
    for mine, other_row in zip(found, theirs, strict=True):
        ends = np.flatnonzero(other_row == 2)
        kept = other_row[: ends[0]] if len(ends) else other_row
        np.testing.assert_array_equal(mine[: len(kept)], kept)
        assert (mine[len(kept) :] == 2).all()


TEXTS = ["the quick brown fox jumps over the lazy dog.", "two words", "a dog"]


def expected_texts(other, tokenizer, texts):
    found = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            found.append(tokenizer.decode(other.generate(**ids)[0], skip_special_tokens=True))
    return found


def test_a_folder_of_bart_summarises_as_its_generation_config_says(tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(TEXTS * 3, vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    made.save_model(str(tmp_path))
    tokenizer = transformers.BartTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": 300, "max_position_embeddings": 40, "bos_token_id": 0, "forced_bos_token_id": 0}
    other = drawn(transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes)))
    chosen = {"num_beams": 3, "max_length": 14, "min_length": 6, "no_repeat_ngram_size": 2, "length_penalty": 2.0}
    other.generation_config.update(**chosen, early_stopping=True, forced_bos_token_id=0)
    for part in (other, tokenizer):
        part.save_pretrained(tmp_path / "bart")
    run = zoo.load(tmp_path / "bart")
    assert dict(run.inputs.decoding)["min_length"] == 5
    ours = [found.text for (found,) in zoo.translate(run, TEXTS)]
    assert ours == expected_texts(other, tokenizer, TEXTS)
    assert zoo.inputs.inputs_from_json(run.inputs.to_json()) == run.inputs


def test_a_folder_of_marian_translates(tmp_path, capsys):
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
    from test_vocabulary_files import SCRIPTS, trained

    from zoo.__main__ import main

    folder = tmp_path / "marian"
    folder.mkdir()
    special = {"unk_id": 2, "bos_id": -1, "eos_id": 0, "pad_id": -1, "unk_piece": "<unk>"}
    for name in ("source", "target"):
        (folder / f"{name}.spm").write_bytes(trained("unigram", **special, shuffle_input_sentence=name == "target"))
    import sentencepiece

    parts = [sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{n}.spm")) for n in ("source", "target")]
    own = sorted({part.id_to_piece(i) for part in parts for i in range(part.get_piece_size())} - {"</s>", "<unk>"})
    own = [piece for i, piece in enumerate(own) if i % 9]  # pieces without an id are unknown
    tokens = ["</s>", "<unk>", *own, ">>fra<<", "<pad>"]
    ids = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    tokenizer = transformers.MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json"), source_lang="en"
    )
    torch.manual_seed(0)
    last = len(tokens) - 1
    sizes = {**SIZES, "vocab_size": len(tokens), "max_position_embeddings": 80, "pad_token_id": last, "eos_token_id": 0}
    config = transformers.MarianConfig(**{**sizes, "decoder_start_token_id": last, "scale_embedding": True})
    other = drawn(transformers.MarianMTModel(config))
    for half in (other.model.encoder, other.model.decoder):
        half.embed_positions.weight.data.copy_(half.embed_positions.create_weight())
    other.generation_config.update(num_beams=2, max_length=12, bad_words_ids=[[last]], pad_token_id=last)
    other.save_pretrained(folder)
    run = zoo.load(folder)
    for text in (*SCRIPTS, ">>fra<< the cafe"):
        ours, theirs = run.inputs.encode(text), tokenizer(text)["input_ids"]
        assert ours.tolist() == theirs, text
        assert run.inputs.decode(ours) == tokenizer.decode(theirs, skip_special_tokens=True)
    assert zoo.inputs.inputs_from_json(json.loads(json.dumps(run.inputs.to_json()))) == run.inputs
    texts = list(SCRIPTS[:3])
    assert [found.text for (found,) in zoo.translate(run, texts)] == expected_texts(other, tokenizer, texts)
    assert not main(["translate", str(folder), texts[0]])
    assert capsys.readouterr().out.rstrip("\n") == expected_texts(other, tokenizer, texts[:1])[0]
    (folder / "vocab.json").write_text(json.dumps({**ids, "more": len(ids)}))
    with pytest.raises(zoo.ZooError, match=rf"vocab.json' has {len(ids) + 1} tokens, more than the model, which has"):
        zoo.load(folder)


CHOSEN = {  # of generation_config.json
    "greedy": {"num_beams": 1, "length_penalty": 2.0},  # which is for beams
    "greedy, at most 5": {"num_beams": 1, "max_new_tokens": 5},
    "beams": {"num_beams": 4, "length_penalty": 2.0, "forced_bos_token_id": 0, "forced_eos_token_id": 2},
    "short": {"num_beams": 3, "length_penalty": 0.5, "forced_bos_token_id": 4, "early_stopping": True},
    "cut": {"num_beams": 3, "max_length": 5, "forced_eos_token_id": 2, "no_repeat_ngram_size": 2},
    "banned": {"num_beams": 2, "bad_words_ids": [[7], [9]], "repetition_penalty": 1.4, "early_stopping": "never"},
}


@pytest.mark.parametrize("name", CHOSEN)
def test_what_a_generation_config_chooses_is_decoded_so(name, tmp_path):
    """Texts of different lengths, so that forced tokens and the end of a search tell."""
    words = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(4, V))])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer, special = pre_tokenizers.WhitespaceSplit(), ["<s>", "<pad>", "</s>", "<unk>"]
    made.add_special_tokens(special)
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    config = transformers.BartConfig(**{**SIZES, "forced_eos_token_id": None})
    rng, lengths = np.random.default_rng(0), set()
    for seed in range(3):
        torch.manual_seed(seed)
        other = drawn(transformers.BartForConditionalGeneration(config))
        torch.nn.init.normal_(other.model.shared.weight, std=0.5)
        torch.nn.init.normal_(other.model.decoder.layers[-1].final_layer_norm.weight)
        for layer in other.model.decoder.layers:
            torch.nn.init.normal_(layer.encoder_attn.v_proj.weight, std=0.6)
            torch.nn.init.normal_(layer.encoder_attn.out_proj.weight, std=0.6)
        other.final_logits_bias[0, 2] = 4.0  # ends come soon
        folder = tmp_path / str(seed)
        other.save_pretrained(folder)
        chosen = {"max_length": 12, **CHOSEN[name]}
        other.generation_config.update(**chosen)
        file = folder / "generation_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **chosen}))
        made.save(str(folder / "tokenizer.json"))
        run = zoo.load(folder)
        for text in (" ".join(f"w{i}" for i in rng.integers(4, V, size)) for size in (3, 6, 10, 15)):
            ids = torch.from_numpy(run.inputs.encode(text))[None].long()
            with torch.no_grad():
                theirs = other.generate(ids)[0, 1:].numpy()
            ((found,),) = zoo.translate(run, [text])
            assert found.text == run.inputs.decode(theirs), (seed, text)
            lengths.add(len(theirs))
    assert len(lengths) > 1
