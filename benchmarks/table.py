"""README's tables of figures, and the cases that `python -m benchmarks run` measures: of STEPS, LINES and TPUS.

A case is what follows `python -m benchmarks`. Its figures are those of a row, in the file that its benchmark appends
to, whose columns have the case's settings: the newest, but first of those with all that is quoted, of at least the
case's rounds, measured while others left the machine alone, and of the run with the most peers. Where a case has no
row, the tables say "not measured". The picture beside them is of the same rows.
"""

import collections
import csv
import dataclasses
import functools
import json
import pathlib
import re
import shlex
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks import suite
from benchmarks.steps import OURS
from benchmarks.timer import RESULTS, cell, quiet
from zoo.errors import ZooError

README, PICTURE = RESULTS.parents[1] / "README.md", RESULTS / "ratios.png"
BEGIN, END = "<!-- made by python -m benchmarks readme -->", "<!-- until here -->"
FREE = "--model.name smollm2_135m --model.args hidden_size=128 num_layers=4 num_heads=4 num_kv_heads=4 mlp_size=352"
FREE = f"shakespeare --no-peer --steps 1210 2250 '--flags={FREE} --optimizer.learning-rate 2e-2'"
SHAKESPEARE, NANOGPT = "shakespeare --steps 720 260", {"framework": "torch", "recipe": "nanoGPT's for a CPU"}
SMALL = "--num-layers 1 --hidden-size 128"
ROWS = "--size 50 --batch-size"
CELL = f"--args vocab_size=65 {ROWS}"
ONE = f"--args vocab_size=65 num_layers=1 hidden_size=128 {ROWS}"
LONG = "train-step lstm_lm --args vocab_size=65 --size 1024 --batch-size 50 --peers flax --rounds 3"
ATTENTIVE = (
    "embedding_size=256 hidden_size=512 attention_size=256 maxout_size=256 vocab_size=5004 source_vocab_size=5004"
)
PIECES = "hidden_size=256 num_layers=3 num_heads=8 mlp_size=512 norm_first=True dropout_rate=0.0 vocab_size=5004"
# What is timed; the flags of `train-step` and, where it is timed too, of `forward`.
STEPS: tuple[tuple[str, str, bool], ...] = (
    ("`simple_cnn`, batch 64", "simple_cnn", True),
    ("`resnet18`, CIFAR's stem, batch 64", "resnet18 --args stem=cifar num_classes=10 --size 32", True),
    ("`resnet20`, batch 128", "resnet20 --batch-size 128", True),
    ("`lstm_lm` 2x512, batch 50, length 50", f"lstm_lm {CELL} 50", True),
    ("`lstm_lm` 2x512, batch 1, length 50", f"lstm_lm {CELL} 1", False),
    ("`lstm_lm` 1x128, batch 50, length 50", f"lstm_lm {ONE} 50", False),
    ("`lstm_lm` 1x128, batch 1, length 50", f"lstm_lm {ONE} 1", False),
    ("`lstm_lm` 2x512, batch 50, in bfloat16", f"lstm_lm --args vocab_size=65 dtype=bfloat16 {ROWS} 50", False),
    ("`gru_lm` 2x512, batch 50, length 50", f"gru_lm {CELL} 50", True),
    ("`rnn_lm` 2x512, batch 50, length 50", f"rnn_lm {CELL} 50", False),
    ("`nanogpt` 4x128, batch 12, length 64", "nanogpt_4x128 --batch-size 12", True),
    ("`nanogpt` 6x384, batch 16, length 256", "nanogpt --batch-size 16", True),
    ("`smollm2_135m`, batch 1, length 64", "smollm2_135m --batch-size 1 --size 64", True),
    (
        "`multi30k-gru`'s model without dropout, batch 64, length 24",
        f"seq2seq_gru_attention --args {ATTENTIVE} --size 24",
        True,
    ),
    (
        "`multi30k-transformer`'s, without dropout, batch 64, length 24",
        f"transformer_base --args {PIECES} --size 24",
        True,
    ),
)
OVERHEAD = "{0[overhead]:.3f} ({0[overhead_p10]:.3f} to {0[overhead_p90]:.3f})"
RATIO = "{0[ratio]:.2f} ({0[ratio_p10]:.2f} to {0[ratio_p90]:.2f})"
SPEEDS = "{0[ours_tokens_per_s]:,.0f} against {0[torch_tokens_per_s]:,.0f}; {1[ours_tokens_per_s]:,.0f} against "
SPEEDS += "{1[torch_tokens_per_s]:,.0f}"
MISSING = "not measured"
LONGEST = 60  # characters of a command that stands in a table; a longer one stands below it
PEERS = {"torch": "PyTorch's", "torch compile": "`torch.compile`'s", "flax": "Flax's layers'"}  # with a column each
OTHERS = ("transformers", "keras")
PODS = tuple(
    f"tpu --topology {pod} --recipe gpt2-medium imagenet-resnet50 --no-peer --no-largest"
    for pod in ("v5e:4x4 --mesh data=4,fsdp=4", "v5p:2x2x2 --mesh data=2,fsdp=4")
)


