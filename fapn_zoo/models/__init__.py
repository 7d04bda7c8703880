"""The class that joins backbone, neck and head."""

from fapn_zoo.models.segmentation import SegmentationModel

__all__ = ["SegmentationModel"]
