"""The cases that `python -m benchmarks run` measures and the docs quote: STEPS, LINES, TPUS and QUALITY.

A case is a command without `python -m benchmarks`.
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
# The label, the flags of `train-step`, and whether `forward` is timed with the same flags.
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
        "`multi30k-transformer`'s model without dropout, batch 64, length 24",
        f"transformer_base --args {PIECES} --size 24",
        True,
    ),
)
OVERHEAD = "{0[overhead]:.3f} ({0[overhead_p10]:.3f} to {0[overhead_p90]:.3f})"
RATIO = "{0[ratio]:.2f} ({0[ratio_p10]:.2f} to {0[ratio_p90]:.2f})"
SPEEDS = "{0[ours_tokens_per_s]:,.0f} and {0[torch_tokens_per_s]:,.0f}; {1[ours_tokens_per_s]:,.0f} and "
SPEEDS += "{1[torch_tokens_per_s]:,.0f}"
PODS = tuple(
    f"tpu --topology {pod} --recipe gpt2-medium imagenet-resnet50 --no-peer --no-largest"
    for pod in ("v5e:4x4 --mesh data=4,fsdp=4", "v5p:2x2x2 --mesh data=2,fsdp=4")
)


class Case(NamedTuple):
    """A command, and the columns that distinguish its row from others that the command appends."""

    command: str
    where: Mapping[str, str] = MappingProxyType({})


class Line(NamedTuple):
    """A line of a table: what was measured, the result as a format string over the rows of the cases, the cases."""

    what: str
    figures: str
    cases: tuple[Case, ...]


def line(what: str, figures: str, *cases: str | Case) -> Line:
    return Line(what, figures, tuple(case if isinstance(case, Case) else Case(case) for case in cases))


LINES: tuple[Line, ...] = (
    line("training loop, seconds over those of the compiled step alone: `cnn`", OVERHEAD, "loop --recipe cnn"),
    *(
        line(f"training loop: `{recipe}`", OVERHEAD, f"loop --recipe {recipe} --steps {steps} --rounds 6")
        for recipe, steps in (("cifar10", 100), ("lstm", 50), ("transformer", 100))
        # not seq2seq, whose batches have several widths
    ),
    line("`import zoo`, seconds beyond `import jax, flax`", "{0[import_zoo_seconds]:.2f}", "start"),
    *(
        line(
            f"`{recipe}`, {steps} steps: seconds in total, in the first step; cold start; with the compilation cache",
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
            f"batches of {what} per second; PyTorch's DataLoader{but}",
            "{0[ours_batches_per_s]:,.0f}; {0[torch_batches_per_s]:,.0f}",
            f"pipeline {recipe}",
        )
        for what, recipe, but in (
            ("images", "cifar10", ""), ("pairs", "seq2seq", ", which pads every batch to the longest text of all")
        )
    ),
    line("batches of text per second", "{0[ours_batches_per_s]:,.0f}", "pipeline lstm"),
    *(
        line(
            f"loading `{name}`'s weights{but}, MB/s: ours; {library}; reading only; peak memory over the file's",
            "{0[ours_mb_per_s]:,.0f}; {0[library_mb_per_s]:,.0f}; {0[read_mb_per_s]:,.0f}; {0[ours_peak]:.2f}",
            f"weights {name}{flags}",
        )
        for name, library, but, flags in (
            ("resnet50", "timm's `create_model`", "", ""),
            ("bert_base", "transformers' `from_pretrained`", "", ""),
            ("smollm2_135m", "transformers' `from_pretrained`", "", ""),
            ("llama3_1b", "transformers' `from_pretrained`", " in bfloat16", " --args param_dtype=bfloat16 --rounds 3"),
        )
    ),
    *(
        line(
            f"checkpoint of `{name}` and Adam's state, MB/s saved, restored: ours with digests; torch.save, torch.load",
            "{0[ours_save_mb_per_s]:,.0f}, {0[ours_restore_mb_per_s]:,.0f}; {0[torch_save_mb_per_s]:,.0f}, "
            "{0[torch_restore_mb_per_s]:,.0f}",
            f"checkpoint {name}",
        )
        for name in ("resnet50", "lstm_lm", "seq2seq_gru_attention", "nanogpt")
    ),
    line(
        "temporary memory of a step, `lstm_lm` 2x512 at length 1,024: ours; Flax's layers",
        "{0[temporary_mb]:,.0f}; {1[temporary_mb]:,.0f} MB",
        *(Case(LONG, {"framework": framework}) for framework in ("flaxzoo", "flax")),
    ),
    line("sampling, characters/s, ours and PyTorch's: LSTM 2x512; 1x128", SPEEDS, "sampling", f"sampling {SMALL}"),
    line(
        "temporary memory of a GPT's step, 4x128, batch 1, at 1,024 and 4,096 tokens: blocked attention; full matrix",
        "{0[temporary_mb]:,.0f}, {1[temporary_mb]:,.0f} MB; {2[temporary_mb]:,.0f}, {3[temporary_mb]:,.0f} MB",
        *(Case("memory", {"attention": a, "length": n}) for a in ("blocked", "xla") for n in ("1024", "4096")),
    ),
    line(
        "state, peak memory of a GPT's step per device, 8x512, batch 16: one device; `data=8`; `fsdp` over 2; 4; 8",
        "; ".join(f"{{{i}[state_mb]:,.0f}}, {{{i}[peak_mb]:,.0f}}" for i in range(5)) + " MB",
        *(
            Case("savings", {"way": way})
            for way in ("plain", "data=8", "data=4,fsdp=2", "data=2,fsdp=4", "fsdp=8")
        ),
    ),
    line(
        "peak memory over the plain step's: four micro-batches; scanned layers, `remat=dots`; `remat=full`",
        "{0[peak_share]:.2f}; {1[peak_share]:.2f}; {2[peak_share]:.2f}",
        *(
            Case("savings", {"way": way})
            for way in ("accumulate=4", "scan_layers, remat=dots", "scan_layers, remat=full")
        ),
    ),
    line(
        "seconds to trace + compile a GPT's step of 12, 48 layers: looped; scanned",
        "; ".join(
            ", ".join(f"{{{i}[trace_seconds]:.1f}} + {{{i}[compile_seconds]:.1f}}" for i in (j, j + 1)) for j in (0, 2)
        ),
        *(
            Case("compile", {"scan_layers": scan, "num_layers": depth})
            for scan in ("False", "True") for depth in ("12", "48")
        ),
    ),
    line(
        "greedy decoding of `smollm2_135m`, tokens/s, ours and transformers': batch 1; 16",
        "; ".join(f"{{{i}[ours_tokens_per_s]:.0f}} and {{{i}[peer_tokens_per_s]:.0f}}" for i in range(2)),
        "decoding", "decoding --batch-size 16",
    ),
    line(
        "the same in bfloat16, ours only",
        "{0[bfloat16_tokens_per_s]:.0f}; {1[bfloat16_tokens_per_s]:.0f}",
        "decoding", "decoding --batch-size 16",
    ),
    *(
        line(
            f"decoding of `{recipe}`, sentences/s, ours and PyTorch's, 8 to 24 random tokens to 32: greedy; beam 5",
            "; ".join(
                f"{{{i}[ours_sentences_per_s]:.0f}} and {{{i}[torch_sentences_per_s]:.0f}}" for i in range(2)
            ),
            *(Case(f"translating --recipe {recipe}", {"beams": beams}) for beams in ("1", "5")),
        )
        for recipe in ("multi30k-gru", "multi30k-transformer")
    ),
    line(
        "nanoGPT's recipe for a CPU in PyTorch, 2,000 steps: loss, seconds",
        "{0[loss]:.3f}, {0[seconds]:.1f}",
        Case(SHAKESPEARE, {**NANOGPT, "steps": "2000"}),
    ),
    line(
        "`shakespeare-gpt`, the same model and text in about that time: loss, seconds",
        "{0[loss]:.3f}, {0[seconds]:.1f}",
        Case(SHAKESPEARE, {"steps": "720"}),
    ),
    line(
        "`shakespeare-gpt`, 260 steps: loss, seconds; seconds over PyTorch's in total, of the steps alone",
        "{0[loss]:.3f}, {0[seconds]:.1f}; {0[seconds_of_peer]:.2f}, {0[train_seconds_of_peer]:.2f}",
        Case(SHAKESPEARE, {"steps": "260"}),
    ),
    line(
        "Llama's blocks on the same text, 4x128: loss, seconds after 1,210 steps; after 2,250",
        "{0[loss]:.3f}, {0[seconds]:.0f}; {1[loss]:.3f}, {1[seconds]:.0f} ({1[nominal_minutes]:.1f} nominal minutes)",
        Case(FREE, {"steps": "1210"}), Case(FREE, {"steps": "2250"}),
    ),
)  # fmt: skip
# Recipes compiled for TPUs, and their cases.
TPUS: tuple[tuple[str, Case], ...] = (
    *(
        (r, Case("tpu", {"recipe": r, "mesh": "data=8"}))
        for r in ("imagenet-resnet50", "lstm", "multi30k-gru", "gpt2-medium")
    ),
    *((r, Case(c, {"recipe": r})) for r in ("gpt2-medium", "imagenet-resnet50") for c in PODS),
)

COSTLY = ("gpt2-medium", "imagenet-resnet50")  # recipes whose chip-hours the docs quote
# The result of a recipe as a format string over the means of its rows in quality.csv; shares are percentages.
QUALITY: dict[str, str] = {
    "cnn": "{accuracy:.1f} %",
    "digits-finetune": "{accuracy:.1f} %",
    "digits-distill": "{accuracy:.1f} %",
    "digit-scenes": "mean average precision {mean_average_precision:.3f}",
    "membrane": "mean IoU {mean_iou:.3f}",
    "mackey-glass": "NRMSE {nrmse:.4f}",
    "mnist": "{accuracy:.2f} %",
    "mnist-lenet": "{accuracy:.2f} %",
    "cifar10": "{accuracy:.1f} %; last weights {last_accuracy:.1f} %",
    "cifar10-airbench": "{accuracy:.1f} %",
    "cifar10-resnet20": "{accuracy:.1f} %",
    "vit": "{accuracy:.1f} %; validation {validation_accuracy:.1f} %",
    "lstm": "validation {validation_loss:.3f} nats, {validation_bits_per_character:.2f} bits per character",
    "transformer": "validation {validation_loss:.3f} nats, {validation_bits_per_character:.2f} bits per character",
    "shakespeare-gpt": "{loss:.3f} nats; validation {validation_loss:.3f}",
    "shakespeare-lstm": "{loss:.3f} nats; validation {validation_loss:.3f}",
    "masked-lm": "validation {validation_loss:.3f} nats",
    "lstm-classify": "{accuracy:.1f} %",
    "lstm-sentiment": "{accuracy:.1f} %; validation {validation_accuracy:.1f} %",
    "bert-sst2": "{accuracy:.1f} %; validation {validation_accuracy:.1f} %",
    "seq2seq": "{exact_match:.2f} % exact",
    "multi30k-gru": "{bleu:.1f} BLEU",
    "multi30k-transformer": "{bleu:.1f} BLEU",
    "cmudict-transformer": "{wrong:.1f} % of words wrong, {error_rate:.1f} % of phones",
}


def of(name: str) -> list[str]:
    """The commands of a benchmark's cases, without duplicates."""
    found = [f"{kind} {flags}" for _, flags, also in STEPS for kind in kinds(also)]
    found += [case.command for entry in LINES for case in entry.cases]
    found += [case.command for _, case in TPUS]
    return [command for command in dict.fromkeys(found) if shlex.split(command)[0] == name]


def kinds(forward: bool) -> tuple[str, ...]:
    return ("train-step", "forward") if forward else ("train-step",)
