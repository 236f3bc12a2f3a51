"""Uploads a trained model to the Hub: config, weights, inputs, and a model card."""

import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax

from zoo import hub
from zoo.errors import ZooError
from zoo.files import read_json
from zoo.inputs import ImageInputs
from zoo.inputs.text import TextInputs
from zoo.registry import list_models, model_info
from zoo.run import Run, load, located, maker_of
from zoo.weights import save_native, timm, write_safetensors
from zoo.weights.huggingface.folder import save_pretrained

TASKS = {"image": "image-classification", "text": "text-generation", "pair": "translation"}  # by the kind of inputs


def push_to_hub(
    run: str | os.PathLike | Run, repository: str, license: str | None = None, private: bool = False
) -> str:
    """Uploads a run's best weights, or a folder or model that `zoo.load` gives, and returns the commit's address.

    The repository `ORG/NAME` is made if it does not exist; HF_TOKEN is the token. It holds what `zoo.load` reads, and
    where transformers has the model, a config and names of tensors that transformers reads too. Its README is a model
    card with the data, the metrics and the command as far as the folder has them, and the `license`, by default that of
    weights that come with the zoo. ZooError for a malformed name, and where the token does not permit it.
    """
    address = hub.address_of(repository)
    if address is None or address != hub.Address(address.repository):
        raise ZooError(f"{repository!r} is no name of a repository: write ORG/NAME")
    client = hub.library()
    found = run if isinstance(run, Run) else load(run)
    facts = {} if isinstance(run, Run) else _facts(pathlib.Path(run).expanduser(), str(run))
    with tempfile.TemporaryDirectory() as place, hub.refusals(address, "uploaded"):
        folder = pathlib.Path(place, "model")
        write(found, folder)
        text = card(found, address.repository, facts, license or facts.get("licence", "").lower() or None)
        (folder / "README.md").write_text(text, encoding="utf-8")
        api = client.HfApi()
        api.create_repo(address.repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=address.repository, folder_path=folder, commit_message="Weights"))


def write(run: Run, folder: pathlib.Path) -> None:
    """Writes config.json, model.safetensors and the files of inputs to a new folder."""
    name, args = _described(run.model)
    about: dict[str, Any] = {"model": {"name": name, "args": args}, "inputs": run.inputs.to_json()}
    try:
        save_pretrained(run.model, run.variables, folder)
        about = read_json(folder / "config.json") | about
    except ZooError:  # a model that transformers does not have
        folder.mkdir(parents=True)
        theirs = timm.described_as(run.model, run.inputs) if isinstance(run.inputs, ImageInputs) else None
        if theirs is None:
            save_native(run.variables, folder / "model.safetensors")
        else:
            about = theirs | about
            write_safetensors(timm.to_file(run.variables), folder / "model.safetensors", metadata={"format": "pt"})
    labels = getattr(run.inputs, "labels", ())
    if labels and "model_type" in about:
        about["id2label"] = {str(number): label for number, label in enumerate(labels)}
        about["label2id"] = {label: number for number, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    if isinstance(run.inputs, TextInputs) and run.inputs.tokenizer not in ("char", "byte"):
        (folder / "tokenizer.json").write_text(run.inputs.vocabulary, encoding="utf-8")
    if isinstance(run.inputs, ImageInputs):
        height, width, _ = run.inputs.shape
        images = {
            "image_mean": run.inputs.mean,
            "image_std": run.inputs.std,
            "size": {"height": height, "width": width},
            "image_processor_type": "ViTImageProcessor",
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(images, indent=2) + "\n", encoding="utf-8")


def card(run: Run, repository: str, facts: Mapping[str, Any], license: str | None) -> str:
    """The model card: YAML that the Hub reads, then text."""
    name, _ = _described(run.model)
    task = "fill-mask" if getattr(run.model, "output", "") == "tokens" else TASKS.get(run.inputs.kind)
    if isinstance(run.inputs, TextInputs) and run.inputs.labels:
        task = "text-classification"
    front = ["library_name: flaxzoo", "tags: [flaxzoo, jax, flax]"]
    front += [f"license: {json.dumps(license)}"] if license else []
    front += [f"pipeline_tag: {task}"] if task else []
    metrics = facts.get("metrics") or {}
    if metrics and task:
        data = json.dumps(str(facts.get("data", "unknown")))
        front += ["model-index:", f"- name: {json.dumps(repository.split('/')[1])}", "  results:"]
        front += [f"  - task: {{type: {task}}}", f"    dataset: {{name: {data}, type: {data}}}", "    metrics:"]
        front += [f"    - {{type: {json.dumps(key)}, value: {value}}}" for key, value in metrics.items()]
    size = sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"]))
    lines = [f"# {repository.split('/')[1]}", "", f"`{name}` of flaxzoo with {size:,} parameters.", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items() if key != "metrics"]
    lines += [f"- {key}: {value}" for key, value in metrics.items()]
    lines += ["", "```python", "import zoo", "", f'model, variables, inputs = zoo.load("{repository}")', "```", ""]
    return "\n".join(["---", *front, "---", "", *lines])


def _described(model: Any) -> tuple[str, dict[str, Any]]:
    """The registered name of a module's class from which it differs in the fewest fields, and these fields as JSON has
    them."""
    found = []
    for name in list_models():
        if model_info(name).module_class is type(model):
            default = model_info(name).constructor()
            differing = {key: getattr(model, key) for key in model_info(name).fields}
            differing = {key: value for key, value in differing.items() if value != getattr(default, key)}
            found.append((name, differing))
    if not found:
        raise ZooError(f"{type(model).__name__} is not registered; give its module to zoo.register first")
    name, fields = min(found, key=lambda one: len(one[1]))
    dtypes = {key: jax.numpy.dtype(value).name for key, value in fields.items() if key.endswith("dtype")}
    return name, fields | dtypes


def _facts(path: pathlib.Path, name: str) -> dict[str, Any]:
    """What a run folder says of its training: data, command, metrics of the test set; the card of weights of ours."""
    folder = path if path.is_dir() else located(name)
    if not folder.is_dir() or maker_of(folder) != "run":
        return {}
    about = read_json(folder / "config.json")
    if isinstance(about.get("card"), dict):
        known = dict(about["card"])
        return known | {"metrics": {"accuracy": known.pop("accuracy")}} if "accuracy" in known else known
    top = folder.parent if folder.name == "export" else folder
    facts: dict[str, Any] = {}
    if (top / "config.json").is_file() and "recipe" in (settings := read_json(top / "config.json")):
        asked = settings.get("config") or {}
        facts["recipe"] = (
            f"python -m train {settings['recipe']} --steps {asked.get('steps')} --seed {asked.get('seed')}"
        )
    if (top / "result.json").is_file():
        result = read_json(top / "result.json")
        split = next((split for split in ("test", "validation") if isinstance(result.get(split), dict)), None)
        if split is not None:
            facts["evaluated on"] = split
            facts["metrics"] = {key: value for key, value in result[split].items() if isinstance(value, int | float)}
        facts |= {key: result[key] for key in ("steps", "data") if key in result}
    return facts
