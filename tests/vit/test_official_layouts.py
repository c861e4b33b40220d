"""Weights as their authors publish them: each family's own names, prefixes, files and activation."""

import pytest
import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from support.tiny_vit import randomize
from torch import nn

from splice_ff.errors import WeightsError
from splice_ff.vit import weights
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.spec import BACKBONES
from splice_ff.vit.torchscript import read_torchscript
from splice_ff.vit.weights import load_backbone, read_state


def timms(vit):
    return dict(vit.state_dict())


def dinov2(vit):
    state = timms(vit)
    return state | {"mask_token": torch.zeros(1, vit.embed_dim)}


def dinov2_registers(vit):
    state, position = timms(vit), torch.randn(1, 1, vit.embed_dim)
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    state["cls_token"] = state["cls_token"] - position
    return state | {"mask_token": torch.zeros(1, vit.embed_dim)}


def dinov3(vit):
    state, width = timms(vit), vit.embed_dim
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    for old, new in names.items():
        state = {key.replace(old, new): tensor for key, tensor in state.items()}
    for i in range(len(vit.blocks)):
        state[f"blocks.{i}.attn.qkv.bias"] = torch.cat(
            [torch.zeros(width), torch.full([width], 5.0), torch.zeros(width)]
        )
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.cat([torch.ones(width), torch.zeros(width), torch.ones(width)])
    return state | {"mask_token": torch.zeros(1, width), "rope_embed.periods": torch.ones(16)}


def clip(vit):
    state, own = timms(vit), {}
    names = {
        "norm_pre.": "ln_pre.", "norm.": "ln_post.", "patch_embed.proj.": "conv1.", "blocks.": "transformer.resblocks.",
        ".norm1.": ".ln_1.", ".norm2.": ".ln_2.", ".attn.qkv.": ".attn.in_proj_", ".attn.proj.": ".attn.out_proj.",
        ".mlp.fc1.": ".mlp.c_fc.", ".mlp.fc2.": ".mlp.c_proj.",
    }  # fmt: skip
    for key, tensor in state.items():
        for old, new in names.items():
            key = new + key.removeprefix(old) if key.startswith(old) else key
            key = key.replace(old, new) if old.startswith(".") else key
        own[f"visual.{key}"] = tensor
    own["visual.class_embedding"] = own.pop("visual.cls_token")[0, 0]
    own["visual.positional_embedding"] = own.pop("visual.pos_embed")[0]
    own["visual.proj"] = torch.randn(vit.embed_dim, 512)
    return own | {"logit_scale": torch.zeros(()), "token_embedding.weight": torch.randn(10, 512)}


LAYOUTS = {
    "dino_vits16": timms, "dinov2_vits14": dinov2, "dinov2_vits14_reg": dinov2_registers, "dinov3_vits16": dinov3,
    "clip_vitb16": clip,
}  # fmt: skip
SMALL = {"depth": 2, "img_size": 64, "num_classes": 0}


@pytest.fixture
def small(monkeypatch):
    """Backbones of two layers: `small(name)` is one with random weights; loaded ones are as small."""
    create = timm.create_model
    sizes = lambda name: SMALL | ({"img_size": 56} if "patch14" in name else {})  # noqa: E731
    monkeypatch.setattr(weights.timm, "create_model", lambda name, **_: create(name, **sizes(name)))
    return lambda name: randomize(create(BACKBONES[name].timm_name, **sizes(BACKBONES[name].timm_name)))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "teacher.backbone.", "module.backbone."])
def test_the_authors_own_names(small, tmp_path, name, prefix):
    if prefix and name == "clip_vitb16":
        pytest.skip("CLIP's own prefix is visual.")
    vit = small(name)
    torch.save({prefix + key: tensor for key, tensor in LAYOUTS[name](vit).items()}, tmp_path / "own.pth")
    loaded, images = load_backbone(name, tmp_path / "own.pth"), torch.rand(1, 3, 56, 56)
    for key, tensor in timms(vit).items():
        torch.testing.assert_close(loaded.vit.state_dict()[key], tensor, rtol=0, atol=1e-6, msg=key)
    expected = ViTFeatures(vit, loaded.mean.flatten().tolist(), loaded.std.flatten().tolist(), loaded.spec)
    torch.testing.assert_close(loaded(images, cls=True).cls, expected(images, cls=True).cls, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "activation"),
    [(name, F.gelu) for name in LAYOUTS if name != "clip_vitb16"]
    + [("clip_vitb16", lambda x: x * torch.sigmoid(1.702 * x))],  # QuickGELU, as OpenAI's code has it
)
def test_the_activation_is_the_one_it_was_trained_with(small, name, activation):
    mlp, x = small(name).blocks[0].mlp, torch.linspace(-3, 3, 50)
    torch.testing.assert_close(mlp.act(x), activation(x))
    assert timm.get_pretrained_cfg(BACKBONES[name].timm_name).hf_hub_id


