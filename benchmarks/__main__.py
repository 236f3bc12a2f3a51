"""python -m benchmarks list | NAME"""

import sys
from typing import Any

from train.memory import use_large_pages
from zoo.errors import ZooError, unknown


def main(argv: list[str] | None = None) -> int:
    """Runs one benchmark; 0, or 2 for a user's mistake."""
    args = sys.argv[1:] if argv is None else argv
    try:
        _run(args)
    except (ZooError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("zoo", "train", "benchmarks"):
            raise
        print(f"error: {error}; benchmarks need the extra: pip install '.[benchmarks]'", file=sys.stderr)
        return 2
    return 0


def _run(args: list[str]) -> None:
    import tyro

    from benchmarks import compiling, decoder, decoding, loop, quality, recurrent, shakespeare, train_step

    benchmarks: dict[str, tuple[Any, Any]] = {
        "train-step": (train_step.TrainStepConfig, train_step.run),
        "recurrent-step": (recurrent.RecurrentStepConfig, recurrent.run),
        "decoder-step": (decoder.DecoderStepConfig, decoder.run),
        "decoding": (decoding.DecodingConfig, decoding.run),
        "compile": (compiling.CompileConfig, compiling.run),
        "memory": (compiling.MemoryConfig, compiling.run_memory),
        "sampling": (recurrent.SamplingConfig, recurrent.run_sampling),
        "loop": (loop.LoopConfig, loop.run),
        "shakespeare": (shakespeare.ShakespeareConfig, shakespeare.run),
        "quality": (quality.QualityConfig, quality.run),
    }
    if not args or args[0] in ("list", "-h", "--help"):
        for name, (config, _) in benchmarks.items():
            print(f"python -m benchmarks {name:<14} {config.__doc__}")
        return
    if args[0] not in benchmarks:
        raise unknown("benchmark", args[0], [*benchmarks, "list"])
    config, run = benchmarks[args[0]]
    run(tyro.cli(config, args=args[1:], prog=f"python -m benchmarks {args[0]}"))


if __name__ == "__main__":
    use_large_pages()  # as the trainer has them
    sys.exit(main())
