"""The peers of a training step and of a forward pass; each makes contestants for a problem from our weights.

A peer is a function (problem, update) -> contestants, one for each memory layout; without an update they are forward
passes. ModuleNotFoundError if the peer is not installed, ZooError if it cannot compute the model here. For bfloat16
with float32 parameters PyTorch uses autocast and Flax's layers their `dtype`; Keras is left out.
"""

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zoo
from benchmarks.contestants import Contestant, Update, contestant, of_jax
from benchmarks.flax_layers import carried, flax_model
from benchmarks.problems import Problem
from benchmarks.timer import synchronized, torch_device
from train.tasks.language_model import LanguageModel
from zoo.errors import ZooError
from zoo.inputs.image import ImageInputs
from zoo.registry import count_parameters
from zoo.weights import torchvision


class TorchPeer(NamedTuple):
    """A module with our weights, its forward function, and the arguments."""

    module: Any
    forward: Callable[..., Any]
    args: tuple[Any, ...]
    layout: str = ""


def eager(problem: Problem, update: Update | None) -> Iterator[Contestant]:
    return (_torch(peer, problem, update) for peer in torch_peers(problem))


def compiled(problem: Problem, update: Update | None) -> Iterator[Contestant]:
    """ZooError if torch.compile finds no compiler."""
    import torch

    compiling = functools.partial(torch.compile, dynamic=False)
    return (_torch(peer, problem, update, compiling) for peer in torch_peers(problem))


def transformers(problem: Problem, update: Update | None) -> Iterator[Contestant]:
    return (_torch(peer, problem, update) for peer in transformers_peers(problem))


def _torch(
    peer: TorchPeer, problem: Problem, update: Update | None, compiling: Callable[[Any], Any] | None = None
) -> Contestant:
    """The contestant of a peer; `compiling`, if given, transforms its forward pass and its loss."""
    import torch

    device = torch_device()
    module, parameters = peer.module.to(device).train(update is not None), torch_parameters(peer.module)
    args = [tensor.to(device) for tensor in peer.args]
    half = torch.autocast(device, torch.bfloat16) if problem.dtype == "bfloat16" else contextlib.nullcontext()
    made = compiling or (lambda run: run)
    if update is None:
        forward = made(peer.forward)

        def work() -> Any:
            with torch.inference_mode(), half:
                return synchronized(forward(*args))
    else:
        targets = torch.from_numpy(problem.targets.astype(np.int64)).flatten().to(device)
        classes = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = classes[update.optimizer](trained, lr=update.learning_rate, fused=True)

        @made
        def loss_of(*args: Any) -> Any:
            return torch.nn.functional.cross_entropy(peer.forward(*args).flatten(0, -2), targets, ignore_index=-1)

        def work() -> Any:
            with half:
                loss = loss_of(*args)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return synchronized(loss).item()

    try:
        found = contestant(work, problem, parameters, layout=peer.layout)
    except RuntimeError as error:
        if "could not create a primitive" in str(error):
            raise ZooError(f"PyTorch has no {problem.dtype} kernel for {problem.name} on this processor") from None
        if any(name in str(error) for name in ("InvalidCxxCompiler", "TritonMissing")):
            raise ZooError(str(error).splitlines()[0]) from None
        raise
    return found if compiling else found._replace(compile_seconds=None)


def torch_parameters(module: Any) -> int:
    """The number of trained parameters, counted as in ours.

    PyTorch's recurrent layers have two biases where ours have one, except for the candidate of a GRU. The second bias
    of LSTM and RNN layers is frozen at zero here.
    """
    import torch

    twice = 0
    for layer in module.modules():
        if isinstance(layer, torch.nn.RNNBase | torch.nn.RNNCellBase):
            for name, parameter in layer.named_parameters():
                if name.startswith("bias_ih") and isinstance(layer, torch.nn.GRU | torch.nn.GRUCell):
                    twice += parameter.numel() // 3 * 2
                elif name.startswith("bias_ih"):
                    parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad) - twice


