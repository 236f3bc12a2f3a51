"""Decoders as in Hugging Face's transformers, each by a small random config: logits, hidden states, files both ways,
continuations; and the scalings of rotations."""

import json

import jax
import numpy as np
import pytest
from peers import close, drawn, there_and_back, torch, transformers

import zoo
from zoo.ops.positions import rotary
from zoo.transformer.decoder import scaling_of
from zoo.weights.huggingface.rope import rotations

pytestmark = pytest.mark.parity
V, B, T = 50, 2, 11
SIZES = {
    **{"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"intermediate_size": 24, "max_position_embeddings": 32, "pad_token_id": None, "bos_token_id": None},
    **{"eos_token_id": None, "attn_implementation": "eager"},
}
GEMMA = {**SIZES, "head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 4}
NEOX = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
PEERS = {
    "mistral": ("Mistral", {**SIZES, "sliding_window": 4, "head_dim": 8}),
    "qwen2": ("Qwen2", {**SIZES, "use_sliding_window": False}),
    "qwen2-window": ("Qwen2", {**SIZES, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
    "gemma": ("Gemma", {**SIZES, "head_dim": 8}),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3Text", {**GEMMA, "num_hidden_layers": 6}),
    "gpt_neox": ("GPTNeoX", {**NEOX, "rotary_pct": 0.5}),
    "gpt_neox-sequential": ("GPTNeoX", {**NEOX, "use_parallel_residual": False, "hidden_act": "relu"}),
    "olmo2": ("Olmo2", SIZES),
    "smollm3": ("SmolLM3", SIZES),
    "llama-linear": ("Llama", {**SIZES, "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}}),
    "llama-yarn": ("Llama", {**SIZES, "rope_parameters": YARN}),
    "phi3": ("Phi3", {**SIZES, "sliding_window": 4}),
}


def peer(name):
    kind, fields = PEERS[name]
    model = {"Gemma3Text": "Gemma3"}.get(kind, kind) + "ForCausalLM"
    torch.manual_seed(0)
    other = drawn(getattr(transformers, model)(getattr(transformers, f"{kind}Config")(**fields)))
    if kind.startswith("Gemma"):  # whose scales are around 0
        with torch.no_grad():
            for key, parameter in other.named_parameters():
                if "norm" in key:
                    parameter -= 1
    return other


def tokens():
    return np.random.default_rng(0).integers(0, V, (B, T))


def compare(model, variables, other):
    """Logits, and every hidden state."""
    with torch.no_grad():
        theirs = other(torch.from_numpy(tokens()), output_hidden_states=True)
    logits, seen = model.apply(variables, tokens(), mutable=["features"])
    close(logits, theirs.logits)
    features = seen["features"]
    states = theirs.hidden_states
    close(features["layers"]["layer0"]["hidden"], states[1])
    close(features["layers"][f"layer{model.num_layers - 2}"]["hidden"], states[-2])
    close(features["normalised"], states[-1])


def continuation(model, variables, prompt, steps):
    """Greedily, token by token with a cache."""
    step = jax.jit(model.apply)
    state, found = model.init_state(len(prompt), prompt.shape[1] + steps), []
    fed = prompt
    for _ in range(steps):
        logits, state = step(variables, fed, state)
        fed = np.asarray(logits[:, -1].argmax(-1))[:, None]
        found.append(fed)
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("name", [name for name in PEERS if name != "phi3"])
def test_theirs_to_ours_and_back(name, tmp_path):
    there_and_back(peer(name), transformers.AutoModelForCausalLM, compare, tmp_path)


def test_phi3s_fused_tensors(tmp_path):
    other = peer("phi3")
    other.save_pretrained(tmp_path / "theirs")
    model, variables = zoo.from_pretrained(tmp_path / "theirs")
    compare(model, variables, other)
    zoo.save_pretrained(model, variables, tmp_path / "ours")  # as the Mistral that it is
    compare(*zoo.from_pretrained(tmp_path / "ours"), other)
    compare(model, variables, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval())


@pytest.mark.parametrize("name", ["gemma3", "gpt_neox", "smollm3"])
def test_continuations(name, tmp_path):
    other = peer(name)
    other.save_pretrained(tmp_path)
    model, variables = zoo.from_pretrained(tmp_path)
    with torch.no_grad():
        theirs = other.generate(torch.from_numpy(tokens()), max_new_tokens=8, do_sample=False).numpy()
    np.testing.assert_array_equal(continuation(model, variables, tokens(), 8), theirs[:, T:])


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 3.0},
        YARN,
        {**YARN, "attention_factor": 0.7, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9},
        {
            **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: "-".join(map(str, rope.values())),
)
def test_scaled_rotations(rope):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(**{**SIZES, "head_dim": 32}, rope_parameters={"rope_theta": 1e4, **rope})
    rates, stretch = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")
    fields = rotations({"max_position_embeddings": 32, "rope_parameters": {"rope_theta": 1e4, **rope}})
    ours = rotary(np.arange(9)[None], 32, fields["rope_theta"], scaling_of(fields["rope_scaling"]))
    angles = torch.arange(9)[:, None].float() * rates
    close(ours.cos[0], torch.cos(angles) * stretch)
    close(ours.sin[0], torch.sin(angles) * stretch)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "unknown rope_type 'longrope'"),
        ("llama-linear", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "unknown rope_type 'dynamic'"),
        ("llama-linear", {"rope_parameters": {"rope_type": "yarn"}}, "a rope_type of yarn needs factor"),
        ("llama-linear", {"attention_bias": True}, "attention_bias must be false, not true"),
        ("gemma2", {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, "layer_types must be"),
        ("smollm3", {"no_rope_layers": [1, 0, 0, 1]}, "no_rope_layers must have a 0"),
        ("mistral", {"model_type": "mixtral"}, "unknown model_type 'mixtral'; did you mean mistral"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention must be false"),
    ],
)
def test_what_is_refused_by_name(name, changed, message, tmp_path):
    kind, fields = PEERS[name]
    config = getattr(transformers, f"{kind}Config")(**fields).to_dict() | changed
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(zoo.ZooError, match=message) as caught:
        zoo.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
