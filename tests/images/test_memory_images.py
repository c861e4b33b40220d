import io

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from support.image_files import complaint, noise, saved, swapped_profile, translucent, unit

from splice_ff.images import load_image


def test_pil_image(tmp_path):
    image = Image.fromarray(translucent())
    loaded = load_image(image)
    assert torch.equal(torch.cat([loaded.rgb, loaded.alpha], 1), unit(translucent()))
    assert loaded.source == "PIL image"
    assert image.mode == "RGBA"


def test_pil_image_with_orientation_and_profile(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    red = Image.new("RGB", (28, 20), "red")
    with Image.open(saved(red, tmp_path / "a.png", exif=exif, icc_profile=swapped_profile())) as image:
        loaded = load_image(image)
        assert image.size == (28, 20)  # the caller's own image is left alone
    assert loaded.size == (28, 20)
    assert loaded.rgb[0, 1].min() > 0.97


def test_pil_image_that_turns_out_damaged():
    buffer = io.BytesIO()
    Image.fromarray(noise()).save(buffer, "JPEG")
    image = Image.open(io.BytesIO(buffer.getvalue()[:-300]))
    assert "PIL image" in complaint(load_image, image)


def test_big_endian_16_bit_gray_in_memory():
    image = Image.new("I;16B", (20, 20), 1000)
    assert load_image(image).rgb.unique().item() == pytest.approx(1000 / 65535)


@pytest.mark.parametrize(
    ("dtype", "white"),
    [(np.uint8, 255), (np.uint16, 65535), (">u2", 65535), (bool, 1), (np.float16, 1), (float, 1)],
)
def test_arrays(dtype, white):
    for shape in [(20, 28), (20, 28, 3), (20, 28, 4)]:
        array = (np.random.default_rng(0).random(shape).round(1) * white).astype(dtype)
        if shape[2:] == (4,):
            array[..., 3] = white  # all is visible
            array[3, 4, 3] = white if dtype is bool else white // 2 or 0.5
        loaded = load_image(array)
        expected = torch.from_numpy(np.atleast_3d(array).astype(np.float64) / white).permute(2, 0, 1)[None].float()
        torch.testing.assert_close(loaded.rgb, expected[:, :3].expand(1, 3, 20, 28))
        assert loaded.rgb.dtype == torch.float32
        assert loaded.source == "array"
        if shape[2:] == (4,) and dtype is not bool:
            torch.testing.assert_close(loaded.alpha, expected[:, 3:])
        else:
            assert loaded.alpha is None


def test_an_array_view_and_no_shared_memory():
    array = noise().astype(np.float32) / 255
    loaded = load_image(array[::-1, :, ::-1])
    array[:] = 0
    torch.testing.assert_close(loaded.rgb, unit(noise()[::-1, :, ::-1]))


@pytest.mark.parametrize("shape", [(20,), (20, 20, 2), (20, 20, 1), (3, 20, 20), (1, 20, 20, 3)])
def test_arrays_of_other_shapes(shape):
    assert str(shape) in complaint(load_image, np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", ["int32", "int8", "uint32", "complex64", "object"])
def test_arrays_of_other_types(dtype):
    assert dtype in complaint(load_image, np.zeros((20, 20, 3), dtype))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.01, -0.01])
@pytest.mark.parametrize("channel", [0, 3])
def test_floats_outside_the_range(value, channel):
    array = np.full((20, 20, 4), 0.5)
    array[3, 4, channel] = value
    assert "[0, 1]" in complaint(load_image, array)
    assert "[0, 1]" in complaint(load_image, torch.from_numpy(array).permute(2, 0, 1))


@pytest.mark.parametrize(
    "shape", [(3, 20, 28), (1, 3, 20, 28), (4, 20, 28), (1, 4, 20, 28), (1, 20, 28), (1, 1, 20, 28)]
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
def test_tensors(shape, dtype):
    whole = torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(0))
    tensor = whole.to(dtype) if dtype == torch.uint8 else (whole / 255).to(dtype)
    planes = (tensor.double() / (255 if dtype == torch.uint8 else 1)).float().reshape(1, -1, 20, 28)
    loaded = load_image(tensor)
    torch.testing.assert_close(loaded.rgb, planes[:, :3].expand(1, 3, 20, 28))
    assert loaded.rgb.dtype == torch.float32
    assert loaded.source == "tensor"
    if planes.shape[1] == 4:
        torch.testing.assert_close(loaded.alpha, planes[:, 3:])
    else:
        assert loaded.alpha is None


def test_a_tensor_is_copied_and_detached():
    tensor = torch.full((3, 20, 20), 0.5, requires_grad=True)
    loaded = load_image(tensor)
    loaded.rgb.zero_()
    assert tensor.detach().unique().tolist() == [0.5]
    assert not loaded.rgb.requires_grad


@pytest.mark.parametrize("shape", [(20, 20), (2, 3, 20, 20), (2, 20, 20), (5, 20, 20), (20, 20, 3), (1, 1, 3, 20, 20)])
def test_tensors_of_other_shapes(shape):
    assert str(shape) in complaint(load_image, torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_tensors_of_other_types(dtype):
    message = complaint(load_image, torch.zeros((3, 20, 20), dtype=dtype))
    assert str(dtype) in message and "(3, 20, 20)" in message


def test_size_limits_hold_in_memory_too():
    assert "1x1" in complaint(load_image, np.zeros((1, 1, 3), np.uint8))
    assert "1x1" in complaint(load_image, torch.zeros(3, 1, 1))
    assert "1x1" in complaint(load_image, Image.new("RGB", (1, 1)))
    # Strides of 0: a large shape on a single byte of memory.
    assert "megapixels" in complaint(load_image, np.broadcast_to(np.uint8(0), (8001, 8000)))
    assert "megapixels" in complaint(load_image, torch.zeros(1, dtype=torch.uint8).expand(3, 8001, 8000))


def test_other_things_are_no_images():
    assert "list" in complaint(load_image, [[0.5]])
