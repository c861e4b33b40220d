"""The official weights, from download to image: what this machine gets, whether it is what was published, what it does.

    python -m eval.official -o out/official        (or `make official`)

Needs a network, once. For every backbone: download from the hub as any command does; the file's SHA-256 against the
one that the hub publishes; the values against the file of DINO's authors, where they publish one for it; our features
against timm's own forward pass; and whether two cats are nearer to each other than to a building, which random weights
know nothing of. Then the tests of fidelity, and a sample pair. All of it goes into OUTPUT/report.md; exit status 1 if
any check failed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from huggingface_hub import get_hf_file_metadata, hf_hub_url

from splice_ff.commands._options import Device, Folder, errors, find_device, say
from splice_ff.errors import InputError, first_line
from splice_ff.images import load_image, save_image
from splice_ff.per_pair.optimize import optimize_pair
from splice_ff.utils.files import check_place, write_file
from splice_ff.utils.machine import describe, version
from splice_ff.utils.markdown import markdown_table
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.inputs import ViTInput
from splice_ff.vit.weights import cached_weights, load_backbone

ROOT = Path(__file__).parents[1]
AUTHORS = "https://dl.fbaipublicfiles.com/dino"
PUBLISHED = {
    "dino_vits16": "dino_deitsmall16_pretrain",
    "dino_vits8": "dino_deitsmall8_pretrain",
    "dino_vitb16": "dino_vitbase16_pretrain",
    "dino_vitb8": "dino_vitbase8_pretrain",
}
"""Names of the authors' folders and files, from their README."""
FIDELITY = (
    "tests/losses/test_losses.py", "tests/per_pair/test_as_published.py", "tests/vit/test_features.py",
    "tests/vit/test_positions.py", "tests/vit/test_inputs.py",
)  # fmt: skip
"""Of losses and features against the original program's numbers, on its random ViT."""
TOLERANCE = 1e-3
"""Of tokens against timm's, relative to their largest."""


@dataclass(frozen=True)
class Check:
    """A line of the report; `passed` is None for what is only told, or could not be checked."""

    what: str
    found: str
    passed: bool | None


def main(
    output: Folder = Path("out/official"),
    backbone: Annotated[list[str] | None, typer.Option(help="Repeat for several; the first makes the sample.")] = None,
    authors: Annotated[str, typer.Option(help="Where the authors' files are; '' leaves them out.")] = AUTHORS,
    tests: Annotated[list[str] | None, typer.Option(help="Tests of fidelity, in place of all.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of the sample pair; the preset's by default.")] = None,
    size: Annotated[int | None, typer.Option(help="Of the sample pair, in pixels; the preset's by default.")] = None,
    device: Device = None,
    debug: bool = False,
) -> None:
    """Download official backbones, check them, and paint a sample pair."""
    with errors(debug):
        check_place(output / "report.md")
        where, names = find_device(device), backbone or ["dino_vits8", "dino_vitb8"]
        sections: list[tuple[str, list[Check]]] = []
        for name in names:
            say(f"checking {name}")
            sections.append((name, list(check_backbone(name, authors, where))))
        say("running the tests of fidelity")
        sections.append(("fidelity", [run_tests(tests or FIDELITY)]))
        say("painting the sample pair")
        sections.append(("sample pair", [paint(names[0], output, steps, size, where)]))
        write_file(output / "report.md", report(sections, where).encode())
        failed = [check.what for _, checks in sections for check in checks if check.passed is False]
        outcome = f"FAILED: {', '.join(failed)}" if failed else "all checks passed"
        say(f"{output / 'report.md'}: {outcome}")
        if failed:
            raise typer.Exit(1)


def report(sections: list[tuple[str, list[Check]]], device: torch.device) -> str:
    """All that was found, as Markdown."""
    words = {True: "passed", False: "FAILED", None: "not checked"}
    lines = ["# Official weights\n", f"splice-ff {version()}; {describe(device)}\n"]
    for title, checks in sections:
        rows = [(check.what, check.found, words[check.passed]) for check in checks]
        lines += [f"## {title}\n", markdown_table(("what", "found", ""), rows), ""]
    return "\n".join(lines)


