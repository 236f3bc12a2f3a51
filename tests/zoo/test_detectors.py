"""Faster R-CNN and RetinaNet on tiny backbones: what holds for any detector, and images whose boxes are bad or none."""

import dataclasses
import functools
from typing import Any

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from test_precision import dtypes_in

import zoo
from zoo.ops import boxes as box_ops
from zoo.ops.convolution import fast_kernel_gradients

BOTH = [*architectures.DETECTORS]
IMAGES = np.random.default_rng(0).normal(size=(3, 40, 36, 3)).astype(np.float32)
BOXES = np.array(
    [
        [[4, 5, 14, 18], [20, 10, 33, 30], [0, 0, 36, 40]],
        [[9, 9, 9, 9], [20, 20, 5, 5], [-50, -50, -40, -40]],  # no area, swapped sides, outside
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],  # no box
    ],
    np.float32,
)
LABELS = np.array([[0, 1, 1], [0, 1, 0], [-1, -1, -1]], np.int32)
KEYS = jax.random.split(jax.random.key(0), 3)


@functools.cache
def tiny(name: str) -> tuple[Any, Any]:
    """A model and its initial variables, whose head is moved so that scores differ."""
    model, (x, _) = architectures.new(name)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    rng = np.random.default_rng(2)
    head = variables["params"][model.head]
    head = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32), head)
    if "cls_score" in head:  # of regions, few of which are background
        head["cls_score"]["bias"] = head["cls_score"]["bias"].at[0].add(-5)
        head["bbox_pred"] = jax.tree.map(lambda leaf: 0.1 * leaf, head["bbox_pred"])
    return model, {**variables, "params": {**variables["params"], model.head: head}}


@functools.cache
def detecting(name: str) -> Any:
    return jax.jit(tiny(name)[0].apply)


def losses(name: str, variables: Any, *batch: Any) -> Any:
    model, _ = tiny(name)
    found, _ = model.apply(variables, *batch, train=True, method="losses", mutable=["batch_stats"])
    return {loss: total.sum() / jnp.maximum(counts.sum(), 1) for loss, (total, counts) in found.items()}


@pytest.mark.parametrize("name", BOTH)
def test_losses_and_their_gradients_are_finite_whatever_the_boxes(name: str) -> None:
    """Boxes without area, with swapped sides, outside the image, and none; every parameter has a gradient."""
    _, variables = tiny(name)

    @jax.jit
    def total(params: Any) -> Any:
        with fast_kernel_gradients():
            found = losses(name, {**variables, "params": params}, IMAGES, BOXES, LABELS, KEYS)
        return sum(found.values()), found

    gradients, found = jax.grad(total, has_aux=True)(variables["params"])
    assert all(np.isfinite(value) and value > 0 for value in found.values())
    norms = [float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(gradients)]
    assert np.isfinite(norms).all()
    assert np.mean(np.array(norms) > 0) > 0.9


@pytest.mark.parametrize("name", BOTH)
def test_padding_of_boxes_changes_no_loss(name: str) -> None:
    _, variables = tiny(name)
    loss = jax.jit(functools.partial(losses, name))
    more = np.concatenate([BOXES, np.full((3, 4, 4), 7.0, np.float32)], axis=1)
    labels = np.concatenate([LABELS, np.full((3, 4), -1, np.int32)], axis=1)
    model, _ = tiny(name)
    everything = {"anchor_samples": 10**6, "region_samples": 10**6, "region_share": 1.0}
    if all(hasattr(model, field) for field in everything):  # draws would differ
        clone = model.clone(**everything)
        loss = jax.jit(
            lambda variables, *batch: {
                loss: total.sum() / counts.sum()
                for loss, (total, counts) in clone.apply(
                    variables, *batch, train=True, method="losses", mutable=["batch_stats"]
                )[0].items()
            }
        )
    plain, padded = loss(variables, IMAGES, BOXES, LABELS, KEYS), loss(variables, IMAGES, more, labels, KEYS)
    for one, value in plain.items():
        np.testing.assert_allclose(padded[one], value, rtol=1e-5)


@pytest.mark.parametrize("name", BOTH)
def test_detections_are_ordered_inside_and_apart(name: str) -> None:
    """Highest score first; inside the image; no two of a class overlap by more than the threshold."""
    model, variables = tiny(name)
    sizes = np.array([[40, 36], [30, 20], [40, 36]], np.float32)
    found = {key: np.asarray(x) for key, x in detecting(name)(variables, IMAGES, sizes).items()}
    assert found["boxes"].shape == (3, 5, 4)
    assert (found["labels"] >= 0).sum() > 5
    for boxes, scores, labels, (height, width) in zip(
        *(found[k] for k in ("boxes", "scores", "labels")), sizes, strict=True
    ):
        kept = labels >= 0
        assert (np.diff(scores) <= 0).all()
        assert (scores[kept] > model.score_threshold).all()
        assert (scores[~kept] == 0).all()
        assert (boxes >= 0).all()
        assert (boxes <= [width, height, width, height]).all()
        overlap = np.asarray(box_ops.iou(boxes[kept, None], boxes[kept]))
        same = labels[kept][:, None] == labels[kept]
        assert (np.triu(overlap * same, 1) <= model.overlap + 1e-6).all()


