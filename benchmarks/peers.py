"""PyTorch modules of the registered architectures, the same arithmetic under torchvision's names.

They are what parity is tested against and what is timed beside ours. Images are [B, C, H, W].
"""

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


PEERS: dict[str, type[nn.Module]] = {"SimpleCNN": SimpleCNN, "LeNet5": LeNet5, "ResNet": ResNet}


def torch_model(name: str, input_shape: tuple[int, ...] | None = None, **fields: Any) -> nn.Module:
    """The peer of `zoo.create_model(name, **fields)` for images of `input_shape` (height, width, channels)."""
    info = zoo.model_info(name)
    peer = PEERS.get(info.module_class.__name__)
    if peer is None:
        raise zoo.ZooError(f"{name} has no PyTorch peer; there are peers of {', '.join(PEERS)}")
    ours = ("dtype", "param_dtype", "axis_name")
    chosen = {key: value for key, value in {**info.fields, **fields}.items() if key not in ours}
    return peer(input_shape=input_shape or info.input_shape, **chosen)
