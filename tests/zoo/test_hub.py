"""Repositories of the Hub, by the real client against a server on loopback that speaks the Hub's protocol."""

import contextlib
import json
import re
import shutil
import socket
import sys

import jax
import numpy as np
import pytest
from hub_server import TOKEN, Hub, serving

import zoo
from zoo.__main__ import main
from zoo.hub import Address, address_of
from zoo.sources import TABLE, Source, sources_of

huggingface_hub = pytest.importorskip("huggingface_hub", reason="reads the Hub: pip install 'flaxzoo[hub]'")
TINY = {"vocab_size": 40, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "mlp_size": 8}
WORDS = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(40)}, "unk_token": "w0"},
}
EXTRA = {"pytorch_model.bin": b"x", "onnx/model.onnx": b"x", "vocab.json": b"{}", "README.md": b"# Tiny", "tf.h5": b"x"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The model, its variables, and the files of its repository."""
    folder = tmp_path_factory.mktemp("llama") / "folder"
    model = zoo.create_model("smollm2_135m", max_length=16, **TINY)
    variables = model.init(jax.random.key(0), np.zeros((1, 2), np.int32))
    zoo.save_pretrained(model, variables, folder)
    (folder / "tokenizer.json").write_text(json.dumps(WORDS))
    return model, variables, {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server, and a client that knows it."""
    home, served = tmp_path_factory.mktemp("hub") / "home", Hub()
    with serving(served) as address, client(HF_ENDPOINT=address, HF_HOME=str(home)):
        yield served, home


@pytest.fixture
def hub(llama, server):
    """The server with the repository me/tiny, and an empty cache."""
    served, home = server
    shutil.rmtree(home, ignore_errors=True)
    served.__init__()
    served.repositories["me/tiny"] = {**llama[2], **EXTRA}
    return served


@contextlib.contextmanager
def client(**settings):
    """The client imported anew, since it reads its settings at import."""

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
            del sys.modules[name]

    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "huggingface_hub"}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
            patch.delenv(name, raising=False)
        fixed = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
        for name, value in {**fixed, **settings}.items():
            patch.setenv(name, value)
        forget()
        try:
            yield
        finally:
            forget()
            sys.modules.update(kept)


def same(run, llama):
    tokens = np.arange(6)[None]
    np.testing.assert_array_equal(run.model.apply(run.variables, tokens), llama[0].apply(llama[1], tokens))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf:me/tiny", Address("me/tiny")),
        ("me/tiny@v1", Address("me/tiny", "v1")),
        ("hf:me/tiny@refs/pr/1", Address("me/tiny", "refs/pr/1")),
        ("me/tiny/sub/x.Q4_1.gguf@v1", Address("me/tiny", "v1", "sub/x.Q4_1.gguf")),
        ("resnet50", None),
        ("/tmp/run", None),
        ("a/b/c", None),
    ],
)
def test_addresses(text, address):
    assert address_of(text) == address


@pytest.mark.parametrize("text", ["hf:tiny", "hf:", "hf:me/tiny@", "hf:a/b/c", "hf:me/ti ny", "hf:../x"])
def test_what_is_no_address(text):
    with pytest.raises(zoo.ZooError, match="is no repository of the Hub: write hf:ORG/NAME"):
        zoo.load(text)


def test_a_repository_is_loaded_by_what_is_needed_of_it(hub, llama):
    run = zoo.load("hf:me/tiny")
    same(run, llama)
    assert run.inputs.encode("w1 w3").tolist() == [1, 3]
    assert sorted(hub.downloads()) == ["config.json", "model.safetensors", "tokenizer.json"]
    before = len(hub.downloads())
    same(zoo.load("me/tiny@v1"), llama)  # the same commit: nothing is downloaded again
    model, variables = zoo.from_pretrained("hf:me/tiny")
    same(zoo.run.Run(model, variables, None), llama)
    assert len(hub.downloads()) == before
    assert zoo.load("me/tiny", max_length=4).model.max_length == 4


