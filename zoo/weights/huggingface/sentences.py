"""The files of sentence-transformers beside a Transformer's: how states become the embedding of a text.

`modules.json` lists Transformer, Pooling and perhaps Normalize. A prompt that a model wants before its texts, as
"query: ", is the caller's to put there.
"""

import json
import pathlib
from typing import Any

from zoo.errors import ZooError
from zoo.files import read_json
from zoo.weights.huggingface.checks import count

_POOLINGS = {"mean": "mean", "cls": "token", "max": "max"}  # theirs to ours
_FLAGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
_MODULES = "modules.json"
_LENGTHS = {"sentence_bert_config.json": "max_seq_length", "tokenizer_config.json": "model_max_length"}


def fields(folder: pathlib.Path) -> dict[str, Any]:
    """The fields of an Encoder that a folder's modules.json describes; none where it has no such file.

    ZooError for another sequence of modules, and another pooling.
    """
    path = folder / _MODULES
    if not path.is_file():
        return {}
    try:
        modules = read_json(path)
        kinds = [module["type"].split(".")[-1] for module in modules]
        if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
            raise ValueError(f"modules must be Transformer, Pooling and perhaps Normalize, not {', '.join(kinds)}")
        config = read_json(folder / pathlib.Path(modules[1].get("path", "1_Pooling")).name / "config.json")
        flags = [name for name, chosen in config.items() if name.startswith("pooling_mode_") and chosen is True]
        pooling = config.get("pooling_mode") or [_FLAGS.get(name, name) for name in flags]
        pooling = pooling if isinstance(pooling, str) else ", ".join(pooling)
        if pooling not in _POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(_POOLINGS)}, not {pooling or 'none'}")
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ZooError(f"{str(path)!r}: {error!s:.160}") from None
    return {"output": "embedding", "pooling": _POOLINGS[pooling], "unit": len(kinds) == 3}


def most_tokens(folder: pathlib.Path, default: int) -> int:
    """The most tokens of a text that a folder's files name, at most `default`; ZooError for a damaged file."""
    found = [default]
    for path, key in ((folder / name, key) for name, key in _LENGTHS.items()):
        if path.is_file():
            try:
                found.append(count(read_json(path), key, default))
            except (ValueError, AttributeError) as error:
                raise ZooError(f"{str(path)!r}: {error!s:.120}") from None
    return min(found)


def write(model: Any, folder: pathlib.Path) -> None:
    """The files of a model whose output is an embedding."""
    kinds = ("Transformer", "Pooling", "Normalize")[: 3 if model.unit else 2]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    flags = {name: _POOLINGS[theirs] == model.pooling for name, theirs in _FLAGS.items()}
    contents: dict[str, Any] = {
        _MODULES: modules,
        "1_Pooling/config.json": {"word_embedding_dimension": model.hidden_size, **flags},
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
