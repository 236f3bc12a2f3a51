"""Continuous batching: a language model that answers many requests at once, each as if it were alone.

A request takes one of a fixed number of slots, rows of one state. At each step a row that still reads its prompt reads
a chunk of it, and all others get their next token from one pass of the model; a request enters and leaves at any step
(Yu et al. 2022, Orca, section 4). What a slot has read stays: a later request that begins with the same tokens, as the
next turn of a conversation, reads only the others.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.decode.constraints import in_float32
from zoo.decode.sampling import ROUNDING, Sampling, first_largest
from zoo.errors import ZooError
from zoo.sequence import cache_size
from zoo.transformer.layers import unscanned

CHUNKS = 16, 128  # tokens of a prompt that are read at once
WINDOWS = 128, 512, 2048, 8192  # tokens for which the caches of all slots have room; they grow and shrink
TOP = 20  # alternatives of a token, at most
PER_ROW = ("temperature", "top_k", "top_p", "min_p", "end")  # the settings of a request; others must be as by default


@dataclasses.dataclass(eq=False)
class Request:
    """Tokens int32 [n] to continue by at most `length` tokens, drawn as `sampling` and `seed` say.

    The drawn tokens are those of `zoo.decode.sample` with the same seed. `reason` is None while the request runs, then
    "stop" after the token `sampling.end`, "length", or "cancelled".
    """

    prompt: np.ndarray
    length: int
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    seed: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)
    reason: str | None = None


class Drawn(NamedTuple):
    """A new token of a request, and at temperature 1 its log probability and those of the most probable tokens."""

    request: Request
    token: int
    log_probability: float
    best: tuple[
        np.ndarray, np.ndarray
    ]  # ids int32 [20] and log probabilities float32 [20]; fewer in a small vocabulary


@dataclasses.dataclass(eq=False)
class _Slot:
    """A row of the state, and the tokens that it has read."""

    row: int
    request: Request | None = None
    read: list[int] = dataclasses.field(default_factory=list)
    unread: list[int] = dataclasses.field(default_factory=list)


class Rows(NamedTuple):
    """The settings of N requests, arrays [N]; a top_k of 0, a top_p of 1 and a min_p of 0 exclude nothing."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    seed: jax.Array
    new: jax.Array  # tokens already drawn


