"""torch.nn.LSTM, GRU and RNN: outputs, states and gradients, with weights in and out, to 1e-5 of the largest value."""

import numpy as np
import pytest

import zoo
from zoo.errors import ZooError
from zoo.weights import read_safetensors, recurrent, write_safetensors

torch = pytest.importorskip("torch", reason="parity compares with torch")
pytestmark = pytest.mark.parity

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

B, T, F, H = 3, 9, 5, 7
LENGTHS = [9, 4, 1]
KINDS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}


def close(ours, theirs):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * max(np.abs(theirs).max(), 1e-3)


def saved(module, path):
    write_safetensors({name: tensor.numpy() for name, tensor in module.state_dict().items()}, path)
    return path


def ours_and_torchs(cell, layers, bidirectional, path):
    torch.manual_seed(0)
    peer = KINDS[cell](F, H, layers, batch_first=True, bidirectional=bidirectional)
    for parameter in peer.parameters():  # biases that are not small
        torch.nn.init.normal_(parameter, std=0.5)
    model = zoo.create_model(cell, hidden_size=H, num_layers=layers, bidirectional=bidirectional)
    return model, zoo.load_weights(model, saved(peer, path), (T, F)), peer


def torch_state(cell, state, model):
    """Our state by layer and direction as torch stacks it."""
    names = [name for i in range(model.num_layers) for name in model.directions(i)]
    parts = [
        torch.from_numpy(np.array(np.stack([state[name][k] for name in names]))) for k in range(1 + (cell == "lstm"))
    ]
    return tuple(parts) if cell == "lstm" else parts[0]


@pytest.mark.parametrize("cell", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_outputs_states_and_gradients(cell, bidirectional, ragged, tmp_path):
    model, variables, peer = ours_and_torchs(cell, 2, bidirectional, tmp_path / "weights.safetensors")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, T, F)).astype(np.float32)
    state = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), model.init_state(B))
    weights = rng.normal(size=(B, T, H * (1 + bidirectional))).astype(np.float32)
    lengths = np.array(LENGTHS) if ragged else None
    if ragged:  # a packed sequence has no padding
        x[np.arange(T) >= np.array(LENGTHS)[:, None]] = np.nan

    def loss(variables, x):
        outputs, final = model.apply(variables, x, state, lengths)
        return jnp.sum(outputs * weights) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(final)), (outputs, final)

    (by_variables, by_x), (outputs, final) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, x)

    tensor = torch.from_numpy(x).requires_grad_()
    if ragged:
        packed = torch.nn.utils.rnn.pack_padded_sequence(tensor, torch.tensor(LENGTHS), batch_first=True)
        peers, peer_state = peer(packed, torch_state(cell, state, model))
        peers = torch.nn.utils.rnn.pad_packed_sequence(peers, batch_first=True)[0]
    else:
        peers, peer_state = peer(tensor, torch_state(cell, state, model))
    peer_states = peer_state if cell == "lstm" else (peer_state,)
    (torch.sum(peers * torch.from_numpy(weights)) + sum((leaf**2).sum() for leaf in peer_states)).backward()
    close(outputs, peers)
    for mine, theirs in zip([torch_state(cell, final, model)], [peer_state], strict=True):
        for a, b in zip(*((s if cell == "lstm" else (s,)) for s in (mine, theirs)), strict=True):
            close(a, b)
    close(by_x, tensor.grad)
    # Both of torch's biases get the gradient that our one gets; a GRU's candidate has two here as well.
    back = recurrent.to_file(by_variables)
    for name, parameter in peer.named_parameters():
        if cell != "gru" and "bias_ih" in name:
            name = name.replace("bias_ih", "bias_hh")
        rows = slice(2 * H, None) if cell == "gru" and "bias_ih" in name else slice(None)
        close(back[name][rows], parameter.grad[rows])


