"""What the tests of Hugging Face's layouts share: the library, weights that tell a slip, and the way there and back."""

import jax
import numpy as np
import pytest

import zoo

torch = pytest.importorskip("torch", reason="parity compares with torch")
from benchmarks.peers import torchvision_models  # noqa: E402

torchvision_models()  # loaded also where its operators do not, on which transformers would stumble
transformers = pytest.importorskip("transformers", reason="parity compares with transformers")


def drawn(model):
    """The model with weights that are not small, and scales around 1."""
    for key, parameter in model.named_parameters():
        scale = parameter.ndim == 1 and key.endswith("weight")
        torch.nn.init.normal_(parameter, mean=1.0 if scale else 0.0, std=0.2)
    return model.eval()


def close(ours, theirs):
    """To 1e-5 of the largest value."""
    ours, theirs = np.asarray(ours), theirs.detach().float().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def there_and_back(other, auto, compare, folder, lost=frozenset(), **fields):
    """Theirs is ours and theirs again by its files: the same results, config and weights, but for the
    `lost`. Returns ours and theirs."""
    other.save_pretrained(folder / "theirs")
    model, variables = zoo.from_pretrained(folder / "theirs", **fields)
    compare(model, variables, other)
    zoo.save_pretrained(model, variables, folder / "ours")
    back, report = auto.from_pretrained(folder / "ours", output_loading_info=True)
    assert type(back) is type(other)
    assert set(report.pop("missing_keys")) == lost
    assert not any(report.values())
    compare(model, variables, back.eval())
    states = other.state_dict(), back.state_dict()
    assert set(states[0]) == set(states[1])
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items() if key not in lost)
    again, same = zoo.from_pretrained(folder / "ours", **fields)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    return model, back