class Slots:
    """The requests of one language model; a single thread calls `step`, `add` and `cancel`.

    `banned` are ids that are never drawn. ZooError for a model that is not a language model and fewer than one slot.
    """

    def __init__(
        self, model: nn.Module, variables: Any, *, slots: int = 8, context: int = 2048, banned: Iterable[int] = ()
    ):
        if not hasattr(model, "init_state"):
            raise ZooError(f"{type(model).__name__} cannot generate text: it is not a language model")
        for name, value in (("slots", slots), ("context", context)):
            if value < 1:
                raise ZooError(f"{name} must be at least 1, not {value}")
        self.model: Any
        self.model, self.variables = unscanned(model, variables)
        self.context = min(context, getattr(model, "max_length", None) or context)
        self.grows = cache_size(jax.eval_shape(lambda: self.model.init_state(1, 1))) is not None
        self.windows = [size for size in WINDOWS if size < self.context] + [self.context]
        self.allowed = jnp.asarray(~np.isin(np.arange(self.model.vocab_size), list(banned)))
        if not self.allowed.any():
            raise ZooError(f"all {self.model.vocab_size} tokens are banned; at least one must remain")
        self.waiting: deque[Request] = deque()
        self.slots = [_Slot(row) for row in range(slots)]
        self.reset()

    def reset(self) -> None:
        """Forgets what the slots have read, and their requests."""
        self.slots = [_Slot(slot.row) for slot in self.slots]
        self.window = self.windows[0]
        self.state = self.model.init_state(len(self.slots), self.window)
        self.logits = jnp.zeros((len(self.slots), self.model.vocab_size), self.model.dtype)

    @property
    def active(self) -> list[Request]:
        """The requests in slots."""
        return [slot.request for slot in self.slots if slot.request is not None]

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.active)

    def add(self, request: Request) -> None:
        """Puts a request behind those that wait for a slot.

        ZooError for an empty prompt, one that leaves no room in the context, a token outside the vocabulary, and
        constraints other than temperature, top_k, top_p, min_p and end.
        """
        size, vocabulary = len(request.prompt), self.model.vocab_size
        if not size:
            raise ZooError("a prompt needs at least one token")
        if size >= self.context:
            raise ZooError(f"the prompt has {size} tokens, which leaves no room in the context of {self.context}")
        wrong = request.prompt[(request.prompt < 0) | (request.prompt >= vocabulary)]
        if len(wrong):
            raise ZooError(f"token {wrong[0]} is outside the vocabulary of {vocabulary}")
        if request.length < 1:
            raise ZooError(f"the number of tokens to generate must be at least 1, not {request.length}")
        plain = Sampling()
        for field in dataclasses.fields(Sampling):
            if field.name not in PER_ROW and getattr(request.sampling, field.name) != getattr(plain, field.name):
                raise ZooError(f"{field.name} is not supported where requests share a batch")
        request.length = min(request.length, self.context - size)
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        """Ends a request; its slot is free at once."""
        if request.reason is not None:
            return
        request.reason = "cancelled"
        if request in self.waiting:
            self.waiting.remove(request)
        for slot in self.slots:
            if slot.request is request:
                slot.request, slot.unread = None, []

    def compile(self) -> None:
        """Compiles every program that a request can need."""
        for window in self.windows:
            for other in self.windows:
                self._resize(window)
                self._resize(other)
            self._resize(window)
            self.state = _rewound(self.state, 0, 0, self.grows)
            for size in CHUNKS:
                self._read(self.slots[0], [0] * min(size, window))
            self._forward(np.zeros(len(self.slots), np.int32), np.zeros(len(self.slots), np.int32))
        for sampling in (Sampling(), Sampling(top_k=2)):
            requests = [Request(np.zeros(1, np.int32), 1, sampling)] * len(self.slots)
            jax.block_until_ready(self._choose(requests))
        self.reset()

    def step(self) -> list[Drawn]:
        """Moves every request on: prompts by a chunk of one of them, the others by a token. What they got."""
        self._admit()
        reading = [slot for slot in self.slots if slot.request is not None and slot.unread]
        writing = [slot for slot in self.slots if slot.request is not None and not slot.unread]
        if not reading and not writing:
            return []
        most = max((len(slot.read) + 1 for slot in writing), default=0)
        if reading:
            first = min(reading, key=lambda slot: len(slot.unread))
            chunk = first.unread[: CHUNKS[-1]]
            most = max(most, len(first.read) + len(chunk))
        self._resize(next(size for size in self.windows if size >= most))
        if reading:
            self._read(first, chunk)
            first.read, first.unread = first.read + chunk, first.unread[len(chunk) :]
        return self._write(writing) if writing else []

    def _write(self, writing: Sequence[_Slot]) -> list[Drawn]:
        requests = [slot.request if slot in writing else None for slot in self.slots]
        tokens, scores, ids, best = map(np.asarray, self._choose(requests))
        drawn = []
        for slot in writing:
            request, row = slot.request, slot.row
            assert request is not None
            token = int(tokens[row])
            request.tokens.append(token)
            drawn.append(Drawn(request, token, float(scores[row]), (ids[row], best[row])))
            if token == request.sampling.end:
                request.reason = "stop"
            elif len(request.tokens) == request.length:
                request.reason = "length"
            if request.reason:
                slot.request = None
        going = [slot for slot in writing if slot.request is not None]
        if going:
            counts = np.zeros(len(self.slots), np.int32)
            counts[[slot.row for slot in going]] = 1
            self._forward(np.where(counts, tokens, 0).astype(np.int32), counts)
            for slot in going:
                slot.read.append(int(tokens[slot.row]))
        return drawn

    def _admit(self) -> None:
        """Gives free slots to the requests that wait longest, each the one that has read most of its prompt."""
        free = [slot for slot in self.slots if slot.request is None]
        while free and self.waiting:
            request = self.waiting.popleft()
            prompt = request.prompt.tolist()
            slot = max(free, key=lambda slot: (self._known(slot, prompt), -len(slot.read)))
            known = self._known(slot, prompt)
            free.remove(slot)
            slot.request, slot.read, slot.unread = request, prompt[:known], prompt[known:]
            self.state = _rewound(self.state, slot.row, known, self.grows or known > 0)

    def _known(self, slot: _Slot, prompt: list[int]) -> int:
        """How many tokens of a prompt a free slot need not read again: all but one at most, whose logits are wanted."""
        same = _common(slot.read, prompt)
        if not self.grows:  # a recurrent state stands after all that was read
            return same if same == len(slot.read) < len(prompt) else 0
        return min(same, len(prompt) - 1, self.window)

    def _resize(self, window: int) -> None:
        """Gives the caches room for a number of tokens; free slots forget what lies beyond."""
        if not self.grows or window == self.window:
            return
        for slot in self.slots:
            if slot.request is None:
                slot.read = slot.read[:window]
            elif len(slot.read) > window:
                return
        self.window = window
        self.state = _resized(self.state, window)

    def _read(self, slot: _Slot, tokens: list[int]) -> None:
        size = next(size for size in CHUNKS if size >= len(tokens))
        padded = np.zeros((1, min(size, self.window)), np.int32)
        padded[0, : len(tokens)] = tokens
        row, count = np.int32(slot.row), np.array([len(tokens)], np.int32)
        self.state, self.logits = _chunk(self.model, self.variables, self.state, self.logits, padded, row, count)

    def _forward(self, tokens: np.ndarray, counts: np.ndarray) -> None:
        self.state, self.logits = _token(self.model, self.variables, self.state, self.logits, tokens, counts)

    def _choose(self, requests: Sequence[Request | None]) -> Any:
        rows, excludes = [], False
        for request in requests:
            by = Sampling(temperature=0) if request is None else request.sampling
            excludes |= bool(by.top_k or (by.top_p or 1) < 1 or by.min_p) and by.temperature > 0
            seed, new = (0, 0) if request is None else (request.seed, len(request.tokens))
            rows.append((by.temperature, by.top_k or 0, by.top_p or 1.0, by.min_p or 0.0, seed, new))
        types = np.float32, np.int32, np.float32, np.float32, np.uint32, np.int32
        columns = zip(*rows, strict=True)
        arrays = Rows(*(np.array(column, dtype) for column, dtype in zip(columns, types, strict=True)))  # type: ignore[arg-type]
        return _chosen(self.logits, self.allowed, arrays, excludes)


