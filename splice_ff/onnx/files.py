"""Names of what an exported model's folder holds: read without torch and without onnx."""

from __future__ import annotations

GRAPHS = ("encode", "paint")
FORMAT = "splice-ff onnx 5"
"""Of the folder. Before 5, runners resized and padded images and read the grid by themselves."""
CARD = "model.json"
