"""Backbones: any timm model with a pyramid of maps at strides 4 to 32."""

from fapn_zoo.modules.backbones.backbone import Backbone

__all__ = ["Backbone"]
