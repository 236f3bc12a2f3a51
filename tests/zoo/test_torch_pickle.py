"""Files of torch.save without torch: what it writes, hostile pickles, damaged files. `tests/parity` has real ones."""

import collections
import io
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import zoo
from zoo.weights import convert_torch


class Named:
    """Stands for a global of a library that is not there."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """An object that is unpickled by a call."""

    def __init__(self, function, *args):
        self.function, self.args = function, args


class Stored:
    """A storage, by persistent id."""

    def __init__(self, kind, key, size):
        self.kind, self.key, self.size = kind, key, size


class Pickler(pickle._Pickler):
    """Writes Named, Call and Stored as torch does."""

    def persistent_id(self, obj):
        return ("storage", Named("torch", obj.kind), obj.key, "cpu", obj.size) if isinstance(obj, Stored) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.args)
            self.write(b"R")
        else:
            super().save(obj, save_persistent_id)


def pickled(content):
    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(content)
    return stream.getvalue()


def tensor(kind, key, shape, strides=None, offset=0, size=None):
    strides = strides or tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    number = int(np.prod(shape)) if size is None else size
    rebuild = Named("torch._utils", "_rebuild_tensor_v2")
    hooks = Call(Named("collections", "OrderedDict"))
    return Call(rebuild, Stored(kind, key, number), offset, shape, strides, False, hooks)


def written(path, content, storages, order=b"little", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", content if isinstance(content, bytes) else pickled(content))
        archive.writestr("x/byteorder", order)
        for key, data in storages.items():
            archive.writestr(f"x/data/{key}", data)
        archive.writestr("x/version", "3\n")
    return path


def converted(path):
    out = path.with_suffix(".safetensors")
    out.unlink(missing_ok=True)
    convert_torch(path, out)
    return load_file(out)


A = np.arange(6, dtype=np.float32)
STATE = {
    "model": {
        "module.a": tensor("FloatStorage", "0", (2, 3)),
        "module.turned": tensor("FloatStorage", "0", (3, 2), (1, 3)),
        "module.part": tensor("FloatStorage", "0", (2,), (1,), 2),
        "module.b": Call(Named("torch._utils", "_rebuild_parameter"), tensor("BFloat16Storage", "1", (2,)), True, None),
        "module.n": tensor("LongStorage", "2", ()),
    },
    "epoch": 3,
}
STORAGES = {"0": A.tobytes(), "1": np.array([1.5, -2], ml_dtypes.bfloat16).tobytes(), "2": struct.pack("<q", 7)}


def test_tensors_are_read_without_torch(tmp_path):
    found = converted(written(tmp_path / "x.pth", STATE, STORAGES))
    assert found.keys() == {"a", "turned", "part", "b", "n"}
    np.testing.assert_array_equal(found["a"], A.reshape(2, 3))
    np.testing.assert_array_equal(found["turned"], A.reshape(2, 3).T)
    np.testing.assert_array_equal(found["part"], A[2:4])
    assert (found["b"].dtype, found["b"].tolist()) == (ml_dtypes.bfloat16, [1.5, -2])
    assert found["n"] == 7


def test_a_file_of_a_machine_with_the_other_byte_order(tmp_path):
    storages = {"0": A.astype(">f4").tobytes()}
    content = {"a": tensor("FloatStorage", "0", (2, 3))}
    found = converted(written(tmp_path / "x.pth", content, storages, b"big"))
    np.testing.assert_array_equal(found["a"], A.reshape(2, 3))


def test_an_old_file(tmp_path):
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"a": tensor("FloatStorage", "0", (2, 3))}, ["0"])
    data = struct.pack("<q", 6) + A.tobytes()
    (tmp_path / "x.pth").write_bytes(b"".join(map(pickled, parts)) + data)
    np.testing.assert_array_equal(converted(tmp_path / "x.pth")["a"], A.reshape(2, 3))
    (tmp_path / "x.pth").write_bytes(b"".join(map(pickled, parts)) + data[:-1])
    refused(tmp_path / "x.pth", "its storage '0' has 24 bytes, of 23 that are left")


def refused(path, message):
    path.with_suffix(".safetensors").unlink(missing_ok=True)
    with pytest.raises(zoo.ZooError, match=message) as caught:
        convert_torch(path, path.with_suffix(".safetensors"))
    assert "\n" not in str(caught.value)
    assert not path.with_suffix(".safetensors").exists()


WEIGHT = tensor("FloatStorage", "0", (6,))
HOSTILE = {
    "system": ({"w": Call(Named("os", "system"), "touch ran")}, r"holds Python objects \(os.system\)"),
    "eval": ({"w": Call(Named("builtins", "eval"), "1")}, r"holds Python objects \(builtins.eval\)"),
    "module": ({"w": WEIGHT, "m": Named("torch.nn.modules.linear", "Linear")}, r"\(torch.nn.modules.linear.Linear\)"),
    "a copy": ({"w": WEIGHT, "x": Call(Named("copyreg", "_reconstructor"), 1, 2, 3)}, r"\(copyreg._reconstructor\)"),
    "arguments": ({"w": Call(Named("torch._utils", "_rebuild_tensor_v2"), 1)}, "or is damaged"),
    "a function of a function": (
        {"w": Call(Named("torch._utils", "_rebuild_tensor_v2"), Named("torch", "Size"), 0, (1,), (1,))},
        "or is damaged",
    ),
    "beyond": ({"w": tensor("FloatStorage", "0", (7,))}, "a tensor ends at 6 of a storage with 6 numbers"),
    "beyond by strides": ({"w": tensor("FloatStorage", "0", (2, 3), (4, 1))}, "a tensor ends at 6 of a storage"),
    "before": ({"w": tensor("FloatStorage", "0", (2,), (1,), -1)}, "a tensor's sizes are no numbers"),
    "backwards": ({"w": tensor("FloatStorage", "0", (2,), (-1,), 3)}, "a tensor's sizes are no numbers"),
    "huge": ({"w": tensor("FloatStorage", "0", (2**40,), (0,))}, "would take 4,398,046,511,104 bytes"),
    "text for a size": ({"w": tensor("FloatStorage", "0", ("6",), (1,), 0, 6)}, "a tensor's sizes are no numbers"),
    "no such storage": ({"w": tensor("FloatStorage", "9", (6,))}, "or is damaged"),
    "another path": ({"w": tensor("FloatStorage", "../x/data/0", (6,))}, "or is damaged"),
    "parameter of a list": ({"w": Call(Named("torch._utils", "_rebuild_parameter"), [1], True, None)}, "or is damaged"),
    "memo": (b"\x80\x02}r\xff\xff\xff\x7f.", "its pickle has a memo 2147483647"),
    "extension": (b"\x80\x02\x82\x01.", r"holds Python objects \(the operation EXT1\)"),
    "another protocol": (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "or is damaged"),
    "nothing": (b"", "or is damaged"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_and_nothing_is_run(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[what]
    refused(written(tmp_path / "x.pth", content, {"0": A.tobytes()}), message)
    assert not (tmp_path / "ran").exists()


def test_attributes_that_a_file_sets_do_not_stay(tmp_path):
    """BUILD sets attributes of whatever is on the stack, here of the function that makes tensors."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    content = b"\x80\x02}X\x01\x00\x00\x00a" + rebuild + b"}X\x01\x00\x00\x00zK\x01sbs."
    refused(written(tmp_path / "x.pth", content, {}), "or is damaged")
    assert not hasattr(zoo.weights.torch_pickle._tensor, "z")


