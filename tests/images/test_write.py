import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, features
from support.image_files import LOSSLESS, LOSSY, complaint, needs_permissions, noise, reopened, unit

from splice_ff.errors import InputError
from splice_ff.images import SUFFIXES, check_writable, load_image, save_image, to_output
from splice_ff.images.formats import LONGEST_SIDE


@pytest.mark.parametrize("suffix", [*LOSSLESS, ".PNG"])
def test_save_and_load(tmp_path, suffix):
    rgb = unit(noise())
    for image in (rgb, rgb[0]):
        path = save_image(str(tmp_path / f"a{suffix}"), image)
        assert path == tmp_path / f"a{suffix}"
        assert torch.equal(load_image(path).rgb, rgb)
    assert os.listdir(tmp_path) == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", LOSSY)
def test_save_and_load_lossy(tmp_path, suffix):
    rgb = torch.linspace(0, 1, 64).expand(1, 3, 48, 64) * torch.tensor([1, 0.5, 0.2]).view(1, 3, 1, 1)
    loaded = load_image(save_image(tmp_path / f"a{suffix}", rgb))
    torch.testing.assert_close(loaded.rgb, rgb, atol=0.05, rtol=0)
    expected = {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "avif": "AVIF"}[suffix[1:]]
    assert reopened(tmp_path / f"a{suffix}").format == expected


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_alpha_comes_back(tmp_path, suffix):
    alpha = unit(noise(channels=1, seed=1))
    for given in (alpha, alpha[0]):
        loaded = load_image(save_image(tmp_path / f"a{suffix}", unit(noise()), alpha=given))
        assert torch.equal(loaded.alpha, alpha)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow cannot write AVIF")
def test_alpha_comes_back_from_avif(tmp_path):
    alpha = torch.linspace(0, 1, 64).expand(1, 1, 48, 64)
    loaded = load_image(save_image(tmp_path / "a.avif", torch.full((3, 48, 64), 0.5), alpha=alpha))
    torch.testing.assert_close(loaded.alpha, alpha, atol=0.05, rtol=0)


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_alpha_is_left_out_where_it_cannot_be_kept(tmp_path, suffix):
    path = save_image(tmp_path / f"a{suffix}", torch.ones(3, 20, 20), alpha=torch.zeros(1, 20, 20))
    assert reopened(path).mode == "RGB"
    assert load_image(path).rgb.min() > 0.98


def test_values_are_rounded_and_clamped(tmp_path):
    rgb = torch.full((3, 20, 20), 100.6 / 255)
    rgb[0, 0, :3] = torch.tensor([100.4 / 255, -0.2, 1.2])
    path = save_image(tmp_path / "a.png", rgb)
    assert np.asarray(reopened(path))[0, :4, 0].tolist() == [100, 0, 255, 101]


def test_a_image_fresh_from_a_model(tmp_path):
    rgb = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    alpha = torch.full((1, 20, 20), 77 / 255, requires_grad=True)
    loaded = load_image(save_image(tmp_path / "a.png", rgb, alpha=alpha))
    expected = (rgb.detach().float() * 255).round() / 255
    torch.testing.assert_close(loaded.rgb, expected)
    assert loaded.alpha.unique().tolist() == [pytest.approx(77 / 255)]


