"""A trained model as a folder that runs with JAX alone: programs of `jax.export`, weights, and a run.py.

    config.json          the programs' arguments and results, platforms, inputs, labels
    forward.jax          or prefill.jax and decode.jax, or encode.jax and decode.jax
    weights.safetensors  where the weights are not inside the programs
    tokenizer.json       where the tokenizer is one of the `tokenizers` library
    run.py               one example through the programs; program.py, picture.py, tokens.py are its parts

`jax.export` keeps a program readable for later versions of JAX; `program.py` reads it with the oldest that the zoo
supports too.
"""

import contextlib
import functools
import importlib.metadata
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
from jax import export as jax_export

from zoo.arrays import named_leaves
from zoo.errors import ZooError, first_line
from zoo.export.folding import Folded, fold
from zoo.export.onnx import OPSET, SIZES, convert
from zoo.export.programs import Program, on_any_platform, programs_of
from zoo.export.storing import Stored, WeightsDtype, store
from zoo.inputs import ImageInputs, ImageTextInputs, SeriesInputs, TextInputs
from zoo.inputs.sides import Sides
from zoo.ops.portable import portable
from zoo.run import Run
from zoo.weights import write_safetensors

Place = Literal["inside", "beside"]
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")
MOST_INSIDE = 2**26  # bytes of weights that are inside a program by default
FILES = pathlib.Path(__file__).parent / "files"


def export(
    run: Run,
    folder: str | os.PathLike,
    *,
    platforms: Sequence[str] = DEFAULT_PLATFORMS,
    weights: Place | None = None,
    weights_dtype: WeightsDtype = "float32",
    dtype: str | None = None,
    preprocess: bool = False,
    max_length: int | None = None,
    onnx: bool = False,
) -> list[pathlib.Path]:
    """Writes a run's model, as `zoo.load` gives it, to a new or empty folder, and returns the files.

    The programs take any number of rows, and of tokens or rows of a table; they have no dropout and no batch
    normalisation (`zoo.export.folding`). `weights` are "inside" the programs or "beside" them; by default inside where
    there is one program with at most 64 MB. `weights_dtype`: see `zoo.export.storing`. `dtype` is that of the
    computation, by default the model's. With `preprocess` a program takes images uint8 [b, h, w, c] of any size, or a
    table in its own units. `max_length` is the number of tokens of a cache (default: the model's, at most 1024; of an
    encoder-decoder, that of a target). With `onnx` a model of one program has a forward.onnx too, with float32 weights;
    see `zoo.export.onnx`.

    ZooError for a folder that is not empty, and for settings or inputs that have no program.
    """
    folder = pathlib.Path(folder).expanduser()
    check_folder(folder)
    _check(platforms, weights, weights_dtype)
    if run.inputs.kind in ("detection", "segmentation"):
        raise ZooError(f"a run with inputs of kind {run.inputs.kind!r} has no script to be exported with")
    run = run._replace(model=on_any_platform(run.model, dtype))
    form = _inference_form(run)
    stored = store(form.variables, weights_dtype)
    found = programs_of(run, form.apply, form.variables, preprocess, max_length)
    programs = found.by_name
    if weights is None:
        size = sum(array.nbytes for array in stored.arrays.values())
        weights = "inside" if len(programs) == 1 and size <= MOST_INSIDE else "beside"
    converted = _onnx(run, preprocess, weights_dtype) if onnx else None
    exported = {name: _exported(name, one, stored, weights, platforms) for name, one in programs.items()}
    about: dict[str, Any] = {
        "format": 1,
        "model": {"class": type(run.model).__name__, "dtype": jax.numpy.dtype(run.model.dtype).name},
        "programs": {name: _described(programs[name], exported[name]) for name in programs},
        "platforms": list(platforms),
        "weights": weights,
        "weights_dtype": weights_dtype,
        "preprocess": preprocess,
        "longest": found.longest,
        "longest_source": found.longest_source,
        "batch_norms": {"in kernels": len(form.kernels), "as scale and shift": len(form.scales)},
        "jax": jax.__version__,
        "calling_convention": next(iter(exported.values())).calling_convention_version,
    }
    if converted is not None:
        about["onnx"] = {"opset": OPSET, "error": converted[1]}
    files = _inputs_files(run)
    about |= _of_inputs(run, files)
    folder.mkdir(parents=True, exist_ok=True)
    for name, program in exported.items():
        (folder / f"{name}.jax").write_bytes(program.serialize())
    if converted is not None:
        (folder / "forward.onnx").write_bytes(converted[0])
    if weights == "beside":
        write_safetensors(stored.arrays, folder / "weights.safetensors")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, source in _scripts(run).items():
        shutil.copyfile(FILES / source, folder / name)
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return sorted(folder.iterdir())


