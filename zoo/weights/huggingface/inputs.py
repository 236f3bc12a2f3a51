"""How a folder of Hugging Face's reads raw data: tokenizer.json of a text model, preprocessor_config.json of images."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.errors import ZooError
from zoo.files import read_json
from zoo.hub import VOCABULARIES
from zoo.inputs import ImageInputs, ImageTextInputs, Inputs, TextToTextInputs
from zoo.inputs.image_file import Interpolation
from zoo.inputs.text import MOST_LENGTH, TextInputs, read_tokenizer
from zoo.inputs.vocabulary_files import side_of
from zoo.registry import ModelInfo, model_info
from zoo.transformer.clip import CLIP
from zoo.transformer.encoder_decoder import SourceToTarget
from zoo.weights.huggingface.sentences import most_tokens

RESAMPLE: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic")  # Pillow's numbers
MOST_CLASSES = 2**22  # whose labels are made


def inputs_of(folder: str | os.PathLike, name: str, fields: Mapping[str, Any]) -> Inputs | None:
    """The inputs of a registered model with these fields; None where the folder has no file that describes them.

    Texts have at most the model's `max_length` tokens. ZooError for a damaged file.
    """
    folder, info = pathlib.Path(folder), model_info(name)
    labels = _labels(folder, fields.get("num_classes"))
    if np.dtype(info.input_dtype).kind != "i":
        side = fields.get("image_size", info.input_shape[0])
        images = image_inputs(folder, (side, side, 3), labels)
        if images is None or not issubclass(info.module_class, CLIP):
            return images
        texts = _texts(folder, info, fields, ())
        return None if texts is None else ImageTextInputs(images, texts)
    if issubclass(info.module_class, SourceToTarget):
        return _pairs(folder, info, fields)
    return _texts(folder, info, fields, labels)


def _pairs(folder: pathlib.Path, info: ModelInfo, fields: Mapping[str, Any]) -> TextToTextInputs | None:
    """Sources and targets of an encoder-decoder, with what generation_config.json, or of old config.json, chooses."""
    if (folder / "source.spm").is_file():
        separate = (folder / "target_vocab.json").is_file()
        length = most_tokens(folder, fields["max_length"])
        sides = ("source.spm", "vocab.json"), ("target.spm", "target_vocab.json" if separate else "vocab.json")
        (reads, ids), (writes, own) = (side_of(folder, *side, read=side is sides[0]) for side in sides)
        rows = fields.get("source_vocab_size") or fields["vocab_size"], fields["vocab_size"]
        for (_, file), found, most in zip(sides, (ids, own), rows, strict=True):
            if len(found) > most:
                raise ZooError(f"{str(folder / file)!r} has {len(found)} tokens, more than the model, which has {most}")
        source, target = (TextInputs("unigram", vocabulary, length) for vocabulary in (reads, writes))
        unknown = None if source.vocab_size == len(ids) else (len(ids), ids["<unk>"])
    else:
        texts = _texts(folder, info, fields, ())
        if texts is None:
            return None
        source, target, unknown = texts, texts, None
    path = folder / "generation_config.json"
    try:
        about = {**read_json(folder / "config.json"), **(read_json(path) if path.is_file() else {})}
        first, end = about["decoder_start_token_id"], about["eos_token_id"]
        decoding: dict[str, Any] = {
            "beam_size": about.get("num_beams") or 1,
            "length_penalty": float(about.get("length_penalty") or 1.0),
            "length_penalty_form": "length",
            "early_stopping": about.get("early_stopping") or False,
        }
        if (least := about.get("min_length") or 0) > 1:
            decoding["min_length"] = least - 1  # theirs counts the first token, which is given
        if (ngram := about.get("no_repeat_ngram_size")) not in (None, 0):
            decoding["no_repeat_ngram"] = ngram
        if (forced := about.get("forced_bos_token_id")) is not None:
            decoding["forced_first"] = forced
        if (penalty := float(about.get("repetition_penalty") or 1.0)) != 1:
            decoding["repetition_penalty"] = penalty
        if banned := tuple(words[0] for words in about.get("bad_words_ids") or () if len(words) == 1):
            decoding["banned"] = banned
        most = about.get("max_new_tokens") or (about.get("max_length") or fields["max_length"] + 1) - 1
        target = dataclasses.replace(target, length=min(most, fields["max_length"]))
        if about.get("forced_eos_token_id") is not None and target.length > 1:
            decoding["end_after"] = target.length - 1
        ends = end if isinstance(end, list) else [end]
        return TextToTextInputs(source, target, first, ends[0], tuple(decoding.items()), unknown)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ZooError(f"{str(folder)!r} does not say how its model decodes: {error!r:.120}") from None


def _texts(
    folder: pathlib.Path, info: ModelInfo, fields: Mapping[str, Any], labels: tuple[str, ...]
) -> TextInputs | None:
    if not any(any(folder.glob(name)) for name in ("tokenizer.json", *VOCABULARIES)):
        return None
    length = most_tokens(folder, min(fields.get("max_length", info.input_shape[0]), MOST_LENGTH))
    inputs = read_tokenizer(folder, length, labels)
    if inputs.vocab_size > fields["vocab_size"]:
        raise ZooError(
            f"{str(folder)!r} has {inputs.vocab_size} tokens in its vocabulary, more than the model, which has "
            f"{fields['vocab_size']}"
        )
    return _with_chat(folder, inputs)


def _with_chat(folder: pathlib.Path, inputs: TextInputs) -> TextInputs:
    """The inputs with the chat template and the tokens around a text, where tokenizer_config.json names them."""
    path, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    if not path.is_file():
        return inputs
    try:
        config = read_json(path)
        chat = config.get("chat_template") or ""
        if isinstance(chat, list):  # several by name
            chat = next((one["template"] for one in chat if one["name"] == "default"), "")
        if template.is_file():
            chat = template.read_text("utf-8")
        tokens: dict[str, Any] = {}
        for ours, theirs in (("begin_token", "bos_token"), ("end_token", "eos_token")):
            token = config.get(theirs) or ""
            tokens[ours] = token["content"] if isinstance(token, dict) else token
        found = dataclasses.replace(inputs, chat_template=chat, **tokens)
        if found.end_token and found.end is None:
            raise ValueError(f"its eos_token {found.end_token!r} is not in the vocabulary")
        return found
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ZooError(f"{str(path)!r} does not fit the tokenizer: {error!s:.120}") from None


def numbered(classes: int) -> tuple[str, ...]:
    """The labels of classes without names: 0, 1, ...; ZooError for more than anybody has."""
    if not 0 <= classes <= MOST_CLASSES:
        raise ZooError(f"{classes:,} classes are not between 0 and {MOST_CLASSES:,}")
    return tuple(map(str, range(classes)))


def image_inputs(folder: pathlib.Path, shape: tuple[int, int, int], labels: tuple[str, ...]) -> ImageInputs | None:
    """Images of `shape`, normalised as preprocessor_config.json says; None where there is none, or it names no mean."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    try:
        config = read_json(path)
        mean, std = config.get("image_mean"), config.get("image_std")
        if config.get("do_normalize") is False:
            mean, std = [0.0] * shape[-1], [1.0] * shape[-1]
        if mean is None or std is None:
            return None
        factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
        unit = round(255 * factor, 9)
        size, cut, crop = config.get("size") or {}, config.get("crop_size") or shape[0], None
        if isinstance(size, int):  # of old files
            size = {"height": size}
        if "shortest_edge" in size and config.get("do_center_crop", True):
            cut, edge = cut["height"] if isinstance(cut, dict) else cut, size["shortest_edge"]
            crop = cut / edge
            crop = crop if cut / crop >= edge else math.nextafter(crop, 0)  # so that the edge is not rounded down
        return ImageInputs(
            shape,
            tuple(m / unit for m in mean),
            tuple(s / unit for s in std),
            labels,
            crop=crop,
            interpolation=RESAMPLE[config.get("resample", 2)],
            squash="height" in size,
            margin="down",
        )
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, ZeroDivisionError) as error:
        raise ZooError(f"{str(path)!r} describes no images: {error!s:.120}") from None


def _labels(folder: pathlib.Path, classes: Any) -> tuple[str, ...]:
    """The classes' names in config.json, or their numbers where it names others than the model has."""
    names = read_json(folder / "config.json").get("id2label")
    numbers = numbered(classes or 0)
    named = isinstance(names, dict) and set(names) == set(numbers)
    return tuple(str(names[number]) for number in numbers) if named else numbers
