"""The cases that `python -m benchmarks run` measures and README quotes: STEPS, LINES and TPUS.

A case is what follows `python -m benchmarks`.
"""

import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

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
            f"checkpoint {name}",
        )
        for name in ("resnet50", "lstm_lm", "seq2seq_gru_attention", "nanogpt")
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


def of(name: str) -> list[str]:
    """The commands of a benchmark's cases, each once."""
    found = [f"{kind} {flags}" for _, flags, also in STEPS for kind in kinds(also)]
    found += [case.command for entry in LINES for case in entry.cases]
    found += [case.command for _, case in TPUS]
    return [command for command in dict.fromkeys(found) if shlex.split(command)[0] == name]


def kinds(forward: bool) -> tuple[str, ...]:
    return ("train-step", "forward") if forward else ("train-step",)
