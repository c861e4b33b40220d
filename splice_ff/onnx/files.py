"""Names of what an exported model's folder holds: read without torch and without onnx."""

from __future__ import annotations

FORMAT = "splice-ff onnx 1"
GRAPHS = ("encode", "paint", "upsample")
CARD = "model.json"
