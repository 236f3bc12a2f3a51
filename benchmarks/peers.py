"""PyTorch modules of the CNNs: torchvision's, and for models that it lacks our own with torchvision's style of names.

Parity is tested against them, and they are timed beside ours. Images are [B, C, H, W].
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import zoo


class SimpleCNN(nn.Module):
    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        widths: tuple[int, ...],
        hidden_size: int,
        dropout_rate: float,
    ):
        super().__init__()
        height, width, before = input_shape
        self.depth = len(widths)
        for i, channels in enumerate(widths, start=1):
            self.add_module(f"conv{i}", nn.Conv2d(before, channels, 3, padding=1))
            before, height, width = channels, height // 2, width // 2
        self.fc1 = nn.Linear(before * height * width, hidden_size)
        self.dropout = nn.Dropout(dropout_rate)
        self.fc2 = nn.Linear(hidden_size, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(1, self.depth + 1):
            x = F.max_pool2d(F.relu(self.get_submodule(f"conv{i}")(x)), 2)
        return self.fc2(self.dropout(F.relu(self.fc1(x.flatten(1)))))


class LeNet5(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], num_classes: int):
        super().__init__()
        height, width, channels = input_shape
        rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * rows * columns, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in (self.conv1, self.conv2):
            x = F.avg_pool2d(torch.tanh(conv(x)), 2)
        x = torch.tanh(self.fc1(x.flatten(1)))
        return self.fc3(torch.tanh(self.fc2(x)))


class ResidualBlock(nn.Module):
    def __init__(self, before: int, width: int, strides: int, block: str, shortcut: str):
        super().__init__()
        self.block, self.strides = block, strides
        out = width if block == "basic" else 4 * width
        if block == "basic":
            self.conv1 = nn.Conv2d(before, width, 3, strides, 1, bias=False)
            self.conv2 = nn.Conv2d(width, out, 3, 1, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(out)
        else:
            self.conv1 = nn.Conv2d(before, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, strides, 1, bias=False)
            self.conv3 = nn.Conv2d(width, out, 1, bias=False)
            self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(width), nn.BatchNorm2d(width), nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        self.extra = out - before
        self.pads = shortcut == "pad" and (self.extra > 0 or strides > 1)
        if shortcut == "projection" and (self.extra or strides > 1):
            self.downsample = nn.Sequential(nn.Conv2d(before, out, 1, strides, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.block == "bottleneck":
            y = self.bn3(self.conv3(F.relu(y)))
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.pads:
            half = self.extra // 2
            x = F.pad(x[:, :, :: self.strides, :: self.strides], (0, 0, 0, 0, half, self.extra - half))
        return F.relu(x + y)


class ResNet(nn.Module):
    def __init__(
        self,
        input_shape: tuple[int, ...],
        stage_sizes: tuple[int, ...],
        block: str,
        stem: str,
        shortcut: str,
        width: int,
        num_classes: int,
    ):
        super().__init__()
        self.stem, self.stages = stem, len(stage_sizes)
        size, strides = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(input_shape[-1], width, size, strides, size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        before = width
        for stage, blocks in enumerate(stage_sizes):
            layer = nn.Sequential()
            for i in range(blocks):
                strides = 2 if stage > 0 and i == 0 else 1
                layer.append(ResidualBlock(before, width * 2**stage, strides, block, shortcut))
                before = width * 2**stage * (1 if block == "basic" else 4)
            self.add_module(f"layer{stage + 1}", layer)
        self.fc = nn.Linear(before, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        if self.stem == "imagenet":
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


class PreActivationBlock(nn.Module):
    def __init__(self, before: int, width: int, strides: int, dropout_rate: float):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(before), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(before, width, 3, strides, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.dropout = nn.Dropout(dropout_rate)
        self.downsample: nn.Module | None = None
        if before != width or strides > 1:
            self.downsample = nn.Conv2d(before, width, 1, strides, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(x))
        if self.downsample is not None:
            x = self.downsample(y)
        return x + self.conv2(self.dropout(F.relu(self.bn2(self.conv1(y)))))


class WideResNet(nn.Module):
    def __init__(
        self,
        input_shape: tuple[int, ...],
        stage_sizes: tuple[int, ...],
        width: int,
        num_classes: int,
        dropout_rate: float,
    ):
        super().__init__()
        self.stages, before = len(stage_sizes), 16
        self.conv1 = nn.Conv2d(input_shape[-1], before, 3, 1, 1, bias=False)
        for stage, blocks in enumerate(stage_sizes):
            layer = nn.Sequential()
            for i in range(blocks):
                strides = 2 if stage > 0 and i == 0 else 1
                layer.append(PreActivationBlock(before, width * 2**stage, strides, dropout_rate))
                before = width * 2**stage
            self.add_module(f"layer{stage + 1}", layer)
        self.bn1, self.fc = nn.BatchNorm2d(before), nn.Linear(before, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


class BiasNorm(nn.BatchNorm2d):
    def __init__(self, width: int):
        super().__init__(width, eps=1e-12, momentum=0.4)
        self.register_parameter("weight", None)


class AirBlock(nn.Module):
    def __init__(self, before: int, width: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, width, 3, padding=1, bias=False), BiasNorm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), BiasNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)), approximate="tanh")
        return F.gelu(self.norm2(self.conv2(x)), approximate="tanh")


class AirBench(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], widths: tuple[int, ...], num_classes: int, logit_scale: float):
        super().__init__()
        before = 8 * input_shape[-1]
        self.blocks, self.logit_scale = len(widths), logit_scale
        self.whiten = nn.Conv2d(input_shape[-1], before, 2)
        self.whiten.weight.requires_grad = False
        for i, width in enumerate(widths, start=1):
            self.add_module(f"layer{i}", AirBlock(before, width))
            before = width
        self.fc = nn.Linear(before, num_classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.whiten(x), approximate="tanh")
        for i in range(1, self.blocks + 1):
            x = self.get_submodule(f"layer{i}")(x)
        return self.logit_scale * self.fc(x.amax((2, 3)))


def torchvision_models() -> Any:
    """The module torchvision.models, even if its compiled operators, which classifiers do not use, cannot be loaded."""
    import importlib

    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError:  # torchvision for CUDA with torch for CPU: define the operators that it looks up on import
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision_models.library = library  # type: ignore[attr-defined]  # operators live as long as the library
        return importlib.import_module("torchvision.models")


def alexnet(input_shape: tuple[int, ...], num_classes: int, hidden_size: int, dropout_rate: float) -> nn.Module:
    peer = torchvision_models().alexnet(num_classes=num_classes, dropout=dropout_rate)
    peer.classifier[1] = nn.Linear(256 * 6 * 6, hidden_size)
    peer.classifier[4] = nn.Linear(hidden_size, hidden_size)
    peer.classifier[6] = nn.Linear(hidden_size, num_classes)
    return peer


def vgg(
    input_shape: tuple[int, ...],
    stage_sizes: tuple[int, ...],
    batch_norm: bool,
    num_classes: int,
    hidden_size: int,
    dropout_rate: float,
) -> nn.Module:
    module = torchvision_models().vgg
    column: list[Any] = []
    for width, convs in zip((64, 128, 256, 512, 512), stage_sizes, strict=True):
        column += [width] * convs + ["M"]
    peer = module.VGG(module.make_layers(column, batch_norm), num_classes, init_weights=False, dropout=dropout_rate)
    peer.classifier[0] = nn.Linear(512 * 7 * 7, hidden_size)
    peer.classifier[3] = nn.Linear(hidden_size, hidden_size)
    peer.classifier[6] = nn.Linear(hidden_size, num_classes)
    return peer


def densenet(
    input_shape: tuple[int, ...], stage_sizes: tuple[int, ...], growth_width: int, width: int, num_classes: int
) -> nn.Module:
    return torchvision_models().DenseNet(growth_width, stage_sizes, width, num_classes=num_classes)


def mobilenet_v2(input_shape: tuple[int, ...], multiplier: float, num_classes: int, dropout_rate: float) -> nn.Module:
    return torchvision_models().MobileNetV2(num_classes, multiplier, dropout=dropout_rate)


def mobilenet_v3(
    input_shape: tuple[int, ...], variant: str, hidden_size: int, num_classes: int, dropout_rate: float
) -> nn.Module:
    build = getattr(torchvision_models(), f"mobilenet_v3_{variant}")
    return build(num_classes=num_classes, dropout=dropout_rate)


def efficientnet(
    input_shape: tuple[int, ...],
    squeeze: bool,
    activation: str,
    num_classes: int,
    dropout_rate: float,
    drop_path_rate: float,
    fixed_ends: bool,  # B0's, of the size of which the peer is
) -> nn.Module:
    build = torchvision_models().efficientnet_b0
    peer = build(num_classes=num_classes, dropout=dropout_rate, stochastic_depth_prob=drop_path_rate)
    for module in list(peer.modules()):
        if isinstance(module, nn.Sequential):
            for i in reversed(range(len(module))):
                if not squeeze and type(module[i]).__name__ == "SqueezeExcitation":
                    del module[i]
                elif activation == "relu6" and isinstance(module[i], nn.SiLU):
                    module[i] = nn.ReLU6()
    return peer


def convnext(
    input_shape: tuple[int, ...], stage_sizes: tuple[int, ...], width: int, drop_path_rate: float, num_classes: int
) -> nn.Module:
    module = torchvision_models().convnext
    last = len(stage_sizes) - 1
    setting = [
        module.CNBlockConfig(width * 2**i, width * 2 ** (i + 1) if i < last else None, blocks)
        for i, blocks in enumerate(stage_sizes)
    ]
    return module.ConvNeXt(setting, drop_path_rate, num_classes=num_classes)


class UpConvolution(nn.Module):
    """A 2x2 transposed convolution whose weight lies like a convolution's, [out, in, 2, 2]."""

    def __init__(self, before: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, before, 2, 2) * before**-0.5)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose2d(x, self.weight.transpose(0, 1), self.bias, stride=2)


