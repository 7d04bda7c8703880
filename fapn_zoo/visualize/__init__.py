"""Pictures of what a model does: the alignment of its features, and its predictions beside those of others."""

from fapn_zoo.visualize.alignment import read_alignment
from fapn_zoo.visualize.comparison import Item, comparison_task, data_items, image_items, render
from fapn_zoo.visualize.doors import side_by_side, visualize_alignment

__all__ = [
    "Item",
    "comparison_task",
    "data_items",
    "image_items",
    "read_alignment",
    "render",
    "side_by_side",
    "visualize_alignment",
]
