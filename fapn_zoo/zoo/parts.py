"""Names of heads and necks, the class each stands for (``module:Class``) and the arguments its name fixes."""

from __future__ import annotations

HEADS: dict[str, str] = {
    "perpixel": "fapn_zoo.modules.heads:PerPixelHead",
    "perpixel_plus": "fapn_zoo.modules.heads:PerPixelPlusHead",
    "semantic_fpn": "fapn_zoo.modules.heads:SemanticFPNHead",
    "maskformer": "fapn_zoo.modules.heads:MaskFormerHead",
}

# `fpn` and `fapn` take the dialect of their head; the other names are rows of the paper's ablation table
# (FACTS section 5), which was made in detectron2's dialect.
NECKS: dict[str, tuple[str, dict[str, object]]] = {
    "fpn": ("fapn_zoo.modules.necks:FPN", {}),
    "fapn": ("fapn_zoo.modules.necks:FaPN", {}),
    "fpn_extra3x3": ("fapn_zoo.modules.necks:FPN", {"dialect": "detectron2", "extra_convs": 2}),
    "fam": ("fapn_zoo.modules.necks:FaPN", {"dialect": "detectron2", "select": "none"}),
    "fam_se": ("fapn_zoo.modules.necks:FaPN", {"dialect": "detectron2", "select": "se"}),
    "deconv_fsm": ("fapn_zoo.modules.necks:FaPN", {"dialect": "detectron2", "align": "deconv"}),
    "fam_noref_fsm": ("fapn_zoo.modules.necks:FaPN", {"dialect": "detectron2", "align": "dcn"}),
}
