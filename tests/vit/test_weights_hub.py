import json
import os

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.fake_hub import Client, FakeHub

from splice_ff.errors import WeightsError
from splice_ff.utils.hub import HUB_TIMEOUT
from splice_ff.vit.spec import BACKBONES
from splice_ff.vit.weights import load_backbone

NAMES = ["test_vit", "test_vit2", "test_vit3"]
OFFICIAL = "dino_vits8"


@pytest.fixture(scope="module")
def hub_files(randomized, tmp_path_factory):
    """Files of three small timm ViTs and of an official one with random weights, and the fingerprints to expect."""
    files, fingerprints, path = {}, {}, tmp_path_factory.mktemp("files") / "model.safetensors"
    for name in NAMES:
        save_file(randomized(timm.create_model(name, num_classes=0)).state_dict(), path)
        files[f"/timm/{name}.r160_in1k/resolve/main/model.safetensors"] = path.read_bytes()
        fingerprints[f"{name}.r160_in1k"] = load_backbone(f"{name}.r160_in1k", path).fingerprint
    with torch.device("meta"):
        official = timm.create_model(BACKBONES[OFFICIAL].timm_name, num_classes=0).state_dict()
    save_file({k: torch.randn(t.shape, dtype=torch.half) for k, t in official.items()}, path)
    files[f"/timm/{BACKBONES[OFFICIAL].timm_name}/resolve/main/model.safetensors"] = path.read_bytes()
    fingerprints[OFFICIAL] = load_backbone(OFFICIAL, path).fingerprint
    return files, fingerprints


