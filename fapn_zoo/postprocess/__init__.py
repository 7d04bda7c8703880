"""Raw outputs of heads -> answers at the size of the image: pure functions."""

from fapn_zoo.postprocess.answers import ClassMap, Detections, Frame, Instances, Panoptic, Segment
from fapn_zoo.postprocess.decoders import decode, register_output

__all__ = ["ClassMap", "Detections", "Frame", "Instances", "Panoptic", "Segment", "decode", "register_output"]
