"""PyTorch's module of a recurrent language model, with our weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.errors import ZooError
from zoo.weights import recurrent


class TorchLM(nn.Module):
    """Tokens [B, T] to logits [B, T, vocabulary]."""

    def __init__(self, model: Any):
        super().__init__()
        kinds: dict[str, Callable] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
        width = model.embedding_size or model.hidden_size
        self.embedding = nn.Embedding(model.vocab_size, width)
        self.layers = kinds[model.cell](width, model.hidden_size, model.num_layers, batch_first=True)
        self.head = nn.Linear(model.hidden_size, model.vocab_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.step(tokens, None)[0]

    def step(self, tokens: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Logits [B, T, vocabulary], and the state after the tokens."""
        outputs, state = self.layers(self.embedding(tokens), state)
        return self.head(outputs), state


class Cells:
    """Steps of the same model with PyTorch's cells, one call per layer: its layers are slow on a CPU at length 1."""

    def __init__(self, peer: TorchLM):
        kinds: dict[type, Callable] = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}
        self.peer, self.cells = peer, []
        for layer in range(peer.layers.num_layers):
            names = [f"{kind}_{part}" for kind in ("weight", "bias") for part in ("ih", "hh")]
            weights = {name: getattr(peer.layers, f"{name}_l{layer}") for name in names}
            cell = kinds[type(peer.layers)](weights["weight_ih"].shape[1], peer.layers.hidden_size)
            cell.load_state_dict(weights)
            self.cells.append(cell.to(weights["weight_ih"].device))

    def step(self, tokens: torch.Tensor, states: Any) -> tuple[torch.Tensor, Any]:
        """Like `TorchLM.step`, for tokens [B, 1]."""
        x, after = self.peer.embedding(tokens[:, 0]), []
        for cell, state in zip(self.cells, states or [None] * len(self.cells), strict=True):
            after.append(cell(x, state))
            x = after[-1][0] if isinstance(cell, nn.LSTMCell) else after[-1]
        return self.peer.head(x)[:, None], after


def torch_model(model: Any, variables: Any) -> TorchLM:
    """The peer of a `RecurrentLM` with its weights; ZooError if there is none."""
    if type(model).__name__ != "RecurrentLM" or model.tied:
        raise ZooError(f"{type(model).__name__} has no PyTorch peer with these fields; lstm_lm has one")
    peer = TorchLM(model)
    weights = recurrent.to_file(variables)
    peer.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()}, strict=True)
    return peer
