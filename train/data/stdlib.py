"""The sources of Python's own standard library: about two million characters of text that every machine has.

The modules exist in Python 3.11 to 3.13, but their text differs with the version down to the patch, so a digest and the
version stand in the data set's name. What is not ASCII, in comments and tests of encodings, becomes a question mark.
"""

import hashlib
import pathlib
import platform
import sysconfig

from zoo.errors import ZooError

TRAIN = (
    *("argparse", "ast", "base64", "bdb", "calendar", "cmd", "codecs", "configparser", "contextlib", "csv"),
    *("dataclasses", "difflib", "dis", "doctest", "enum", "fileinput", "fractions", "ftplib", "functools", "gettext"),
    *("gzip", "heapq", "imaplib", "inspect", "ipaddress", "mailbox", "optparse", "pdb", "pickle", "pickletools"),
    *("plistlib", "pprint", "random", "shutil", "smtplib", "socket"),
)
VALIDATION = ("statistics", "subprocess", "tarfile", "textwrap")  # held out whole


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
