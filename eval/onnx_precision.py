"""What the precision of an exported model costs: its images beside those of torch.

    python -m eval.onnx_precision examples/pairs.csv

Each pair is painted by torch in float32 and by the ONNX files in fp32, fp16 and int8 (onnxruntime's dynamic
quantization: of all layers, or of matrix products alone). The table gives the differences of the images, at their own
sizes and before they are rounded, in levels of 255, and the lowest PSNR of an image, in dB.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from torch import Tensor

from splice_ff.commands._one_shot import DEFAULT_MODEL
from splice_ff.commands._options import errors
from splice_ff.data.pair_list import read_pairs
from splice_ff.images import load_image
from splice_ff.one_shot.pipeline import SpliceFF
from splice_ff.onnx.export import export_model, halve_weights
from splice_ff.onnx.files import GRAPHS
from splice_ff.onnx.runner import OnnxSpliceFF
from splice_ff.utils.extras import need
from splice_ff.utils.markdown import markdown_table

INT8 = {"int8": None, "int8, matrix products": ["MatMul", "Gemm"]}
HEADER = ("files", "MB", "size", "largest difference", "mean difference", "lowest PSNR")


def main(
    pairs: Annotated[Path, typer.Argument(help="What `splice-ff evaluate` takes as pairs.")],
    model: Annotated[str, typer.Option(help="Bundled model, folder, or hub id owner/name.")] = DEFAULT_MODEL,
    size: Annotated[list[int] | None, typer.Option(help="Working sizes; repeat. By default 96, 128 and 224.")] = None,
    debug: bool = False,
) -> None:
    """Measure an exported model's images against those of torch."""
    with errors(debug), TemporaryDirectory() as folder:
        need("onnx", "onnxscript", "onnxruntime", extra="onnx")
        splice = SpliceFF.from_pretrained(model)
        images = [[load_image(path).rgb for path in (p.structure, p.appearance)] for p in read_pairs(pairs)]
        rows = []
        for name, files in export_all(splice, Path(folder)).items():
            runner = OnnxSpliceFF(files, threads=1)
            megabytes = sum(file.stat().st_size for file in files.glob("*.onnx")) / 1e6
            for side in size or (96, 128, 224):
                rows.append((name, f"{megabytes:.1f}", f"{side} px", *compare(splice, runner, images, side)))
        typer.echo(markdown_table(HEADER, rows, numbers_from=1))


def export_all(model: SpliceFF, folder: Path) -> dict[str, Path]:
    """Folders with the model in each precision, by name. The model is traced once."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folders = {name: folder / name for name in ("fp32", "fp16", *INT8)}
    export_model(model, folders["fp32"])
    for name in ("fp16", *INT8):
        shutil.copytree(folders["fp32"], folders[name])
    for file in folders["fp16"].glob("*.onnx"):
        graph = onnx.load(file)
        halve_weights(graph)
        onnx.save(graph, file)
    for name, kinds in INT8.items():
        for graph_name in GRAPHS:
            source, target = (folders[kind] / f"{graph_name}.onnx" for kind in ("fp32", name))
            quantize_dynamic(source, target, kinds, weight_type=QuantType.QInt8)
    return folders


def compare(model: SpliceFF, runner: OnnxSpliceFF, images: list[list[Tensor]], size: int) -> tuple[str, str, str]:
    """Largest and mean difference in levels of 255, and the lowest PSNR in dB, over pairs of (1, 3, H, W)."""
    apart = []
    for structure, appearance in images:
        ours = runner.paint(structure.numpy(), runner.embed(appearance.numpy()), size)
        apart.append(np.abs(ours - model.paint(structure, model.embed(appearance), size=size).numpy()) * 255)
    psnr = min(20 * np.log10(255 / max(np.sqrt((levels**2).mean()), 1e-9)) for levels in apart)
    return f"{max(a.max() for a in apart):.2g}", f"{np.mean([a.mean() for a in apart]):.2g}", f"{psnr:.1f}"


if __name__ == "__main__":
    typer.run(main)