def test_nested_references_are_read_once(tmp_path):
    deep = {"w": 1}
    for _ in range(4):
        deep = {str(i): deep for i in range(300)}
    refused(written(tmp_path / "x.pth", deep, {}), "not all under its keys are tensors")


def test_compressed_archives_are_refused(tmp_path):
    path = written(tmp_path / "x.pth", STATE, {**STORAGES, "0": bytes(2**20)}, compression=zipfile.ZIP_DEFLATED)
    refused(path, "is compressed")


def test_mutations_give_the_right_tensors_or_one_line(tmp_path):
    whole = written(tmp_path / "x.pth", STATE, STORAGES).read_bytes()
    right, rng, seen = converted(tmp_path / "x.pth"), np.random.default_rng(0), collections.Counter()
    for _ in range(300):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            changed[place] = rng.integers(0, 256)
        if rng.random() < 0.2:
            del changed[rng.integers(1, len(changed)) :]
        (tmp_path / "y.pth").write_bytes(changed)
        try:
            found = converted(tmp_path / "y.pth")
        except zoo.ZooError as error:
            seen["refused"] += 1
            seen["lines"] += str(error).count("\n")
        else:
            seen["read"] += 1
            for name, array in found.items():
                np.testing.assert_array_equal(array, right[name])
    assert seen["refused"] > 200
    assert seen["read"]
    assert not seen["lines"]


def test_mutated_pickles_never_name_anything_else(tmp_path):
    """The pickle alone changes, with right checksums: whatever comes out, there is no other error."""
    content, rng, refusals = pickled(STATE), np.random.default_rng(1), 0
    for _ in range(300):
        changed = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            changed[place] = rng.integers(0, 256)
        try:
            converted(written(tmp_path / "y.pth", bytes(changed), STORAGES))
        except zoo.ZooError:
            refusals += 1
    assert refusals > 150