@pytest.mark.parametrize("cell", KINDS)
def test_in_float64_to_nine_digits(cell, tmp_path):
    model, _, peer = ours_and_torchs(cell, 2, True, tmp_path / "weights.safetensors")
    x = np.random.default_rng(0).normal(size=(B, T, F))
    tensor = torch.from_numpy(x).requires_grad_()
    peers = peer.double()(tensor)[0]
    (peers**2).sum().backward()
    with jax.enable_x64(True):
        model = model.clone(dtype="float64", param_dtype="float64")
        variables = zoo.load_weights(model, tmp_path / "weights.safetensors", (T, F))
        ours, back = jax.vjp(lambda x: model.apply(variables, x), jnp.asarray(x))
        by_x = back(2 * ours)[0]
    for mine, theirs in ((ours, peers.detach().numpy()), (by_x, tensor.grad.numpy())):
        assert mine.dtype == np.float64
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("cell", KINDS)
def test_weights_go_back_to_torch(cell, tmp_path):
    model, variables, peer = ours_and_torchs(cell, 2, True, tmp_path / "in.safetensors")
    zoo.save_weights(variables, tmp_path / "out.safetensors")
    other = KINDS[cell](F, H, 2, batch_first=True, bidirectional=True)
    tensors = read_safetensors(tmp_path / "out.safetensors")
    other.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in tensors.items()}, strict=True)
    x = torch.randn(B, T, F)
    close(other(x)[0].detach().numpy(), peer(x)[0])
    again = zoo.load_weights(model, tmp_path / "out.safetensors", (T, F))
    jax.tree.map(np.testing.assert_array_equal, again, variables)


class TorchLM(torch.nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.embedding = torch.nn.Embedding(11, H)
        self.layers = KINDS[cell](H, H, 2, batch_first=True)
        self.head = torch.nn.Linear(H, 11)

    def forward(self, tokens):
        return self.head(self.layers(self.embedding(tokens))[0])


@pytest.mark.parametrize("cell", KINDS)
def test_a_language_model_of_torchs_modules(cell, tmp_path):
    torch.manual_seed(1)
    peer = TorchLM(cell)
    model = zoo.create_model(f"{cell}_lm", vocab_size=11, hidden_size=H)
    variables = zoo.load_weights(model, saved(peer, tmp_path / "lm.safetensors"))
    tokens = np.random.default_rng(0).integers(0, 11, (B, T))
    close(model.apply(variables, tokens), peer(torch.from_numpy(tokens)))


def test_projections(tmp_path):
    """Values, states, and gradients by the weights and the inputs, and the weights back to torch."""
    torch.manual_seed(2)
    peer = torch.nn.LSTM(F, H, 2, batch_first=True, bidirectional=True, proj_size=3)
    path = saved(peer, tmp_path / "projected.safetensors")
    fields = {"hidden_size": H, "num_layers": 2, "bidirectional": True}
    model = zoo.create_model("lstm", **fields, projection_size=3)
    variables = zoo.load_weights(model, path, (T, F))
    x = np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)

    def loss(variables, x):
        outputs, state = model.apply(variables, x, model.init_state(B), np.array(LENGTHS))
        return jnp.sum(outputs**2), (outputs, state)

    (by_variables, by_x), (outputs, state) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, x)
    tensor = torch.from_numpy(x).requires_grad_()
    packed = torch.nn.utils.rnn.pack_padded_sequence(tensor, torch.tensor(LENGTHS), batch_first=True)
    peers, peer_state = peer(packed)
    peers = torch.nn.utils.rnn.pad_packed_sequence(peers, batch_first=True)[0]
    (peers**2).sum().backward()
    close(outputs, peers)
    close(by_x, tensor.grad)
    for ours, theirs in zip(torch_state("lstm", state, model), peer_state, strict=True):
        close(ours.numpy(), theirs)
    back, gradients = recurrent.to_file(variables), recurrent.to_file(by_variables)
    for name, parameter in peer.named_parameters():
        if "bias" not in name:
            close(back[name], parameter)
            close(gradients[name], parameter.grad)
    with pytest.raises(ZooError, match="weight_hr_l0"):
        zoo.load_weights("lstm", path, (T, F), **fields)


def test_another_cell_or_size_is_told(tmp_path):
    path = saved(torch.nn.GRU(F, H, batch_first=True), tmp_path / "gru.safetensors")
    with pytest.raises(ZooError, match=r"does not fit Recurrent: .*weight_hh_l0 \(\(21, 7\), not \(28, 7\)\)"):
        zoo.load_weights("lstm", path, (T, F), hidden_size=H)
    with pytest.raises(ZooError, match="missing: bias_hh_l1"):
        zoo.load_weights("gru", path, (T, F), hidden_size=H, num_layers=2)
