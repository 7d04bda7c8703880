"""Pictures of what a model does: the alignment of its features, and its predictions beside those of others."""

from fapn_zoo.visualize.alignment import read_alignment, visualize_alignment
from fapn_zoo.visualize.comparison import Item, compare, data_items, image_items, render

__all__ = ["Item", "compare", "data_items", "image_items", "read_alignment", "render", "visualize_alignment"]
