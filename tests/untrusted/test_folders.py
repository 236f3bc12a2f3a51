"""Run folders, exports and Hugging Face's folders that somebody damaged or made up: a ZooError, or a model."""

import contextlib
import copy
import dataclasses
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from hostile import changed, damaged, peak_megabytes, values
from hypothesis import given, settings
from hypothesis import strategies as st

import train
import zoo
from train import Config, ModelConfig
from train.__main__ import main
from train.checkpoint import Checkpoints
from train.commands.status import status
from train.config import read_settings
from train.records import cut_back, read_rows
from train.report.page import draw_curves
from train.setup import Parts
from zoo import ZooError
from zoo.files import MOST_LEVELS, read_json
from zoo.inputs import inputs_from_json
from zoo.weights import save_native
from zoo.weights.huggingface.folder import from_pretrained, save_pretrained

IMAGES = {"kind": "image", "shape": [32, 32, 1], "mean": [0.5], "std": [0.5], "labels": list("abc")}
SERIES = {"kind": "series", "columns": ["x", "y"], "targets": ["x"], "mean": [0.5, 0], "std": [1.0, 2], "horizon": 2}
SERIES["length"] = 8
LETTERS = {"kind": "text", "tokenizer": "char", "vocabulary": "abc", "length": 8, "labels": []}
MODELS = {
    "lenet5": ({"num_classes": 3}, IMAGES),
    "lstm_forecaster": ({"num_targets": 1, "hidden_size": 4}, SERIES),
    "lstm_lm": ({"vocab_size": 3, "hidden_size": 4, "num_layers": 1}, LETTERS),
    "gpt2": ({"vocab_size": 3, "hidden_size": 4, "num_layers": 1, "num_heads": 2, "max_length": 8}, LETTERS),
    "seq2seq_lstm": (
        {"vocab_size": 7, "hidden_size": 4, "num_layers": 1},
        {"kind": "pair", "source": LETTERS, "target": LETTERS, "lowercase": False},
    ),
}


RAW = {"image": np.zeros((40, 30, 3), np.uint8), "series": np.zeros((9, 2))}


def initial(name, args, inputs):
    model, example = zoo.create_model(name, **args), inputs_from_json(inputs).example()
    args, kwargs = jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), example)
    return model, jax.jit(model.init)(jax.random.key(0), *args, **kwargs)


@pytest.fixture(scope="module", params=MODELS)
def export(request, tmp_path_factory):
    """A small export folder of each family, and what its config.json holds."""
    folder = tmp_path_factory.mktemp(request.param)
    args, inputs = MODELS[request.param]
    save_native(initial(request.param, args, inputs)[1], folder / "model.safetensors")
    return folder, {"model": {"name": request.param, "args": args}, "inputs": inputs, "step": 3, "ema": False}


@pytest.fixture(scope="module", params=["gpt2", "vit_tiny16"])
def published(request, tmp_path_factory):
    """A small folder of Hugging Face's, and what its config.json holds."""
    folder = tmp_path_factory.mktemp("published") / request.param
    args = {"hidden_size": 4, "num_layers": 1, "num_heads": 2}
    args |= {"image_size": 16} if request.param != "gpt2" else {"vocab_size": 3, "max_length": 8}
    inputs = (
        {**IMAGES, "shape": [16, 16, 3], "mean": [0.5] * 3, "std": [0.5] * 3} if request.param != "gpt2" else LETTERS
    )
    save_pretrained(*initial(request.param, args, inputs), folder)
    return folder, json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    model = ModelConfig("simple_cnn", {"widths": (4,), "hidden_size": 8})
    train.run(Config(str(workdir), 20, 16, eval_every=10, parallel="jit", model=model))
    return workdir


@pytest.fixture(scope="module")
def template(run_folder):
    """The shapes of the run's state."""
    config = read_settings(json.loads((run_folder / "config.json").read_text())["config"])
    return Parts.of(config, config.data.load((8, 8, 1))).abstract_state()


def write(path, data):
    path.write_bytes(json.dumps(data).encode("utf-8", "surrogatepass"))


