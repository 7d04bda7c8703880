"""Data sets in the formats of other tools, a file each; `fapn_zoo.data.layouts` chooses among them."""
