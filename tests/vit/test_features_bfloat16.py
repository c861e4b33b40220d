import torch
from support.feature_checks import EVERYTHING, assert_same, images, relative_error


def test_bfloat16_copy(tiny_backbone):
    backbone, batch = tiny_backbone(init_values=0.5), images(2, 3, 48, 64)
    before = {key: tensor.clone() for key, tensor in backbone.vit.state_dict().items()}
    twin = backbone.with_matmuls_in(torch.bfloat16)

    for key, tensor in backbone.vit.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[key])
    rounded = {key for key, tensor in twin.vit.state_dict().items() if tensor.dtype == torch.bfloat16}
    assert rounded == {k for k in before if any(part in k for part in ("proj", "qkv", "fc1", "fc2"))}
    assert twin.fingerprint == backbone.fingerprint

    exact = backbone(batch, **EVERYTHING)
    with torch.autocast("cpu", torch.bfloat16):
        loose = twin(batch, **EVERYTHING)
        short = twin(batch, cls=True, keys=[-1])
    assert loose.keys[2].dtype == torch.bfloat16 and loose.tokens[2].dtype == torch.float32
    assert 0 < relative_error(loose.keys[2].float(), exact.keys[2]) < 0.05
    assert relative_error(loose.tokens[2], exact.tokens[2]) < 0.05
    assert relative_error(short.cls, exact.cls) < 0.05
    assert_same(backbone(batch, **EVERYTHING), exact, tolerance=1e-9)


def test_bfloat16_copy_of_a_rotary_vit(families):
    backbone, batch = families("dinov3"), images(1, 3, 64, 48)
    exact = backbone(batch, cls=True, keys=[-1])
    with torch.autocast("cpu", torch.bfloat16):
        loose = backbone.with_matmuls_in(torch.bfloat16)(batch, cls=True, keys=[-1])
    assert 0 < relative_error(loose.cls, exact.cls) < 0.05
    assert loose.cls.dtype == torch.float32
    assert 0 < relative_error(loose.keys[2].float(), exact.keys[2]) < 0.05
