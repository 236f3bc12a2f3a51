"""Detectors beside torchvision's: layout, parameter counts, losses and detections from the same random weights; and the
operations under them beside torchvision's and beside their definitions."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.ops import boxes as box_ops
from zoo.ops.roi_align import align_by_matrices, roi_align, roi_max_pool
from zoo.weights import load_weights, save_weights

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity
SIZE = (128, 160)
TARGETS = [([[10.0, 20, 70, 90], [50, 30, 120, 100], [5, 5, 40, 30]], [1, 2, 1]), ([], [])]  # the second has no box
FASTER = {
    "torch": {
        **{"rpn_batch_size_per_image": 10**6, "box_batch_size_per_image": 4000, "box_positive_fraction": 0.9},
        **{
            f"rpn_{order}_nms_top_n_{mode}": n
            for order, n in (("pre", 200), ("post", 60))
            for mode in ("train", "test")
        },
        **{"box_score_thresh": 0.3},
    },
    "ours": {
        **{"anchor_samples": 10**6, "region_samples": 4000, "region_share": 0.9, "score_threshold": 0.3},
        **{"train_proposals": (200, 60), "num_proposals": (200, 60)},
    },
}  # so much is sampled that all is, which both do alike
CASES: dict[str, dict[str, Any]] = {
    "fasterrcnn_resnet50_fpn": {**FASTER, "shift": 1, "parameters": 41_808_406},
    "fasterrcnn_mobilenet_v3_large_320_fpn": {**FASTER, "shift": 1, "parameters": 19_410_754},
    "retinanet_resnet50_fpn": {"torch": {}, "ours": {}, "shift": 0, "parameters": 34_068_119},
}


def nms_by_definition(boxes: Any, scores: Any, threshold: float) -> Any:
    import torchvision

    overlap, kept = torchvision.ops.box_iou(boxes, boxes), []
    for i in torch.argsort(-scores, stable=True).tolist():
        if all(overlap[i, j] <= threshold for j in kept):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def roi_align_by_definition(
    x: Any, rois: Any, output_size: Any, spatial_scale: float = 1.0, sampling_ratio: int = -1, aligned: bool = False
) -> Any:
    """Bilinear samples, one by one along each axis; 0 beyond one cell outside the map, as the compiled operator."""
    size = output_size[0] if isinstance(output_size, tuple | list) else output_size
    found = []
    for roi in rois:
        weights = []
        for axis, cells in ((2, x.shape[2]), (1, x.shape[3])):
            start, end = (roi[axis + offset] * spatial_scale - 0.5 * aligned for offset in (0, 2))
            side = end - start if aligned else max(end - start, 1.0)
            count = sampling_ratio if sampling_ratio > 0 else int(np.ceil(float(side) / size))
            points = float(start) + float(side) / size * ((np.arange(size * count) + 0.5) / max(count, 1))
            near = np.clip(points, 0, cells - 1)
            shares = np.maximum(1 - np.abs(near[:, None] - np.arange(cells)), 0)
            shares *= ((points >= -1) & (points <= cells))[:, None]
            matrix = torch.tensor(shares.reshape(size, count, cells).sum(axis=1) / max(count, 1), dtype=x.dtype)
            weights.append(matrix)
        found.append(torch.einsum("ih,jw,chw->cij", weights[0], weights[1], x[int(roi[0])]))
    return torch.stack(found) if found else x.new_zeros((0, x.shape[1], size, size))


@pytest.fixture(scope="module")
def models() -> Any:
    """torchvision.models; where its compiled operators cannot be loaded, with their definitions in their place."""
    from benchmarks.peers import torchvision_models

    models = torchvision_models()
    from torchvision.extension import _has_ops

    if not _has_ops():
        torchvision_models.library.impl("nms", nms_by_definition, "CPU")
        sys.modules["torchvision.ops.boxes"]._assert_has_ops = lambda: None
        sys.modules["torchvision.ops.poolers"].roi_align = roi_align_by_definition
    return models


def peer_of(models: Any, name: str, **settings: Any) -> Any:
    """torchvision's detector in float64, whose statistics fit the images, and whose outputs vary."""
    torch.manual_seed(0)
    peer = getattr(models.detection, name)(
        weights=None,
        weights_backbone=None,
        num_classes=4,
        **{"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "min_size": SIZE[0], "max_size": SIZE[1], **settings},
    ).double()
    for module in peer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        for layer, parameter in peer.named_parameters():
            if any(part in layer for part in ("cls_score.w", "cls_logits.w")):
                parameter.mul_(30)
    return peer


@pytest.mark.parametrize("name", CASES)
def test_layout_and_count_are_torchvisions(models: Any, name: str) -> None:
    from zoo.weights import torchvision as layout

    peer = getattr(models.detection, name)(weights=None, weights_backbone=None)
    model = zoo.create_model(name)
    abstract = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SIZE, 3)))
    ours = {*layout.names(abstract)}
    assert ours == {tensor for tensor in peer.state_dict() if "num_batches_tracked" not in tensor}
    count = sum(parameter.numel() for parameter in peer.parameters())
    assert zoo.model_info(name).parameters == count == CASES[name]["parameters"]


