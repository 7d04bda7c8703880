"""Weights folders and the Hub. A folder holds the description, the tensors and the model card, in these files."""

# Not beside what reads them: whoever only fetches files needs no torch.
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
