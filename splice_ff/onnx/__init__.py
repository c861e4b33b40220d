"""The one-shot model without torch: export.py writes ONNX files, runner.py needs numpy, Pillow and onnxruntime only."""
