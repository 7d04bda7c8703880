"""Weights folders: reading, writing, fetching and describing them."""