class Case(NamedTuple):
    """A command, and what tells its row from the others that it appends."""

    command: str
    where: Mapping[str, str] = MappingProxyType({})


class Line(NamedTuple):
    """What was measured; the figures, a format string of the cases' rows; the cases."""

    what: str
    figures: str
    cases: tuple[Case, ...]


def line(what: str, figures: str, *cases: str | Case) -> Line:
    return Line(what, figures, tuple(case if isinstance(case, Case) else Case(case) for case in cases))


LINES: tuple[Line, ...] = (
    line("the loop's seconds over the bare step's: digits", OVERHEAD, "loop --recipe cnn"),
    *(
        line(f"the same: `{recipe}`", OVERHEAD, f"loop --recipe {recipe} --steps {steps} --rounds 6")
        for recipe, steps in (("cifar10", 100), ("lstm", 50), ("transformer", 100))
        # not seq2seq, whose batches are of several widths
    ),
    line("seconds that `import zoo` adds to `import jax, flax`", "{0[import_zoo_seconds]:.2f}", "start"),
    *(
        line(
            f"`{recipe}` in {steps} steps, seconds in all, in the first step: from a cold start; from the cache",
            "{0[first_seconds]:.1f}, {0[first_compile_seconds]:.1f}; {0[second_seconds]:.1f}, "
            "{0[second_compile_seconds]:.1f}",
            command,
        )
        for recipe, steps, command in (
            ("cnn", 60, "start"),
            *(
                (name, steps, f"start --recipe {name} --steps {steps} --rounds 3")
                for name, steps in (("lstm", 100), ("seq2seq", 250), ("transformer", 100))
            ),
        )
    ),
    *(
        line(
            f"batches/s of {what}, of which a step takes one; PyTorch's DataLoader{but}",
            "{0[ours_batches_per_s]:,.0f} against {0[torch_batches_per_s]:,.0f}",
            f"pipeline {recipe}",
        )
        for what, recipe, but in (
            ("images", "cifar10", ""), ("pairs", "seq2seq", ", which cuts none to its longest text as ours does")
        )
    ),
    line("batches/s of text", "{0[ours_batches_per_s]:,.0f}", "pipeline lstm"),
    *(
        line(
            f"MB/s of `{name}`'s weights loaded and checked; into PyTorch's module; of the file read alone",
            "{0[ours_mb_per_s]:,.0f}; {0[torch_mb_per_s]:,.0f}; {0[read_mb_per_s]:,.0f}",
            f"weights {name}",
        )
        for name in ("resnet50", "lstm_lm", "seq2seq_gru_attention", "smollm2_135m")
    ),
    *(
        line(
            f"MB/s of `{name}` and Adam's state saved, restored, digests and all; by torch.save, torch.load",
            "{0[ours_save_mb_per_s]:,.0f}, {0[ours_restore_mb_per_s]:,.0f}; {0[torch_save_mb_per_s]:,.0f}, "
            "{0[torch_restore_mb_per_s]:,.0f}",
            command,
        )
        for name, command in (
            ("resnet50", "checkpoint"),
            *((name, f"checkpoint {name}") for name in ("lstm_lm", "seq2seq_gru_attention", "nanogpt")),
        )
    ),
    line(
        "temporaries of `lstm_lm` 2x512 at length 1,024, beside flax's",
        "{0[temporary_mb]:,.0f} MB against {1[temporary_mb]:,.0f} MB",
        *(Case(LONG, {"framework": framework}) for framework in ("flaxzoo", "flax")),
    ),
    line("characters/s, batch 1, beside PyTorch's: 2x512; 1x128", SPEEDS, "sampling", f"sampling {SMALL}"),
    line(
        "temporaries of a step, 4x128, batch 1, from 1,024 to 4,096 tokens: in blocks; the whole matrix",
        "{0[temporary_mb]:,.0f} to {1[temporary_mb]:,.0f} MB; {2[temporary_mb]:,.0f} to {3[temporary_mb]:,.0f} MB",
        *(Case("memory", {"attention": a, "length": n}) for a in ("blocked", "xla") for n in ("1024", "4096")),
    ),
    line(
        "state and peak of a step a device, 8x512, batch 16, 256 tokens: on one; `data=8`; `fsdp` over 2; 4; 8",
        "; ".join(f"{{{i}[state_mb]:,.0f}}, {{{i}[peak_mb]:,.0f}}" for i in range(5)) + " MB",
        *(
            Case("savings", {"way": way})
            for way in ("plain", "data=8", "data=4,fsdp=2", "data=2,fsdp=4", "fsdp=8")
        ),
    ),
    line(
        "that peak's share of the plain step's: four micro-batches; scanned, `remat=dots`; scanned, `remat=full`",
        "{0[peak_share]:.2f}; {1[peak_share]:.2f}; {2[peak_share]:.2f}",
        *(
            Case("savings", {"way": way})
            for way in ("accumulate=4", "scan_layers, remat=dots", "scan_layers, remat=full")
        ),
    ),
    line(
        "seconds to trace and to compile a step: 12 layers, 48; scanned",
        "; ".join(
            ", ".join(f"{{{i}[trace_seconds]:.1f}} + {{{i}[compile_seconds]:.1f}}" for i in (j, j + 1)) for j in (0, 2)
        ),
        *(
            Case("compile", {"scan_layers": scan, "num_layers": depth})
            for scan in ("False", "True") for depth in ("12", "48")
        ),
    ),
    line(
        "tokens/s of `smollm2_135m`, greedy, beside `transformers`: batch 1; 16",
        "; ".join(f"{{{i}[ours_tokens_per_s]:.0f}} against {{{i}[peer_tokens_per_s]:.0f}}" for i in range(2)),
        "decoding", "decoding --batch-size 16",
    ),
    line(
        "the same in bfloat16, ours",
        "{0[bfloat16_tokens_per_s]:.0f}; {1[bfloat16_tokens_per_s]:.0f}",
        "decoding", "decoding --batch-size 16",
    ),
    *(
        line(
            f"sentences/s of `{recipe}`, random ones of 8 to 24 tokens, 32 said, beside PyTorch's: greedy; beam 5",
            "; ".join(
                f"{{{i}[ours_sentences_per_s]:.0f}} against {{{i}[torch_sentences_per_s]:.0f}}" for i in range(2)
            ),
            *(Case(f"translating --recipe {recipe}", {"beams": beams}) for beams in ("1", "5")),
        )
        for recipe in ("multi30k-gru", "multi30k-transformer")
    ),
    line(
        "nanoGPT's recipe for a CPU, 2,000 steps: PyTorch's loss, seconds",
        "{0[loss]:.3f}, {0[seconds]:.1f}",
        Case(SHAKESPEARE, {**NANOGPT, "steps": "2000"}),
    ),
    line(
        "`shakespeare-gpt`, the same model and text, in about that time",
        "{0[loss]:.3f}, {0[seconds]:.1f}",
        Case(SHAKESPEARE, {"steps": "720"}),
    ),
    line(
        "`shakespeare-gpt` in 260 steps; its seconds over PyTorch's, without import and compiling",
        "{0[loss]:.3f}, {0[seconds]:.1f}; {0[seconds_of_peer]:.2f}, {0[train_seconds_of_peer]:.2f}",
        Case(SHAKESPEARE, {"steps": "260"}),
    ),
    line(
        "all free: Llama's blocks, 4x128, in 1,210 steps; in 2,250",
        "{0[loss]:.3f}, {0[seconds]:.0f}; {1[loss]:.3f}, {1[seconds]:.0f} ({1[nominal_minutes]:.1f} nominal minutes)",
        Case(FREE, {"steps": "1210"}), Case(FREE, {"steps": "2250"}),
    ),
)  # fmt: skip
# A recipe compiled for chips that are not there, and its case.
TPUS: tuple[tuple[str, Case], ...] = (
    *(
        (r, Case("tpu", {"recipe": r, "mesh": "data=8"}))
        for r in ("imagenet-resnet50", "lstm", "multi30k-gru", "gpt2-medium")
    ),
    *((r, Case(c, {"recipe": r})) for r in ("gpt2-medium", "imagenet-resnet50") for c in PODS),
)


