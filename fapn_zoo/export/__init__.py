"""How a model leaves the house."""
