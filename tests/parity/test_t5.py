"""T5 of Hugging Face's transformers, and torch.nn.Transformer with our weights: logits and hidden states to 1e-5 of the
largest value."""

import functools

import jax
import numpy as np
import pytest
from peers import close, there_and_back, torch, transformers

import zoo
from zoo.weights import save_native

pytestmark = pytest.mark.parity

B, T, S, V = 3, 14, 30, 37
LENGTHS = np.array([30, 11, 1], np.int32)
CONFIG = {  # more tokens than distances that have a bucket of their own, and than the furthest
    **{"vocab_size": V, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 3, "num_heads": 4},
    **{"relative_attention_num_buckets": 12, "relative_attention_max_distance": 20},
}
PEERS = {
    "relu": {},
    "untied": {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
    "gated": {"feed_forward_proj": "gated-gelu"},
    "gated-untied": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "gated-silu": {"feed_forward_proj": "gated-silu"},
    "gelu": {"feed_forward_proj": "gelu"},
    "gelu_new": {"feed_forward_proj": "gelu_new"},
}


def peer(name):
    """A model of transformers with weights that are not small, and scales around 1."""
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**CONFIG, **PEERS[name])).eval()
    if not PEERS[name].get("tie_word_embeddings", True):
        model.lm_head.weight = torch.nn.Parameter(torch.empty(V, 32))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    return model


def tokens(steps):
    return np.random.default_rng(steps).integers(0, V, (B, steps))


PRESENT = np.arange(S) < LENGTHS[:, None]


def compare(model, variables, other):
    """Logits and every hidden state of both halves; of the source's where it is not padding."""
    inputs = {"input_ids": tokens(S), "attention_mask": PRESENT.astype(int), "decoder_input_ids": tokens(T)}
    with torch.no_grad():
        theirs = other(**{key: torch.from_numpy(value) for key, value in inputs.items()}, output_hidden_states=True)
    apply = functools.partial(model.apply, source=tokens(S), source_lengths=LENGTHS, mutable=["features"])
    logits, seen = jax.jit(apply)(variables, tokens(T))
    close(logits, theirs.logits)
    layers = [f"layer{i}" for i in range(model.num_layers - 1)]
    for half, states, rows in (
        ("encoder", theirs.encoder_hidden_states, PRESENT),
        ("decoder", theirs.decoder_hidden_states, np.ones((B, T), bool)),
    ):
        features = seen["features"][half]
        hidden = [features["embedded"], *(features["layers"][layer]["hidden"] for layer in layers)]
        for ours, expected in zip([*hidden, features["normalised"]], states, strict=True):
            close(np.asarray(ours)[rows], expected[torch.from_numpy(rows)])


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", PEERS)
def test_theirs_to_ours_and_back(name, scan_layers, tmp_path):
    other = peer(name)
    _, back = there_and_back(other, transformers.AutoModelForSeq2SeqLM, compare, tmp_path, scan_layers=scan_layers)
    assert back.config.scale_decoder_outputs == other.config.scale_decoder_outputs


def test_greedy_decoding_says_what_theirs_does(tmp_path):
    other = peer("gated")
    other.save_pretrained(tmp_path)
    model, variables = zoo.from_pretrained(tmp_path)
    inputs = {"input_ids": torch.from_numpy(tokens(S)), "attention_mask": torch.from_numpy(PRESENT.astype(int))}
    other.generation_config.eos_token_id = None  # so that none ends early
    theirs = other.generate(**inputs, do_sample=False, max_new_tokens=T, decoder_start_token_id=0)
    greedy = zoo.decode.Sampling(temperature=0)
    begin = np.zeros((B, 1), np.int32)
    (ours,) = zoo.decode.sample(model, variables, begin, T, greedy, source=tokens(S), source_lengths=LENGTHS)
    np.testing.assert_array_equal(ours, theirs.numpy()[:, 1:])