def cases(name: str) -> list[str]:
    """The commands of a benchmark's cases, each once."""
    found = [f"{kind} {flags}" for _, flags, also in STEPS for kind in kinds(also)]
    found += [case.command for entry in LINES for case in entry.cases]
    found += [case.command for _, case in TPUS]
    return [command for command in dict.fromkeys(found) if shlex.split(command)[0] == name]


def kinds(forward: bool) -> tuple[str, ...]:
    return ("train-step", "forward") if forward else ("train-step",)


@functools.cache
def settings(command: str) -> tuple[pathlib.Path, dict[str, str], int]:
    """The file that a command appends to; its settings as that file's columns have them, but for those that say how
    often and with what seed it measures; and how often that is."""
    import tyro

    name, *flags = shlex.split(command)
    config: Any = tyro.cli(suite.benchmarks()[name].config, args=flags, prog=name)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    path, rounds = pathlib.Path(values.pop("output")), values.get("rounds", 0)
    return path, {k: cell(v) for k, v in values.items() if k not in suite.HOW and not isinstance(v, tuple)}, rounds


def newest(case: Case, quoted: Iterable[str] = ()) -> dict[str, Any] | None:
    """The case's row, numbers as such; None where there is none. `quoted` are the columns that it should have."""
    path, wanted, rounds = settings(case.command)
    if not path.is_file():
        return None
    wanted = {**wanted, **case.where}
    with path.open(newline="") as file:
        everything = list(csv.DictReader(file))
    rows = [row for row in everything if all(row[k] == v for k, v in wanted.items() if k in row)]
    if not rows:
        return None

    runs = collections.Counter(tuple(run_of(row).values()) for row in everything)

    def worth(row: dict[str, str]) -> tuple[bool, bool, bool, int]:
        enough = int(row.get("rounds") or rounds) >= rounds
        return all(row[name] for name in quoted), enough, quiet(row), runs[tuple(run_of(row).values())]

    return {name: _number(text) for name, text in max(rows[::-1], key=worth).items()}


