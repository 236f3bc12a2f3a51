"""timm's ViT, DeiT and DINOv2: `blocks.0.attn.qkv.weight`, queries, keys and values in one tensor."""

from typing import Any

from zoo.transformer.vit import REGISTERS
from zoo.weights.huggingface.layout import TensorLayout

_LAYER, _THEIRS = "layers/layer{}", "blocks.{}"
LAYOUT = TensorLayout(
    title="ViT in timm",
    marks=("patches", "layers/layer0/attention"),
    table={
        "class_token": "cls_token",
        "registers": "reg_token",
        "positions": "pos_embed",
        "patches": "patch_embed.proj",
        f"{_LAYER}/norm1": f"{_THEIRS}.norm1",
        f"{_LAYER}/attention/query": f"{_THEIRS}.attn.qkv",
        f"{_LAYER}/attention/key": f"{_THEIRS}.attn.qkv",
        f"{_LAYER}/attention/value": f"{_THEIRS}.attn.qkv",
        f"{_LAYER}/attention/query_norm": f"{_THEIRS}.attn.q_norm",
        f"{_LAYER}/attention/key_norm": f"{_THEIRS}.attn.k_norm",
        f"{_LAYER}/attention/out": f"{_THEIRS}.attn.proj",
        f"{_LAYER}/norm1_scale/scale": f"{_THEIRS}.ls1.gamma",
        f"{_LAYER}/norm2_scale/scale": f"{_THEIRS}.ls2.gamma",
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
MEAN = LAYOUT._replace(table={**LAYOUT.table, "norm": "fc_norm"})  # with `norm_last`
LAYOUTS = (LAYOUT, MEAN)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{kind}_{size}_patch{side}_{pixels}": (f"vit_{size}{side}", {"image_size": pixels})
    for kind, sizes in (("vit", ("tiny", "small", "base", "large")), ("deit", ("tiny", "small", "base")))
    for size in sizes
    for side in (16, 32)
    for pixels in (224, 384)
} | {
    f"vit_{size}_patch14{suffix}_dinov2": (f"dinov2_{size}14{suffix}", {"image_size": 518})
    for size in ("small", "base", "large")
    for suffix in ("", "_reg4")
}
_GAP = {**{"pooling": "mean", "norm_last": True, "image_size": 256, "patch_size": 16}, **REGISTERS}
ARCHITECTURES |= {
    "vit_betwixt_patch16_reg4_gap_256": (
        "vit_small16",
        {**_GAP, "hidden_size": 640, "num_heads": 10, "layer_scale": 1e-5},
    ),
    "vit_medium_patch16_reg4_gap_256": (
        "vit_small16",
        {**_GAP, "hidden_size": 512, "num_heads": 8, "layer_scale": 1e-5},
    ),
}
