"""Files of torch to `.safetensors`: every form in which people keep weights, or one line that says what is wrong."""

import argparse
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="converting torch's files needs torch: pip install '.[parity]'")

from safetensors.numpy import load_file  # noqa: E402

import zoo  # noqa: E402
from benchmarks.peers import torch_model  # noqa: E402
from zoo.__main__ import main  # noqa: E402
from zoo.weights import convert_torch  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def peer():
    torch.manual_seed(0)
    return torch_model("lenet5", (32, 32, 1)).eval()


def converted(content, folder, suffix=".pth", **options):
    torch.save(content, folder / f"x{suffix}", **options)
    (folder / "x.safetensors").unlink(missing_ok=True)
    count = convert_torch(folder / f"x{suffix}", folder / "x.safetensors")
    tensors = load_file(folder / "x.safetensors")
    assert count == len(tensors)
    return tensors


def assert_same(tensors, state):
    assert tensors.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensors[name], tensor.detach().numpy())


def forms(model):
    state = model.state_dict()
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
    return {
        "plain": state,
        "parameters": dict(model.named_parameters()),
        "kept variables": model.state_dict(keep_vars=True),
        "parallel": {f"module.{k}": v for k, v in state.items()},
        "compiled": {f"_orig_mod.{k}": v for k, v in state.items()},
        "partly compiled": {k.replace("conv1.", "conv1._orig_mod."): v for k, v in state.items()},
        "lightning": {"state_dict": {f"model.{k}": v for k, v in state.items()}, "epoch": 3, "hparams": {"lr": 0.1}},
        "reference script": {"model": state, "optimizer": optimizer, "args": argparse.Namespace(lr=0.1), "epoch": 3},
        "step beside": {"step": torch.tensor(3), "model_state": state},
        "nested": {"ckpt": 1, "state_dict": {"model": {f"module.net.{k}": v for k, v in state.items()}}},
        "averaged": averaged,
    }


@pytest.mark.parametrize("form", forms(torch.nn.Linear(1, 1)))
def test_every_form_of_a_checkpoint_gives_the_same_file(form, peer, tmp_path):
    for suffix in (".pth", ".pt", ".bin", ".ckpt"):
        assert_same(converted(forms(peer)[form], tmp_path, suffix), peer.state_dict())
    assert_same(converted(forms(peer)[form], tmp_path, _use_new_zipfile_serialization=False), peer.state_dict())


def test_counters_are_left_out_and_the_printed_number_is_the_files(tmp_path, capsys):
    torch.save(torch_model("resnet8").state_dict(), tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors")]) == 0
    tensors = load_file(tmp_path / "a.safetensors")
    assert not any("num_batches_tracked" in name for name in tensors)
    assert capsys.readouterr().out == f"{tmp_path}/a.safetensors: {len(tensors)} tensors\n"
    zoo.load_weights("resnet8", tmp_path / "a.safetensors")


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "their_own.net."])
def test_a_backbone_gets_a_head(prefix, peer, tmp_path):
    backbone = {prefix + name: tensor for name, tensor in peer.state_dict().items() if not name.startswith("fc3")}
    converted(backbone, tmp_path)
    with pytest.warns(UserWarning, match="has no head for this number of classes; the head 'fc3' \\(4\\) is drawn"):
        variables = zoo.load_weights("lenet5", tmp_path / "x.safetensors", num_classes=4)
    np.testing.assert_array_equal(variables["params"]["fc2"]["bias"], peer.fc2.bias.detach())
    with pytest.raises(
        zoo.ZooError, match="no head for this number of classes: the head 'fc3' \\(10\\) would be random"
    ):
        zoo.load_weights("lenet5", tmp_path / "x.safetensors", draw=False)


