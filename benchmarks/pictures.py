"""The picture of ratios in README and docs, and the mark that all pictures of results use."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

KINDS = {"train-step": "a training step", "forward": "a forward pass"}


def mark(axis: Any, place: float, value: float, between: tuple[float, float], color: str, width: float) -> None:
    """Draws a value as a point on a bar from its 10th to its 90th percentile."""
    axis.plot(between, (place, place), color=color, linewidth=width, alpha=0.35, solid_capstyle="butt")
    axis.plot(value, place, "o", color=color, markersize=width)


def ratios(path: pathlib.Path, found: Sequence[Sequence[Any]], labels: Sequence[str], peers: Sequence[str]) -> None:
    """Draws rows of (kind, label, peer, ratio, 10th and 90th percentile); the PNG's description holds them as JSON."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    figure, axes = plt.subplots(1, 2, figsize=(11, 1 + 0.4 * len(labels)), sharey=True, layout="constrained")
    for kind, label, peer, ratio, low, high in found:
        i = peers.index(peer)
        mark(axes[[*KINDS].index(kind)], labels.index(label) + 0.15 * (i - 2), ratio, (low, high), f"C{i}", 5)
    for axis, title in zip(axes, KINDS.values(), strict=True):
        axis.axvline(1, color="black", linewidth=0.8, linestyle="--")
        axis.set_xscale("log")
        axis.set_xticks((0.125, 0.25, 0.5, 1, 2))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.minorticks_off()
        axis.set_xlabel(f"{title}: our seconds over theirs")
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(labels)), labels, fontsize=8)
    axes[0].set_ylim(len(labels) - 0.4, -0.6)
    colors = [plt.Line2D([], [], color=f"C{i}", marker="o", label=peer) for i, peer in enumerate(peers)]
    figure.legend(handles=colors, loc="outside lower center", ncols=len(peers), fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Description": json.dumps(found)})
    plt.close(figure)