@pytest.mark.parametrize("name", CASES)
def test_losses_and_detections_equal_torchvisions(models: Any, name: str, tmp_path: Any) -> None:
    """In float64, in which no two scores are equal by rounding; to 1e-6, since torchvision keeps some float32."""
    from safetensors.torch import save_file

    case = CASES[name]
    peer = peer_of(models, name, **case["torch"])
    images = np.random.default_rng(0).normal(size=(2, *SIZE, 3))
    theirs = [torch.tensor(image.transpose(2, 0, 1)) for image in images]
    peer.train()
    with torch.no_grad():
        peer.backbone(torch.stack(theirs))
        found = peer.eval()(theirs)
    save_file(peer.state_dict(), tmp_path / "peer.safetensors")
    with jax.enable_x64(True):
        model = zoo.create_model(
            name, num_classes=4 - case["shift"], dtype="float64", param_dtype="float64", **case["ours"]
        )
        variables = load_weights(model, tmp_path / "peer.safetensors")
        ours = jax.jit(model.apply)(variables, images)
        for i, detected in enumerate(found):
            count = len(detected["boxes"])
            assert 5 < count <= 100
            assert int((ours["labels"][i] >= 0).sum()) == count
            np.testing.assert_array_equal(ours["labels"][i, :count] + case["shift"], detected["labels"])
            np.testing.assert_allclose(ours["scores"][i, :count], detected["scores"], atol=1e-6)
            np.testing.assert_allclose(ours["boxes"][i, :count], detected["boxes"], atol=1e-4)
        peer.train()
        targets = [
            {"boxes": torch.tensor(boxes).double().reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}
            for boxes, labels in TARGETS
        ]
        with torch.no_grad():
            expected = {name: float(loss) for name, loss in peer(theirs, targets).items()}
        boxes, labels = np.zeros((2, 4, 4)), np.full((2, 4), -1, np.int32)
        boxes[0, :3], labels[0, :3] = TARGETS[0][0], np.array(TARGETS[0][1]) - case["shift"]

        def losses(variables: Any) -> Any:
            keys = jax.random.split(jax.random.key(0), 2)
            given = {"train": True, "method": "losses", "mutable": ["batch_stats"], "rngs": {"dropout": keys[0]}}
            return model.apply(variables, images, boxes, labels, keys, **given)[0]

        sums = jax.jit(losses)(variables)
        values = sorted(float(total.sum() / count.sum()) for total, count in sums.values())
    np.testing.assert_allclose(values, sorted(expected.values()), rtol=1e-6)
    save_weights(variables, tmp_path / "ours.safetensors")
    peer.load_state_dict({**peer.state_dict(), **_loaded(tmp_path / "ours.safetensors")})


def _loaded(path: Any) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


