"""python -m zoo export: every architecture as programs for any number of rows, run without the zoo."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from architectures import ONE_OF_EACH, new, variables_of
from jax import export as jax_export
from PIL import Image

import zoo
from zoo.__main__ import main
from zoo.decode import generate, translate
from zoo.export import export
from zoo.inputs import ImageInputs, ImageTextInputs, PairInputs, SeriesInputs, TextInputs
from zoo.run import Run

KEPT = pathlib.Path(__file__).parent / "exports" / "0.1.0"  # a trained run of each family
SMALL = {"simple_cnn", "resnet8", "vit_tiny16", "lstm_forecaster", "bert_base", "lstm_lm", "nanogpt"}
SMALL |= {"seq2seq_lstm", "seq2seq_gru_attention", "t5_small", "clip_vit_base32"}
EACH = [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in ONE_OF_EACH]
LETTERS = "abcdefghijk"
# Runs run.py as Python would, and fails if it loaded anything of the zoo.
ALONE = """
import runpy, sys
folder, sys.argv = sys.argv[1], ["run.py", *sys.argv[2:]]
sys.path.insert(0, folder)
try:
    runpy.run_path(folder + "/run.py", run_name="__main__")
finally:
    assert not {"zoo", "flax"} & sys.modules.keys()
"""


def inputs_of(name, model, x, keywords):
    """Inputs for a small model of ONE_OF_EACH."""
    if name.startswith("clip"):
        return ImageTextInputs(inputs_of("", model, x, {}), TextInputs("char", LETTERS, 4))
    if "source" in keywords:
        return PairInputs(*[TextInputs("char", LETTERS[:7], 4)] * 2)
    if x.ndim == 4:
        return ImageInputs(tuple(x.shape[1:]), (0.5,) * x.shape[3], (0.5,) * x.shape[3], ())
    if x.ndim == 3:
        columns = tuple(LETTERS[: x.shape[2]])
        return SeriesInputs(columns, columns[:1], (0.0,) * x.shape[2], (1.0,) * x.shape[2], 1, 4)
    return TextInputs("char", LETTERS, 4)


def run_of(name, **fields):
    """A run of a small model with drawn weights."""
    model, (x, keywords) = new(name, **fields)
    return Run(model, variables_of(model, x, **keywords), inputs_of(name, model, x, keywords))


def programs(folder):
    """config.json, and the programs by name as functions, as an exported folder's program.py has them."""
    about = json.loads((folder / "config.json").read_text())
    weights = []
    if about["weights"] == "beside":
        weights = [zoo.weights.read_safetensors(folder / "weights.safetensors")]

    def program(name):
        loaded = jax_export.deserialize(bytearray((folder / f"{name}.jax").read_bytes()))
        return lambda *arrays: jax.jit(loaded.call)(*weights, *arrays)

    return about, {name: program(name) for name in about["programs"]}


def alone(folder, *args, python=sys.executable):
    """What run.py prints in a process of its own that cannot find the zoo."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    command = [python, "-c", ALONE, str(folder), *map(str, args)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tokens_of(rows, steps, seed=0):
    return np.random.default_rng(seed).integers(0, 7, (rows, steps)).astype(np.int32)


def close(found, expected):
    """Within 1e-5 of the largest value: folded kernels, GELU without erf, and another order of sums."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1e-3))


@pytest.mark.parametrize("name", EACH)
def test_programs_compute_what_the_model_does_for_any_number_of_rows(name, tmp_path):
    run = run_of(name)
    export(run, tmp_path / "out")
    _, found = programs(tmp_path / "out")
    for rows in (1, 5):
        lengths = np.arange(rows, dtype=np.int32) % 3 + 1
        tokens, token = tokens_of(rows, 3), tokens_of(rows, 1)[:, 0]
        apply = jax.jit(run.model.apply, static_argnames=("method", "max_length"))
        if "prefill" in found:
            state = run.model.init_state(rows, run.model.max_length if hasattr(run.model, "max_length") else 0)
            logits, state = apply(run.variables, tokens, state, lengths)
            first, own = found["prefill"](tokens, lengths)
            close(first, np.take_along_axis(np.asarray(logits), (lengths - 1)[:, None, None], 1)[:, 0])
        elif "encode" in found:
            state = apply(run.variables, tokens, lengths, max_length=4, method="encode")
            own = found["encode"](tokens, lengths)
        else:
            forward(run, found["forward"], apply, rows, tokens, lengths)
            continue
        for _ in range(2):
            logits, state = apply(run.variables, token[:, None], state)
            close_to, own = found["decode"](token, own)
            close(close_to, logits[:, 0])