def check_backbone(name: str, authors: str, device: torch.device) -> Iterator[Check]:
    """Download a backbone and compare it with all that is published about it."""
    backbone = load_backbone(name)
    assert backbone.spec is not None
    file = cached_weights(backbone.spec)
    if file is None:
        raise InputError(f"{name}: comes from no hub; name an official backbone")
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    repository = next(part for part in file.parts if part.startswith("models--")).removeprefix("models--")
    published = get_hf_file_metadata(hf_hub_url(repository.replace("--", "/"), file.name)).etag
    yield Check("file", f"{file.stat().st_size / 1e6:.1f} MB, {file}", None)
    yield Check("SHA-256 of the file, as the hub publishes it", sha256, sha256 == published)
    yield Check("fingerprint of the parameters", backbone.fingerprint, None)
    yield compare_with_authors(name, backbone, authors)
    backbone = backbone.to(device)
    yield compare_with_timm(backbone)
    yield tell_cats_from_buildings(backbone)


def compare_with_authors(name: str, backbone: ViTFeatures, authors: str) -> Check:
    """Whether the authors' own file holds the same values."""
    what = "the same values as in the authors' file"
    if not authors or name not in PUBLISHED:
        return Check(what, "none is known" if authors else "left out", None)
    url = f"{authors}/{PUBLISHED[name]}/{PUBLISHED[name]}.pth"
    file = Path(torch.hub.get_dir()) / "checkpoints" / f"{PUBLISHED[name]}.pth"
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), progress=False)
    except OSError as error:
        return Check(what, f"{url}: cannot be downloaded ({first_line(error)})", None)
    is_same = load_backbone(name, file).fingerprint == backbone.fingerprint
    return Check(what, url, is_same)


@torch.no_grad()
def compare_with_timm(backbone: ViTFeatures) -> Check:
    """Whether our tokens are those of timm's own forward pass, where both see an image of the native size."""
    size = list(backbone.vit.patch_embed.img_size)
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(backbone.mean.device)
    ours = backbone.vit.norm(backbone(image, tokens=[-1]).tokens[backbone.depth - 1])
    theirs = backbone.vit.forward_features((image - backbone.mean) / backbone.std)
    distance = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    return Check("largest difference from timm's tokens, of their largest", f"{distance:.1e}", distance < TOLERANCE)


@torch.no_grad()
def tell_cats_from_buildings(backbone: ViTFeatures) -> Check:
    """Whether two cats' deepest [CLS] tokens are nearer to each other than a cat's and a building's."""
    images = (load_image(ROOT / "examples" / f"{name}.jpg").rgb for name in ("cat", "kitten", "taj-mahal"))
    cls = []
    for image in images:
        seen = ViTInput().resize_to_square(image.to(backbone.mean.device), backbone.patch_size)
        tokens = backbone(seen, cls=True).cls
        assert tokens is not None
        cls.append(tokens[0, -1].float())
    near, far = (F.cosine_similarity(cls[0], other, dim=0).item() for other in cls[1:])
    return Check("cosine of cat and kitten, of cat and Taj Mahal", f"{near:.3f}, {far:.3f}", near > far)


def run_tests(tests: list[str] | tuple[str, ...]) -> Check:
    """The tests of fidelity, in a process of their own."""
    done = subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=ROOT, capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return Check("pytest " + " ".join(tests), "; ".join(said) or "no failure", done.returncode == 0)


def paint(backbone: str, output: Path, steps: int | None, size: int | None, device: torch.device) -> Check:
    """The example pair, by the published method's `fast` preset."""
    pair = [ROOT / "examples" / f"{name}.jpg" for name in ("raccoon", "cat")]
    result = optimize_pair(*pair, backbone=backbone, steps=steps, size=size, device=device, output_type="pt")
    file = output / "sample.png"
    save_image(file, result.image)
    losses = ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
    return Check(f"{backbone}, step {result.step}", f"{losses}: {file}", None)


if __name__ == "__main__":
    typer.run(main)
