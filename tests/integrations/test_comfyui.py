"""The ComfyUI node, called as ComfyUI calls it: BHWC tensors, under inference mode, with its progress bar."""

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.one_shot_model import make_model, random_image

from splice_ff import InputError

FOLDER = Path(__file__).parents[2] / "integrations/comfyui_splice_ff"
SETTINGS = {"model": "tiny", "strength": 1.0, "size": 64, "refine": 0, "seed": 0}


@pytest.fixture
def nodes(monkeypatch):
    """The folder as ComfyUI loads it: by its path, under a name of ComfyUI's own."""
    spec = importlib.util.spec_from_file_location("custom_nodes_comfyui_splice_ff", FOLDER / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(nodes, tiny_backbone, monkeypatch):
    """What the node loads; the device and name that it asked for are not looked at."""
    made = make_model(tiny_backbone(depth=2))
    monkeypatch.setattr(nodes.SpliceFF, "from_pretrained", lambda name, device: made)
    return made


@pytest.fixture
def comfy(monkeypatch):
    """ComfyUI's own modules, as far as the node knows them: where the bar was, and a Cancel button."""
    package, management, utils = (ModuleType(f"comfy{name}") for name in ("", ".model_management", ".utils"))
    package.bars, package.cancel_at = [], None

    class ProgressBar:
        def __init__(self, total):
            pass

        def update_absolute(self, value, total=None):
            package.bars.append((value, total))

    def throw():
        if package.cancel_at == len(package.bars):
            raise InterruptedError

    management.get_torch_device = lambda: torch.device("cpu")
    management.throw_exception_if_processing_interrupted = throw
    utils.ProgressBar = ProgressBar
    for module in (package, management, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return package


def image(seed, h=64, w=64, batch=1):
    return random_image(seed, h, w, batch).movedim(1, -1)


def test_every_mapping_is_a_node_that_comfyui_can_call(nodes):
    assert nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        function = inspect.signature(getattr(node, node.FUNCTION))
        assert list(function.parameters)[1:] == list(node.INPUT_TYPES()["required"])
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == 1 and node.CATEGORY


@torch.inference_mode()  # as ComfyUI runs nodes
@pytest.mark.parametrize("refine", [0, 1])
def test_it_paints_what_the_model_paints(nodes, model, refine):
    structure, appearance = image(1, h=48, w=70), image(2)
    (painted,) = nodes.SpliceFFTransfer().transfer(structure, appearance, **SETTINGS | {"refine": refine})
    wanted = model(structure.movedim(-1, 1), appearance.movedim(-1, 1), size=64, refine=refine, output_type="pt")
    assert painted.shape == (1, 48, 70, 3) and painted.dtype == torch.float32
    torch.testing.assert_close(painted, wanted.movedim(1, -1))
    assert (painted - structure).abs().mean() > 0.01


def test_a_batch_takes_one_look_or_one_each(nodes, model):
    node = nodes.SpliceFFTransfer()
    structure = image(1, batch=3)
    (one,) = node.transfer(structure, image(2), **SETTINGS)
    (each,) = node.transfer(structure, image(2, batch=3), **SETTINGS)
    assert one.shape == each.shape == (3, 64, 64, 3) and not torch.equal(one, each)
    with pytest.raises(InputError, match="3 structure and 2 appearance images"):
        node.transfer(structure, image(2, batch=2), **SETTINGS)


def test_size_0_is_the_models_own(nodes, model):
    node = nodes.SpliceFFTransfer()
    results = [node.transfer(image(1), image(2), **SETTINGS | {"size": size})[0] for size in (0, model.config.size, 32)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_the_bar_moves_and_cancel_ends_it(nodes, model, comfy):
    node = nodes.SpliceFFTransfer()
    node.transfer(image(1), image(2), **SETTINGS | {"refine": 2})
    assert comfy.bars == [(1, 2), (2, 2)]
    comfy.bars.clear()
    comfy.cancel_at = 1
    with pytest.raises(InterruptedError):
        node.transfer(image(1), image(2), **SETTINGS | {"refine": 5})
    assert len(comfy.bars) == 1


def test_a_model_is_loaded_once(nodes, model, monkeypatch):
    asked = []
    monkeypatch.setattr(nodes.SpliceFF, "from_pretrained", lambda name, device: asked.append((name, device)) or model)
    for _ in range(2):
        nodes.SpliceFFTransfer().transfer(image(1), image(2), **SETTINGS)
    assert len(asked) == 1 and asked[0][0] == "tiny"
