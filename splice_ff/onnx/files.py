"""Names of what an exported model's folder holds: read without torch and without onnx."""

from __future__ import annotations

GRAPHS = ("encode", "paint", "upsample")
FORMATS = {"splice-ff onnx 3": GRAPHS, "splice-ff onnx 4": (*GRAPHS, "slice")}
"""Which graphs a folder holds; the second is of generators whose color maps lie in a bilateral grid. 1 and 2 were the
same without the input `strength` of `paint`."""
CARD = "model.json"