@pytest.fixture(scope="module")
def module_hub(hub_files):
    hub = FakeHub(hub_files[0])
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def client(module_hub, tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("the client of these tests forks")
    client = Client(tmp_path_factory.mktemp("cache"), module_hub.endpoint)
    yield client
    if client.process.poll() is None:
        client.close()


@pytest.fixture
def hub(module_hub):
    """The hub, in mode "serve"."""
    module_hub.mode = "serve"
    module_hub.forget()
    return module_hub


def assert_stand_in(answer, name):
    """load_default_backbone fell back and said so."""
    assert answer["name"] == "vit_s14_robust", answer
    assert name in answer["notice"] and "vit_s14_robust" in answer["notice"] and "not DINO" in answer["notice"]
    assert "--weights" in answer["notice"]


def assert_hub_error(answer, name):
    assert answer["error"] == "HubError", answer
    assert name in answer["message"] and "--weights" in answer["message"] and "vit_s14_robust" in answer["message"]
    assert "\n" not in answer["message"]


def test_download_then_cache(hub, client, hub_files):
    name = "test_vit.r160_in1k"
    answer = client.ask("load_backbone", name)
    assert answer["fingerprint"] == hub_files[1][name], answer
    size = len(hub.files[f"/timm/{name}/resolve/main/model.safetensors"])
    assert hub.sent == [size] and ("GET", f"/elsewhere/timm/{name}/resolve/main/model.safetensors") in hub.requests
    hub.forget()
    assert client.ask("load_default_backbone", name)["fingerprint"] == hub_files[1][name]
    assert hub.requests == []
    hub.stop()
    try:
        answer = client.ask("load_default_backbone", name)
    finally:
        hub.start()
    assert answer["fingerprint"] == hub_files[1][name] and answer["notice"] is None


def test_official_weights_are_downloaded_once_and_resumed(hub, client, hub_files):
    """Cut halfway, the download goes on from where it was. The second use asks nobody."""
    hub.mode = "cut"
    answer = client.ask("load_default_backbone", OFFICIAL, patience=60)
    assert answer["fingerprint"] == hub_files[1][OFFICIAL] and answer["notice"] is None, json.dumps(answer)
    size = len(hub.files[f"/timm/{BACKBONES[OFFICIAL].timm_name}/resolve/main/model.safetensors"])
    assert hub.cuts == 1 and hub.sent[0] == size // 2 and sum(hub.sent) < 1.1 * size  # a last piece may come again
    hub.forget()
    assert client.ask("load_backbone", OFFICIAL, offline=True)["fingerprint"] == answer["fingerprint"]
    assert client.ask("load_backbone", OFFICIAL)["fingerprint"] == answer["fingerprint"]
    assert hub.requests == []


def test_a_slow_download_is_waited_for(hub, client, hub_files):
    name = "test_vit2.r160_in1k"
    hub.mode = "slow"
    answer = client.ask("load_backbone", name)
    assert answer["fingerprint"] == hub_files[1][name], answer
    assert answer["seconds"] > 0.7 and len(hub.sent) == 1


def test_a_damaged_file_in_the_cache_is_repaired(hub, client, hub_files):
    """A full disk or a careless tool cut it short; huggingface_hub takes what lies there for whole."""
    name = "test_vit.r160_in1k"
    client.ask("load_backbone", name)
    hub.forget()
    (file,) = client.cache.glob(f"hub/models--timm--{name}/snapshots/*/model.safetensors")
    file.write_bytes(file.read_bytes()[:-1000])
    answer = client.ask("load_backbone", name, offline=True)
    assert_hub_error(answer, name)
    assert "damaged" in answer["message"] and str(file) in answer["message"]
    assert client.ask("load_backbone", name)["fingerprint"] == hub_files[1][name]
    assert len(hub.sent) == 1
    hub.forget()
    assert client.ask("load_backbone", name, offline=True)["fingerprint"] == hub_files[1][name]


@pytest.mark.parametrize("mode", ["hang", "drip", "garbage", "broken", "missing"])
def test_a_hub_that_does_not_answer_well(hub, client, mode):
    """The error comes within HUB_TIMEOUT, here 1 s, and some for loading the stand-in."""
    hub.mode = mode
    answer = client.ask("load_backbone", "dino_vitb8")
    assert_hub_error(answer, "dino_vitb8")
    assert answer["seconds"] < 2
    answer = client.ask("load_default_backbone", "dino_vitb8")
    assert_stand_in(answer, "dino_vitb8")
    assert answer["seconds"] < 3
    assert hub.requests


def test_no_hub(hub, client):
    hub.stop()
    try:
        error, stand_in = (client.ask(f"load_{which}backbone", "dino_vits16") for which in ("", "default_"))
    finally:
        hub.start()
    assert_hub_error(error, "dino_vits16")
    assert_stand_in(stand_in, "dino_vits16")
    assert error["seconds"] < 1 and stand_in["seconds"] < 2


def test_a_download_that_stalls_ends(hub, client, hub_files):
    """huggingface_hub tries six times, with HF_HUB_DOWNLOAD_TIMEOUT each; what it raises then is a hub error too."""
    name = "test_vit3.r160_in1k"
    hub.mode = "stall"
    assert_stand_in(client.ask("load_default_backbone", name), name)
    assert hub.cuts == 6
    hub.mode = "serve"  # and nothing half was kept as if it were whole
    assert client.ask("load_backbone", name)["fingerprint"] == hub_files[1][name]


def test_offline_mode(hub, client, hub_files):
    """HF_HUB_OFFLINE=1: nobody is asked, and what is cached is used."""
    cached = "test_vit.r160_in1k"
    client.ask("load_backbone", cached)
    hub.forget()
    assert client.ask("load_backbone", cached, offline=True)["fingerprint"] == hub_files[1][cached]
    error, stand_in = (client.ask(f"load_{which}backbone", "dino_vitb8", offline=True) for which in ("", "default_"))
    assert_hub_error(error, "dino_vitb8")
    assert_stand_in(stand_in, "dino_vitb8")
    assert error["seconds"] < 1 and stand_in["seconds"] < 2
    assert hub.requests == []


def test_a_name_without_weights_on_the_hub():
    names = timm.list_models("vit_*")
    without = next(n for n in names if not (timm.get_pretrained_cfg(n) and timm.get_pretrained_cfg(n).hf_hub_id))
    with pytest.raises(WeightsError, match=f"{without}.*no weights on the hub.*--weights"):
        load_backbone(without)


def test_hub_timeout_is_short():
    assert 0 < HUB_TIMEOUT <= 30