@given(data=st.data())
def test_a_changed_export_loads_or_is_refused(accepting, export, data):
    folder, config = export
    write(folder / "config.json", data.draw(changed(config)))
    with accepting("load"):
        run = zoo.load(folder)
        json.dumps(run.inputs.to_json())
        args, kwargs = run.inputs.example()
        jax.eval_shape(run.model.apply, run.variables, *args, **kwargs)
        with accepting("batch"):
            run.inputs.batch([RAW.get(run.inputs.kind, "abc")])


@given(data=st.data())
def test_a_changed_folder_of_hugging_faces_loads_or_is_refused(accepting, published, data):
    folder, config = published
    write(folder / "config.json", data.draw(changed(config)))
    with accepting("from_pretrained"):
        from_pretrained(folder)


@given(data=st.data())
def test_a_damaged_config_is_refused_or_the_same(accepting, export, data):
    folder, config = export
    (folder / "config.json").write_bytes(data.draw(damaged(json.dumps(config).encode())))
    with accepting("load"):
        zoo.load(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model":' * 900 + "1" + "}" * 900, "1" * 10_000, "\xff", "NaN", ""])
def test_json_that_is_none_or_too_deep_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ZooError, match="describes no run"):
        zoo.load(tmp_path)
    with pytest.raises(ZooError):
        from_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ZooError, match="is not a weights index"):
        zoo.load_weights("lenet5", tmp_path / "model.safetensors.index.json")


@pytest.mark.parametrize("where", ["args", "inputs"])
def test_values_nested_beyond_what_any_has_are_refused(where, export):
    folder, config = export
    config = copy.deepcopy(config)
    deep = []
    for _ in range(MOST_LEVELS):
        deep = [deep]
    (config["model"]["args"] if where == "args" else config["inputs"])["x"] = deep
    write(folder / "config.json", config)
    with pytest.raises(ZooError, match="nested beyond 64 levels"):
        zoo.load(folder)


def test_json_that_takes_far_more_memory_than_its_file_is_refused_before_it_is_parsed(run_folder, tmp_path):
    folder, before = tmp_path / "run", peak_megabytes()
    shutil.copytree(run_folder, folder)
    lists = "[" + "[]," * 6_000_000 + "[]]"
    (folder / "checkpoints" / "20" / "meta" / "metadata").write_text(lists)
    with pytest.raises(ZooError, match=r"its meta is unreadable \(it has 12,000,00\d values, more than 4,194,304"):
        zoo.load(folder, step=20)
    (folder / "config.json").write_text(lists)
    with pytest.raises(ZooError, match=r"12,000,00\d values, more than"):
        zoo.load(folder)
    with (folder / "config.json").open("w") as file:
        file.truncate(2**30)  # all zeros, of which none is on the disk
    with pytest.raises(ZooError, match="it has 1,073,741,824 bytes, more than"):
        zoo.load(folder)
    assert peak_megabytes() - before < 150


def test_fields_may_be_overridden_where_a_checkpoint_is_loaded(run_folder):
    plain, half = zoo.load(run_folder, step=10), zoo.load(run_folder, step=10, param_dtype="bfloat16")
    assert half.model.param_dtype == np.dtype("bfloat16")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(b.dtype), b), plain.variables, half.variables)
    with pytest.raises(ZooError, match="the stored model does not fit SimpleCNN: misshapen: params/fc1/"):
        zoo.load(run_folder, hidden_size=9)


def test_records_of_any_length_take_little_memory(run_folder, tmp_path):
    path, before = tmp_path / "metrics.jsonl", peak_megabytes()
    shutil.copy(run_folder / "config.json", tmp_path)
    rows = (run_folder / "metrics.jsonl").read_bytes()
    with path.open("wb") as file:
        file.write(rows)
        file.truncate(2**28)  # zeros without an end of line
        file.seek(0, 2)
        file.write(b'\nnull\n[]\n"x"\n1\n' + rows)
    assert "validation at step 20: loss" in status(tmp_path)
    draw_curves(tmp_path, "accuracy")
    cut_back(path, 20, False)
    assert path.read_bytes() == 2 * rows
    assert peak_megabytes() - before < 150


