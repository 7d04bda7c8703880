"""Raw outputs of heads -> answers at the size of the image: pure functions."""

from fapn_zoo.modules.heads.outputs import SemanticOutput
from fapn_zoo.postprocess.decoders import (
    Instances,
    Panoptic,
    Segment,
    choose,
    instances,
    panoptic,
    semantic,
    semantic_labels,
    semantic_scores,
)

__all__ = [
    "Instances",
    "Panoptic",
    "Segment",
    "SemanticOutput",
    "choose",
    "instances",
    "panoptic",
    "semantic",
    "semantic_labels",
    "semantic_scores",
]
