"""Images and color profiles that the tests of splice_ff.images write, read and compare."""

import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from splice_ff.errors import InputError

LOSSLESS = [".png", ".tif", ".tiff", ".bmp"]
LOSSY = [".jpg", ".jpeg", ".webp"] + ([".avif"] if features.check("avif") else [])
needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not stop root")


def noise(height=20, width=28, channels=3, seed=0):
    """Random bytes: an image in which no two orientations or crops look the same."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def translucent(height=20, width=28, channels=4):
    """`noise` whose last channel, alpha, is nowhere 0: every color counts."""
    array = noise(height, width, channels)
    array[..., -1] = array[..., -1].clip(1)
    return array


def unit(array):
    """What load_image should make of uint8 `(H, W, C)`: `(1, C, H, W)` in [0, 1]."""
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255


def saved(image, path, **options):
    image.save(path, **options)
    return path


def reopened(path):
    """What Pillow alone reads, with the file closed again."""
    with Image.open(path) as image:
        image.load()
    return image


def complaint(function, *arguments, **options):
    """The message of the InputError that the call must raise; always one line."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert message and "\n" not in message, repr(message)
    return message


def srgb_profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile():
    """A valid RGB profile whose first channel is green and whose second is red."""
    return srgb_profile().replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")


def gray_profile():
    profile = srgb_profile().replace(b"rTRC", b"kTRC")
    return profile[:16] + b"GRAY" + profile[20:]


def white_ink_profile():
    """A CMYK profile by which every mixture of inks prints white: its one table is a lut8 into Lab."""
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 if i in (0, 4, 8) else 0 for i in range(9)))
    white = bytes([255, 128, 128]) * 2**4
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + white + ramp * 3
    d50 = struct.pack(">3i", 63190, 65536, 54061)
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(table))
    header = struct.pack(">I4sI4s4s4s", 144 + len(table), b"", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header = (header.ljust(36, b"\0") + b"acsp").ljust(68, b"\0") + d50
    return header.ljust(128, b"\0") + tags + table
