"""Foreign checkpoints -> weights folders, on demand: no other part of the package imports this one when it is imported.

Here alone files other than safetensors are read, and nothing in them is ever run.
"""

from fapn_zoo.convert.files import Conversion, convert, convert_file
from fapn_zoo.convert.names import to_zoo
from fapn_zoo.convert.reading import read_checkpoint

__all__ = ["Conversion", "convert", "convert_file", "read_checkpoint", "to_zoo"]