def run_of(row: Mapping[str, Any]) -> dict[str, str]:
    """What the rows of one run share: a ratio belongs beside its seconds."""
    return {name: str(row[name]) for name in ("date", "command") if name in row}


class Missing(str):
    """A figure that a row does not have."""

    def __format__(self, spec: str) -> str:
        return "-"


def _number(text: str) -> float | str:
    try:
        return float(text) if float(text) == float(text) else Missing()
    except ValueError:
        return text or Missing()


def measured(kind: str, flags: str) -> dict[str, dict[str, Any]]:
    """The newest run of a step or a forward pass: ours and its peers by name, {} where there is none."""
    case = Case(f"{kind} {flags}", {"framework": OURS})
    ours = newest(case)
    if ours is None:
        return {}
    peers = {name: newest(case._replace(where={"framework": name, **run_of(ours)})) for name in (*PEERS, *OTHERS)}
    return {OURS: ours, **{name: row for name, row in peers.items() if row is not None}}


def steps() -> tuple[list[str], list[Any], list[str]]:
    """The table of steps and forward passes, the rows that it quotes, and the commands that are not measured."""
    titles = ["a step, a forward pass", "ours, ms", "rounds", "compiled in", "takes, of memory; PyTorch's"]
    titles += [f"ours / {of}" for of in PEERS.values()] + ["ours / others'"]
    lines, missing = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"], []
    used: list[Any] = []
    for what, flags, also in STEPS:
        for kind in kinds(also):
            found = measured(kind, flags)
            label = what if kind == "train-step" else "forward"
            if not found:
                lines.append(f"| {label} | {MISSING}" + " |" * (len(titles) - 1))
                missing.append(f"{kind} {flags}")
                continue
            ours = found[OURS]
            cells = [label, "{ms:,.1f}", "{rounds:.0f}", "{compile_seconds:.1f} s"]
            cells = [cell.format(**ours) for cell in cells]
            taken = [f"{row['taken_mb']:,.0f}" for row in (ours, found.get("torch")) if row]
            cells.append("; ".join(taken) + " MB")
            cells += [RATIO.format(found[name]) if name in found else "" for name in PEERS]
            cells.append("; ".join(f"{name} {RATIO.format(found[name])}" for name in OTHERS if name in found))
            lines.append(f"| {' | '.join(cells)} |")
            used += found.values()
    return lines, used, missing


