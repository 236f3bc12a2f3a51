"""Data that somebody damaged or made up, for Hypothesis: values of JSON, JSON and bytes changed in a few places."""

import collections
import contextlib
import copy
import os
import resource
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from zoo import ZooError

# The same examples every time; with HYPOTHESIS_PROFILE=thorough more of them, and new ones. The fixture `accepting`
# counts over all examples of a test.
common = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
settings.register_profile("quick", max_examples=50, derandomize=True, phases=[Phase.generate], **common)
settings.register_profile("thorough", max_examples=500, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

NASTY = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2**31,
    10**12,
    10**30,
    10**400,
    0.5,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../x",
]
NASTY += [
    "/etc/passwd",
    "a\0b",
    "\ud800",
    [],
    {},
    [[]],
    [{}],
    [-1],
    [0],
    [10**12],
    ["x"],
    [1, 2, 3],
    {"x": 1},
    {"kind": "x"},
]
values = st.one_of(
    st.sampled_from(NASTY).map(copy.deepcopy),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
)


@st.composite
def changed(draw: Any, data: Any) -> Any:
    """JSON data with one to three of its values, at any depth, replaced or removed, or with an unexpected key added."""
    data = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(data))
        if not places:
            return draw(values)
        container, key = draw(st.sampled_from(places))
        what = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "whole"]))
        if what == "whole":
            data = draw(values) if draw(st.integers(0, 20)) == 0 else data
        elif what == "remove":
            del container[key]
        elif what == "add" and isinstance(container, dict):
            container[draw(st.text(max_size=6) | st.sampled_from(["name", "kind", "pretrained", "parent", "self"]))] = (
                draw(values)
            )
        else:
            container[key] = draw(values)
    return data


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Bytes with a few of them replaced, cut out, doubled, or the end cut off."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        n = draw(st.integers(0, 16))
        what = draw(st.sampled_from(["flip", "replace", "cut", "double", "end"]))
        if what == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "replace":
            content[at : at + n] = draw(st.binary(min_size=n, max_size=n))
        elif what == "cut":
            del content[at : at + n]
        elif what == "double":
            content[at:at] = content[at : at + n]
        elif what == "end":
            del content[at:]
    return bytes(content)


class Accepting:
    """`with accepting("name"):` ends at a ZooError, by which an input is refused.

    `check` fails where no input came to the end of such a block: then refusals alone were tested.
    """

    def __init__(self) -> None:
        self.tried: collections.Counter[str] = collections.Counter()
        self.accepted: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Any:
        accepted = False
        with contextlib.suppress(ZooError):
            yield
            accepted = True
        self.note(name, accepted)

    def note(self, name: str, accepted: bool) -> None:
        self.tried[name] += 1
        self.accepted[name] += accepted

    def check(self) -> None:
        assert self.tried, "no input was tried"
        assert all(self.accepted.values()), f"accepted {dict(self.accepted)} of {dict(self.tried)}"


def peak_megabytes() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _places(data: Any) -> Any:
    """Every container and key of it within JSON data."""
    keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in list(keys):
        yield data, key
        yield from _places(data[key])
