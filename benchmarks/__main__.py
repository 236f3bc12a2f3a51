"""python -m benchmarks list | run NAME... | NAME [flags] | compare A.csv B.csv | plot FILE | readme"""

import sys

from train.memory import use_large_pages
from zoo.errors import ZooError, unknown


def main(argv: list[str] | None = None) -> int:
    """Runs one command; 0, or 2 for a user's mistake."""
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

    from benchmarks.suite import commands

    if not args or args[0] in ("list", "-h", "--help"):
        for name, command in commands().items():
            print(f"python -m benchmarks {name:<14} {(command.config.__doc__ or '').splitlines()[0]}")
        return
    if args[0] not in commands():
        raise unknown("benchmark", args[0], [*commands(), "list"])
    config, run = commands()[args[0]]
    run(tyro.cli(config, args=args[1:], prog=f"python -m benchmarks {args[0]}"))


if __name__ == "__main__":
    use_large_pages()  # as the trainer has them
    sys.exit(main())
