"""The sources of Python's own standard library: about two million characters of text that every machine has.

The modules exist in Python 3.11 to 3.13, but their text differs with the version down to the patch, so a digest and the
version stand in the data set's name. What is not ASCII, in comments and tests of encodings, becomes a question mark.
"""

import ast
import hashlib
import pathlib
import platform
import sysconfig
import textwrap

from zoo.errors import ZooError

TRAIN = (
    *("argparse", "ast", "base64", "bdb", "calendar", "cmd", "codecs", "configparser", "contextlib", "csv"),
    *("dataclasses", "difflib", "dis", "doctest", "enum", "fileinput", "fractions", "ftplib", "functools", "gettext"),
    *("gzip", "heapq", "imaplib", "inspect", "ipaddress", "mailbox", "optparse", "pdb", "pickle", "pickletools"),
    *("plistlib", "pprint", "random", "shutil", "smtplib", "socket"),
)
VALIDATION = ("statistics", "subprocess", "tarfile", "textwrap")  # held out whole
LONGEST = 600  # characters of a function whose docstring is to be predicted
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "__pycache__"}


def load() -> tuple[str, dict[str, str]]:
    """The data set's name, with the Python version and a digest, and each module's source."""
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    missing = [module for module in (*TRAIN, *VALIDATION) if not (folder / f"{module}.py").is_file()]
    if missing:
        raise ZooError(
            f"this Python has no sources of {', '.join(missing)} in {str(folder)!r}; name another --data.path"
        )
    texts = {
        module: (folder / f"{module}.py").read_bytes().decode("utf-8").encode("ascii", "replace").decode()
        for module in (*TRAIN, *VALIDATION)
    }
    digest = hashlib.sha256("".join(texts.values()).encode()).hexdigest()[:12]
    return f"the standard library of Python {platform.python_version()} (sha256 {digest})", texts


def load_docstrings() -> tuple[str, dict[str, list[tuple[str, str]]]]:
    """A name, and pairs by split of the library's functions and the first lines of their docstrings.

    All functions of a file are in one split; of ten files one validates and one tests.
    """
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder)
        if not NOT_LIBRARY & {*parts.parts}:
            tenth = hashlib.sha256(str(parts).encode()).digest()[0] % 10
            splits[{0: "validation", 1: "test"}.get(tenth, "train")] += documented_functions(path.read_bytes())
    if not all(splits.values()):
        raise ZooError(f"this Python has no sources with docstrings in {str(folder)!r}; name another data.path")
    digest = hashlib.sha256(repr(splits).encode()).hexdigest()[:12]
    return f"docstrings of Python {platform.python_version()} (sha256 {digest})", splits


def documented_functions(source: bytes) -> list[tuple[str, str]]:
    """Pairs of a function without its docstring and the docstring's first line, for short functions with a body."""
    pairs = []
    lines = source.decode("utf-8", "replace").splitlines()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(node.body) > 1:
            first = (ast.get_docstring(node) or "").split("\n")[0].strip()
            if first:
                docstring = node.body[0]
                kept = lines[node.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : node.end_lineno]
                pairs.append((textwrap.dedent("\n".join(kept)), first))
    return [pair for pair in pairs if len(pair[0]) <= LONGEST]