def torch_peers(problem: Problem) -> Iterator[TorchPeer]:
    """The PyTorch module of a problem's model, in each memory layout."""
    import torch

    if isinstance(problem.inputs, ImageInputs):
        yield from _of_images(problem)
        return
    args, kwargs = problem.inputs.arguments(problem.batch)
    tensors = tuple(torch.from_numpy(np.array(array, np.int64)) for array in (*args, *kwargs.values()))
    if "source" in problem.batch:
        from benchmarks.torch_seq2seq import torch_model as make
    elif getattr(problem.model, "recurrent", False):
        from benchmarks.torch_recurrent import torch_model as make
    else:
        make = torch_gpt
    module = make(problem.model, problem.variables)
    yield TorchPeer(module, module, tensors)


def _of_images(problem: Problem) -> Iterator[TorchPeer]:
    import torch

    from benchmarks.peers import torch_model

    inputs: Any = problem.inputs
    scale = torch.tensor([1 / (255 * std) for std in inputs.std]).view(1, -1, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(inputs.mean, inputs.std, strict=True)]).view(1, -1, 1, 1)
    weights = {name: torch.from_numpy(array.copy()) for name, array in torchvision.to_file(problem.variables).items()}
    for layout, memory_format in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        module = torch_model(problem.name, inputs.shape, **problem.args)
        module.load_state_dict(weights, strict=True)
        module = module.to(memory_format=memory_format)  # type: ignore[call-overload]
        pixels = torch.from_numpy(problem.batch["image"].transpose(0, 3, 1, 2).copy())

        def forward(pixels: Any, module: Any = module) -> Any:
            return module(pixels.float() * scale - shift)

        yield TorchPeer(module, forward, (pixels.contiguous(memory_format=memory_format),), layout)


def torch_gpt(model: Any, variables: Any) -> Any:
    """nanoGPT's module with the weights of a decoder without biases; ZooError for other decoders."""
    import torch

    from benchmarks.torch_gpt import TorchGPT

    kind = getattr(model, "positions", ""), getattr(model, "activation", ""), getattr(model, "use_bias", True)
    if kind != ("learned", "gelu", False):
        raise ZooError(
            f"the only decoder with a PyTorch peer is nanogpt; {type(model).__name__} with these fields has none"
        )
    params = jax.tree.map(np.array, variables["params"])
    state = {"embedding.weight": params["embedding"], "positions.weight": params["positions"]}
    state["norm.weight"] = params["norm"]["scale"]
    for i in range(model.num_layers):
        layer = params["layers"][f"layer{i}"]
        attention, mlp = layer["attention"], layer["mlp"]
        fused = np.concatenate([attention[name]["kernel"].T for name in ("query", "key", "value")])
        kernels = {"qkv": fused, "out": attention["out"]["kernel"].T}
        kernels |= {"up": mlp["up"]["kernel"].T, "down": mlp["down"]["kernel"].T}
        kernels |= {name: layer[name]["scale"] for name in ("norm1", "norm2")}
        state |= {f"layers.{i}.{name}.weight": array for name, array in kernels.items()}
    peer = TorchGPT(model.vocab_size, model.max_length, model.hidden_size, model.num_layers, model.num_heads)
    peer.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()}, strict=True)
    return peer


def transformers_peers(problem: Problem) -> Iterator[TorchPeer]:
    """Hugging Face's module of a decoder's model."""
    if not isinstance(problem.task, LanguageModel):
        raise ZooError("only its language models are timed")
    module = transformers_model(problem.model, problem.variables)
    import torch

    def forward(tokens: Any) -> Any:
        return module(tokens, use_cache=False).logits

    yield TorchPeer(module, forward, (torch.from_numpy(problem.batch["tokens"].astype(np.int64)),))


