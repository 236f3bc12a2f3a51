"""RoBERTa, XLM-RoBERTa, MPNet and DistilBERT of transformers, with each of their heads, and the embeddings of
sentence-transformers, both ways."""

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
    "mpnet": ("MPNetModel", {}),
    "mpnet-tokens": ("MPNetForMaskedLM", {}),
    "mpnet-classes": ("MPNetForSequenceClassification", {"num_labels": 5}),
    "distilbert-tokens": ("DistilBertForMaskedLM", {}),
    "distilbert-classes": ("DistilBertForSequenceClassification", {"num_labels": 5, "activation": "relu"}),
}


def peer(name):
    torch.manual_seed(0)
    kind, fields = PEERS[name]
    cls = getattr(transformers, kind)
    return drawn(cls(cls.config_class(**(DISTIL if kind.startswith("Distil") else SMALL), **fields)))


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
        ("mpnet_base", {}, 109_486_464),
        ("distilbert_base", {"num_classes": 2}, 66_955_010),
    ],
)
def test_parameter_counts_are_those_of_transformers(name, fields, parameters):
    from zoo.registry import abstract_variables, count_parameters, example_of

    model = zoo.create_model(name, **fields)
    assert count_parameters(abstract_variables(model, *example_of(model))) == parameters


@pytest.mark.parametrize(("pooling", "unit"), [("mean", True), ("cls", True), ("max", False)])
def test_embeddings_are_those_of_sentence_transformers_both_ways(pooling, unit, tmp_path):
    sentence = pytest.importorskip("sentence_transformers", reason="its folders are compared")
    modules = pytest.importorskip("sentence_transformers.models")
    texts = ["the cat sat on the mat", "a cat", "THE dogs, unsettled!"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "a", "dog", "##s", "!"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(str(tmp_path / "vocab.txt"), model_max_length=6).save_pretrained(tmp_path / "bert")
    config = transformers.BertConfig(**SMALL | {"type_vocab_size": 2, "pad_token_id": 0})
    torch.manual_seed(0)
    drawn(transformers.BertModel(config)).save_pretrained(tmp_path / "bert")
    parts = [modules.Transformer(str(tmp_path / "bert")), modules.Pooling(16, pooling_mode=pooling)]
    peer = sentence.SentenceTransformer(modules=[*parts, *([modules.Normalize()] if unit else [])], device="cpu")
    peer.save(str(tmp_path / "theirs"))
    expected = peer.encode(texts, convert_to_numpy=True)

    model, variables, inputs = zoo.load(tmp_path / "theirs")
    args, kwargs = inputs.arguments(inputs.batch(texts))
    close(model.apply(variables, *args, **kwargs), torch.from_numpy(expected))

    zoo.save_pretrained(model, variables, tmp_path / "ours")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "ours" / name).write_bytes((tmp_path / "theirs" / name).read_bytes())
    again = sentence.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_allclose(again.encode(texts, convert_to_numpy=True), expected, atol=1e-5)
