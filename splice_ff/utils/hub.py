"""Files of the Hugging Face hub: from the cache, else downloaded, after a short question whether anybody answers."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

from splice_ff.errors import HubError

CUT_SHORT = ("RemoteProtocolError", "ChunkedEncodingError")
"""What httpx and requests, one of which is under huggingface_hub, raise where a download ends too soon.

It tries again by itself after other failures of the network, but not after these.
"""
DOWNLOAD_ATTEMPTS = 5
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


def hub_file(repository: str, name: str, *, again: bool = False) -> Path:
    """A file of a repository in the hub's cache, downloaded if it is not there yet.

    Args:
        repository, name: of the file.
        again: download it though it is cached, as it is damaged there.

    Raises:
        HubError: it cannot be downloaded; the message is the end of a sentence about the file.
    """
    cached = cached_file(repository, name)
    if cached and not again:
        return cached
    try:
        ask_hub(hf_hub_url(repository, name))  # the download itself retries for minutes where nobody answers
        return _download(repository, name, again)
    except Exception as error:  # the HTTP client under huggingface_hub, and with it the exceptions, vary
        fault = f"are damaged in the cache ({cached})" if cached else "are not cached"
        raise HubError(f"{fault} and could not be downloaded ({type(error).__name__})") from error


def _download(repository: str, name: str, again: bool) -> Path:
    """Download a file, going on where the connection was cut."""
    for _ in range(DOWNLOAD_ATTEMPTS - 1):
        try:
            return Path(hf_hub_download(repository, name, force_download=again))
        except Exception as error:
            if type(error).__name__ not in CUT_SHORT:
                raise
    return Path(hf_hub_download(repository, name, force_download=again))
