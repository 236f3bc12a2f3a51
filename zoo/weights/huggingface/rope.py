"""Rotary positions in a config.json: `rope_parameters`, or `rope_theta` and `rope_scaling` in older ones."""

import math
from collections.abc import Mapping
from typing import Any

from zoo.errors import ZooError, unknown

LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
KINDS = ("default", "linear", "llama3", "yarn")


def rotations(config: Mapping[str, Any], theta: float = 10_000.0, layers: str | None = None) -> dict[str, Any]:
    """The fields rope_theta, rope_scaling and rotary_share of a decoder; `layers` names the kind of layer where a
    config has several. ZooError for a scaling that is not known."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ZooError(f"rope_parameters must be an object, not {rope!r:.40}")
    if layers is not None and layers in rope:
        rope = rope[layers] or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", config.get("rotary_pct", 1.0)))
    base = config.get("rope_theta", config.get("rotary_emb_base", theta))
    return {
        "rope_theta": rope.get("rope_theta", base),
        "rope_scaling": _scaling(str(kind), rope, config),
        "rotary_share": share,
    }


def _scaling(kind: str, rope: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Any, ...] | None:
    if kind not in KINDS:
        raise unknown("rope_type", kind, KINDS)
    needed = {"linear": ("factor",), "llama3": LLAMA3, "yarn": ("factor",)}.get(kind, ())
    if lacking := [key for key in needed if rope.get(key) is None]:
        raise ZooError(f"a rope_type of {kind} needs {', '.join(lacking)}")
    if kind == "linear":
        return "linear", rope["factor"]
    if kind == "llama3":
        return tuple(rope[key] for key in LLAMA3)
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        fast, slow = rope.get("beta_fast") or 32.0, rope.get("beta_slow") or 1.0
        return "yarn", rope["factor"], original, fast, slow, _stretch(rope), rope.get("truncate", True)
    return None


def _stretch(rope: Mapping[str, Any]) -> float:
    """YaRN's factor of queries and keys (Peng et al. 2023, equation 22)."""
    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]

    def of(share: float) -> float:
        return 0.1 * share * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0

    shares = rope.get("mscale"), rope.get("mscale_all_dim")
    return of(shares[0]) / of(shares[1]) if shares[0] and shares[1] else of(1.0)


def written(model: Any) -> dict[str, Any]:
    """`rope_parameters` of a decoder."""
    found: dict[str, Any] = {"rope_type": "default"}
    if model.rope_scaling is not None:
        kind, *rest = model.rope_scaling
        if kind == "linear":
            found = {"rope_type": kind, "factor": rest[0]}
        elif kind == "yarn":
            keys = ("factor", LLAMA3[-1], "beta_fast", "beta_slow", "attention_factor", "truncate")
            found = {"rope_type": kind, **dict(zip(keys, rest, strict=True))}
        else:
            found = {"rope_type": "llama3", **dict(zip(LLAMA3, model.rope_scaling, strict=True))}
    found["rope_theta"] = model.rope_theta
    return found if model.rotary_share == 1 else {**found, "partial_rotary_factor": model.rotary_share}