def test_a_sharded_repository(hub, llama, tmp_path):
    from safetensors.numpy import load_file, save_file

    (tmp_path / "all.safetensors").write_bytes(llama[2]["model.safetensors"])
    tensors = load_file(tmp_path / "all.safetensors")
    files = {name: content for name, content in llama[2].items() if name != "model.safetensors"}
    places = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, tmp_path / shard)
        files[shard] = (tmp_path / shard).read_bytes()
        places |= dict.fromkeys(names, shard)
    files["model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
    hub.repositories["me/shards"] = {**files, "consolidated.safetensors": b"x"}
    same(zoo.load("me/shards"), llama)
    assert "consolidated.safetensors" not in hub.downloads()
    hub.repositories["me/lacking"] = {name: files[name] for name in files if "00002-of" not in name}
    with pytest.raises(zoo.ZooError, match="hf:me/lacking has no model-00002-of-00002"):
        zoo.load("me/lacking")


def test_offline_a_cached_model_loads_without_the_network(hub, llama):
    zoo.load("me/tiny")
    requests = len(hub.log)
    with client(HF_HUB_OFFLINE="1"):
        same(zoo.load("me/tiny"), llama)
        with pytest.raises(zoo.ZooError, match="hf:me/other is not in the cache, and the Hub is not asked"):
            zoo.load("hf:me/other")
    assert len(hub.log) == requests
    with socket.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    lost = pytest.warns(UserWarning, match="the Hub cannot be reached .* hf:me/tiny is read from the cache")
    with client(HF_ENDPOINT=nobody), lost:
        same(zoo.load("me/tiny"), llama)


def test_a_hub_that_fails_is_replaced_by_the_cache(hub, llama):
    zoo.load("me/tiny")
    hub.failing["api"] = 503
    with pytest.warns(UserWarning, match="the Hub answers with status 503"):
        same(zoo.load("me/tiny"), llama)
    with pytest.raises(zoo.ZooError, match="hf:me/other is not in the cache, and the Hub answers with status 503"):
        zoo.load("hf:me/other")


def test_a_connection_that_is_cut_is_resumed(hub, tmp_path):
    model = zoo.create_model("nanogpt", **{**TINY, "vocab_size": 400_000, "num_kv_heads": 2}, use_bias=True)
    variables = model.init(jax.random.key(0), np.zeros((1, 2), np.int32))
    zoo.save_pretrained(model.clone(activation="gelu_tanh"), variables, tmp_path / "large")
    hub.repositories["me/large"] = {path.name: path.read_bytes() for path in (tmp_path / "large").iterdir()}
    hub.cut["model.safetensors"] = 11 * 2**20  # the client writes pieces of 10 MB
    jax.tree.map(np.testing.assert_array_equal, zoo.from_pretrained("me/large")[1], variables)
    assert any(re.fullmatch(r"RANGE \d{7,} /model.safetensors", line) for line in hub.log)


def test_a_download_that_was_interrupted_leaves_no_half_file(hub, llama):
    hub.failing["model.safetensors"] = 403  # after a failure of 5xx the client waits
    with pytest.raises(zoo.ZooError, match="hf:me/tiny cannot be downloaded"):
        zoo.load("hf:me/tiny")
    hub.failing.clear()
    same(zoo.load("hf:me/tiny"), llama)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:me/none", "the Hub has no hf:me/none, or it is private: check the name, or set HF_TOKEN"),
        ("me/none", "there is no folder 'me/none', and the Hub has no hf:me/none"),
        ("hf:me/private", "the Hub has no hf:me/private, or it is private"),
        ("hf:me/gated", "hf:me/gated is gated: accept its conditions on its page, then set HF_TOKEN"),
        ("hf:me/tiny@v9", "hf:me/tiny has no branch, tag or commit 'v9'"),
        ("hf:me/pickled", "hf:me/pickled has no model.safetensors, but pytorch_model.bin, which may hold code"),
        ("hf:me/quantised", "has no model.safetensors; it has hf:me/quantised/x.Q4_1.gguf"),
        ("hf:me/quantised/y.gguf", "has no y.gguf; it has x.Q4_1.gguf"),
        ("hf:me/bare", "hf:me/bare has no config.json"),
        ("hf:me/strange", "unknown model_type 'lama'; did you mean llama"),
        ("hf:me/broken", "describes no run"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(hub, llama, name, message, capsys):
    weights = {"model.safetensors": b"x"}
    hub.repositories |= {
        "me/private": hub.repositories["me/tiny"],
        "me/gated": hub.repositories["me/tiny"],
        "me/pickled": {"config.json": b"{}", "pytorch_model.bin": b"x"},
        "me/quantised": {"config.json": b"{}", "x.Q4_1.gguf": b"x"},
        "me/bare": weights,
        "me/strange": {"config.json": b'{"model_type": "lama"}', **weights},
        "me/broken": {"config.json": b"{", **weights},
    }
    hub.refused |= {"me/private": "private", "me/gated": "gated"}
    with pytest.raises(zoo.ZooError, match=re.escape(message)) as caught:
        zoo.load(name)
    assert "\n" not in str(caught.value)
    assert not any(file.endswith((".bin", ".safetensors")) for file in hub.downloads())  # no weights for nothing
    assert main(["generate", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_token_opens_what_is_private(hub, llama, monkeypatch):
    hub.repositories["me/private"] = hub.repositories["me/tiny"]
    hub.refused["me/private"] = "private"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    same(zoo.load("hf:me/private"), llama)


def test_a_mistyped_path_is_not_looked_for_on_the_hub(hub, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(zoo.ZooError, match="'runs/cnn' does not exist"):
        zoo.load("runs/cnn")
    assert not hub.log


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(zoo.ZooError, match=r"needs huggingface_hub: pip install 'flaxzoo\[hub\]'"):
        zoo.load("hf:me/tiny")


def test_a_registered_name_is_its_first_source(hub, llama, monkeypatch):
    monkeypatch.setattr("zoo.registry.sources_of", lambda name: (Source("me/tiny", "mit", "", None, 16),))
    same(zoo.load("smollm2_135m"), llama)
    with pytest.raises(zoo.ZooError, match="did you mean"):
        zoo.load("smollm2_135")


def test_every_source_is_of_a_registered_model():
    lines = [line.split(",") for line in TABLE.read_text().splitlines()[1:]]
    names = [line[0] for line in lines]
    assert names == sorted(names)
    for name in dict.fromkeys(names):
        for source in sources_of(name):
            assert zoo.model_info(name).sources
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", source.repository)
            assert source.license
            assert (source.value is None) == (not source.metric)
    assert len({(line[0], line[1]) for line in lines}) == len(lines)


def pushed(hub, name):
    """The model card of a repository: its YAML lines, and its text."""
    _, front, text = hub.repositories[name]["README.md"].decode().split("---\n", 2)
    return front.splitlines(), text


def test_a_model_is_pushed_and_loaded(hub, llama, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run = zoo.load("me/tiny")
    zoo.push_to_hub(run, "me/pushed", license="mit")
    same(zoo.load("me/pushed"), llama)
    assert zoo.load("me/pushed").inputs == run.inputs
    assert json.loads(hub.repositories["me/pushed"]["config.json"])["architectures"] == ["LlamaForCausalLM"]
    assert hub.repositories["me/pushed"]["tokenizer.json"].decode() == run.inputs.vocabulary
    front, text = pushed(hub, "me/pushed")
    assert {'license: "mit"', "pipeline_tag: text-generation"} <= set(front)
    assert 'zoo.load("me/pushed")' in text


def test_weights_of_the_zoo_are_pushed_with_their_card(hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", "lenet5", "me/lenet"]) == 0
    ours, theirs = zoo.load("lenet5"), zoo.load("me/lenet")
    assert theirs.inputs == ours.inputs
    jax.tree.map(np.testing.assert_array_equal, theirs.variables, ours.variables)
    front, text = pushed(hub, "me/lenet")
    assert {'license: "apache-2.0"', "pipeline_tag: image-classification"} <= set(front)
    assert '    - {type: "accuracy", value: 0.9927}' in front
    assert "- command: python -m train mnist-lenet" in text


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("lenet", TOKEN, "'lenet' is no name of a repository: write ORG/NAME"),
        ("me/lenet@v1", TOKEN, "'me/lenet@v1' is no name of a repository"),
        ("me/lenet", "hf_of_another", "hf:me/lenet cannot be uploaded"),
    ],
)
def test_a_push_that_is_refused(hub, monkeypatch, name, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(zoo.ZooError, match=message) as caught:
        zoo.push_to_hub("lenet5", name)
    assert "\n" not in str(caught.value)
    assert "me/lenet" not in hub.repositories


def test_public_weights_are_listed(capsys):
    assert main(["list", "resnet*", "--weights"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["resnet20", "(with"] for line in lines)
    assert any("hf:timm/resnet50.a1_in1k" in line and "apache-2.0" in line for line in lines)
    assert main(["list", "simple*", "--weights"]) == 2
    assert main(["show", "resnet50"]) == 0
    assert "weights: hf:timm/resnet50.a1_in1k, apache-2.0, 81.214 ImageNet-1k top-1 %" in capsys.readouterr().out
