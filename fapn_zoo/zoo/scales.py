"""Image sizes of multi-scale evaluation, from the configs of MaskFormer (TEST.AUG), which FaPN's models share."""

from __future__ import annotations

FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of the test size; every list below is this rule
# (label set, short side at test time) -> short sides, limit of the long side
OFFICIAL = {
    ("ade20k", 512): ((256, 384, 512, 640, 768, 896), 3584),
    ("ade20k", 640): ((320, 480, 640, 800, 960, 1120), 4480),
    ("cocostuff10k", 640): ((320, 480, 640, 800, 960, 1120), 4480),
    ("cityscapes", 1024): ((512, 768, 1024, 1280, 1536, 1792), 4096),
}
