"""Layers shared by necks and heads."""