def test_a_pipe_or_a_device_in_place_of_a_file_is_not_waited_for_nor_read_without_end(run_folder, tmp_path):
    folder, before = tmp_path / "run", peak_megabytes()
    shutil.copytree(run_folder, folder)
    meta, log, about = folder / "checkpoints/20/meta/metadata", folder / "train.log", folder / "status.json"
    for path in (meta, log, about):
        path.unlink()
    for path in (meta, about):
        path.symlink_to("/dev/zero")
    os.mkfifo(log)
    assert "not at work, and it left no status" in status(folder)
    with pytest.raises(ZooError, match=r"step 20: its meta is unreadable \(it is not a regular file\)"):
        zoo.load(folder, step=20)
    about.unlink()
    os.mkfifo(about)
    assert "not at work, and it left no status" in status(folder)
    assert peak_megabytes() - before < 150


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="Linux has such files")
def test_a_file_that_does_not_say_its_size_is_read_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.files.MOST_BYTES", 20)
    path = pathlib.Path("/proc/self/status")
    assert path.stat().st_size == 0
    with pytest.raises(ValueError, match="it has more than 20 bytes"):
        read_json(path)


def test_stored_settings_name_no_host_to_connect_to(run_folder, tmp_path, monkeypatch):
    folder, connected = tmp_path / "run", []
    shutil.copytree(run_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["config"]["distributed"] = "coordinator=elsewhere.example:1,num=2,id=1"
    write(folder / "config.json", config)
    monkeypatch.setattr("train.processes.start", connected.append)
    monkeypatch.setattr("train.loop.run", lambda config, *_, **__: connected.append(config.distributed))
    given = "coordinator=localhost:1,num=2,id=1"
    for flags in ([], ["--distributed", given]):
        assert main(["cnn", "--resume", "--workdir", str(folder), *flags]) == 0
    assert connected == [None, None, given, given]


ROW = {"step": 10, "split": "train", "loss": 1.5, "accuracy": 0.5}
row = st.just(ROW) | changed(ROW)
lines = st.lists(row.map(json.dumps) | damaged(json.dumps(ROW).encode()).map(lambda b: b.decode("latin-1")), max_size=6)


@settings(max_examples=15)
@given(
    lines=lines,
    about=changed(
        {
            "step": 3,
            "steps": 9,
            "steps_per_second": 2.0,
            "activity": "training",
            "silence": 1.0,
            "time": 1.7e9,
            "pid": 3,
            "host": "x",
        }
    ),
)
def test_rows_and_a_status_that_are_malformed_are_passed_over(accepting, run_folder, tmp_path_factory, lines, about):
    folder = tmp_path_factory.mktemp("records")
    shutil.copy(run_folder / "config.json", folder)
    (folder / "metrics.jsonl").write_text("\n".join(lines), "utf-8")
    write(folder / "status.json", about)
    shown = status(folder)
    assert str(folder) in shown
    accepting.note("status", "left no status" not in shown)
    accepting.note("rows", any(True for _ in read_rows(folder / "metrics.jsonl")))
    draw_curves(folder, "accuracy")
    cut_back(folder / "metrics.jsonl", 10, False)


def content(run):
    return {name: np.asarray(leaf).tobytes() for name, leaf in zoo.arrays.named_leaves(run.variables).items()}


@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_checkpoint_is_refused_or_what_was_saved(accepting, run_folder, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(run_folder, folder)
    newest = folder / "checkpoints" / "20"
    path = data.draw(st.sampled_from(sorted(path for path in newest.rglob("*") if path.is_file())))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    expected = [content(zoo.load(run_folder, step=step)) for step in (20, 10)]
    with accepting("load"):
        assert content(zoo.load(folder, step="last")) in expected
    shutil.rmtree(folder)


@settings(max_examples=20)
@given(data=st.data())
def test_a_changed_meta_is_refused_or_what_was_saved(accepting, run_folder, template, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("meta") / "run"
    shutil.copytree(run_folder, folder)
    path = folder / "checkpoints" / "20" / "meta" / "metadata"
    write(path, data.draw(changed(json.loads(path.read_text())) | values))
    expected = [content(zoo.load(run_folder, step=step)) for step in (20, 10)]
    for step in ("best", "last"):
        with accepting(step):
            assert content(zoo.load(folder, step=step)) in expected
    with accepting("resume"), contextlib.closing(Checkpoints(folder, 2)) as checkpoints:
        restored, meta = checkpoints.restore(template)
        assert meta["step"] in (10, 20)
        assert restored.step == meta["step"]
    shutil.rmtree(folder)


def test_a_checkpoint_of_an_array_larger_than_the_models_is_refused_before_it_is_read(run_folder, tmp_path):
    """Few bytes on disk, since all are zero; terabytes in memory."""
    import tensorstore as ts

    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    item = folder / "checkpoints" / "20" / "model"
    store = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": f"file://{item}/"}, "path": "params.fc1.bias"}
    metadata = {"shape": [10**12], "chunks": [10**6], "dtype": "<f4", "compressor": {"id": "zstd", "level": 1}}
    ts.open({**store, "metadata": metadata}, create=True, delete_existing=True).result()
    with pytest.raises(
        ZooError, match=r"step 20: its model is unreadable \(it holds 1,000,000,000,\d+ numbers, the model"
    ):
        zoo.load(folder, step=20)


def test_nothing_is_written_outside_the_run_folder(run_folder, tmp_path):
    """Names in a run folder that lead elsewhere: a workdir in its settings, a step that is no number."""
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["config"]["workdir"] = str(tmp_path / "elsewhere")
    write(folder / "config.json", config)
    (folder / "checkpoints" / "٣").mkdir()
    (folder / "checkpoints" / "..5").mkdir()
    train.run(read_settings(config["config"] | {"workdir": str(folder), "resume": True, "steps": 25}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/20", "train.log", "tensorboard", ".metrics.jsonl.tmp"])
def test_a_run_folder_that_leads_elsewhere_is_not_written_to(run_folder, name, tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(run_folder, folder)
    path = folder / name
    if path.exists():
        path.rename(elsewhere)
    else:
        elsewhere.touch()
    path.symlink_to(elsewhere)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    resumed = read_settings(json.loads((folder / "config.json").read_text())["config"])
    resumed = dataclasses.replace(resumed, workdir=str(folder), resume=True, steps=30)
    with pytest.raises(ZooError, match=rf"^'.*/{name}' leads out of the run folder, to '.*/elsewhere'; a run writes"):
        train.run(resumed)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_run_folder_may_be_a_link_itself_but_holds_no_pipes(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "run" / "newest").symlink_to(tmp_path / "run" / "checkpoints" / "20")
    resumed = read_settings(json.loads((run_folder / "config.json").read_text())["config"])
    resumed = dataclasses.replace(resumed, workdir=str(tmp_path / "link"), resume=True, steps=25)
    assert train.run(resumed)["steps"] == 25
    (tmp_path / "run" / "train.log").unlink()
    os.mkfifo(tmp_path / "run" / "train.log")
    with pytest.raises(ZooError, match=r"train.log' is a pipe; a run writes to files"):
        train.run(resumed)


def test_modules_that_run_what_they_read_are_not_used():
    """No eval, no exec, and no pickle but torch's, whose unpickler knows no global but those of tensors (tests/zoo/
    test_torch_pickle.py): the only file that is run is the recipe that a person names."""
    root = pathlib.Path(zoo.__file__).parents[1]
    unpickles = root / "zoo" / "weights" / "torch_pickle.py"
    for path in [*(root / "zoo").rglob("*.py"), *(root / "train").rglob("*.py")]:
        text = path.read_text()
        for word in (
            "import pickle",
            "import marshal",
            "import shelve",
            "allow_pickle=True",
            " eval(",
            " exec(",
            "joblib",
            "yaml",
        ):
            assert word not in text or (word == "import pickle" and path == unpickles), (path, word)
        assert text.count("exec_module") == (path == root / "train" / "recipes" / "__init__.py")


def test_a_recipe_that_a_run_folder_names_is_not_executed(run_folder, tmp_path):
    """Only one that a flag names is."""
    folder, recipe = tmp_path / "run", tmp_path / "recipe.py"
    shutil.copytree(run_folder, folder)
    recipe.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", {**config, "recipe": str(recipe)})
    zoo.load(folder)
    for command in ("status", "evaluate", "report"):
        assert main([command, str(folder)]) == 0
    assert main(["cnn", "--resume", "--workdir", str(folder)]) == 0
    assert not (tmp_path / "executed").exists()
    assert main(["evaluate", str(folder), "--recipe", str(recipe)]) == 0
    assert (tmp_path / "executed").exists()
