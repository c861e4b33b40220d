"""`python -m eval.onnx_precision`: what halved and quantized weights cost."""

import shutil

import pytest
from support.one_shot_model import random_image

from splice_ff.images import save_image

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="needs the extra [onnx]")

pytestmark = pytest.mark.timeout(900)  # tracing takes minutes on a slow machine


def test_the_table_has_each_precision_and_size(grid_model, grid_exported, tmp_path, monkeypatch, capsys):
    from eval.onnx_precision import main

    monkeypatch.setattr("splice_ff.one_shot.pipeline.SpliceFF.from_pretrained", lambda *_: grid_model)
    monkeypatch.setattr("eval.onnx_precision.export_model", lambda _, folder: shutil.copytree(grid_exported, folder))
    for i, role in enumerate(("structure", "appearance")):
        save_image(tmp_path / f"pairs/one/{role}.png", random_image(i, 48, 64))
    main(tmp_path / "pairs", "any", [32, 64])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows[::2]] == ["fp32", "fp16", "int8", "int8, matrix products"]
    assert [row[2] for row in rows[:2]] == ["32 px", "64 px"]
    megabytes, largest = ({row[0]: float(row[i]) for row in rows} for i in (1, 3))
    assert megabytes["int8"] <= megabytes["fp16"] < megabytes["fp32"]
    assert largest["fp32"] < 0.05 < largest["int8"] and largest["fp32"] < largest["fp16"] < 5