@pytest.mark.parametrize("name", BOTH)
def test_an_image_is_detected_alone_as_in_a_batch(name: str) -> None:
    _, variables = tiny(name)
    together, alone = detecting(name)(variables, IMAGES), detecting(name)(variables, IMAGES[1:2])
    for key, array in alone.items():
        np.testing.assert_allclose(together[key][1:2], array, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", BOTH)
def test_the_keys_choose_what_is_compared(name: str) -> None:
    """The same keys, the same losses; others differ where anchors and regions are sampled."""
    model, variables = tiny(name)
    few = {"anchor_samples": 8, "region_samples": 4}
    clone = model.clone(**few) if hasattr(model, "anchor_samples") else model

    @jax.jit
    def total(keys: Any) -> Any:
        found, _ = clone.apply(
            variables, IMAGES, BOXES, LABELS, keys, train=True, method="losses", mutable=["batch_stats"]
        )
        return sum(total.sum() / counts.sum() for total, counts in found.values())

    one, again, other = total(KEYS), total(KEYS), total(jax.random.split(jax.random.key(1), 3))
    assert one == again
    assert (one != other) == (clone is not model)


@pytest.mark.parametrize("name", BOTH)
def test_any_number_of_images_is_exported_and_none_is_detected(name: str) -> None:
    _, variables = tiny(name)
    rows = export.symbolic_shape("b")[0]
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    program = export.export(detecting(name))(abstract, jax.ShapeDtypeStruct((rows, 40, 36, 3), jnp.float32))
    found, expected = program.call(variables, IMAGES), detecting(name)(variables, IMAGES)
    for key, array in expected.items():
        np.testing.assert_allclose(found[key], array, rtol=1e-3, atol=1e-3)
    assert detecting(name)(variables, IMAGES[:0])["boxes"].shape == (0, 5, 4)


@pytest.mark.parametrize("name", BOTH)
@jax.enable_x64(True)
def test_float64_is_computed_in_float64(name: str) -> None:
    model, (x, _) = architectures.new(name, "float64")
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    jaxpr, found = jax.make_jaxpr(model.apply, return_shape=True)(variables, x)
    assert {key: leaf.dtype.name for key, leaf in found.items()} == {
        **{"boxes": "float64", "scores": "float64", "labels": "int32"}
    }
    assert set(dtypes_in(jaxpr.jaxpr, {})) == {"float64"}


@pytest.mark.parametrize("name", BOTH)
def test_features_come_on_request(name: str) -> None:
    model, variables = tiny(name)
    _, changed = jax.eval_shape(functools.partial(model.apply, mutable=["features"]), variables, IMAGES)
    shapes = {feature: leaf.shape for feature, leaf in changed["features"].items()}
    first = 1 if name.startswith("faster") else 2
    assert shapes == {
        f"pyramid{i + 1}": (3, -(-40 // 2 ** (first + i - 1)), -(-36 // 2 ** (first + i - 1)), 4) for i in range(4)
    }


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_large", "efficientnet_lite0", "convnext_tiny", "densenet121"]
)
def test_any_backbone_with_stages(name: str) -> None:
    """Its classifier's layers get no parameters."""
    model = zoo.create_model("retinanet_resnet50_fpn", backbone_name=name)
    variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    body = variables["params"]["backbone"]["body"]
    classifier = zoo.create_model(name)
    whole = jax.eval_shape(classifier.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))["params"]
    assert body.keys() < whole.keys()
    assert classifier.head not in body


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": ("stage7",)}, "ResNet has no features stage7"),
        ({"backbone_name": "resnet_18"}, "unknown model 'resnet_18'; did you mean resnet18"),
        ({"backbone_args": {"widht": 3}}, "resnet50 has no field 'widht'"),
        ({"stages": ("pooled", "stage4")}, "must be maps"),
        ({"anchors": ((8,),)}, "anchors must have sides for each of the pyramid's 5 maps"),
    ],
)
def test_a_pyramid_that_cannot_be_made_is_an_error(fields: dict[str, Any], message: str) -> None:
    model = zoo.create_model("fasterrcnn_resnet50_fpn", **fields)
    with pytest.raises(zoo.ZooError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))


def test_giou_loss_learns_boxes_too() -> None:
    model, variables = tiny("retinanet_resnet50_fpn")
    clone = dataclasses.replace(model, box_loss="giou")
    found, _ = clone.apply(variables, IMAGES, BOXES, LABELS, KEYS, train=True, method="losses", mutable=["batch_stats"])
    total, _ = found["box"]
    assert 0 < float(total[0]) <= 2  # 1 - GIoU is between 0 and 2
    assert float(total[2]) == 0


def test_small_images_are_refused() -> None:
    model, variables = tiny("fasterrcnn_resnet50_fpn")
    with pytest.raises(zoo.ZooError, match=r"takes images .* of 32 pixels or more"):
        model.apply(variables, np.zeros((1, 20, 36, 3), np.float32))
