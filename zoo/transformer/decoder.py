"""Decoder-only Transformers, the causal language models, which differ only in their fields.

GPT-2 (Radford et al. 2019) has learned positions, layer normalisation before each layer, GELU, biases and a tied head.
Llama (Touvron et al. 2023) has rotary positions, RMS normalisation, a gated feed-forward layer and fewer key than query
heads. Of its kind are Mistral (a window), Qwen 2 (biases of queries, keys and values), Qwen 3 (normalised queries and
keys), SmolLM3 (every fourth layer without rotations), OLMo 2 (normalised outputs instead of inputs), Phi-3, and Gemma
(a scaled embedding; 2: inputs and outputs normalised, soft caps, windows in all but every second layer; 3: rotations of
their own in those). GPT-NeoX (Black et al. 2022) has GPT-2's parts, rotates a share of a head's features, and its
attention and feed-forward layer read the same input. The `nanogpt` models are Karpathy's small GPT-2s, without biases
and with exact GELU.

Attention weights have no dropout, which fused kernels do not support; GPT-2's other dropouts are here.
"""

import functools
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.errors import ZooError
from zoo.features import sow
from zoo.ops.attention import Implementation, Mask
from zoo.ops.dense import dot_general
from zoo.ops.positions import LinearScaling, Llama3Scaling, Rotary, RotaryScaling, YarnScaling, rotary
from zoo.ops.precision import at_least_float32
from zoo.ops.recurrence import take_rows
from zoo.registry import register
from zoo.sequence import cache_size, check_beside, check_room, check_state, check_tokens, position_after
from zoo.transformer.layers import (
    PARTITION_RULES,
    Activation,
    Context,
    Norm,
    Norms,
    Remat,
    head_dim_of,
    new_dense,
    new_norm,
    new_stack,
)

Scaling = (
    tuple[float, float, float, int]
    | tuple[Literal["linear"], float]  # factor
    | tuple[Literal["yarn"], float, int, float, float, float, bool]  # see YarnScaling
)


def scaling_of(numbers: Scaling) -> RotaryScaling:
    """The scaling of rotations that the field `rope_scaling` describes."""
    first, *rest = numbers
    kinds: dict[Any, Any] = {"linear": LinearScaling, "yarn": YarnScaling}
    return kinds[first](*rest) if first in kinds else Llama3Scaling(*numbers)  # type: ignore[arg-type]