def figures() -> tuple[list[str], list[Any], list[str]]:
    """The same of LINES; long commands stand below."""
    lines, used, missing = ["| what | figure | command |", "|---|---|---|"], [], []
    notes: dict[str, int] = {}
    for what, text, all_cases in LINES:
        quoted = [
            {name for at, name in re.findall(r"\{(\d+)\[(\w+)", text) if int(at) == i} for i in range(len(all_cases))
        ]
        rows = [newest(case, columns) for case, columns in zip(all_cases, quoted, strict=True)]
        commands = list(dict.fromkeys(case.command for case in all_cases))
        shown = [
            f"`{command}`" if len(command) <= LONGEST else f"({notes.setdefault(command, len(notes) + 1)})"
            for command in commands
        ]
        missing += [case.command for case, row in zip(all_cases, rows, strict=True) if row is None]
        lines.append(f"| {what} | {text.format(*rows) if all(rows) else MISSING} | {', '.join(shown)} |")
        used += [row for row in rows if row is not None and all(rows)]
    return [*lines, "", *(f"{n}. `{command}`" for command, n in notes.items())], used, missing


def tpus() -> tuple[list[str], list[Any], list[str]]:
    """The same of TPUS."""
    titles = ["compiled for TPUs by `tpu`", "chips, mesh", "MB a chip", "least ms a step, by", "largest batch"]
    titles += ["Flax's layers: MB a chip", "least ms a step, by"]
    lines, used, missing = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"], [], []
    for recipe, case in TPUS:
        ours, theirs = (
            newest(case._replace(where={**case.where, "framework": framework}), ("largest_batch",))
            for framework in (OURS, "flax.linen")
        )
        if ours is None:
            lines.append(f"| `{recipe}` | {MISSING}" + " |" * (len(titles) - 1))
            missing.append(case.command)
            continue
        cells = [f"`{recipe}`, batch {ours['batch_size']:,.0f}", f"{ours['topology']}, `{ours['mesh']}`"]
        for row in filter(None, (ours, theirs)):
            cells.append(f"{row['peak_mb']:,.0f}" + ("" if row["fits"] == "True" else ", more than it has"))
            cells.append(f"{row['roofline_ms']:.4g}, {row['bound']}")
            cells += [f"{row['largest_batch']:,.0f}"] if row is ours else []
            used.append(row)
        lines.append(f"| {' | '.join(cells)}" + " |" * (1 + len(titles) - len(cells)))
    return lines, used, missing