def forward(run, program, apply, rows, tokens, lengths):
    if isinstance(run.inputs, TextInputs):
        expected, found = apply(run.variables, tokens, lengths), program(tokens, lengths)
        if found.shape[1] == tokens.shape[1]:  # an output for each token: those of padding mean nothing
            expected, found = expected[:, :1], found[:, :1]
    elif isinstance(run.inputs, ImageTextInputs):
        x = np.random.default_rng(1).normal(size=(rows, *run.inputs.shape)).astype(np.float32)
        expected, found = apply(run.variables, x, tokens, lengths), program(x, tokens, lengths)
    else:
        x = np.random.default_rng(1).normal(size=(rows, *run.inputs.shape)).astype(np.float32)
        expected, found = apply(run.variables, x), program(x)
    close(found, expected)


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).resize((70, 50), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.mark.parametrize("options", [{}, {"preprocess": True, "weights": "beside"}])
def test_run_py_labels_a_photo_as_predict_does(options, photo, tmp_path):
    run = zoo.load("resnet20")
    export(run, tmp_path / "out", platforms=["cpu"], **options)
    printed = [line.rsplit(" ", 1) for line in alone(tmp_path / "out", photo).splitlines()]
    logits = np.asarray(run.model.apply(run.variables, run.inputs.encode(str(photo))[None]))[0]
    expected = np.asarray(jax.nn.softmax(logits))
    best = np.argsort(-expected)[:3]
    assert [label for label, _ in printed] == [run.inputs.labels[i] for i in best]
    # inside the program pixels are rounded once, not twice: some differ by 1 of 255
    np.testing.assert_allclose([float(p) for _, p in printed], expected[best], atol=0.02 if options else 1e-4)


@pytest.mark.parametrize(("family", "prompt"), [("lstm", "7 green"), ("transformer", "7 green bottles hanging")])
def test_run_py_generates_as_greedy_decoding_does(family, prompt, tmp_path):
    run = zoo.load(KEPT / family)
    export(run, tmp_path / "out", platforms=["cpu"])
    expected = generate(run, prompt, 9, temperature=0.0)
    read = run.inputs.decode(run.inputs.prompt(prompt))
    assert alone(tmp_path / "out", prompt, 9).rstrip("\n") in (expected, read + expected)


def test_run_py_translates_as_greedy_decoding_does(tmp_path):
    run = zoo.load(KEPT / "seq2seq")
    export(run, tmp_path / "out", platforms=["cpu"])
    expected = translate(run, ["abcd"], beam_size=1)[0][0].text
    assert alone(tmp_path / "out", "abcd") == expected + "\n"


@pytest.mark.parametrize("preprocess", [False, True])
def test_run_py_forecasts_as_the_model_does(preprocess, tmp_path):
    model, (x, _) = new("lstm_forecaster")
    inputs = SeriesInputs(("heat",), ("heat",), (20.0,), (5.0,), 2, 4)
    run = Run(model, variables_of(model, x), inputs)
    table = tmp_path / "table.csv"
    table.write_text("day,heat\n" + "".join(f"{i},{15 + i * i % 7}\n" for i in range(12)))
    export(run, tmp_path / "out", platforms=["cpu"], preprocess=preprocess)
    args, _ = inputs.arguments(inputs.batch([str(table)]))
    expected = inputs.decode(model.apply(run.variables, *args)[0, -2:])
    printed = alone(tmp_path / "out", table).splitlines()
    assert printed[0] == "heat"
    np.testing.assert_allclose([float(line) for line in printed[1:]], expected[:, 0], rtol=1e-4)


def test_programs_of_three_platforms_have_no_dropout_and_no_random_numbers(tmp_path):
    run = run_of("nanogpt", dropout_rate=0.5)
    export(run, tmp_path / "out")
    about, _ = programs(tmp_path / "out")
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    loaded = jax_export.deserialize(bytearray((tmp_path / "out" / "decode.jax").read_bytes()))
    assert loaded.platforms == ("cpu", "cuda", "tpu")
    module = loaded.mlir_module()
    assert ".py" not in module  # no path of this machine
    assert not re.search("rng|random|threefry", module)
    assert {*re.findall(r"custom_call @(\w+)", module)} == {"shape_assertion"}  # no kernel of one platform


@pytest.mark.parametrize(("dtype", "smaller"), [("int8", 3), ("bfloat16", 1.8)])
def test_weights_inside_a_program_are_small_too(dtype, smaller, tmp_path):
    sizes = []
    for name in ("float32", dtype):
        export(zoo.load("resnet20"), tmp_path / name, platforms=["cpu"], weights_dtype=name)
        sizes.append((tmp_path / name / "forward.jax").stat().st_size)
    assert sizes[0] > smaller * sizes[1]


def test_a_cache_of_another_length(tmp_path):
    run = run_of("nanogpt")
    export(run, tmp_path / "out", platforms=["cpu"], max_length=7)
    about, found = programs(tmp_path / "out")
    assert about["longest"] == 7
    _, state = found["prefill"](tokens_of(2, 7), np.array([7, 1], np.int32))
    assert state["layers"]["layer0"]["key"].shape == (2, 7, 2, 4)


def test_too_many_tokens_are_refused_by_the_program(tmp_path):
    run = run_of("nanogpt")
    export(run, tmp_path / "out", platforms=["cpu"], max_length=7)
    _, found = programs(tmp_path / "out")
    with pytest.raises(ValueError, match="refining shapes"):
        found["prefill"](tokens_of(1, 8), np.array([8], np.int32))


def test_a_computation_in_bfloat16(tmp_path):
    run = run_of("nanogpt")
    export(run, tmp_path / "out", platforms=["cpu"], dtype="bfloat16", weights_dtype="bfloat16")
    _, found = programs(tmp_path / "out")
    logits, state = found["prefill"](tokens_of(2, 3), np.array([3, 3], np.int32))
    expected = np.asarray(run.model.apply(run.variables, tokens_of(2, 3)))[:, -1]
    assert state["layers"]["layer0"]["key"].dtype == "bfloat16"
    np.testing.assert_allclose(logits, expected, atol=0.03 * np.abs(expected).max())  # 8 bits of a product


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["resnet20", "full"], "error: 'full' exists and is not an empty folder; choose another, nothing is over"),
        (["resnet_20", "out"], "error: 'resnet_20' does not exist"),
        (["resnet20", "out", "--max-length", "9"], "error: max_length is 9; it must be left out: ResNet has no cache"),
        ([str(KEPT / "transformer"), "out", "--max-length", "999"], "error: max_length is 999; the model reads at mo"),
        ([str(KEPT / "transformer"), "out", "--max-length", "0"], "error: max_length is 0; it must be at least 1"),
        ([str(KEPT / "transformer"), "out", "--preprocess"], "error: preprocessing can be part of a program for im"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_folder(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert main(["export", *args]) == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]


def test_the_command_prints_the_files(tmp_path, capsys):
    assert main(["export", "lenet5", str(tmp_path / "out"), "--platforms", "cpu", "--weights-dtype", "int8"]) == 0
    assert {re.split("[/:]", line)[-2] for line in capsys.readouterr().out.splitlines()} == {
        *("config.json", "forward.jax", "picture.py", "program.py", "run.py")
    }


def test_run_py_is_short_and_needs_no_zoo(tmp_path):
    files = pathlib.Path(zoo.__file__).parent / "export" / "files"
    for path in files.glob("run_*.py"):
        assert len(path.read_text().splitlines()) <= 30, path.name
    for path in files.glob("*.py"):
        assert not re.search(r"^(from|import) (zoo|flax)", path.read_text(), re.MULTILINE), path.name


@pytest.mark.slow  # installs another JAX
def test_the_oldest_jax_runs_what_this_one_exports(photo, tmp_path):
    requirements = (pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text()
    oldest = re.search(r'"jax>=([\d.]+)"', requirements)[1]
    python = tmp_path / "oldest" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "oldest"], check=True)
    packages = [f"jax=={oldest}", f"jaxlib=={oldest}", "flatbuffers", "pillow", "tokenizers"]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    given = {"cnn": ("resnet20", photo), "lstm": (KEPT / "lstm", "7 green"), "seq2seq": (KEPT / "seq2seq", "abcd")}
    given["transformer"] = (KEPT / "transformer", "7 green bottles")
    for family, (source, raw) in given.items():
        export(zoo.load(source), tmp_path / family)
        assert alone(tmp_path / family, raw, python=str(python)) == alone(tmp_path / family, raw)
