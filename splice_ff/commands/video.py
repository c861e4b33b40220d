"""`splice-ff video`: the one-shot mode on the frames of a video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splice_ff.commands._one_shot import (
    DEFAULT_MODEL,
    Backbone,
    BackboneWeights,
    Model,
    Precision,
    Size,
    Strength,
    check_look,
    check_precision,
    facts_of,
    load_model,
)
from splice_ff.commands._options import Debug, Device, Quiet, check_backbones, errors, expanded, load, say
from splice_ff.utils.console import progress_bar
from splice_ff.utils.extras import need

if TYPE_CHECKING:
    from splice_ff.video.files import VideoInfo


def video(
    structure: Annotated[
        Path, typer.Argument(help="Video whose layout and sound are kept.", show_default=False, callback=expanded)
    ],
    look: Annotated[
        Path,
        typer.Argument(
            help="The look of all frames: an image, or what `embed` wrote.", show_default=False, callback=expanded
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Video to write: .mp4, .mov or .mkv; not there yet.", callback=expanded),
    ] = Path("out.mp4"),
    model: Model = DEFAULT_MODEL,
    strength: Strength = 1.0,
    size: Size = None,
    precision: Precision = "fp32",
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Frames that are painted together.")] = 8,
    backbone: Backbone = None,
    backbone_weights: BackboneWeights = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Paint a video frame by frame with one look. Its size, times of frames and sound stay.

    Interrupted, the same command goes on. At the end it says how much the video flickers: the mean absolute difference
    of consecutive frames, beside that of the structure video.

    Example: `splice-ff video clip.mp4 raccoon.jpg -o painted.mp4`
    """
    with errors(debug):
        need("av", extra="video")
        from splice_ff.images import check_readable
        from splice_ff.one_shot.checks import check_size, check_strength
        from splice_ff.video.files import check_output, parts_folder, read_info

        check_strength(strength)
        check_precision(precision)
        info = read_info(structure)
        if size is not None:
            check_size(size, (info.height, info.width))
        is_image = look.suffix.lower() != ".safetensors"  # as `embed` writes looks
        if is_image:
            check_readable(look)
        else:
            check_look(look)
        check_output(output, info)
        check_backbones([backbone], backbone_weights)

        from splice_ff.one_shot.tokens_file import load_look
        from splice_ff.video.stylize import stylize_video

        splice = load_model(model, backbone, backbone_weights, device, precision)
        tokens = splice.embed(load(look, quiet).rgb) if is_image else load_look(look, splice)[0]
        facts = facts_of(model, splice, size) | {
            "strength": f"{strength:g}",
            "structure": structure.name,
            "look": look.name,
        }
        try:
            with progress_bar(info.frames or None, "frame", quiet) as bar:
                made = stylize_video(
                    splice,
                    structure,
                    tokens,
                    output,
                    size=size,
                    strength=strength,
                    batch_size=batch_size,
                    facts=facts,
                    callback=bar.update,
                )
        except KeyboardInterrupt:
            say(f"interrupted; finished parts are in {parts_folder(output)}, and the same command goes on from there")
            raise
        if not quiet:
            _report(info, structure, made.frames)
            flicker = made.flicker
            say(
                f"flicker: consecutive frames differ by {flicker.output:.2f} of 255 levels, those of {structure.name} "
                f"by {flicker.structure:.2f} ({flicker.ratio:.2f} times)"
            )
            say(str(output))


def _report(info: VideoInfo, structure: Path, frames: int) -> None:
    from splice_ff.video.files import pixel_format

    if frames < info.frames:
        say(f"note: {structure}: {frames} frames could be read, and its header says {info.frames}")
    if info.unknown_audio:
        say(f"note: {structure}: sound tracks of a kind unknown here are left out: {info.unknown_audio}")
    if info.is_hdr:
        say(f"note: {structure}: HDR is read as 8-bit standard range, so colors look flat; convert it to SDR first")
    if info.has_alpha:
        say(f"note: {structure}: its transparency is left out; the result is opaque")
    if pixel_format(info) != "yuv420p":
        say(f"note: {info.width}x{info.height} has an odd side: written as 4:4:4, which some players cannot show")
