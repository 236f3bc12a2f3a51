"""Translation of texts by an encoder-decoder and beam search."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from zoo.decode.beam import decode_sources
from zoo.errors import ZooError
from zoo.inputs.pairs import PairInputs
from zoo.inputs.text import padded, width_for
from zoo.inputs.text_to_text import TextToTextInputs
from zoo.run import Run


class Hypothesis(NamedTuple):
    """A target and its score: the log probability divided by the length penalty."""

    text: str
    score: float


def translate(
    run: Run,
    texts: Sequence[str | np.ndarray],
    *,
    num_best: int = 1,
    batch_size: int = 64,
    padded_to: Callable[[int, int], tuple[int, int]] | None = None,
    **options: Any,
) -> list[list[Hypothesis]]:
    """The `num_best` best targets of each source, best first, from a run of pairs or a published encoder-decoder as
    `zoo.load` returns it: translations, or summaries. A source is a text, or its token ids int32 [n].

    `options` are others of `zoo.decode.decode_sources`: beam_size (5), length_penalty (0.6), coverage_penalty,
    length_penalty_form, early_stopping, and constraints such as no_repeat_ngram. A published model's makers chose some
    of them, its `inputs.decoding`, which hold where nothing else is given. Sources of similar length are decoded
    together, in batches of a few widths, each in one dispatch; `padded_to` chooses the rows and the width of a batch by
    the number of its sources and the tokens of the longest. ZooError for a model that is not an encoder-decoder, a
    source that is empty or longer than the model accepts, and numbers out of range.
    """
    model, variables, inputs = run.model, run.variables, cast(PairInputs | TextToTextInputs, run.inputs)
    if not hasattr(model, "encode"):
        raise ZooError(f"{type(model).__name__} cannot translate: it is not an encoder-decoder")
    if batch_size < 1:
        raise ZooError(f"batch_size must be at least 1, not {batch_size}")
    chosen = dict(inputs.decoding) if isinstance(inputs, TextToTextInputs) else {}
    options = {"beam_size": 5, "length_penalty": 0.6, **chosen, **options}
    unknown = range(inputs.model_args()["vocab_size"], model.vocab_size)  # type: ignore[attr-defined]
    options["banned"] = (*options.get("banned", ()), *unknown)
    rows = [inputs.encode(text) if isinstance(text, str) else text for text in texts]
    order = np.argsort([len(row) for row in rows], kind="stable")
    found: list[list[Hypothesis]] = [[] for _ in rows]
    for start in range(0, len(rows), batch_size):
        places = order[start : start + batch_size]
        count, longest = len(places), len(rows[places[-1]])
        if padded_to is not None:
            size, width = padded_to(count, longest)
        else:
            width = min(width_for(longest), inputs.source.length)
            size = min(1 << (count - 1).bit_length(), batch_size)  # so that few sizes are compiled
        batch = [rows[place] for place in np.resize(places, size)]
        beams = decode_sources(
            model, variables, padded(batch, width), np.array([*map(len, batch)], np.int32),
            first=inputs.first, end=inputs.end, max_length=inputs.target.length, num_best=num_best, **options,
        )  # fmt: skip
        tokens, scores = np.asarray(beams.tokens), np.asarray(beams.scores)
        for row, place in enumerate(places):
            found[place] = [
                Hypothesis(inputs.decode(t), float(s)) for t, s in zip(tokens[row], scores[row], strict=True)
            ]
    return found