def check_folder(folder: pathlib.Path) -> None:
    """ZooError unless a folder is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ZooError(f"{str(folder)!r} exists and is not an empty folder; choose another, nothing is overwritten")


def _check(platforms: Sequence[str], weights: Any, weights_dtype: Any) -> None:
    for name, value, known in (
        *(("platforms", platform, PLATFORMS) for platform in platforms or ("none",)),
        ("weights", weights, (None, *get_args(Place))),
        ("weights_dtype", weights_dtype, get_args(WeightsDtype)),
    ):
        if value not in known:
            raise ZooError(f"{name} must be of {', '.join(map(str, known))}, not {value!r}")
    try:
        importlib.metadata.version("flatbuffers")
    except importlib.metadata.PackageNotFoundError:
        raise ZooError("programs are written with flatbuffers: pip install 'flaxzoo[export]'") from None


def _onnx(run: Run, preprocess: bool, weights_dtype: WeightsDtype) -> tuple[bytes, float]:
    """The program `forward` as an ONNX file with the weights, and its error. onnxruntime folds batch norms itself."""
    programs = programs_of(run, run.model.apply, run.variables, preprocess).by_name
    if set(programs) != {"forward"}:
        raise ZooError(f"ONNX is for models of one program; {type(run.model).__name__} has {', '.join(programs)}")
    if weights_dtype != "float32":
        raise ZooError(f"an ONNX file has float32 weights, not {weights_dtype}; leave weights_dtype out")
    program = programs["forward"]
    largest = {"tokens": getattr(run.model, "vocab_size", 2), "lengths": min(SIZES) + 1, "image": 256}
    return convert(functools.partial(program.function, run.variables), program.arguments, largest)


def _inference_form(run: Run) -> Folded:
    """The model without the statistics of batch normalisation, where it has some."""
    if "batch_stats" in run.variables:
        return fold(run.model, run.variables, run.inputs.example())
    return Folded(run.model.apply, run.variables, (), ())


def _exported(
    name: str, program: Program, stored: Stored, weights: Place, platforms: Sequence[str]
) -> jax_export.Exported:
    """The program for the platforms, with its weights inside or as its first argument."""
    arguments = tuple(program.arguments.values())

    def inside(*arguments: Any) -> Any:
        return program.function(stored.restore(stored.arrays), *arguments)

    def beside(arrays: Mapping[str, Any], *arguments: Any) -> Any:
        return program.function(stored.restore(arrays), *arguments)

    function = inside if weights == "inside" else beside
    function.__name__ = name
    abstract = {key: jax.ShapeDtypeStruct(array.shape, array.dtype) for key, array in stored.arrays.items()}
    try:
        with portable(), _without_paths():
            lowered = jax_export.export(jax.jit(function), platforms=list(platforms))
            return lowered(*arguments) if weights == "inside" else lowered(abstract, *arguments)
    except ZooError:
        raise
    except Exception as error:  # what a platform's lowering does not have
        raise ZooError(
            f"{name} has no program for {', '.join(platforms)} ({first_line(error)}); fewer platforms may do"
        ) from None


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """Programs that are lowered inside do not name the source files of this machine."""
    limit = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, limit)
    jax.config.update(limit, 0)
    try:
        yield
    finally:
        jax.config.update(limit, before)


def _described(program: Program, exported: jax_export.Exported) -> dict[str, Any]:
    """Shapes and dtypes of a program's arguments and results by name, sizes that are free by letter."""

    def shapes(tree: Any) -> Any:
        leaves = {name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for name, leaf in named_leaves(tree).items()}
        return leaves if len(leaves) > 1 else next(iter(leaves.values()))

    results = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return {
        "arguments": {name: shapes(argument) for name, argument in program.arguments.items()},
        "results": shapes(results),
    }


def _scripts(run: Run) -> dict[str, str]:
    """The files of a folder's run.py by name, and the files of ours that they are."""
    inputs, causal = run.inputs, hasattr(run.model, "init_state")
    files = {"program.py": "program.py"}
    if isinstance(inputs, ImageInputs | ImageTextInputs):
        files["picture.py"] = "picture.py"
    if isinstance(inputs, TextInputs | ImageTextInputs | Sides):
        files["tokens.py"] = "tokens.py"
    kinds = {ImageInputs: "image", ImageTextInputs: "image_text", SeriesInputs: "series"}
    kind = "generate" if causal else "text"
    kind = "translate" if isinstance(inputs, Sides) else kinds.get(type(inputs), kind)
    return {**files, "run.py": f"run_{kind}.py"}


def _inputs_files(run: Run) -> dict[str, str]:
    """Tokenizers of the library by the names of their files."""
    inputs = run.inputs
    sides: dict[str, TextInputs] = {}
    if isinstance(inputs, TextInputs | ImageTextInputs):
        sides["tokenizer.json"] = inputs if isinstance(inputs, TextInputs) else inputs.text
    if isinstance(inputs, Sides):
        same = inputs.source.vocabulary == inputs.target.vocabulary
        sides = {"tokenizer.json": inputs.source} if same else {}
        sides = sides or {"source_tokenizer.json": inputs.source, "target_tokenizer.json": inputs.target}
    plain = {"truncation": None, "padding": None}
    return {
        name: json.dumps(json.loads(side.vocabulary) | plain, ensure_ascii=False)
        for name, side in sides.items()
        if side.tokenizer not in ("char", "byte")
    }


def _of_inputs(run: Run, files: Mapping[str, str]) -> dict[str, Any]:
    """What run.py reads of the inputs: their fields, with tokenizers by file, and the vocabulary's size and ends."""
    inputs = run.inputs
    about = inputs.to_json()
    for side in (about, *(about[name] for name in ("source", "target", "text") if isinstance(about.get(name), dict))):
        if side.get("tokenizer") not in (None, "char", "byte"):
            del side["vocabulary"]
            of_side = next((file for file in files if side is about.get(file.split("_")[0])), "tokenizer.json")
            side["file"] = of_side
    found: dict[str, Any] = {"inputs": about}
    if isinstance(inputs, TextInputs) and hasattr(run.model, "init_state"):
        found |= {"vocab_size": inputs.vocab_size, "end": inputs.end}
        found["closing"] = len(inputs.encode(inputs.first_prompt)) - len(inputs.prompt(inputs.first_prompt))
    if isinstance(inputs, Sides):
        about |= {"first": inputs.first, "end": inputs.end}  # type: ignore[attr-defined]
        found["vocab_size"] = inputs.model_args()["vocab_size"]
    return found