class UNet(nn.Module):
    def __init__(
        self,
        input_shape: tuple[int, ...],
        widths: tuple[int, ...],
        padding: str,
        norm: bool,
        dropout_rate: float,
        num_classes: int,
    ):
        super().__init__()
        self.levels, self.padding, self.norm = len(widths), padding, norm
        self.dropout = nn.Dropout(dropout_rate)
        before = input_shape[-1]
        for level, width in enumerate(widths, start=1):
            self.add_convolutions(f"down{level}", before, width)
            before = width
        for level in range(self.levels - 1, 0, -1):
            width = widths[level - 1]
            self.add_module(f"upsample{level}", UpConvolution(before, width))
            self.add_convolutions(f"join{level}", 2 * width, width)
            before = width
        self.logits = nn.Conv2d(before, num_classes, 1)

    def add_convolutions(self, name: str, before: int, width: int) -> None:
        for i, channels in ((1, before), (2, width)):
            conv = nn.Conv2d(channels, width, 3, padding=self.padding, bias=not self.norm)
            self.add_module(f"{name}_conv{i}", conv)
            if self.norm:
                self.add_module(f"{name}_bn{i}", nn.BatchNorm2d(width))

    def convolutions(self, x: torch.Tensor, name: str) -> torch.Tensor:
        for i in (1, 2):
            x = self.get_submodule(f"{name}_conv{i}")(x)
            x = F.relu(self.get_submodule(f"{name}_bn{i}")(x) if self.norm else x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        if self.padding == "same":
            step = 2 ** (self.levels - 1)
            x = F.pad(x, (0, -width % step, 0, -height % step), mode="replicate")
        skips: list[torch.Tensor] = []
        for level in range(1, self.levels + 1):
            x = self.convolutions(F.max_pool2d(skips[-1], 2) if skips else x, f"down{level}")
            skips.append(self.dropout(x) if level >= self.levels - 1 else x)
        x = skips.pop()
        for level in range(self.levels - 1, 0, -1):
            x, skip = self.get_submodule(f"upsample{level}")(x), skips.pop()
            top, left = ((a - b) // 2 for a, b in zip(skip.shape[2:], x.shape[2:], strict=True))
            x = torch.cat([skip[:, :, top : top + x.shape[2], left : left + x.shape[3]], x], dim=1)
            x = self.convolutions(x, f"join{level}")
        x = self.logits(x)
        return x[:, :, :height, :width] if self.padding == "same" else x


def deeplab(
    input_shape: tuple[int, ...],
    classifier: str,
    stage_sizes: tuple[int, ...],
    auxiliary: bool,
    dropout_rate: float | None,
    num_classes: int,
) -> nn.Module:
    """torchvision's, whose result is the logits alone."""
    models = torchvision_models()
    segmentation = models.segmentation
    base: Any = segmentation._utils._SimpleSegmentationModel

    class Peer(base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)["out"]

    body = models.ResNet(models.resnet.Bottleneck, stage_sizes, replace_stride_with_dilation=[False, True, True])
    layers = {"layer4": "out", **({"layer3": "aux"} if auxiliary else {})}
    backbone = models._utils.IntermediateLayerGetter(body, return_layers=layers)
    channels = 2048
    head = segmentation.deeplabv3.DeepLabHead if classifier == "deeplab" else segmentation.fcn.FCNHead
    second = segmentation.fcn.FCNHead(channels // 2, num_classes) if auxiliary else None
    peer = Peer(backbone, head(channels, num_classes), second)
    for module in peer.modules():
        if isinstance(module, nn.Dropout) and dropout_rate is not None:
            module.p = dropout_rate
    return peer


PEERS: dict[str, Callable[..., nn.Module]] = {
    "SimpleCNN": SimpleCNN,
    "LeNet5": LeNet5,
    "ResNet": ResNet,
    "WideResNet": WideResNet,
    "AirBench": AirBench,
    "AlexNet": alexnet,
    "VGG": vgg,
    "DenseNet": densenet,
    "MobileNetV2": mobilenet_v2,
    "MobileNetV3": mobilenet_v3,
    "EfficientNet": efficientnet,
    "ConvNeXt": convnext,
    "UNet": UNet,
    "DeepLab": deeplab,
}


def torch_model(name: str, input_shape: tuple[int, ...] | None = None, **fields: Any) -> nn.Module:
    """The peer of `zoo.create_model(name, **fields)` for images of `input_shape` (height, width, channels)."""
    info = zoo.model_info(name)
    peer = PEERS.get(info.module_class.__name__)
    if peer is None:
        raise zoo.ZooError(f"{name} has no PyTorch peer; there are peers for {', '.join(PEERS)}")
    ours = ("dtype", "param_dtype", "axis_name")
    chosen = {key: value for key, value in {**info.fields, **fields}.items() if key not in ours}
    defaults = {field.name: field.default for field in dataclasses.fields(info.module_class)}  # type: ignore[arg-type]
    takes = inspect.signature(peer).parameters
    for key in chosen.keys() - takes.keys():
        if chosen.pop(key) != defaults[key]:
            raise zoo.ZooError(f"the PyTorch peer of {name} has no {key}")
    return peer(input_shape=input_shape or info.input_shape, **chosen)
