"""Weights, images, tokenizers and texts that somebody damaged or made up: a ZooError, or what a whole file gives."""

import dataclasses
import io
import json
import struct
import zipfile

import jax
import numpy as np
import pytest
from hostile import changed, damaged, peak_megabytes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import zoo
from train import ImageData, LabelledTextData, MultiLabelData, PairData, SeriesData, TextData
from zoo import ZooError
from zoo.inputs.image import ImageInputs
from zoo.inputs.text import TextInputs, learn, read_tokenizer
from zoo.weights import read_safetensors, save_native

MODEL = zoo.create_model("lenet5", num_classes=3)
INPUTS = ImageInputs((8, 8, 3), (0.5,) * 3, (0.5,) * 3, ("a", "b"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_native(jax.jit(MODEL.init)(jax.random.key(0), np.zeros((1, 32, 32, 1), np.float32)), path)
    return path.read_bytes(), path.parent


def split(content):
    """The header of a .safetensors file and its data."""
    (n,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + n]), content[8 + n :]


def joined(header, data):
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def loads_or_is_refused(accepting, folder, content):
    path = folder / "changed.safetensors"
    path.write_bytes(content)
    with accepting("load_weights"):
        variables = zoo.load_weights(MODEL, path, (32, 32, 1))
        assert variables["params"]["conv1"]["kernel"].shape == (5, 5, 1, 6)
    with accepting("read_safetensors"):
        read_safetensors(path)


@given(data=st.data())
def test_damaged_weights_load_or_are_refused(accepting, weights, data):
    content, folder = weights
    header = 8 + struct.unpack("<Q", content[:8])[0]
    files = [data.draw(damaged(content[:header])) + content[header:], data.draw(damaged(content))]
    loads_or_is_refused(accepting, folder, data.draw(st.sampled_from(files)))


@given(data=st.data())
def test_weights_with_a_changed_header_load_or_are_refused(accepting, weights, data):
    content, folder = weights
    header, rest = split(content)
    loads_or_is_refused(accepting, folder, joined(data.draw(changed(header)), rest))


def one(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "longer than the file": struct.pack("<Q", 2**63) + b"{}",
    "of spaces without end": struct.pack("<Q", 2**27) + b" " * 2**10,
    "nested": struct.pack("<Q", 200_000) + b'{"a":' * 40_000,
    "an array of more than all memory": joined({"a": one("F32", [2**62, 4], 0, 4)}, b"0" * 4),
    "an array of a product that overflows": joined({"a": one("F32", [2**63, 2], 0, 0)}, b""),
    "an empty array of a large shape": joined({"a": one("F32", [0, 2**62], 0, 0)}, b""),
    "overlapping": joined({"a": one("F32", [2], 0, 8), "b": one("F32", [2], 4, 12)}, b"0" * 12),
    "backwards": joined({"a": one("F32", [1], 4, 0)}, b"0" * 4),
    "with a hole": joined({"a": one("F32", [1], 4, 8)}, b"0" * 8),
    "of an unknown dtype": joined({"a": one("F31", [1], 0, 4)}, b"0" * 4),
}


@pytest.mark.parametrize("header", HEADERS)
def test_headers_made_to_deceive_are_refused(header, weights):
    path = weights[1] / "deceives.safetensors"
    path.write_bytes(HEADERS[header])
    with pytest.raises(ZooError):
        zoo.load_weights(MODEL, path, (32, 32, 1))


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.bool_, np.complex64, "float8_e4m3fn", "bfloat16"])
def test_weights_of_another_dtype_are_refused_by_name(dtype, weights, tmp_path):
    header, _ = split(weights[0])
    import ml_dtypes
    from safetensors.numpy import save_file

    dtype = getattr(ml_dtypes, dtype) if isinstance(dtype, str) else dtype
    tensors = {name: np.zeros(about["shape"], dtype) for name, about in header.items() if name != "__metadata__"}
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ZooError, match=r"misshapen|not a readable"):
        zoo.load_weights(MODEL, tmp_path / "w.safetensors", (32, 32, 1))


