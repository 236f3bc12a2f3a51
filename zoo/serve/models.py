"""What is served: each kind of model with the threads that run it and the programs that its requests need."""

import base64
import functools
import io
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from zoo.decode import Slots, translate
from zoo.errors import ZooError
from zoo.explain import attention, explain, explainable, maps_of
from zoo.predictor import Predictor, Program, at_least, fills
from zoo.run import Run
from zoo.serve.batches import Batcher
from zoo.serve.worker import Worker
from zoo.transformer import ViT
from zoo.transformer.clip import CLIP

WIDTHS = 32, 128, 512, 2048  # tokens to which texts are padded
MAPS = 16  # of a stage, that are drawn


class Bounds(NamedTuple):
    """How much of its models the server runs at once."""

    slots: int = 8  # requests of a language model that are answered at once
    batch: int = 32  # images or texts in one pass of another model
    waiting: int = 64  # requests that may wait
    context: int = 2048  # tokens of a prompt with its answer

    @property
    def sizes(self) -> list[int]:
        """The rows to which a batch is filled up."""
        return [4**i for i in range(16) if 4**i < self.batch] + [self.batch]


def widths_of(length: int) -> list[int]:
    """The widths to which texts of at most `length` tokens are padded."""
    return [width for width in WIDTHS if width < length] + [length]


class Generates:
    """A language model: `/v1/completions`, and `/v1/chat/completions` where it has a chat template."""

    kind: ClassVar[str] = "language model"

    def __init__(self, run: Run, bounds: Bounds):
        inputs: Any = run.inputs
        model: Any = run.model
        banned = (*inputs.gaps, *range(inputs.vocab_size, model.vocab_size))
        slots = Slots(model, run.variables, slots=bounds.slots, context=bounds.context, banned=banned)
        slots.compile()
        self.inputs, self.worker = inputs, Worker(slots, bounds.waiting)
        self.about = {"chat": bool(inputs.chat_template)}

    @property
    def pending(self) -> int:
        return len(self.worker.pending)


class Classifies:
    """A classifier of images or texts, or a model of the tokens at [MASK]: `/predict`."""

    kind: ClassVar[str] = "classifier"

    def __init__(self, run: Run, bounds: Bounds):
        self.run, self.inputs = run, run.inputs
        images = run.inputs.kind == "image"
        self.predictor = Predictor(run, bounds.sizes, () if images else widths_of(run.inputs.shape[0]))
        self.predictor.program.compile()
        self.rows = Batcher(self.predictor, bounds.batch, bounds.waiting)
        self.explained: Batcher | None = None
        if images and explainable(run):
            self._explained = jax.jit(lambda image: (explain(run, image)[:2], maps_of(run, image)))
            self.explain([np.zeros(run.inputs.shape, np.uint8)])
            self.explained = Batcher(self.explain, 1, bounds.waiting)
        self.about = {"image": images and run.inputs.shape, "explains": self.explained is not None}

    @property
    def pending(self) -> int:
        return len(self.rows.pending)

    def explain(self, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """What the prediction of one image depends on, and the maps of its stages as pictures."""
        (_, (heat,)), maps = jax.device_get(self._explained(images[0][None]))
        heat = np.asarray(heat, np.float32) / max(float(heat.max()), 1e-12)
        name = "attention" if isinstance(self.run.model, ViT) else "grad_cam"
        features = {stage: {"shape": array.shape[1:], "png": strip(array[0])} for stage, array in maps.items()}
        return [{name: np.round(heat, 3).tolist(), "features": features}]


class Embeds:
    """A model that gives each text a vector: `/v1/embeddings`."""

    kind: ClassVar[str] = "embedder"
    about: ClassVar[dict[str, Any]] = {}

    def __init__(self, run: Run, bounds: Bounds):
        inputs: Any = run.inputs
        self.inputs, program = inputs, Program(run, bounds.sizes, widths_of(inputs.length))
        program.compile()
        self.rows = Batcher(lambda texts: list(program(inputs.batch(texts))), bounds.batch, bounds.waiting)

    @property
    def pending(self) -> int:
        return len(self.rows.pending)


class Translates:
    """An encoder-decoder: `/translate`."""

    kind: ClassVar[str] = "encoder-decoder"

    def __init__(self, run: Run, bounds: Bounds):
        self.run, self.inputs = run, run.inputs
        inputs: Any = run.inputs
        self.sizes, self.widths = [1, min(bounds.batch, 8)], widths_of(inputs.source.length)
        for size in self.sizes:
            for width in self.widths:
                self.translations([np.zeros(width, np.int32)] * size)
        self.rows = Batcher(self.translations, self.sizes[-1], bounds.waiting)
        self.attended: Batcher | None = None
        try:
            for width in self.widths:
                self.attention((np.zeros(1, np.int32), np.zeros(1, np.int32)), width)
            self.attended = Batcher(lambda pairs: [self.attention(pair) for pair in pairs], 1, bounds.waiting)
        except ZooError:  # as of Sutskever's, which has none
            pass
        self.about = {"attention": self.attended is not None}

    @property
    def pending(self) -> int:
        return len(self.rows.pending)

    def translations(self, rows: Sequence[np.ndarray]) -> list[Any]:
        """The best target of each source's token ids."""
        shapes = functools.partial(at_least, self.sizes), functools.partial(at_least, self.widths)
        found = translate(self.run, rows, padded_to=lambda count, longest: (shapes[0](count), shapes[1](longest)))
        return [best for (best,) in found]

    def attention(self, pair: tuple[np.ndarray, np.ndarray], width: int = 0) -> np.ndarray:
        """The attention of a target's token ids to a source's, float32 [T, S]."""
        return attention(self.run, *pair, width=at_least(self.widths, max(width, len(pair[0]))))


Served = Generates | Classifies | Embeds | Translates


def served(run: Run, bounds: Bounds) -> Served:
    """A loaded model with its threads, every program of it compiled. ZooError for a model that has no route."""
    inputs: Any = run.inputs
    if hasattr(run.model, "encode") and inputs.kind in ("pair", "text-to-text"):
        return Translates(run, bounds)
    if (getattr(inputs, "labels", ()) and inputs.kind not in ("segmentation", "detection")) or fills(run):
        return Classifies(run, bounds)
    if getattr(run.model, "output", None) == "embedding":
        return Embeds(run, bounds)
    if hasattr(run.model, "init_state") and hasattr(inputs, "gaps"):
        return Generates(run, bounds)
    hint = "; zoo.zero_shot makes a classifier of it" if isinstance(run.model, CLIP) else ""
    raise ZooError(f"{type(run.model).__name__} with inputs of kind {inputs.kind!r} is not served{hint}")


def strip(maps: np.ndarray) -> str:
    """The first maps of a stage [h, w, C], each scaled to its own range, beside each other in a PNG as a data URL."""
    from PIL import Image

    maps = np.moveaxis(np.asarray(maps, np.float32)[..., :MAPS], -1, 0)
    low, high = (f(maps, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    scaled = (255 * (maps - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.concatenate(list(scaled), axis=1)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
