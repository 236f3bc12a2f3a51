"""python -m benchmarks list | run NAME... | NAME [flags] | compare A.csv B.csv | plot FILE | docs"""

import os
import sys

from flaxzoo import check_names

if __name__ == "__main__":
    check_names("train", "zoo")

from train.memory import use_large_pages
from zoo.errors import exit_status, unknown

CACHED = ("start", "shakespeare", "quality")  # these time whole runs, with the cache of compiled programs


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    args = sys.argv[1:] if argv is None else argv
    return exit_status(lambda: _run(args), "benchmarks need the extra: pip install '.[benchmarks]'")


def _run(args: list[str]) -> None:
    import tyro

    found = commands()
    if not args or args[0] in ("list", "-h", "--help"):
        for name, command in found.items():
            print(f"python -m benchmarks {name:<14} {(command.config.__doc__ or '').splitlines()[0]}")
        return
    if args[0] not in found:
        raise unknown("benchmark", args[0], [*found, "list"])
    config, run = found[args[0]]
    if args[0] not in CACHED:
        import jax

        jax.config.update("jax_enable_compilation_cache", False)  # compile times, not look-ups
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    run(tyro.cli(config, args=args[1:], prog=f"python -m benchmarks {args[0]}"))


def commands() -> dict:
    """All commands by name: those that measure, and those that use the results."""
    from benchmarks import campaign, compare, parity, table
    from benchmarks.suite import Command, benchmarks

    return {
        **benchmarks(),
        "run": Command(campaign.RunConfig, campaign.run),
        "compare": Command(compare.CompareConfig, compare.run),
        "plot": Command(compare.PlotConfig, compare.plot),
        "parity": Command(parity.ParityConfig, parity.run),
        "docs": Command(table.DocsConfig, table.draw),
    }


if __name__ == "__main__":
    use_large_pages()  # like the trainer
    sys.exit(main())
