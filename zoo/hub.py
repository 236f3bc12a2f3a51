"""Public repositories of the Hugging Face Hub as local folders, through `huggingface_hub`.

Its cache and settings hold: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT. Only the files that describe a model and
its `.safetensors` are downloaded; what a cached revision has is not asked for again. Without a connection the cache is
used.
"""

import contextlib
import fnmatch
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from zoo.errors import ZooError, first_line
from zoo.files import read_json

PREFIX = "hf:"
ABOUT = (  # of a model: its fields, and how it reads data
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "*_Pooling/config.json"),
)
VOCABULARIES = (  # where there is no tokenizer.json
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("source.spm", "target.spm", "target_vocab.json", "*.tiktoken"),
)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_ADDRESS = re.compile(
    r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>[\w./-]+\.gguf))?(?:@(?P<revision>[\w][\w./-]*))?", re.ASCII
)


class Address(NamedTuple):
    """A repository of the Hub, or a `.gguf` file in it."""

    repository: str  # ORG/NAME
    revision: str | None = None  # a branch, a tag or a commit; default: main
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return PREFIX + self.repository + (f"/{self.file}" if self.file else "") + revision


def address_of(text: str) -> Address | None:
    """`hf:ORG/NAME`, `hf:ORG/NAME@REVISION` or `hf:ORG/NAME/FILE.gguf`, with or without `hf:`; None for another text.

    ZooError where the text begins with `hf:` and goes on otherwise.
    """
    found = _ADDRESS.fullmatch(text.removeprefix(PREFIX))
    if found is not None:
        return Address(found["repository"], found["revision"], found["file"])
    if text.startswith(PREFIX):
        raise ZooError(f"{text!r} is no repository of the Hub: write hf:ORG/NAME or hf:ORG/NAME@REVISION")
    return None


def local(weights: str | os.PathLike, check: Callable[[pathlib.Path], Any]) -> pathlib.Path | None:
    """The local path of weights: one that exists, or what `fetch` gives for an address; None for another text.

    A text without `hf:` whose first part is a folder here is a misspelt path rather than a repository.
    """
    path, text = pathlib.Path(weights).expanduser(), str(weights)
    if path.exists():
        return path
    address = address_of(text)
    if address is None:
        return None
    if text.startswith(PREFIX):
        return fetch(address, check)
    if path.parent.is_dir():
        return None
    try:
        return fetch(address, check)
    except ZooError as error:
        raise ZooError(f"there is no folder {text!r}, and {error}") from None