@pytest.mark.parametrize("seed", range(40))
def test_a_state_dict_is_found_at_any_depth_of_the_usual_keys(seed, tmp_path):
    drawn = random.Random(seed)
    keys = ["state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "ema"]
    state = {f"layer{i}.weight": torch.full((2,), float(i)) for i in range(drawn.randint(1, 4))}
    content = {drawn.choice(["", "module.", "_orig_mod."]) + name: tensor for name, tensor in state.items()}
    content = {name: content[name] for name in content} if len({n[:3] for n in content}) == 1 else state
    for _ in range(drawn.randint(0, 3)):
        others = {"epoch": 3, "loss": 0.5, "name": "x", "args": None, "schedule": [1, 2], "history": {"loss": [0.1]}}
        content = {
            drawn.choice(keys): content,
            **{k: others[k] for k in drawn.sample(sorted(others), drawn.randint(0, 3))},
        }
    assert_same(converted(content, tmp_path), state)


def test_dtypes_and_forms_of_tensors_are_kept(tmp_path):
    state = {
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "long": torch.tensor([2**40]),
        "flag": torch.tensor([True]),
        "scalar": torch.tensor(3.0),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "part": torch.arange(6.0)[2:4],
        "wide": torch.ones(1).expand(3),
        "empty": torch.zeros(0, 2),
    }
    tensors = converted(state, tmp_path)
    assert_same(tensors, state)
    assert {n: a.dtype for n, a in tensors.items()} == {n: t.numpy().dtype for n, t in state.items()}
    tensors = converted({"w": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, tmp_path)
    assert (tensors["w"].dtype.name, tensors["w"].tolist()) == ("bfloat16", [1.5, -2.0])
    dense = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    for sparse in (dense.to_sparse(), dense.to_sparse_csr()):
        np.testing.assert_array_equal(converted({"w": sparse}, tmp_path)["w"], dense)


class Hostile:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


REFUSED = {
    "meta": ({"w": torch.empty(3, device="meta")}, r"tensor 'w' is without values \(meta\)"),
    "complex": ({"w": torch.ones(2, dtype=torch.complex64)}, "tensor 'w' is complex"),
    "module": (
        torch.nn.Linear(2, 3),
        r"holds Python objects \(torch.nn.modules.linear.Linear\), not only tensors; save",
    ),
    "code": ({"w": Hostile()}, r"holds Python objects \((builtins\.)?exec\), not only tensors"),
    "list": ([torch.ones(2)], "holds no state dict of tensors by name, but list"),
    "tensor": (torch.ones(2), "holds no state dict of tensors by name, but Tensor"),
    "nothing": ({}, "holds no tensors"),
    "numbers": ({"epoch": 3, "w": torch.ones(2)}, r"not all under its keys are tensors \(epoch\)"),
    "numbered": ({0: torch.ones(2)}, r"not all under its keys are tensors \(0\)"),
    "two parts": ({"a": {"w": torch.ones(2)}, "b": {"w": torch.ones(2)}}, r"tensors \(a, b\), and none of its keys is"),
    "huge": ({"w": torch.ones(1).expand(2**28)}, "would take 1,073,741,824 bytes, more than 268,"),
    "clash": ({"a.w": torch.ones(2), "_orig_mod.a.w": torch.ones(2)}, "with and without a wrapper's prefix"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_state_dict_is_a_line(what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content, match = REFUSED[what]
    torch.save(content, "x.pth")
    with pytest.raises(zoo.ZooError, match=match):
        convert_torch("x.pth", "x.safetensors")
    assert main(["convert", "x.pth", "x.safetensors"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "\x1b" not in error
    assert "weights_only" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth"]


@pytest.mark.filterwarnings("ignore")
def test_files_of_other_kinds_are_a_line(tmp_path):
    torch.save({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, tmp_path / "quantised.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / "script.pt")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("hello " * 50)
    (tmp_path / "x.safetensors").write_bytes(b"...")
    (tmp_path / "folder.pth").mkdir()
    whole = (tmp_path / "quantised.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    for name, match in {
        "quantised.pth": "tensor 'w' is quantised",
        "script.pt": r"is a TorchScript archive, which holds code; save its state_dict\(\) instead",
        "empty.pth": "is empty",
        "text.pth": "is no file of torch's weights, or is damaged",
        "cut.pth": "is no file of torch's weights, or is damaged",
        "x.safetensors": "is a .safetensors file already; load it as it is",
        "folder.pth": "is a folder; give the file of weights in it",
        "absent.pth": "no file",
    }.items():
        with pytest.raises(zoo.ZooError, match=match) as caught:
            convert_torch(tmp_path / name, tmp_path / "out.safetensors")
        assert "\n" not in str(caught.value)


def test_of_plain_and_averaged_weights_the_plain_ones_are_taken_and_named(tmp_path):
    both = {"ema": {"w": torch.zeros(2)}, "model": {"w": torch.ones(2)}}
    with pytest.warns(UserWarning, match="has weights under 'model', which are taken, and 'ema'"):
        tensors = converted(both, tmp_path)
    np.testing.assert_array_equal(tensors["w"], np.ones(2))


class NanoBlock(torch.nn.Module):
    """A block of a GPT as nanoGPT names its parts."""

    def __init__(self, width, heads, bias):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = (torch.nn.LayerNorm(width, bias=bias) for _ in range(2))
        linear = {"c_attn": (width, 3 * width), "c_proj": (width, width)}
        self.attn = torch.nn.ModuleDict({name: torch.nn.Linear(*sizes, bias) for name, sizes in linear.items()})
        linear = {"c_fc": (width, 4 * width), "c_proj": (4 * width, width)}
        self.mlp = torch.nn.ModuleDict({name: torch.nn.Linear(*sizes, bias) for name, sizes in linear.items()})

    def forward(self, x):
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in self.attn["c_attn"](self.ln_1(x)).chunk(3, -1))
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["c_proj"](seen.transpose(1, 2).reshape(x.shape))
        return x + self.mlp["c_proj"](torch.nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class NanoGPT(torch.nn.Module):
    def __init__(self, vocab_size, n_embd, n_layer, n_head, block_size, bias):
        super().__init__()
        self.transformer = torch.nn.ModuleDict(
            {
                "wte": torch.nn.Embedding(vocab_size, n_embd),
                "wpe": torch.nn.Embedding(block_size, n_embd),
                "h": torch.nn.ModuleList(NanoBlock(n_embd, n_head, bias) for _ in range(n_layer)),
                "ln_f": torch.nn.LayerNorm(n_embd, bias=bias),
            }
        )
        self.lm_head = torch.nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, tokens):
        parts = self.transformer
        x = parts["wte"](tokens) + parts["wpe"](torch.arange(tokens.shape[1]))
        for block in parts["h"]:
            x = block(x)
        return self.lm_head(parts["ln_f"](x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_of_nanogpt(bias, tmp_path):
    torch.manual_seed(0)
    args = {"vocab_size": 37, "n_embd": 16, "n_layer": 2, "n_head": 4, "block_size": 12, "bias": bias}
    other = NanoGPT(**args)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    state = {f"_orig_mod.{name}": tensor for name, tensor in other.state_dict().items()}
    checkpoint = {"model": state, "optimizer": {}, "model_args": {**args, "dropout": 0.0}, "iter_num": 5, "config": {}}
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    convert_torch(tmp_path / "ckpt.pt", tmp_path / "gpt.safetensors")
    found = zoo.weights.files.config_inside(tmp_path / "gpt.safetensors")["model"]
    model = zoo.create_model(found["name"], **found["args"])
    variables = zoo.load_weights(model, tmp_path / "gpt.safetensors")
    tokens = np.random.default_rng(0).integers(0, 37, (2, 9))
    with torch.no_grad():
        theirs = other(torch.from_numpy(tokens)).numpy()
    ours = np.asarray(model.apply(variables, tokens))
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
