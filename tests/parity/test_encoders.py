"""RoBERTa, XLM-RoBERTa and DistilBERT of transformers, with each of their heads, both ways."""

import numpy as np
import pytest
from peers import close, drawn, there_and_back, torch, transformers

import zoo

pytestmark = pytest.mark.parity
B, T, V = 3, 12, 37
LENGTHS = np.array([12, 5, 1], np.int32)
SMALL = {
    **{"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24},
    **{"max_position_embeddings": 18, "type_vocab_size": 1, "pad_token_id": 1},
}
DISTIL = {"vocab_size": V, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "max_position_embeddings": 16}
PEERS = {
    "roberta": ("RobertaModel", {"hidden_act": "relu"}),
    "roberta-tokens": ("RobertaForMaskedLM", {}),
    "roberta-classes": ("RobertaForSequenceClassification", {"num_labels": 5}),
    "distilbert-tokens": ("DistilBertForMaskedLM", {}),
    "distilbert-classes": ("DistilBertForSequenceClassification", {"num_labels": 5, "activation": "relu"}),
}


def peer(name):
    torch.manual_seed(0)
    kind, fields = PEERS[name]
    config = transformers.DistilBertConfig if kind.startswith("Distil") else transformers.RobertaConfig
    sizes = DISTIL if kind.startswith("Distil") else SMALL
    return drawn(getattr(transformers, kind)(config(**sizes, **fields)))


def compare(model, variables, other):
    """What comes out, and every hidden state, of rows of several lengths; tokens may be the padding's id."""
    tokens = np.random.default_rng(0).integers(2, V, (B, T))
    present = np.arange(T) < LENGTHS[:, None]
    with torch.no_grad():
        ids = torch.from_numpy(np.where(present, tokens, 1))
        theirs = other(ids, attention_mask=torch.from_numpy(present.astype(np.int64)), output_hidden_states=True)
    out, seen = model.apply(variables, tokens, lengths=LENGTHS, mutable=["features"])
    features = seen["features"]
    if "last_hidden_state" in theirs:
        close(np.asarray(out)[present], theirs.last_hidden_state[torch.from_numpy(present)])
        close(features["pooled"], theirs.pooler_output)
    else:
        close(out[:, 0] if out.ndim == 3 else out, theirs.logits[:, 0] if out.ndim == 3 else theirs.logits)
    for i in range(model.num_layers):
        ours, expected = features["layers"][f"layer{i}"]["hidden"], theirs.hidden_states[i + 1]
        close(np.asarray(ours)[present], expected[torch.from_numpy(present)])


@pytest.mark.parametrize("name", PEERS)
def test_theirs_to_ours_and_back(name, tmp_path):
    other = peer(name)
    there_and_back(other, type(other), compare, tmp_path)


def test_xlm_roberta_is_read_as_a_roberta(tmp_path):
    torch.manual_seed(0)
    other = drawn(transformers.XLMRobertaForMaskedLM(transformers.XLMRobertaConfig(**SMALL)))
    other.save_pretrained(tmp_path)
    compare(*zoo.from_pretrained(tmp_path), other)


def test_a_body_gets_a_head(tmp_path):
    other = peer("roberta")
    other.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"no head for this number of classes"):
        model, variables = zoo.from_pretrained(tmp_path, num_classes=4)
    assert model.apply(variables, np.ones((1, 3), np.int32)).shape == (1, 4)


@pytest.mark.parametrize(
    ("name", "fields", "parameters"),
    [
        ("roberta_base", {}, 124_645_632),
        ("roberta_large", {}, 355_359_744),
        ("xlm_roberta_base", {}, 278_043_648),
        ("distilbert_base", {"num_classes": 2}, 66_955_010),
    ],
)
def test_parameter_counts_are_those_of_transformers(name, fields, parameters):
    from zoo.registry import abstract_variables, count_parameters, example_of

    model = zoo.create_model(name, **fields)
    assert count_parameters(abstract_variables(model, *example_of(model))) == parameters
