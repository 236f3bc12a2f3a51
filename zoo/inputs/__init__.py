"""Raw data (a file, a string) to what a model was trained on, and back: `zoo.inputs.base` has the protocol."""

from zoo.inputs.base import Inputs, inputs_from_json
from zoo.inputs.detection import DetectionInputs
from zoo.inputs.image import ImageInputs
from zoo.inputs.image_text import ImageTextInputs
from zoo.inputs.pairs import PairInputs
from zoo.inputs.segmentation import SegmentationInputs
from zoo.inputs.series import SeriesInputs
from zoo.inputs.text import TextInputs
from zoo.inputs.text_to_text import TextToTextInputs

__all__ = [
    "DetectionInputs",
    "ImageInputs",
    "ImageTextInputs",
    "Inputs",
    "PairInputs",
    "SegmentationInputs",
    "SeriesInputs",
    "TextInputs",
    "TextToTextInputs",
    "inputs_from_json",
]
