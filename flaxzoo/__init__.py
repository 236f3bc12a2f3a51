"""The command `flaxzoo`, and what keeps a user's files from standing in for our packages."""

import importlib.util
import pathlib
import sys


def check_names(*packages: str) -> None:
    """Ends with one line and status 2 where Python would import another file under the name of one of our packages.

    `python -m` looks into the current folder first, so a `zoo.py` there would be imported, and run, as our `zoo`.
    """
    ours = pathlib.Path(__file__).resolve().parents[1]
    for name in packages:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or [])]
        found = pathlib.Path(next((place for place in places if place), name)).resolve()
        if not found.is_relative_to(ours / name):
            print(
                f"error: {str(found)!r} has the name of our package {name} and comes before it: rename it, or use the "
                "command flaxzoo, which does not look into the current folder",
                file=sys.stderr,
            )
            raise SystemExit(2)
