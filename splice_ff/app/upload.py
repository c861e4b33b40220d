"""The page's image input. A file of its own, because gradio writes an upload.pyi beside it, for editors."""

from __future__ import annotations

from typing import Any

import gradio as gr


class Upload(gr.Image):  # type: ignore[misc]  # gradio has no types here
    """An image input that hands over the file as it was uploaded: the library's reader opens it, nothing before.

    A class of its own, since gradio makes components anew, from their class and arguments, when an example is chosen.
    """

    is_template = True  # drawn as an image

    def preprocess(self, payload: Any) -> str | None:
        """The file's path."""
        return payload and payload.path