def _common(tokens: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    shorter = min(len(tokens), len(others))
    return next((i for i in range(shorter) if tokens[i] != others[i]), shorter)


@functools.partial(jax.jit, donate_argnums=0)
def _rewound(state: Any, row: Any, position: Any, kept: Any) -> Any:
    """The state with a row's position set; the row is zeros unless it is `kept`."""
    state = jax.tree.map(lambda leaf: leaf.at[row].set(jnp.where(kept, leaf[row], 0)), state)
    return {**state, "position": state["position"].at[row].set(position)}


@functools.partial(jax.jit, static_argnums=1)
def _resized(state: Any, window: int) -> Any:
    """The state with room for `window` tokens in each cache."""

    def resized(path: Any, leaf: jax.Array) -> jax.Array:
        if getattr(path[-1], "key", None) not in ("key", "value"):
            return leaf
        more = [(0, max(window - size, 0) if axis == 1 else 0) for axis, size in enumerate(leaf.shape)]
        return jnp.pad(leaf[:, :window], more)

    return jax.tree_util.tree_map_with_path(resized, state)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def _chunk(
    model: nn.Module, variables: Any, state: Any, logits: Any, tokens: jax.Array, row: jax.Array, count: jax.Array
) -> tuple[Any, jax.Array]:
    """The state and the logits [N, V] after one row has read the first `count` [1] of its tokens [1, T]."""
    own = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, row, 1), state)
    new, own = model.apply(variables, tokens, state=own, lengths=count)
    state = jax.tree.map(lambda leaf, by: jax.lax.dynamic_update_slice_in_dim(leaf, by, row, 0), state, own)
    return state, logits.at[row].set(new[0, count[0] - 1].astype(logits.dtype))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def _token(
    model: nn.Module, variables: Any, state: Any, logits: Any, tokens: jax.Array, counts: jax.Array
) -> tuple[Any, jax.Array]:
    """The state and the logits [N, V] after each row with a count of 1 has read its token [N]; others stay."""
    new, state = model.apply(variables, tokens[:, None], state=state, lengths=counts)
    return state, jnp.where(counts[:, None] > 0, new[:, 0].astype(logits.dtype), logits)


@functools.partial(jax.jit, static_argnums=3)
def _chosen(
    logits: jax.Array, allowed: jax.Array, rows: Rows, excludes: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """A token int32 for each row of logits [N, V], its log probability, and the most probable tokens [N, 20] with
    theirs. Unless `excludes`, no row has a top_k, top_p or min_p."""
    wide = in_float32(logits)
    scores = jax.nn.log_softmax(wide)
    best, ids = jax.lax.top_k(scores, min(TOP, scores.shape[-1]))
    wide = jnp.where(allowed, wide, -jnp.inf)
    scaled = wide / jnp.where(rows.temperature > 0, rows.temperature, 1)[:, None]
    scaled = filtered_rows(scaled, rows.top_k, rows.top_p, rows.min_p) if excludes else scaled

    def draw(seed: jax.Array, new: jax.Array, logits: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), new), logits[None])[0]

    drawn = jax.vmap(draw)(rows.seed, rows.new, scaled).astype(jnp.int32)
    tokens = jnp.where(rows.temperature > 0, drawn, first_largest(wide))
    return tokens, jnp.take_along_axis(scores, tokens[:, None], axis=1)[:, 0], ids, best


def filtered_rows(logits: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array) -> jax.Array:
    """`zoo.decode.sampling.filtered` of logits [N, V] that are divided by their temperatures, with a top_k int32 [N], a
    top_p and a min_p [N] for each row; 0, 1 and 0 exclude nothing."""
    size, rounding = logits.shape[-1], ROUNDING * float(jnp.finfo(logits.dtype).eps)
    order = jnp.argsort(-logits, axis=-1)  # stable
    descending = jnp.take_along_axis(logits, order, axis=-1)
    last = jnp.where((top_k > 0) & (top_k < size), top_k, size) - 1
    descending = jnp.where(descending < jnp.take_along_axis(descending, last[:, None], axis=-1), -jnp.inf, descending)
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = ((before < top_p[:, None] - rounding) | (top_p >= 1)[:, None]).at[:, 0].set(True)
    least = descending[:, :1] + jnp.log(min_p)[:, None] - rounding
    kept &= descending >= least
    return jnp.put_along_axis(logits, order, jnp.where(kept, descending, -jnp.inf), axis=-1, inplace=False)