def fetch(address: Address, check: Callable[[pathlib.Path], Any]) -> pathlib.Path:
    """The local folder of a repository, or the local file of an address with one, downloaded if it is not cached.

    `check` gets the folder before the weights are there, and raises ZooError for a model that cannot be loaded.
    ZooError also for a repository or revision that does not exist or may not be read, or that has no `.safetensors`,
    and where neither the Hub nor a cached copy can be read.
    """
    hub = library()
    with refusals(address):
        listing = _listing(hub, address)
        if address.file is not None:
            _require(address, listing, [address.file])
            return _snapshot(hub, address, listing, [address.file]) / address.file
        _require_weights(address, listing)
        patterns = ABOUT if "tokenizer.json" in listing.names else (*ABOUT, *VOCABULARIES)
        about = [name for name in listing.names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        about += [INDEX] if SINGLE not in listing.names else []
        folder = _snapshot(hub, address, listing, about)
        check(folder)
        wanted = [SINGLE] if SINGLE in listing.names else _shards(folder / INDEX)
        _require(address, listing, wanted)
        return _snapshot(hub, address, listing, [*about, *wanted])


def library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ZooError("reading the Hub needs huggingface_hub: pip install 'flaxzoo[hub]'") from None
    return huggingface_hub


class Listing(NamedTuple):
    """The files of a repository, or those of them that are cached where the Hub cannot be reached."""

    names: list[str]
    cached: bool

    @property
    def has(self) -> str:
        return "has no cached copy of" if self.cached else "has no"


def _listing(hub: Any, address: Address) -> Listing:
    """What the Hub lists; what is cached, with a warning unless that is asked for, where it cannot be reached."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        about = hub.HfApi().model_info(address.repository, revision=address.revision)
        return Listing([sibling.rfilename for sibling in about.siblings or ()], False)
    except OfflineModeIsEnabled:
        why = ""
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise
        why = f"answers with status {error.response.status_code}"
    except Exception as error:  # of the HTTP library, which is another one in other versions of the client
        names = {kind.__name__ for kind in type(error).__mro__}
        if not names & {"TransportError", "RequestException", "ConnectionError"}:
            raise
        why = f"cannot be reached ({first_line(error)})"
    try:
        folder = _snapshot(hub, address, Listing([], True), [address.file or "config.json"])
    except LocalEntryNotFoundError:
        raise ZooError(
            f"{address} is not in the cache, and the Hub {why or 'is not asked, by HF_HUB_OFFLINE'}"
        ) from None
    if why:
        warnings.warn(f"the Hub {why}: {address} is read from the cache", stacklevel=6)
    return Listing([path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()], True)


def _snapshot(hub: Any, address: Address, listing: Listing, names: Sequence[str]) -> pathlib.Path:
    """The folder with the named files; those that are missing are downloaded."""
    found = hub.snapshot_download(
        address.repository, revision=address.revision, allow_patterns=list(names), local_files_only=listing.cached
    )
    return pathlib.Path(found)


def _require_weights(address: Address, listing: Listing) -> None:
    """ZooError for a repository without a description or weights that can be read, with what it has instead."""
    names = listing.names
    ggufs = [str(address._replace(file=name)) for name in names if name.endswith(".gguf")]
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if SINGLE not in names and INDEX not in names:
        hint = ""
        if ggufs:
            hint = f"; it has {', '.join(ggufs[:3])}"
        elif pickles:
            hint = (
                f", but {pickles[0]}, which may hold code; get it and run: python -m zoo convert {pickles[0]} {SINGLE}"
            )
        raise ZooError(f"{address} {listing.has} {SINGLE}{hint}")
    _require(address, listing, ["config.json"])


def _shards(index: pathlib.Path) -> list[str]:
    """The files that an index names and that lie beside it."""
    try:
        shards = sorted(set(read_json(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ZooError(f"{str(index)!r} is not a weights index: {error!r:.120}") from None
    return [name for name in shards if isinstance(name, str) and fnmatch.fnmatch(name, "*.safetensors")]


def _require(address: Address, listing: Listing, wanted: Sequence[str]) -> None:
    if lacking := [name for name in wanted if name not in listing.names]:
        ggufs = [name for name in listing.names if name.endswith(".gguf")]
        hint = f"; it has {', '.join(ggufs[:8])}" if lacking[0].endswith(".gguf") and ggufs else ""
        raise ZooError(f"{address} {listing.has} {lacking[0]}{hint}")


@contextlib.contextmanager
def refusals(address: Address, verb: str = "downloaded") -> Iterator[None]:
    """Turns what the client raises into a ZooError of one line."""
    from huggingface_hub import errors

    try:
        yield
    except ZooError:
        raise
    except errors.GatedRepoError:
        raise ZooError(f"{address} is gated: accept its conditions on its page, then set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise ZooError(f"the Hub has no {address}, or it is private: check the name, or set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        name = address._replace(revision=None)
        raise ZooError(f"{name} has no branch, tag or commit {address.revision!r}") from None
    except errors.LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise ZooError(f"{address} cannot be {verb}: {first_line(error.__cause__)}") from None
        raise ZooError(f"{address} is not in the cache") from None
    except errors.HFValidationError as error:
        raise ZooError(f"{address} is no name of a repository: {first_line(error)}") from None
    except (errors.HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        refused = getattr(getattr(error, "response", None), "status_code", 0) in (401, 403)
        hint = " (set HF_TOKEN to a token that permits it)" if refused else ""
        raise ZooError(f"{address} cannot be {verb}{hint}: {first_line(error)}") from None
