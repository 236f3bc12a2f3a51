"""PyTorch modules of `seq2seq_gru_attention` and `transformer_base` with our weights, greedy and beam-search decoding.

A model has `forward(tokens, source, lengths)`, all logits at once by teacher forcing; `read(source, lengths)`, the list
of what it keeps of a source and the list of its state; and `step(tokens, state, memory)`, the logits after one token
more of each row. Rows are axis 0 everywhere. Dropout is left out.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.weights import recurrent


class Additive(nn.Module):
    def __init__(self, hidden_size: int, size: int):
        super().__init__()
        self.key = nn.Linear(2 * hidden_size, size, bias=False)
        self.query_kernel = nn.Parameter(torch.empty(hidden_size, size))
        self.vector = nn.Parameter(torch.empty(size))


class GRUAttention(nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        embedding, hidden = model.embedding_size, model.hidden_size
        self.embedding = nn.Embedding(model.vocab_size, embedding)
        self.source_embedding: nn.Module = self.embedding
        if model.source_vocab_size is not None:
            self.source_embedding = nn.Embedding(model.source_vocab_size, embedding)
        self.encoder = nn.GRU(embedding, hidden, model.num_layers, batch_first=True, bidirectional=True)
        self.begin = nn.Linear(hidden, hidden, bias=False)
        self.decoder = nn.GRUCell(embedding + 2 * hidden, hidden)
        self.alignment = Additive(hidden, model.attention_size)
        self.maxout = nn.Linear(embedding + 3 * hidden, 2 * model.maxout_size)
        self.head = nn.Linear(model.maxout_size, model.vocab_size)

    def read(self, source: torch.Tensor, lengths: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        words, steps = self.source_embedding(source), source.shape[1]
        packed = nn.utils.rnn.pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        encoded, last = self.encoder(packed)
        values, _ = nn.utils.rnn.pad_packed_sequence(encoded, batch_first=True, total_length=steps)
        padding = torch.arange(steps, device=lengths.device) >= lengths[:, None]
        return [values, self.alignment.key(values), padding], [torch.tanh(self.begin(last[-1]))]

    def advance(self, word: torch.Tensor, state: torch.Tensor, memory: list[torch.Tensor]) -> list[torch.Tensor]:
        """The state and the context, both [N, ...], after an embedded word."""
        values, keys, padding = memory
        hidden = torch.tanh((state @ self.alignment.query_kernel)[:, None] + keys)
        weights = (hidden @ self.alignment.vector).masked_fill(padding, -torch.inf).softmax(-1)
        context = torch.bmm(weights[:, None], values)[:, 0]
        return [self.decoder(torch.cat([word, context], -1), state), context]

    def say(self, state: torch.Tensor, word: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        pieces = self.maxout(torch.cat([state, word, context], -1))
        return self.head(pieces.unflatten(-1, (-1, 2)).amax(-1))

    def step(self, tokens: torch.Tensor, state: list[torch.Tensor], memory: list[torch.Tensor]) -> Any:
        word = self.embedding(tokens)
        hidden, context = self.advance(word, state[0], memory)
        return self.say(hidden, word, context), [hidden]

    def forward(self, tokens: torch.Tensor, source: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        memory, (hidden,) = self.read(source, lengths)
        words, found = self.embedding(tokens), []
        for word in words.unbind(1):
            hidden, context = self.advance(word, hidden, memory)
            found.append((hidden, context))
        states, contexts = (torch.stack(leaves, 1) for leaves in zip(*found, strict=True))
        return self.say(states, words, contexts)


class Layer(nn.Module):
    def __init__(self, model: Any, cross: bool):
        super().__init__()
        width, self.num_heads, self.norm_first = model.hidden_size, model.num_heads, model.norm_first
        self.attention = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "out": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"up": nn.Linear(width, model.mlp_size), "down": nn.Linear(model.mlp_size, width)})
        self.norm1, self.norm2 = (nn.LayerNorm(width, model.norm_epsilon) for _ in range(2))
        if cross:
            self.cross = nn.ModuleDict({"query": nn.Linear(width, width), "out": nn.Linear(width, width)})
            self.norm_cross = nn.LayerNorm(width, model.norm_epsilon)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: torch.Tensor, padding: Any, cache: Any = None, memory: Any = None) -> tuple[Any, Any]:
        """The output of the layer, and its keys and values.

        Self-attention of an encoder (no `memory`) masks padding, that of a decoder without `cache` is causal.
        """

        def attend(x: torch.Tensor) -> torch.Tensor:
            nonlocal cache
            query, key, value = map(self.heads, self.attention["qkv"](x).chunk(3, -1))
            seen: dict[str, Any] = {"attn_mask": ~padding} if memory is None else {"is_causal": cache is None}
            if cache is not None:
                key, value = torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2)
            cache = key, value
            out = F.scaled_dot_product_attention(query, key, value, **seen)
            return self.attention["out"](out.transpose(1, 2).flatten(2))

        def look(x: torch.Tensor) -> torch.Tensor:
            query, (key, value) = self.heads(self.cross["query"](x)), memory
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=~padding)
            return self.cross["out"](out.transpose(1, 2).flatten(2))

        def add(x: torch.Tensor, norm: nn.Module, layer: Any) -> torch.Tensor:
            return x + layer(norm(x)) if self.norm_first else norm(x + layer(x))

        x = add(x, self.norm1, attend)
        if memory is not None:
            x = add(x, self.norm_cross, look)
        return add(x, self.norm2, lambda x: self.mlp["down"](F.relu(self.mlp["up"](x)))), cache


class Half(nn.Module):
    def __init__(self, model: Any, cross: bool):
        super().__init__()
        self.layers = nn.ModuleDict({f"layer{i}": Layer(model, cross) for i in range(model.num_layers)})
        self.norm = nn.LayerNorm(model.hidden_size, model.norm_epsilon) if model.norm_first else nn.Identity()

    def forward(self, x: torch.Tensor, padding: Any, caches: Any = None, memory: Any = None) -> tuple[Any, Any]:
        new = []
        for i, layer in enumerate(self.layers.values()):
            pair = slice(2 * i, 2 * i + 2)
            x, cache = layer(x, padding, caches and caches[pair], memory and memory[pair])
            new += cache
        return self.norm(x), new


class Transformer(nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.width, self.num_heads = model.hidden_size, model.num_heads
        self.places: torch.Tensor
        self.embedding = nn.Embedding(model.vocab_size, self.width)
        self.source_embedding = self.embedding
        if model.source_vocab_size is not None:
            self.source_embedding = nn.Embedding(model.source_vocab_size, self.width)
        self.encoder, self.decoder = Half(model, cross=False), Half(model, cross=True)
        self.source = nn.ModuleDict(
            {
                f"layer{i}": nn.ModuleDict({name: nn.Linear(self.width, self.width) for name in ("key", "value")})
                for i in range(model.num_layers)
            }
        )
        rates = torch.exp(-math.log(1e4) * torch.arange(self.width // 2) / max(self.width // 2 - 1, 1))
        angles = torch.arange(model.max_length)[:, None] * rates
        self.register_buffer("places", torch.cat([angles.sin(), angles.cos()], -1), persistent=False)

    def embed(self, table: nn.Module, tokens: torch.Tensor, start: int = 0) -> torch.Tensor:
        return table(tokens) * math.sqrt(self.width) + self.places[start : start + tokens.shape[1]]

    def read(self, source: torch.Tensor, lengths: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        padding = (torch.arange(source.shape[1], device=lengths.device) >= lengths[:, None])[:, None, None]
        x, _ = self.encoder(self.embed(self.source_embedding, source), padding)
        found = [product(x) for layer in self.source.values() for product in layer.children()]
        memory = [leaf.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for leaf in found]
        nothing = x.new_zeros(len(x), self.num_heads, 0, self.width // self.num_heads)
        return [padding, *memory], [nothing] * len(memory)

    def step(self, tokens: torch.Tensor, state: list[torch.Tensor], memory: list[torch.Tensor]) -> Any:
        x = self.embed(self.embedding, tokens[:, None], state[0].shape[2])
        x, state = self.decoder(x, memory[0], state, memory[1:])
        return x[:, 0] @ self.embedding.weight.T, state

    def forward(self, tokens: torch.Tensor, source: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        (padding, *memory), _ = self.read(source, lengths)
        x, _ = self.decoder(self.embed(self.embedding, tokens), padding, None, memory)
        return x @ self.embedding.weight.T


def torch_model(model: Any, variables: Any) -> nn.Module:
    """The peer of one of our models with its weights; ZooError if there is none."""
    kind = {"Seq2SeqGRUAttention": GRUAttention, "EncoderDecoder": Transformer}.get(type(model).__name__)
    if kind is None or getattr(model, "activation", "relu") != "relu" or not getattr(model, "tied", True):
        raise ZooError(f"{type(model).__name__} has no PyTorch peer with these fields; seq2seq_gru_attention has one")
    arrays: dict[str, np.ndarray] = {}
    for name, array in recurrent.to_file(variables).items():
        name = name.removesuffix("_l0") if name.startswith("decoder.") else name
        arrays[f"{name}.weight" if name == "source_embedding" else name] = array
    for name in [name for name in arrays if ".attention.query." in name]:
        parts = [arrays.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        arrays[name.replace("query", "qkv")] = np.concatenate(parts)
    peer = kind(model)
    shared = {"source_embedding.weight": arrays["embedding.weight"]} if model.source_vocab_size is None else {}
    tensors = {name: torch.from_numpy(array.copy()) for name, array in (arrays | shared).items()}
    peer.load_state_dict(tensors, strict=True)
    return peer


@torch.inference_mode()
def greedy(peer: Any, source: torch.Tensor, lengths: torch.Tensor, first: int, end: int, most: int) -> torch.Tensor:
    """Greedy decoding: tokens [N, most], padded with `end`."""
    memory, state = peer.read(source, lengths)
    generated = source.new_full((len(source), most), end)
    token, done = source.new_full((len(source),), first), torch.zeros_like(lengths, dtype=torch.bool)
    for n in range(most):
        logits, state = peer.step(token, state, memory)
        token = logits.argmax(-1).masked_fill(done, end)
        generated[:, n] = token
        done |= token == end
        if done.all():
            break
    return generated


@torch.inference_mode()
def beam_search(
    peer: Any, source: torch.Tensor, lengths: torch.Tensor, first: int, end: int, most: int, beams: int, penalty: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best target of each row, [N, most], padded with `end`, and its score [N].

    Ranking and stopping are those of `zoo.decode.beam`.
    """
    rows, places = len(source), torch.arange(2 * beams, device=source.device)
    memory, state = ([leaf.repeat_interleave(beams, 0) for leaf in leaves] for leaves in peer.read(source, lengths))
    scores = torch.full((rows, beams), -torch.inf, device=source.device)
    scores[:, 0] = 0
    tokens, last = source.new_full((rows, beams, most), end), source.new_full((rows * beams,), first)
    best, best_score = source.new_full((rows, most), end), torch.full_like(scores[:, 0], -torch.inf)
    ended, done = torch.zeros_like(lengths), torch.zeros_like(lengths, dtype=torch.bool)
    row = torch.arange(rows, device=source.device)[:, None]
    for n in range(1, most + 1):
        logits, state = peer.step(last, state, memory)
        totals = (logits.log_softmax(-1) + scores.view(-1, 1)).view(rows, -1)
        totals, index = totals.topk(2 * beams)
        parent, token = index // logits.shape[-1], index % logits.shape[-1]
        ends = token == end
        ending = ends & (places < beams) & ~done[:, None]
        ended += ending.sum(1)
        score, place = (totals / ((5 + n) / 6) ** penalty).masked_fill(~ending, -torch.inf).max(1)
        better = (score > best_score).nonzero()[:, 0]
        best_score[better] = score[better]
        best[better] = tokens[better, parent[better, place[better]]]
        scores, live = totals.masked_fill(ends, -torch.inf).topk(beams)
        parent, token = parent.gather(1, live), token.gather(1, live)
        tokens = tokens[row, parent]
        tokens[:, :, n - 1] = token
        behind = scores[:, 0] / ((5 + n) / 6) ** penalty <= best_score
        done |= (ended >= beams) & behind | (scores[:, 0] / ((5 + most) / 6) ** penalty <= best_score)
        if done.all():
            break
        flat = (row * beams + parent).flatten()
        state, last = [leaf[flat] for leaf in state], token.flatten()
    cut_score = (scores[:, 0] / ((5 + most) / 6) ** penalty).masked_fill(done, -torch.inf)
    cut = cut_score > best_score
    return torch.where(cut[:, None], tokens[:, 0], best), torch.where(cut, cut_score, best_score)