def test_fine_colors_survive_jpeg(tmp_path):
    stripes = torch.zeros(3, 32, 32)
    stripes[0, :, ::2] = stripes[2, :, 1::2] = 1
    loaded = load_image(save_image(tmp_path / "a.jpg", stripes))
    torch.testing.assert_close(loaded.rgb[0], stripes, atol=0.1, rtol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_image_is_never_written(tmp_path, value):
    good, bad = torch.rand(3, 20, 20), torch.rand(3, 20, 20)
    bad[1, 2, 3] = value
    assert "NaN" in complaint(save_image, tmp_path / "a.png", bad)
    assert "NaN" in complaint(save_image, tmp_path / "a.png", good, alpha=bad[1:2])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("shape", [(20, 20), (1, 20, 20), (4, 20, 20), (2, 3, 20, 20), (3, 0, 20)])
def test_other_shapes_are_not_written(tmp_path, shape):
    message = complaint(save_image, tmp_path / "a.png", torch.zeros(shape))
    assert "a.png" in message and str(shape) in message


def test_alpha_must_fit(tmp_path):
    message = complaint(save_image, tmp_path / "a.png", torch.zeros(3, 20, 20), alpha=torch.zeros(1, 10, 40))
    assert "a.png" in message and "(1, 10, 40)" in message


SETTINGS = {"seed": "7", "structure": "Zoë 猫.png"}


def test_settings_are_png_text(tmp_path):
    path = save_image(tmp_path / "a.png", torch.rand(3, 20, 20), settings=SETTINGS)
    assert reopened(path).text == SETTINGS


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif", *[s for s in LOSSY if s == ".avif"]])
def test_settings_are_the_exif_description_elsewhere(tmp_path, suffix):
    path = save_image(tmp_path / f"a{suffix}", torch.rand(3, 20, 20), settings=SETTINGS)
    description = reopened(path).getexif()[ExifTags.Base.ImageDescription]
    assert description.encode("latin-1").decode() == "seed=7; structure=Zoë 猫.png"


def test_settings_too_long_for_jpeg_do_not_lose_the_image(tmp_path):
    path = save_image(tmp_path / "a.jpg", torch.rand(3, 20, 20), settings={"prompt": "x" * 100_000})
    assert reopened(path).getexif()[ExifTags.Base.ImageDescription].startswith("prompt=xxx")


def test_settings_are_left_out_of_bmp(tmp_path):
    load_image(save_image(tmp_path / "a.bmp", torch.rand(3, 20, 20), settings=SETTINGS))
    assert b"seed" not in (tmp_path / "a.bmp").read_bytes()


def test_a_missing_folder_is_created(tmp_path):
    assert save_image(tmp_path / "new" / "newer" / "a.png", torch.rand(3, 20, 20)).is_file()


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = save_image(tmp_path / "a.png", torch.rand(3, 20, 20))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


# A write is whole or an error


@contextmanager
def full_disk():
    """A disk that takes 1000 bytes a file and no more, for the system's own reasons; pytest's own output too."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1][1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[1])
        signal.signal(signal.SIGXFSZ, before[0])


@pytest.mark.parametrize("suffix", [*LOSSLESS, *LOSSY])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_full_disk_keeps_the_old_image(tmp_path, suffix, is_new):
    path, image = tmp_path / f"a{suffix}", torch.rand(3, 64, 64)
    old = None if is_new else save_image(path, image).read_bytes()
    with full_disk():
        message = complaint(save_image, path, image)
    assert f"a{suffix}: cannot be written (File too large)" in message
    assert os.listdir(tmp_path) == ([] if is_new else [path.name])
    assert is_new or path.read_bytes() == old


@pytest.mark.parametrize("suffix", [*LOSSLESS, *LOSSY])
def test_an_encoder_that_fails_changes_nothing(tmp_path, suffix, monkeypatch):
    path = save_image(tmp_path / f"a{suffix}", torch.rand(3, 20, 20))
    old = path.read_bytes()

    def half(self, fp, format=None, **options):
        fp.write(b"half an image")
        raise OSError("encoder error -2 when writing image file")

    monkeypatch.setattr(Image.Image, "save", half)
    assert path.name in complaint(save_image, path, torch.rand(3, 20, 20))
    assert path.read_bytes() == old and os.listdir(tmp_path) == [path.name]


# What a format cannot hold is known before the work


@pytest.mark.parametrize(("suffix", "side"), [(".webp", 16_384), (".jpg", 65_501), (".avif", 32_769)])
@pytest.mark.parametrize("is_tall", [True, False])
def test_formats_too_small_for_an_image_are_named_before_the_work(tmp_path, suffix, side, is_tall):
    size = (side, 20) if is_tall else (20, side)
    for function in (
        lambda path: check_writable(path, size),
        lambda path: save_image(path, torch.zeros(3, 1, 1).expand(3, *size)),
    ):
        message = complaint(function, tmp_path / f"a{suffix}")
        assert str(side) in message and ".png" in message
    check_writable(tmp_path / f"a{suffix}", (20, side - 1))
    check_writable(tmp_path / "a.png", size)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".webp", ".jpg", *[s for s in LOSSY if s == ".avif"]])
def test_formats_hold_what_they_are_said_to(tmp_path, suffix):
    side = LONGEST_SIDE[SUFFIXES[suffix]]
    path = save_image(tmp_path / f"a{suffix}", torch.zeros(3, 1, 1).expand(3, 16, side))
    assert load_image(path).size == (16, side)


@pytest.mark.parametrize("value", ["bad\udcff.png", "\ud800", "nul\0byte", "two\nlines", "猫"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
def test_settings_of_any_text_are_no_reason_to_lose_an_image(tmp_path, value, suffix):
    load_image(save_image(tmp_path / f"a{suffix}", torch.rand(3, 20, 20), settings={"structure": value}))


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX systems only")
def test_a_name_that_is_no_text_can_be_written_and_read(tmp_path):
    path = tmp_path / os.fsdecode(b"bad\xff.png")
    check_writable(path)
    load_image(save_image(path, torch.rand(3, 20, 20)))


# The border of the Python API


@pytest.mark.parametrize(
    ("rgb", "says"),
    [
        (torch.rand(3, 20, 20) * 255, "expected [0, 1]"),
        (torch.rand(3, 20, 20) - 3, "expected [0, 1]"),
        (torch.zeros(3, 20, 20, dtype=torch.int64), "torch.int64"),
        (torch.zeros(3, 20, 20, dtype=torch.bool), "torch.bool"),
        (torch.zeros(3, 20, 20, dtype=torch.complex64), "torch.complex64"),
        (np.zeros((20, 20, 3), np.uint8), "ndarray"),
        (Image.new("RGB", (20, 20)), "Image"),
        (None, "NoneType"),
    ],
    ids=["times 255", "below", "int64", "bool", "complex", "array", "PIL", "None"],
)
def test_what_is_no_image_is_not_written_but_named(tmp_path, rgb, says):
    assert says in complaint(save_image, tmp_path / "a.png", rgb)
    if not (isinstance(rgb, torch.Tensor) and rgb.is_floating_point()):
        assert says in complaint(to_output, rgb, None, "pil")
    assert os.listdir(tmp_path) == []


def test_8_bit_tensors_are_written_as_they_are(tmp_path):
    rgb, alpha = torch.from_numpy(noise()).permute(2, 0, 1), torch.from_numpy(noise(channels=1)).permute(2, 0, 1)
    image = np.asarray(reopened(save_image(tmp_path / "a.png", rgb, alpha=alpha)))
    assert np.array_equal(image, np.concatenate([noise(), noise(channels=1)], 2))


def test_outputs_for_people():
    rgb, alpha = unit(noise()), unit(noise(channels=1))
    image = to_output(rgb, None, "pil")
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), noise())
    assert to_output(rgb, alpha, "pil").mode == "RGBA"
    array = to_output(rgb, alpha, "np")
    assert array.shape == (20, 28, 4) and array.dtype == np.float32 and array.max() <= 1
    tensor = to_output(rgb[0], alpha[0], "pt")
    assert tensor.shape == (4, 20, 28) and torch.equal(tensor[:3], rgb[0])
    with pytest.raises(InputError, match="pil, np, pt"):
        to_output(rgb, None, "latent")


# Places that take no file: both functions must say so, one before the work and one after it


def write_anything(path):
    save_image(path, torch.zeros(3, 20, 20))


@pytest.mark.parametrize("function", [check_writable, write_anything])
class TestUnwritable:
    @pytest.mark.parametrize("name", ["a.xyz", "a", "a.gif", ".png"])
    def test_unknown_suffix(self, tmp_path, function, name):
        message = complaint(function, tmp_path / name)
        assert name in message and ".png" in message and ".webp" in message and ".tiff" in message

    def test_folder_in_its_place(self, tmp_path, function):
        (tmp_path / "a.png").mkdir()
        assert "a.png" in complaint(function, tmp_path / "a.png")
        assert os.listdir(tmp_path) == ["a.png"]

    def test_pipe_in_its_place(self, tmp_path, function):
        os.mkfifo(tmp_path / "a.png")
        assert "a.png" in complaint(function, tmp_path / "a.png")
        assert (tmp_path / "a.png").is_fifo()

    @pytest.mark.parametrize("below", ["out.png", "deeper/out.png"])
    def test_file_where_a_folder_should_be(self, tmp_path, function, below):
        (tmp_path / "file").touch()
        assert "out.png" in complaint(function, tmp_path / "file" / below)

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux")
    @pytest.mark.parametrize("path", ["/proc/out.png", "/proc/new/out.png"])
    def test_place_that_refuses_even_root(self, function, path):
        assert path in complaint(function, path)

    @needs_permissions
    @pytest.mark.parametrize("below", ["out.png", "deeper/out.png"])
    def test_read_only_folder(self, tmp_path, function, below):
        tmp_path.chmod(0o555)
        try:
            assert "Permission denied" in complaint(function, tmp_path / below)
        finally:
            tmp_path.chmod(0o755)


def test_check_writable_leaves_nothing_behind(tmp_path):
    (tmp_path / "old.png").write_bytes(b"old")
    for path in (tmp_path / "a.png", tmp_path / "new" / "newer" / "a.png", tmp_path / "old.png"):
        check_writable(path)
    assert os.listdir(tmp_path) == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == b"old"


def test_check_writable_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_writable("a.png")
    write_anything("a.png")
    assert os.listdir() == ["a.png"]