def test_a_head_that_would_take_all_memory_is_not_drawn(weights):
    path = weights[1] / "model.safetensors"
    path.write_bytes(weights[0])
    with pytest.raises(ZooError, match=r"a head drawn anew would take [34][\d,]+,000,000 bytes, more than 268,435,456"):
        zoo.load_weights("lenet5", path, num_classes=10**9)


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_of_many_more_bytes_than_the_model_has_are_refused_before_they_are_read(sharded, tmp_path):
    """Few bytes on disk, since all are zero."""
    before, size = peak_megabytes(), 2**30
    path = tmp_path / "model.safetensors"
    path.write_bytes(joined({"params/a": one("F32", [size // 4], 0, size)}, b""))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)
    if sharded:
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": {"params/a": "model.safetensors"}}))
    with pytest.raises(ZooError, match=r"has 1,073,741,\d+ bytes, more than the 268,\d+,\d+ that this model can need"):
        zoo.load_weights(MODEL, path, (32, 32, 1))
    assert peak_megabytes() - before < 100


@given(data=st.data())
def test_a_changed_index_loads_or_is_refused(accepting, weights, data):
    content, folder = weights
    (folder / "part.safetensors").write_bytes(content)
    names = [name for name in split(content)[0] if name != "__metadata__"]
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "part.safetensors")}
    path = folder / "model.safetensors.index.json"
    path.write_bytes(json.dumps(data.draw(changed(index))).encode("utf-8", "surrogatepass"))
    with accepting("index"):
        zoo.load_weights(MODEL, path, (32, 32, 1))


def encoded(kind, size=(23, 17), mode="RGB"):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], len(mode)), np.uint8)
    Image.fromarray(pixels if len(mode) > 1 else pixels[..., 0]).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"])
@given(data=st.data())
def test_a_damaged_image_is_read_or_refused(accepting, kind, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / f"image.{kind.lower()}"
    path.write_bytes(data.draw(damaged(encoded(kind))))
    with accepting("image"):
        assert INPUTS.encode(path).shape == (8, 8, 3)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (3, 20_000)])
def test_an_image_of_one_pixels_width_is_not_stretched_over_all_memory(size, tmp_path):
    Image.new("L", size, 200).save(tmp_path / "thin.png")
    inputs = ImageInputs((224, 224, 3), (0.5,) * 3, (0.5,) * 3, ())
    assert (inputs.pixels(tmp_path / "thin.png") == 200).all()


def test_an_image_of_more_pixels_than_any_camera_has_is_refused_before_it_is_read(tmp_path):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size < 100_000
    with pytest.raises(ZooError, match=r"12000 x 12000 pixels are more than 134,217,728"):
        INPUTS.encode(tmp_path / "large.png")


TEXTS = ["the cat sat on the mat", "a dog ate the cat", "über naïve café"] * 5


@pytest.mark.parametrize("kind", ["bpe", "word", "wordpiece", "unigram"])
@given(data=st.data())
def test_a_changed_tokenizer_is_one_or_refused(accepting, kind, tmp_path_factory, data):
    vocabulary = json.loads(learn(kind, TEXTS, 300, 16).vocabulary)
    vocabulary = data.draw(changed(vocabulary))
    path = tmp_path_factory.getbasetemp() / "tokenizer.json"
    path.write_bytes(json.dumps(vocabulary).encode("utf-8", "surrogatepass"))
    makers = {"inputs": lambda: TextInputs(kind, json.dumps(vocabulary), 16), "file": lambda: read_tokenizer(path, 16)}
    for name, make in makers.items():
        with accepting(name):
            inputs = make()
            tokens = inputs.encode("the cat été")
            assert (tokens < max(inputs.vocab_size, 1)).all() or len(tokens) == 0
            inputs.decode(tokens)
            assert inputs.encode_counted("the cat été")[1].sum() in (0, 11)
            assert len(inputs.prompt("the cat")) <= len(inputs.encode("the cat"))
            assert isinstance(inputs.first_prompt, str)
            assert inputs.end is None or inputs.end < inputs.vocab_size
            inputs.batch(["the cat", ""])


