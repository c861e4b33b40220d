"""Videos in one look: files through PyAV (`files.py`, `join.py`), painting (`stylize.py`), how much it flickers."""
