"""Loops of torch's own layers over one token after the other: logits and gradients of the same weights, to 1e-5 of the
largest value."""

import numpy as np
import pytest

import zoo
from zoo.weights import write_safetensors

torch = pytest.importorskip("torch", reason="parity compares with torch")
pytestmark = pytest.mark.parity

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

B, T, S, E, H, A, M = 3, 6, 5, 4, 7, 6, 5
TARGETS, SOURCES = 11, 13
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, TARGETS, (B, T))
SOURCE = RNG.integers(0, SOURCES, (B, S))
LENGTHS = np.array([5, 2, 4])
FIELDS = {
    "vocab_size": TARGETS,
    "source_vocab_size": SOURCES,
    "embedding_size": E,
    "hidden_size": H,
    "num_layers": 2,
    "dropout_rate": 0.0,
}


class Ends(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embedding, self.source_embedding = torch.nn.Embedding(TARGETS, E), torch.nn.Embedding(SOURCES, E)
        self.head = torch.nn.Linear(width, TARGETS)

    def packed(self, turned):
        """Each row's own source, embedded, from its end if `turned`."""
        rows = [
            torch.from_numpy(row[:n][::-1].copy() if turned else row[:n])
            for row, n in zip(SOURCE, LENGTHS, strict=True)
        ]
        return torch.nn.utils.rnn.pack_sequence([self.source_embedding(row) for row in rows], enforce_sorted=False)


class LSTM(Ends):
    def __init__(self):
        super().__init__(H)
        self.encoder = torch.nn.LSTM(E, H, 2, batch_first=True)
        self.decoder = torch.nn.LSTM(E, H, 2, batch_first=True)

    def forward(self, tokens):
        _, state = self.encoder(self.packed(turned=True))
        return self.head(self.decoder(self.embedding(tokens), state)[0])


class Additive(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.key = torch.nn.Linear(2 * H, A, bias=False)
        self.query_kernel = torch.nn.Parameter(torch.randn(H, A))
        self.vector = torch.nn.Parameter(torch.randn(A))

    def forward(self, query, values):
        return torch.tanh((query @ self.query_kernel)[:, None] + self.key(values)) @ self.vector


class GRU(Ends):
    def __init__(self):
        super().__init__(M)
        self.encoder = torch.nn.GRU(E, H, 2, batch_first=True, bidirectional=True)
        self.begin = torch.nn.Linear(H, H, bias=False)
        self.decoder = torch.nn.GRU(E + 2 * H, H, 1, batch_first=True)
        self.alignment = Additive()
        self.maxout = torch.nn.Linear(E + 3 * H, 2 * M)

    def forward(self, tokens):
        packed, last = self.encoder(self.packed(turned=False))
        values, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
        state, logits = torch.tanh(self.begin(last[-1])), []
        for word in self.embedding(tokens).unbind(1):
            scores = self.alignment(state, values).masked_fill(padding(), -torch.inf)
            context = torch.einsum("bs,bsd->bd", scores.softmax(-1), values)
            state = self.decoder(torch.cat([word, context], -1)[:, None], state[None])[1][0]
            pieces = self.maxout(torch.cat([state, word, context], -1)).reshape(B, M, 2)
            logits.append(self.head(pieces.amax(-1)))
        return torch.stack(logits, 1)


class General(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.key = torch.nn.Linear(H, H, bias=False)


class Luong(Ends):
    def __init__(self):
        super().__init__(H)
        self.encoder = torch.nn.LSTM(E, H, 2, batch_first=True)
        self.decoder = torch.nn.LSTM(E + H, H, 2, batch_first=True)
        self.alignment = General()
        self.combine = torch.nn.Parameter(torch.randn(2 * H, H) / 4)

    def forward(self, tokens):
        packed, state = self.encoder(self.packed(turned=True))
        values, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
        values = torch.stack([torch.cat([row[:n].flip(0), row[n:]]) for row, n in zip(values, LENGTHS, strict=True)])
        fed, logits = torch.zeros(B, H), []
        for word in self.embedding(tokens).unbind(1):
            output, state = self.decoder(torch.cat([word, fed], -1)[:, None], state)
            scores = torch.einsum("bh,bsh->bs", output[:, 0], self.alignment.key(values))
            weights = scores.masked_fill(padding(), -torch.inf).softmax(-1)
            context = torch.einsum("bs,bsd->bd", weights, values)
            fed = torch.tanh(torch.cat([context, output[:, 0]], -1) @ self.combine)
            logits.append(self.head(fed))
        return torch.stack(logits, 1)


def padding():
    return torch.arange(S) >= torch.from_numpy(LENGTHS)[:, None]


def close(ours, theirs):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * max(np.abs(theirs).max(), 1e-3)


@pytest.mark.parametrize(
    ("name", "peer", "fields"),
    [
        ("seq2seq_lstm", LSTM, {}),
        ("seq2seq_gru_attention", GRU, {"attention_size": A, "maxout_size": M}),
        ("seq2seq_lstm_luong", Luong, {}),
    ],
)
def test_logits_and_gradients(name, peer, fields, tmp_path):
    torch.manual_seed(0)
    peer = peer()
    path = tmp_path / "weights.safetensors"
    write_safetensors({key: tensor.numpy() for key, tensor in peer.state_dict().items()}, path)
    model = zoo.create_model(name, **FIELDS, **fields)
    variables = zoo.load_weights(model, path)
    weights = RNG.normal(size=(B, T, TARGETS)).astype(np.float32)

    def loss(variables):
        logits = model.apply(variables, TOKENS, source=SOURCE, source_lengths=LENGTHS)
        return jnp.sum(jnp.sin(logits) * weights), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(variables)
    theirs = peer(torch.from_numpy(TOKENS))
    close(logits, theirs)
    (torch.sin(theirs) * torch.from_numpy(weights)).sum().backward()
    params = gradients["params"]
    close(params["source_embedding"]["embedding"], peer.source_embedding.weight.grad)
    close(params["encoder"]["layer0"]["kernel"].T, peer.encoder.weight_ih_l0.grad)
    close(params["decoder"]["layer0"]["kernel"].T, peer.decoder.weight_ih_l0.grad)
    close(params["decoder"]["layer0"]["recurrent_kernel"].T, peer.decoder.weight_hh_l0.grad)
    if "alignment" in params:
        close(params["alignment"]["key"]["kernel"].T, peer.alignment.key.weight.grad)