def test_shards_and_the_names_that_a_file_repeats(tmp_path):
    other = peer("relu")
    other.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    model, variables = zoo.from_pretrained(tmp_path / "shards")
    compare(model, variables, other)
    state = {key: tensor.numpy() for key, tensor in other.state_dict().items()}
    assert {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"} < set(state)
    zoo.weights.write_safetensors(state, tmp_path / "all.safetensors")
    jax.tree.map(np.testing.assert_array_equal, zoo.load_weights(model, tmp_path / "all.safetensors"), variables)


def test_files_of_weights_alone(tmp_path):
    other = peer("gated-untied")
    other.save_pretrained(tmp_path / "theirs")
    plain, variables = zoo.from_pretrained(tmp_path / "theirs")
    scanned = plain.clone(scan_layers=True)
    stacked = zoo.load_weights(scanned, tmp_path / "theirs" / "model.safetensors")
    for save in (zoo.save_weights, save_native):
        path = tmp_path / f"{save.__name__}.safetensors"
        save(stacked, path)
        jax.tree.map(np.testing.assert_array_equal, zoo.load_weights(plain, path), variables)


def test_a_head_of_its_own_is_not_dropped_in_silence(tmp_path):
    peer("untied").save_pretrained(tmp_path)
    with pytest.raises(zoo.ZooError, match=r"its lm_head.weight is not its embedding.*; give tied=False"):
        zoo.from_pretrained(tmp_path, tied=True)


# torch.nn.Transformer, which Vaswani et al.'s is.


def attention_state(params, source=None):
    """torch's packed attention of ours; keys and values of cross-attention are the source's."""
    own = {**params, **(source or {})}
    three = [own[name] for name in ("query", "key", "value")]
    return {
        "in_proj_weight": np.concatenate([part["kernel"].T for part in three]),
        "in_proj_bias": np.concatenate([part["bias"] for part in three]),
        "out_proj.weight": params["out"]["kernel"].T,
        "out_proj.bias": params["out"]["bias"],
    }


def layer_state(params, norms, source=None):
    parts = {"self_attn": attention_state(params["attention"])}
    if source is not None:
        parts["multihead_attn"] = attention_state(params["cross"], source)
    for theirs, ours in (("linear1", "up"), ("linear2", "down")):
        parts[theirs] = {"weight": params["mlp"][ours]["kernel"].T, "bias": params["mlp"][ours]["bias"]}
    for i, ours in enumerate(norms, start=1):
        parts[f"norm{i}"] = {"weight": params[ours]["scale"], "bias": params[ours]["bias"]}
    return {f"{part}.{name}": leaf for part, leaves in parts.items() for name, leaf in leaves.items()}


def torch_transformer(model, params):
    """torch.nn.Transformer with our weights; it has last norms also where each sum is normalised, if it is let."""
    sizes = (model.hidden_size, model.num_heads, model.mlp_size)
    options = {"dropout": 0.0, "batch_first": True, "norm_first": model.norm_first, "layer_norm_eps": 1e-6}
    other = torch.nn.Transformer(*sizes[:2], model.num_layers, model.num_layers, sizes[2], **options).eval()
    state = {}
    for half, norms in (("encoder", ("norm1", "norm2")), ("decoder", ("norm1", "norm_cross", "norm2"))):
        for i in range(model.num_layers):
            source = params["source"][f"layer{i}"] if half == "decoder" else None
            layer = layer_state(params[half]["layers"][f"layer{i}"], norms, source)
            state |= {f"{half}.layers.{i}.{name}": leaf for name, leaf in layer.items()}
        if model.norm_first:
            norm = params[half]["norm"]
            state |= {f"{half}.norm.weight": norm["scale"], f"{half}.norm.bias": norm["bias"]}
        else:
            getattr(other, half).norm = None
    other.load_state_dict({key: torch.from_numpy(np.array(leaf)) for key, leaf in state.items()})
    return other


@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_transformer_with_our_weights(norm_first):
    sizes = {"vocab_size": V, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "mlp_size": 48}
    model = zoo.create_model("transformer_base", **sizes, norm_first=norm_first)
    leaves, structure = jax.tree.flatten(jax.jit(model.init)(jax.random.key(0), tokens(T)))
    rng = np.random.default_rng(0)
    moved = [np.asarray(leaf + 0.2 * rng.normal(size=leaf.shape), np.float32) for leaf in leaves]
    params = jax.tree.unflatten(structure, moved)["params"]
    other = torch_transformer(model, params)
    apply = functools.partial(model.apply, source=tokens(S), source_lengths=LENGTHS, mutable=["features"])
    logits, seen = jax.jit(apply)({"params": params}, tokens(T))
    embedded = [np.array(seen["features"][half]["embedded"]) for half in ("encoder", "decoder")]
    padding = torch.from_numpy(~PRESENT)
    with torch.no_grad():
        theirs = other(
            *map(torch.from_numpy, embedded),
            tgt_mask=torch.nn.Transformer.generate_square_subsequent_mask(T),
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
    close(logits, theirs @ torch.from_numpy(np.array(params["embedding"])).T)
    places = np.arange(S)[:, None] / 10_000 ** (np.arange(16) / 15)  # Vaswani et al. 2017, section 3.5
    expected = params["embedding"][tokens(S)] * np.sqrt(32) + np.concatenate([np.sin(places), np.cos(places)], axis=-1)
    np.testing.assert_allclose(embedded[0], expected, atol=1e-5)


def test_a_folder_of_flan_answers(tmp_path):
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
    from test_vocabulary_files import SCRIPTS, folder_of, trained

    spm = trained("unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    folder = folder_of("T5Tokenizer", spm, tmp_path / "t5")
    size = zoo.inputs.text.read_tokenizer(folder, 16).vocab_size
    torch.manual_seed(0)
    settings = {**CONFIG, **PEERS["gated-untied"], "vocab_size": size, "num_decoder_layers": 2, "n_positions": 100}
    other = transformers.T5ForConditionalGeneration(transformers.T5Config(**settings, decoder_start_token_id=0)).eval()
    other.lm_head.weight = torch.nn.Parameter(torch.empty(size, 32))
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    other.generation_config.update(max_length=10, pad_token_id=0, eos_token_id=1)
    other.save_pretrained(folder)
    run = zoo.load(folder)
    for text in SCRIPTS[:4]:
        ids = run.inputs.encode(text)
        with torch.no_grad():
            theirs = other.generate(torch.from_numpy(ids)[None].long())[0].tolist()
        ((found,),) = zoo.translate(run, [text])
        assert found.text == run.inputs.decode(np.array(theirs[1:]))
