"""Files of the Hugging Face hub: from the cache, else downloaded, after a short question whether anybody answers."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

from splice_ff.errors import HubError

HUB_TIMEOUT = 10.0
"""Seconds without an answer after which the hub counts as unreachable."""


def ask_hub(url: str, token: str | bool | None = None) -> None:
    """Return if the hub has this file; raise what huggingface_hub raises, or TimeoutError after HUB_TIMEOUT.

    In a thread, because a socket's timeout starts anew with every address of a host and every byte received, and
    does not cover the look-up of the host's name.
    """
    answers: queue.Queue[Exception | None] = queue.Queue()

    def ask() -> None:
        try:
            get_hf_file_metadata(url, token=token, timeout=HUB_TIMEOUT)
            answers.put(None)
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        error = answers.get(timeout=HUB_TIMEOUT)
    except queue.Empty:
        raise TimeoutError(f"no answer within {HUB_TIMEOUT} seconds") from None
    if error is not None:
        raise error


def cached_file(repository: str, name: str) -> Path | None:
    """A file of a repository in the hub's cache, if it is there; the network is not asked."""
    cached = try_to_load_from_cache(repository, name)
    return Path(cached) if isinstance(cached, str) else None


def hub_file(repository: str, name: str) -> Path:
    """A file of a repository in the hub's cache, downloaded if it is not there yet.

    Raises:
        HubError: it is not cached and cannot be downloaded; the message is the end of a sentence about the file.
    """
    if (cached := cached_file(repository, name)) is not None:
        return cached
    try:
        ask_hub(hf_hub_url(repository, name))  # the download itself retries for minutes where nobody answers
        return Path(hf_hub_download(repository, name))
    except Exception as error:  # the HTTP client under huggingface_hub, and with it the exceptions, vary
        raise HubError(f"are not cached and could not be downloaded ({type(error).__name__})") from error