ROIS = np.array(
    [[2, 3, 60, 70], [-20, -9, 30, 20], [100, 60, 160, 130], [5, 5, 5, 5], [9, 40, 8, 30], [0, 0, 133.7, 101.2]],
    np.float32,
)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
def test_roi_align_and_its_gradient(aligned: bool, ratio: int) -> None:
    """Boxes inside, partly outside, without area, with swapped sides, and larger than the map."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(13, 17, 3)).astype(np.float32)
    theirs = torch.tensor(features.transpose(2, 0, 1)[None], requires_grad=True)
    rois = torch.tensor(np.concatenate([np.zeros((len(ROIS), 1), np.float32), ROIS], axis=1))
    expected = roi_align_by_definition(theirs, rois, 5, 1 / 8, ratio, aligned)
    weights = rng.normal(size=expected.shape).astype(np.float32)
    expected.backward(torch.tensor(weights))
    for align in (roi_align, align_by_matrices):
        ours, gradient = jax.vjp(lambda x: align(x, jnp.asarray(ROIS), 5, 1 / 8, ratio, aligned), features)  # noqa: B023
        np.testing.assert_allclose(ours, expected.detach().numpy().transpose(0, 2, 3, 1), atol=2e-5)
        np.testing.assert_allclose(
            gradient(jnp.asarray(weights.transpose(0, 2, 3, 1)))[0],
            theirs.grad[0].numpy().transpose(1, 2, 0),
            atol=2e-5,
        )


@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_equals_torchvisions_own_version(models: Any, ratio: int) -> None:
    """Its version in Python, for boxes inside the map, outside of which that does not follow the compiled operator."""
    module = sys.modules["torchvision.ops.roi_align"]
    plain = getattr(module._roi_align, "__wrapped__", module._roi_align)
    features = np.random.default_rng(0).normal(size=(13, 17, 3)).astype(np.float32)
    inside = np.array([[2, 3, 60, 70], [8, 0, 90, 95], [40, 50, 47, 66]], np.float32)
    rois = torch.tensor(np.concatenate([np.zeros((3, 1), np.float32), inside], axis=1))
    for aligned in (False, True):
        expected = plain(torch.tensor(features.transpose(2, 0, 1)[None]), rois, 1 / 8, 5, 5, ratio, aligned)
        ours = roi_align(jnp.asarray(features), jnp.asarray(inside), 5, 1 / 8, ratio, aligned)
        np.testing.assert_allclose(ours, expected.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_roi_max_pool() -> None:
    """Beside the bins that Girshick 2015 describes, cell by cell, with halves rounded up."""
    features = np.random.default_rng(0).normal(size=(13, 17, 2)).astype(np.float32)
    ours = np.asarray(roi_max_pool(jnp.asarray(features), jnp.asarray(ROIS), 3, 1 / 8))
    for roi, found in zip(ROIS, ours, strict=True):
        x0, y0, x1, y1 = (int(side) for side in np.floor(roi / 8 + 0.5))
        height, width = max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1)
        for i in range(3):
            for j in range(3):
                rows = [min(max(y0 + r, 0), 13) for r in (i * height // 3, -(-(i + 1) * height // 3))]
                columns = [min(max(x0 + r, 0), 17) for r in (j * width // 3, -(-(j + 1) * width // 3))]
                cells = features[slice(*rows), slice(*columns)]
                expected = cells.max(axis=(0, 1)) if cells.size else np.zeros(2)
                np.testing.assert_allclose(found[i, j], expected, rtol=1e-6)


def test_overlaps_equal_torchvisions(models: Any) -> None:
    import torchvision

    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (2, 20, 2))
    a, b = np.concatenate([corners, corners + rng.uniform(1, 40, (2, 20, 2))], axis=2).astype(np.float32)
    pairs = {box_ops.iou: torchvision.ops.box_iou, box_ops.giou: torchvision.ops.generalized_box_iou}
    for ours, theirs in pairs.items():
        np.testing.assert_allclose(ours(a[:, None], b), theirs(torch.tensor(a), torch.tensor(b)), atol=1e-6)