def transformers_model(model: Any, variables: Any) -> Any:
    """Hugging Face's causal language model with our weights in float32; ZooError if it has no such model."""
    with tempfile.TemporaryDirectory() as folder:
        zoo.save_pretrained(model, variables, folder)
        import torch

        from benchmarks.peers import torchvision_models

        torchvision_models()
        import transformers

        transformers.logging.disable_progress_bar()
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def flax(problem: Problem, update: Update | None) -> Iterator[Contestant]:
    """The model written with Flax's own layers, with Optax."""
    module: Any = flax_model(problem.model)
    if module is None:
        raise ZooError(f"there is no {problem.name} of Flax's own layers with these fields")
    variables = carried(problem, module)
    params, rest = variables.pop("params"), variables
    batch, targets = jax.device_put(problem.batch), jnp.asarray(problem.targets)
    parameters = count_parameters({"params": params})

    def apply(params: Any, rest: Any, batch: Any, **more: Any) -> Any:
        args, kwargs = problem.inputs.arguments(batch)
        return module.apply({"params": params, **rest}, *args, **kwargs, **more)

    if update is None:
        forward = jax.jit(lambda state, batch: apply(state[0], state[1], batch))
        yield of_jax(forward, (params, rest), (batch,), problem, parameters)
        return
    optimizer = getattr(optax, update.optimizer)(update.learning_rate)

    def step(state: Any, batch: Any, targets: Any) -> Any:
        def loss_of(params: Any) -> Any:
            logits, changed = apply(params, rest, batch, train=True, mutable=list(rest))
            counted = targets >= 0
            labels, logits = jnp.where(counted, targets, 0), logits.astype(jnp.float32)
            losses: Any = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return (losses * counted).sum() / counted.sum(), changed

        params, rest, opt_state = state
        (loss, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), rest, opt_state), loss

    state = jax.tree.map(jnp.array, (params, rest, optimizer.init(params)))
    yield of_jax(jax.jit(step, donate_argnums=0), state, (batch, targets), problem, parameters, float)


def keras(problem: Problem, update: Update | None) -> Iterator[Contestant]:
    """Keras on JAX, with the stateless step of its guide to custom loops; only `simple_cnn`."""
    if problem.name != "simple_cnn":
        raise ZooError(f"the only Keras peer is simple_cnn; {problem.name} has none")
    if problem.dtype != "float32":
        raise ZooError(f"Keras is timed only in float32, not {problem.dtype}")
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    model = keras_model(keras, problem)
    trainable, rest = ([v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables))
    parameters = sum(int(np.prod(value.shape)) for value in trainable)
    image, label = jax.device_put((problem.batch["image"], problem.batch["label"]))
    if update is None:
        forward = jax.jit(lambda state, image: model.stateless_call(*state, image, training=False)[0])
        yield of_jax(forward, (trainable, rest), (image,), problem, parameters)
        return
    adam = functools.partial(keras.optimizers.Adam, epsilon=1e-8)  # as in the other frameworks
    optimizer = {"adam": adam, "sgd": keras.optimizers.SGD}[update.optimizer](update.learning_rate)
    optimizer.build(model.trainable_variables)
    loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def step(state: Any, image: Any, label: Any) -> Any:
        def loss_of(trainable: Any) -> Any:
            logits, after = model.stateless_call(trainable, rest, image, training=True)
            return loss_function(label, logits), after

        trainable, rest, slots = state
        (loss, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return (trainable, rest, slots), loss

    state = jax.tree.map(jnp.array, (trainable, rest, [v.value for v in optimizer.variables]))
    yield of_jax(jax.jit(step, donate_argnums=0), state, (image, label), problem, parameters, float)


def keras_model(keras: Any, problem: Problem) -> Any:
    """`simple_cnn` with Keras's layers and our weights, from uint8 images to logits."""
    model, layers = problem.model, keras.layers
    inputs: Any = problem.inputs
    scales, shifts = [1 / (255 * s) for s in inputs.std], np.divide(inputs.mean, inputs.std)
    stack = [keras.Input(inputs.shape, dtype="uint8"), layers.Rescaling(scales, [-float(s) for s in shifts])]
    for width in model.widths:
        stack += [layers.Conv2D(width, 3, padding="same", activation="relu"), layers.MaxPooling2D()]
    stack += [layers.Flatten(), layers.Dense(model.hidden_size, "relu"), layers.Dropout(model.dropout_rate)]
    found = keras.Sequential([*stack, layers.Dense(model.num_classes)])
    names = [*(f"conv{i}" for i in range(1, len(model.widths) + 1)), "fc1", "fc2"]
    ours = [np.asarray(problem.variables["params"][name][leaf]) for name in names for leaf in ("kernel", "bias")]
    for variable, array in zip(found.trainable_variables, ours, strict=True):
        variable.assign(array.reshape(variable.shape))
    return found


PEERS: dict[str, Callable[[Problem, Update | None], Iterator[Contestant]]] = {
    "torch": eager,
    "torch compile": compiled,
    "transformers": transformers,
    "flax": flax,
    "keras": keras,
}
