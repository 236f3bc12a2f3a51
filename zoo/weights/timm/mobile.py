"""EfficientNet and MobileNet in timm, `blocks.1.0.conv_pw.weight`, and in EfficientNet-PyTorch,
`_blocks.1._expand_conv.weight`, for torchvision's `features.2.0.block.0.0.weight`.

In a block torchvision numbers the layers; the others name convolutions by their purpose, and number the norms.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from zoo.weights.timm.renamed import Renamed

Shapes = Mapping[str, tuple[int, ...]]
_PURPOSES = {  # of the convolutions of a block, by their number
    2: (("conv_dw", "_depthwise_conv"), ("conv_pw", "_project_conv")),
    3: (("conv_pw", "_expand_conv"), ("conv_dw", "_depthwise_conv"), ("conv_pwl", "_project_conv")),
}
_STAGES = {17: (1, 2, 3, 4, 3, 3, 1), 15: (1, 2, 3, 4, 2, 3), 11: (1, 2, 3, 2, 3)}  # of MobileNet's blocks
_SQUEEZE = {"fc1": ("se.conv_reduce", "_se_reduce"), "fc2": ("se.conv_expand", "_se_expand")}
_BLOCK = re.compile(r"(features\.\d+(?:\.\d+)?)\.(?:block|conv)\.(.+)\.\w+")


def _timm(names: Shapes) -> dict[str, str]:
    """timm's names."""
    blocks = _blocks(names)
    if all(block.count(".") == 2 for block in blocks):  # EfficientNet has stages
        places = [tuple(map(int, block.split(".")[1:])) for block in blocks]
        numbers = {block: (stage - 1, i) for block, (stage, i) in zip(blocks, places, strict=True)}
    else:
        pairs = ((stage, i) for stage, count in enumerate(_STAGES[len(blocks)]) for i in range(count))
        numbers = dict(zip(blocks, pairs, strict=True))
    last = _last(names)
    ends = {
        "features.0.0": "conv_stem",
        "features.0.1": "bn1",
        "classifier.1": "classifier",
        "classifier.3": "classifier",
    }
    if "classifier.0.weight" in names:  # MobileNetV3: a dense layer before the head
        after = f"blocks.{max(stage for stage, _ in numbers.values()) + 1}.0"
        ends |= {f"{last}.0": f"{after}.conv", f"{last}.1": f"{after}.bn1", "classifier.0": "conv_head"}
    else:
        ends |= {f"{last}.0": "conv_head", f"{last}.1": "bn2"}
    return _renamed(names, ends, lambda block: "blocks.{}.{}".format(*numbers[block]), 0)


def _efficientnet_pytorch(names: Shapes) -> dict[str, str]:
    """The names of EfficientNet-PyTorch (Melas-Kyriazi 2019)."""
    numbers = {block: i for i, block in enumerate(_blocks(names))}
    last = _last(names)
    ends = {"features.0.0": "_conv_stem", "features.0.1": "_bn0", f"{last}.0": "_conv_head", f"{last}.1": "_bn1"}
    ends["classifier.1"] = "_fc"
    return _renamed(names, ends, lambda block: f"_blocks.{numbers[block]}", 1)


def _renamed(names: Shapes, ends: Mapping[str, str], block_name: Callable[[str], str], form: int) -> dict[str, str]:
    modules: dict[str, set[str]] = {}  # of each block
    for name in names:
        if found := _BLOCK.fullmatch(name):
            modules.setdefault(found[1], set()).add(found[2])
    within = {block: dict(_parts(names, block, parts, form)) for block, parts in modules.items()}
    renamed = {}
    for name in names:
        module, _, leaf = name.rpartition(".")
        found = _BLOCK.fullmatch(name)
        renamed[name] = (
            f"{block_name(found[1])}.{within[found[1]][found[2]]}.{leaf}" if found else f"{ends[module]}.{leaf}"
        )
    return renamed


def _parts(names: Shapes, block: str, parts: set[str], form: int) -> Iterator[tuple[str, str]]:
    """The layers of a block, each with its name in a form: timm's, or that of EfficientNet-PyTorch."""
    squeezes = [part for part in parts if part.endswith(("fc1", "fc2"))]
    prefix = next(
        f"{block}.{kind}." for kind in ("block", "conv") if any(n.startswith(f"{block}.{kind}.") for n in names)
    )
    rest = sorted(parts - {*squeezes}, key=_key)
    norms = [part for part in rest if f"{prefix}{part}.bias" in names]
    convolutions = [part for part in rest if part not in norms]
    purposes = _PURPOSES[len(convolutions)]
    first = 1 if form == 0 else 3 - len(convolutions)  # theirs count norms from 0, that of an expansion
    for i, (part, norm, purpose) in enumerate(zip(convolutions, norms, purposes, strict=True)):
        yield part, purpose[form]
        yield norm, f"bn{first + i}" if form == 0 else f"_bn{first + i}"
    for part in squeezes:
        yield part, _SQUEEZE[part[-3:]][form]


def _blocks(names: Shapes) -> list[str]:
    """The blocks, `features.2.0` or `features.2`, in order."""
    return sorted({found[1] for name in names if (found := _BLOCK.fullmatch(name))}, key=_key)


def _key(name: str) -> list[int]:
    return [int(part) for part in name.split(".") if part.isdigit()]


def _last(names: Shapes) -> str:
    """The last convolution and its norm, `features.N`."""
    return f"features.{max((int(name.split('.')[1]) for name in names if name.startswith('features.')), default=0)}"


LAYOUTS = tuple(
    Renamed(mark, rename)
    for mark, rename in (
        ("features.1.0.block.0.0.weight", _timm),  # EfficientNet
        ("features.1.0.block.0.0.weight", _efficientnet_pytorch),
        ("features.1.conv.0.0.weight", _timm),  # MobileNetV2
        ("features.1.block.0.0.weight", _timm),  # MobileNetV3
    )
)
_TENSORFLOW: dict[str, Any] = {"padding": "end", "norm_epsilon": 1e-3}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mobilenetv2_100": ("mobilenet_v2", {}),
    "mobilenetv3_large_100": ("mobilenet_v3_large", {"norm_epsilon": 1e-5}),
    "mobilenetv3_small_100": ("mobilenet_v3_small", {"norm_epsilon": 1e-5}),
    **{f"efficientnet_{kind}{n}": (f"efficientnet_{kind}{n}", {}) for kind in ("b", "lite") for n in range(5)},
    **{
        f"tf_efficientnet_{kind}{n}": (f"efficientnet_{kind}{n}", _TENSORFLOW)
        for kind in ("b", "lite")
        for n in range(5)
    },
}
