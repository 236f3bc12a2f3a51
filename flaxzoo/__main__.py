"""flaxzoo train ... | benchmark ... | list | show | predict | generate | chat | serve | translate | forecast | convert
| export | push

The same as `python -m train`, `python -m benchmarks` and `python -m zoo`, but the current folder is not searched for
modules: a train.py of your own there does no harm.
"""

import sys

from train.memory import use_large_pages


def main() -> int:
    """Runs the command of the arguments; returns its exit status."""
    first, rest = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if first in ("-h", "--help"):
        print(__doc__)
        return 0
    if first in ("train", "benchmark"):
        use_large_pages()
    if first == "train":
        from train.__main__ import main as train

        return train(rest)
    if first == "benchmark":
        from benchmarks.__main__ import main as benchmarks

        return benchmarks(rest)
    from zoo.__main__ import main as zoo

    return zoo([first, *rest])


if __name__ == "__main__":
    sys.exit(main())