def test_token_ids_may_have_gaps_within_bounds():
    """Models are as large as the highest id; tokens beyond the number of tokens are no error."""
    vocabulary = json.loads(learn("word", TEXTS, 300, 16).vocabulary)
    vocabulary["model"]["vocab"]["the"] = 1000
    inputs = TextInputs("word", json.dumps(vocabulary), 16)
    assert inputs.vocab_size == 1001
    assert inputs.encode("the").tolist() == [1000]
    assert (inputs.decode([1000]), inputs.decode([1000, 999, 2000])) == ("the", "the")
    vocabulary["model"]["vocab"]["the"] = 2**31
    with pytest.raises(ZooError, match=r"has a token of id 2,147,483,648; ids must be below 4,194,304"):
        TextInputs("word", json.dumps(vocabulary), 16).model_args()


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "word", "wordpiece", "unigram"])
@given(text=st.text())
def test_any_text_is_tokens_or_refused(accepting, kind, text):
    inputs = tokenizers[kind]
    with accepting("text"):
        tokens = inputs.encode(text)
        assert ((tokens >= 0) & (tokens < inputs.vocab_size)).all()
        inputs.decode(tokens)


tokenizers = {kind: learn(kind, TEXTS, 300, 16) for kind in ("char", "byte", "bpe", "word", "wordpiece", "unigram")}


PAIRS = "\n".join(f"{text}\t{text}" for text in TEXTS * 4).encode()
LABELLED = "sentence\tlabel\n" + "\n".join(f"{text}\t{len(text) % 2}" for text in TEXTS * 4)
SERIES = "day,x,y\n" + "\n".join(f"2026-01-{i:02},{i / 7},{i * i}" for i in range(40))

TABLE = "labels,file,split\n" + "".join(f"{'a cat; the mat; ' * 20},{i % 2}.png,train\n" for i in range(4))


LABELS = "path,class,split\n" + "".join(f"{i % 2}.png,{'ab'[i % 2]},train\n" for i in range(12))


def array_file(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "whole", "source"),
    [
        ("data.txt", PAIRS, TextData(context=8)),
        ("data.tsv", PAIRS, PairData()),
        ("data.tsv", LABELLED.encode(), LabelledTextData(context=8)),
        ("data.csv", SERIES.encode(), SeriesData(context=4, warmup=1, horizon=1)),
        ("data.npz", array_file(x=np.arange(40.0), y=np.ones(40)), SeriesData(context=4, warmup=1, horizon=1)),
        ("table.csv", TABLE.encode(), MultiLabelData()),
        ("table.csv", LABELS.encode(), ImageData(most_unreadable=0.5)),
        ("set.npz", array_file(x=np.ones((9, 8, 8), np.uint8), y=np.arange(9) % 2), ImageData()),
    ],
)
@given(data=st.data())
def test_any_file_is_data_to_train_on_or_refused(accepting, name, whole, source, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    for i in range(2):
        (folder / f"{i}.png").write_bytes(encoded("PNG"))
    (folder / name).write_bytes(data.draw(damaged(whole) | st.binary(max_size=2000)))
    with accepting(type(source).__name__):
        dataset = dataclasses.replace(source, path=str(folder / name)).load((8, 8, 3))
        for array in dataset.train.read(np.arange(1)).values():
            assert np.isfinite(array).all()


@pytest.mark.parametrize("source", [LabelledTextData(context=8), PairData(), TextData(context=8)])
def test_a_text_of_any_length_is_read(source, tmp_path):
    """Longer than the 131,072 characters to which Python's csv limits a field."""
    (tmp_path / "data.tsv").write_text(f"{'x' * 200_000}\ta\nshort\tb\n")
    dataset = dataclasses.replace(source, path=str(tmp_path / "data.tsv"), validation_fraction=0.0).load((8,))
    assert dataset.train.size >= 2


def test_a_compressed_table_larger_than_memory_is_refused_before_it_is_read(tmp_path):
    before = peak_megabytes()
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**27,)})
        for _ in range(2**10):
            file.write(bytes(2**20))
    assert (tmp_path / "bomb.npz").stat().st_size < 2**21
    with pytest.raises(ZooError, match="more than"):
        SeriesData(path=str(tmp_path / "bomb.npz")).load(())
    assert peak_megabytes() - before < 100