def markdown() -> str:
    """The tables, and where and with what they were measured."""
    parts = steps(), figures(), tpus()
    used = [row for _, rows, _ in parts for row in rows]
    shown = f"![our seconds over theirs]({PICTURE.relative_to(README.parent)})\n\n"
    return shown + "\n".join(line for lines, _, _ in parts for line in (*lines, "")) + "\n".join(["", *_places(used)])


def _places(rows: list[Any]) -> list[str]:
    """A line for each machine and set of versions that something was timed on."""
    keys = ("machine", "python", "jax", "flax", "torch")
    found: dict[tuple, list[float]] = {}
    for row in rows:
        rates = [value for name, value in row.items() if name.startswith("gflops") and isinstance(value, float)]
        found.setdefault(tuple(row[key] for key in keys), []).extend(rates)
    return [
        f"- {machine}, {min(rates):.0f} to {max(rates):.0f} GFLOP/s of float32 matrix product; Python {python}, JAX "
        f"{jax}, Flax {flax}" + (f", PyTorch {torch}" if torch else "")
        for (machine, python, jax, flax, torch), rates in sorted(found.items())
        if rates
    ]


def drawn() -> list[list[Any]]:
    """What the picture shows: kind, what was timed, peer, and the ratio with its percentiles."""
    return [
        [kind, what.replace("`", ""), name, *(row[f"ratio{part}"] for part in ("", "_p10", "_p90"))]
        for what, flags, also in STEPS
        for kind in kinds(also)
        for name, row in measured(kind, flags).items()
        if name != OURS
    ]


def draw(path: pathlib.Path) -> None:
    """The picture of `drawn`, which it has in its description too."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    found, labels = drawn(), [what.replace("`", "") for what, _, _ in STEPS]
    figure, axes = plt.subplots(1, 2, figsize=(11, 1 + 0.4 * len(labels)), sharey=True, layout="constrained")
    peers, titles = [*PEERS, *OTHERS], {"train-step": "a training step", "forward": "a forward pass"}
    for kind, what, peer, ratio, low, high in found:
        axis, i = axes[list(titles).index(kind)], peers.index(peer)
        place, color = labels.index(what) + 0.15 * (i - 2), f"C{i}"
        axis.plot((low, high), (place, place), color=color, linewidth=5, alpha=0.35, solid_capstyle="butt")
        axis.plot(ratio, place, "o", color=color, markersize=4)
    for axis, title in zip(axes, titles.values(), strict=True):
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


@dataclasses.dataclass(frozen=True)
class ReadmeConfig:
    """Writes the tables of figures in README.md and the picture anew, from the rows in benchmarks/results."""

    path: str = str(README)  # the file, which has the marks between which the table lies


def write(config: ReadmeConfig) -> None:
    """Replaces what lies between the marks, draws the picture, prints what is not measured; ZooError without marks."""
    path = pathlib.Path(config.path)
    path.write_text(replaced(path.read_text(), config.path))
    draw(PICTURE)
    for command in dict.fromkeys(command for part in (steps(), figures(), tpus()) for command in part[2]):
        print(f"{MISSING}: python -m benchmarks {command}")


def replaced(text: str, name: str = "README.md") -> str:
    """The text with the table between its marks made anew."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ZooError(f"{name!r} must have the marks {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{markdown()}\n\n{END}{rest.split(END)[1]}"
