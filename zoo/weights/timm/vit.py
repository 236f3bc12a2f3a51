"""timm's ViT and DeiT: `blocks.0.attn.qkv.weight`, queries, keys and values in one tensor."""

from typing import Any

from zoo.weights.huggingface.layout import TensorLayout

_LAYER, _THEIRS = "layers/layer{}", "blocks.{}"
LAYOUT = TensorLayout(
    title="ViT in timm",
    marks=("patches", "layers/layer0/attention"),
    table={
        "class_token": "cls_token",
        "positions": "pos_embed",
        "patches": "patch_embed.proj",
        f"{_LAYER}/norm1": f"{_THEIRS}.norm1",
        f"{_LAYER}/attention/query": f"{_THEIRS}.attn.qkv",
        f"{_LAYER}/attention/key": f"{_THEIRS}.attn.qkv",
        f"{_LAYER}/attention/value": f"{_THEIRS}.attn.qkv",
        f"{_LAYER}/attention/out": f"{_THEIRS}.attn.proj",
        f"{_LAYER}/norm2": f"{_THEIRS}.norm2",
        f"{_LAYER}/mlp/up": f"{_THEIRS}.mlp.fc1",
        f"{_LAYER}/mlp/down": f"{_THEIRS}.mlp.fc2",
        "norm": "norm",
        "head": "head",
    },
    prefix="",
    body="(?!)",  # a body has the names of the whole model
    unused="(?!)",
    heads=(("head",),),
)
LAYOUTS = (LAYOUT,)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{kind}_{size}_patch{side}_{pixels}": (f"vit_{size}{side}", {"image_size": pixels})
    for kind, sizes in (("vit", ("tiny", "small", "base", "large")), ("deit", ("tiny", "small", "base")))
    for size in sizes
    for side in (16, 32)
    for pixels in (224, 384)
}