def test_a_bias_that_a_backbone_lacks_is_not_dropped(small, tmp_path):
    state = dinov3(small("dinov3_vits16"))
    state["blocks.1.attn.qkv.bias"] = torch.ones_like(state["blocks.1.attn.qkv.bias"])
    torch.save(state, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.qkv\.bias' is not 0.*qkvb"):
        load_backbone("dinov3_vits16", tmp_path / "own.pth")


class Tree(nn.Module):
    """Tensors under the names of a state dict, as modules of modules."""

    def __init__(self, state):
        super().__init__()
        for head in dict.fromkeys(key.partition(".")[0] for key in state):
            inner = {k.partition(".")[2]: t for k, t in state.items() if k.partition(".")[0] == head}
            if "" in inner:
                self.register_buffer(head, inner[""])
            else:
                self.add_module(head, Tree(inner))

    def forward(self, x):
        return x


def test_openais_archive_is_read_without_running_it(small, tmp_path, monkeypatch):
    vit = small("clip_vitb16")
    state = {key: tensor.half() for key, tensor in clip(vit).items()}
    torch.jit.save(torch.jit.script(Tree(state)), tmp_path / "ViT-B-16.pt")
    for function in (torch.jit, "load"), (torch, "load"):
        monkeypatch.setattr(*function, None)
    found = read_torchscript(tmp_path / "ViT-B-16.pt")
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    loaded = load_backbone("clip_vitb16", tmp_path / "ViT-B-16.pt")
    for key, tensor in timms(vit).items():
        assert torch.equal(loaded.vit.state_dict()[key], tensor.half().float()), key


def test_an_archive_with_another_class_is_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/constants.pkl", b"")
        archive.writestr("evil/data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(WeightsError, match="holds more than tensors"):
        read_state(tmp_path / "evil.pt")


def test_clip_is_openais_forward_pass(small):
    """Deepest [CLS] token by OpenAI's own steps, written out."""
    vit, images = small("clip_vitb16"), torch.rand(1, 3, 64, 64)
    own = {key.removeprefix("visual."): tensor for key, tensor in clip(vit).items()}
    x = rearrange(F.conv2d(images, own["conv1.weight"], stride=16), "b d h w -> b (h w) d")
    x = torch.cat([own["class_embedding"].expand(1, 1, -1), x], 1) + own["positional_embedding"]
    norm = lambda x, name: F.layer_norm(x, (768,), own[f"{name}.weight"], own[f"{name}.bias"], 1e-5)  # noqa: E731
    x = norm(x, "ln_pre")
    for i in range(2):
        at = f"transformer.resblocks.{i}"
        qkv = F.linear(norm(x, f"{at}.ln_1"), own[f"{at}.attn.in_proj_weight"], own[f"{at}.attn.in_proj_bias"])
        q, k, v = rearrange(qkv, "b t (three h d) -> three b h t d", three=3, h=12)
        attended = rearrange((q @ k.mT / 8).softmax(-1) @ v, "b h t d -> b t (h d)")
        x = x + F.linear(attended, own[f"{at}.attn.out_proj.weight"], own[f"{at}.attn.out_proj.bias"])
        hidden = F.linear(norm(x, f"{at}.ln_2"), own[f"{at}.mlp.c_fc.weight"], own[f"{at}.mlp.c_fc.bias"])
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        x = x + F.linear(hidden, own[f"{at}.mlp.c_proj.weight"], own[f"{at}.mlp.c_proj.bias"])
    found = ViTFeatures(vit, (0.0,) * 3, (1.0,) * 3)(images, cls=True).cls
    torch.testing.assert_close(found[:, -1], x[:, 0], rtol=1e-3, atol=1e-3)