class Decoder(nn.Module):
    """Tokens [B, T] to next-token logits [B, T, vocab_size], by the protocol of `zoo.sequence`.

    `segments` int32 [B, T] number the documents packed in a row: a token sees only its own document, in which positions
    start at 0. Features: embedded; layers/layer0/hidden, layers/layer0/attention/weights [B, N, T, S], ...; normalised,
    the head's input.

    Differentiable forwards (`jax.jvp`, `jax.hessian`) inside `zoo.forward_mode()`.
    """

    vocab_size: int = 50257
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    num_kv_heads: int | None = None  # default: num_heads
    head_dim: int | None = None  # default: hidden_size / num_heads
    mlp_size: int | None = None  # default: 4 hidden_size
    max_length: int = 1024  # the most tokens of an input
    activation: Activation = "gelu_tanh"
    norm: Norm = "layer"
    norm_epsilon: float = 1e-5
    use_bias: bool = True
    qkv_bias: bool | None = None  # of queries, keys and values; default: use_bias
    norms: Norms = "before"  # what of a layer is normalised
    parallel: bool = False  # attention and feed-forward layer read the same input
    positions: Literal["learned", "rotary"] = "learned"
    rope_theta: float = 10_000.0
    rope_scaling: Scaling | None = None  # Llama 3's factor, low, high, original length; or a name and its numbers
    rotary_share: float = 1.0  # of a head's features
    unrotated_every: int | None = None  # every n-th layer has no rotations
    qk_norm: bool | Literal["whole"] = False  # of each head, or of all together
    window: int | None = None  # how many tokens a token sees, itself included; default: all
    global_every: int | None = None  # every n-th layer has no window
    local_theta: float | None = None  # rope_theta of layers with a window, which are not scaled; default: as the others
    score_scale: float | None = None  # of attention scores; default: 1 / sqrt(head_dim)
    soft_cap: float | None = None  # of attention scores
    logit_cap: float | None = None
    scale_embedding: bool = False  # by sqrt(hidden_size)
    tied: bool = True  # the head's kernel is the embedding
    dropout_rate: float = 0.0  # of the embedding and of each layer's output
    scan_layers: bool = False  # compile one layer for any depth
    remat: Remat = "none"  # what the backward pass recomputes
    attention: Implementation | None = None  # default: by platform and shape
    dtype: Any = jnp.float32  # of the computation
    param_dtype: Any = jnp.float32  # of the parameters

    head = "head"  # the module that is drawn anew for another vocabulary
    embeddings = ("embedding", "positions")
    partition_rules = PARTITION_RULES

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of key heads and width of a head; ZooError if head counts do not divide."""
        key_heads = self.num_kv_heads or self.num_heads
        if self.num_heads % key_heads:
            raise ZooError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {key_heads}")
        return key_heads, head_dim_of(self)

    @property
    def settled(self) -> dict[str, int]:
        """Derived defaults, filled in."""
        key_heads, head_dim = self.sizes
        return {"num_kv_heads": key_heads, "head_dim": head_dim, "mlp_size": self.mlp_size or 4 * self.hidden_size}

    def init_state(self, batch_size: int, max_length: int) -> dict[str, Any]:
        """An empty cache for `max_length` tokens (at most the model's): zeros, in the compute dtype."""
        check_room(self, max_length)
        shape = (batch_size, max_length, *self.sizes)
        layers = {
            f"layer{i}": {"key": jnp.zeros(shape, self.dtype), "value": jnp.zeros(shape, self.dtype)}
            for i in range(self.num_layers)
        }
        return {"layers": layers, "position": jnp.zeros((batch_size,), jnp.int32)}

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        state: Any = None,
        lengths: jax.Array | None = None,
        train: bool = False,
        segments: jax.Array | None = None,
    ) -> Any:
        check_tokens(self, tokens, self.vocab_size, lengths)
        check_beside(self, "segments", segments, tokens)
        check_room(self, tokens.shape[1])
        if state is not None:
            check_state(self, state, lambda: self.init_state(tokens.shape[0], cache_size(state) or 0))
        if state is not None and segments is not None:
            raise ZooError("packed documents are read at once: give segments without a state")
        table = self.param(
            "embedding", nn.initializers.normal(0.02), (self.vocab_size, self.hidden_size), self.param_dtype
        )
        table = table.astype(self.dtype)
        places = self.places(tokens, state, segments)
        x = take_rows(table, tokens)
        if self.scale_embedding:
            x = x * jnp.asarray(math.sqrt(self.hidden_size), self.dtype)
        if self.positions == "learned":
            init = nn.initializers.normal(0.02)
            learned = self.param("positions", init, (self.max_length, self.hidden_size), self.param_dtype)
            learned = learned.astype(self.dtype)
            whole = state is None and segments is None
            x = x + (learned[: tokens.shape[1]] if whole else jnp.take(learned, places, axis=0, mode="clip"))
        x = sow(self, "embedded", nn.Dropout(self.dropout_rate, deterministic=not train)(x))
        mask = Mask(True, None, None, None if segments is None else (segments, segments))
        if state is not None:
            mask = mask._replace(positions=places)
        contexts = self.contexts(mask, places, train)
        x, layers = self.run_layers(x, contexts, None if state is None else state["layers"])
        x = sow(self, "normalised", self.new_norm()(name="norm")(x))
        if self.tied:
            logits = dot_general(x, table.T, (((2,), (0,)), ((), ())))
        else:
            settings: dict[str, Any] = {"dot_general": dot_general, "name": "head"}
            logits = nn.Dense(self.vocab_size, False, self.dtype, self.param_dtype, **settings)(x)
        if self.logit_cap is not None:
            wide = logits.astype(at_least_float32(logits))
            logits = (self.logit_cap * jnp.tanh(wide / self.logit_cap)).astype(logits.dtype)
        if state is None:
            return logits
        return logits, {"layers": layers, "position": position_after(state, tokens, lengths)}

    def places(self, tokens: jax.Array, state: Any, segments: jax.Array | None) -> jax.Array:
        """The position of each token, int32 [B or 1, T]: after the tokens of the state, or within its document."""
        steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        if state is not None:
            return state["position"][:, None] + steps
        if segments is None:
            return steps[None]
        begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
        return steps - jax.lax.cummax(jnp.where(begins, steps, 0), axis=1)

    def contexts(self, mask: Mask, places: jax.Array, train: bool) -> list[Context]:
        """The contexts of the first layers, after which they repeat."""
        count = math.lcm(self.global_every or 1, self.unrotated_every or 1)
        found = []
        for number in range(1, count + 1):
            local = self.window is not None and not (self.global_every and number % self.global_every == 0)
            rotated = self.positions == "rotary" and not (self.unrotated_every and number % self.unrotated_every == 0)
            own = mask._replace(window=self.window if local else None)
            found.append(Context(own, self.rotations(places, local) if rotated else None, train=train))
        return found

    def rotations(self, places: jax.Array, local: bool) -> Rotary:
        theta, scaling = self.rope_theta, self.rope_scaling
        if local and self.local_theta is not None:
            theta, scaling = self.local_theta, None
        width = int(self.sizes[1] * self.rotary_share)
        return rotary(places, width, theta, None if scaling is None else scaling_of(scaling), self.dtype)

    def new_norm(self) -> Any:
        return functools.partial(
            new_norm,
            norm=self.norm,
            epsilon=self.norm_epsilon,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def run_layers(self, x: jax.Array, contexts: list[Context], state: Any) -> tuple[jax.Array, Any]:
        """The blocks over x [B, T, hidden_size], and their caches."""
        norm = self.new_norm()
        attention: dict[str, Any] = {
            "num_kv_heads": self.sizes[0],
            "qk_norm": norm if self.qk_norm else None,
            "qk_norm_whole": self.qk_norm == "whole",
            "scale": self.score_scale,
            "soft_cap": self.soft_cap,
        }
        qkv_bias = self.use_bias if self.qkv_bias is None else self.qkv_bias

        def dense(features: int, name: str, residual: bool = False) -> nn.Module:
            return new_dense(
                features,
                name,
                residual,
                std=0.02,
                residual_std=0.02 / math.sqrt(2 * self.num_layers),  # Radford et al. 2019, section 2.3
                use_bias=qkv_bias if name in ("query", "key", "value") else self.use_bias,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )

        stack = new_stack(self, dense=dense, norm=norm, norms=self.norms, parallel=self.parallel, **attention)
        return stack(name="layers")(x, *contexts, state=state)


_NANO: dict[str, Any] = {"use_bias": False, "activation": "gelu"}
_LLAMA: dict[str, Any] = {"norm": "rms", "use_bias": False, "activation": "swiglu", "positions": "rotary"}
GPT2: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt2_medium": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16},
    "gpt2_large": {"hidden_size": 1280, "num_layers": 36, "num_heads": 20},
    "gpt2_xl": {"hidden_size": 1600, "num_layers": 48, "num_heads": 25},
    "nanogpt": {"vocab_size": 65, "hidden_size": 384, "num_layers": 6, "num_heads": 6, "max_length": 256, **_NANO},
    "nanogpt_4x128": {"vocab_size": 65, "hidden_size": 128, "num_layers": 4, "num_heads": 4, "max_length": 64, **_NANO},
}
SMOLLM2: dict[str, Any] = {**_LLAMA, "vocab_size": 49152, "rope_theta": 100_000.0, "max_length": 8192}
_LLAMA3: dict[str, Any] = {
    **{**_LLAMA, "vocab_size": 128256, "num_kv_heads": 8, "mlp_size": 8192, "max_length": 131072},
    **{"rope_theta": 500_000.0, "rope_scaling": (32.0, 1.0, 4.0, 8192)},
}
LLAMA: dict[str, dict[str, Any]] = {
    "smollm2_135m": {
        **SMOLLM2,
        **{"hidden_size": 576, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3, "mlp_size": 1536},
    },
    "smollm2_360m": {
        **SMOLLM2,
        **{"hidden_size": 960, "num_layers": 32, "num_heads": 15, "num_kv_heads": 5, "mlp_size": 2560},
    },
    "smollm2_1.7b": {
        **{**SMOLLM2, "rope_theta": 130_000.0},
        **{"hidden_size": 2048, "num_layers": 24, "num_heads": 32, "mlp_size": 8192},
    },
    "llama3_1b": {**_LLAMA3, "hidden_size": 2048, "num_layers": 16, "num_heads": 32},
    "llama3_3b": {**_LLAMA3, "hidden_size": 3072, "num_layers": 28, "num_heads": 24},
}
_GEMMA: dict[str, Any] = {
    **{**_LLAMA, "norm": "rms_offset", "norm_epsilon": 1e-6, "activation": "geglu", "head_dim": 256},
    "scale_embedding": True,
}
_GEMMA3: dict[str, Any] = {
    **{**_GEMMA, "vocab_size": 262144, "num_heads": 4, "num_kv_heads": 1, "max_length": 32768, "norms": "both"},
    **{"score_scale": 256**-0.5, "window": 512, "global_every": 6, "qk_norm": True},
    **{"rope_theta": 1e6, "local_theta": 10_000.0},
}
_QWEN2: dict[str, Any] = {
    **{**_LLAMA, "vocab_size": 151936, "num_kv_heads": 2, "max_length": 32768},
    **{"rope_theta": 1e6, "norm_epsilon": 1e-6, "qkv_bias": True},
}
_PYTHIA: dict[str, Any] = {
    **{"vocab_size": 50304, "max_length": 2048, "activation": "gelu", "positions": "rotary", "rotary_share": 0.25},
    **{"parallel": True, "tied": False},
}
QWEN3: dict[str, Any] = {
    **_LLAMA,
    **{
        "vocab_size": 151936,
        "hidden_size": 1024,
        "num_layers": 28,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 128,
    },
    **{"mlp_size": 3072, "max_length": 40960, "rope_theta": 1e6, "norm_epsilon": 1e-6, "qk_norm": True},
}


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {  # with the paper
    "qwen2.5_0.5b": (
        "Qwen Team 2024, arXiv:2412.15115",
        {**_QWEN2, "hidden_size": 896, "num_layers": 24, "num_heads": 14, "mlp_size": 4864},
    ),
    "qwen2.5_1.5b": (
        "Qwen Team 2024, arXiv:2412.15115",
        {**_QWEN2, "hidden_size": 1536, "num_layers": 28, "num_heads": 12, "mlp_size": 8960},
    ),
    "mistral_7b": (
        "Jiang et al. 2023, arXiv:2310.06825",
        {
            **{**_LLAMA, "vocab_size": 32000, "hidden_size": 4096, "num_layers": 32, "num_heads": 32},
            **{"num_kv_heads": 8, "mlp_size": 14336, "max_length": 32768, "window": 4096, "tied": False},
        },
    ),
    "smollm3_3b": (
        "Bakouch et al. 2025, SmolLM3",
        {
            **{**_LLAMA, "vocab_size": 128256, "hidden_size": 2048, "num_layers": 36, "num_heads": 16},
            **{"num_kv_heads": 4, "mlp_size": 11008, "max_length": 65536, "rope_theta": 5e6, "norm_epsilon": 1e-6},
            **{"unrotated_every": 4},
        },
    ),
    "olmo2_1b": (
        "OLMo Team 2024, arXiv:2501.00656",
        {
            **{**_LLAMA, "vocab_size": 100352, "hidden_size": 2048, "num_layers": 16, "num_heads": 16},
            **{"mlp_size": 8192, "max_length": 4096, "rope_theta": 500_000.0, "norm_epsilon": 1e-6, "tied": False},
            **{"norms": "after", "qk_norm": "whole"},
        },
    ),
    "phi3_mini": (
        "Abdin et al. 2024, arXiv:2404.14219",
        {
            **{**_LLAMA, "vocab_size": 32064, "hidden_size": 3072, "num_layers": 32, "num_heads": 32},
            **{"mlp_size": 8192, "max_length": 4096, "window": 2047, "tied": False},
        },
    ),
    "gemma_2b": (
        "Gemma Team 2024, arXiv:2403.08295",
        {
            **{**_GEMMA, "vocab_size": 256000, "hidden_size": 2048, "num_layers": 18, "num_heads": 8},
            **{"num_kv_heads": 1, "mlp_size": 16384, "max_length": 8192},
        },
    ),
    "gemma2_2b": (
        "Gemma Team 2024, arXiv:2408.00118",
        {
            **{**_GEMMA, "vocab_size": 256000, "hidden_size": 2304, "num_layers": 26, "num_heads": 8},
            **{"num_kv_heads": 4, "mlp_size": 9216, "max_length": 8192, "norms": "both", "score_scale": 256**-0.5},
            **{"window": 4096, "global_every": 2, "soft_cap": 50.0, "logit_cap": 30.0},
        },
    ),
    "gemma3_1b": (
        "Gemma Team 2025, arXiv:2503.19786",
        {**_GEMMA3, "hidden_size": 1152, "num_layers": 26, "mlp_size": 6912},
    ),
    "gemma3_270m": (
        "Gemma Team 2025, arXiv:2503.19786",
        {**_GEMMA3, "hidden_size": 640, "num_layers": 18, "mlp_size": 2048},
    ),
    "pythia_70m": (
        "Biderman et al. 2023, arXiv:2304.01373",
        {**_PYTHIA, "hidden_size": 512, "num_layers": 6, "num_heads": 8},
    ),
    "pythia_160m": ("Biderman et al. 2023, arXiv:2304.01373", _PYTHIA),
    "pythia_410m": (
        "Biderman et al. 2023, arXiv:2304.01373",
        {**_PYTHIA, "hidden_size": 1024, "num_layers": 24, "num_heads": 16},
    ),
}


def _register(name: str, paper: str, row: dict[str, Any]) -> None:
    length = min(row.get("max_length", 1024), 1024)
    add = register(name, family="transformer", input_shape=(length,), input_dtype="int32", paper=paper)
    add(functools.partial(Decoder, **row))


for _name, _row in GPT2.items():
    _register(_name, "Radford et al. 2019" + (", Karpathy 2022" if "nano" in _name else ""), _row)
for _name, _row in LLAMA.items():
    _register(_name, "Touvron et al. 2023, arXiv:2302.13971", _row)
_register("qwen3_0.6b", "Yang et al. 2025, arXiv:2505.09388", QWEN3)
for _name, (_paper, _row) in OTHERS.items():
    _register(_name, _paper, _row)
