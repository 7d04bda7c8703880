"""The network's parts: `nn.Module`s with plain arguments that know no description, no data and no files."""
