"""One-shot appearance transfer: `SpliceFF.from_pretrained(...)(structure, appearance)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from huggingface_hub import ModelHubMixin

from splice_ff.errors import CheckpointError, InputError, first_line
from splice_ff.images import ImageInput, OutputType
from splice_ff.one_shot.call import OneShotCall, Progress, in_the_form_of, read_images
from splice_ff.one_shot.checks import whole_number
from splice_ff.one_shot.model import OneShotModel
from splice_ff.one_shot.model_files import DiskType, HubOptions, find_model, load_model, save_model
from splice_ff.one_shot.refine import refining_size
from splice_ff.utils.machine import plain_torch
from splice_ff.vit.features import ViTFeatures
from splice_ff.vit.weights import load_backbone


class SpliceFF(OneShotModel, ModelHubMixin):
    """Splice's appearance transfer in one forward pass: images in, images out; from and to folders and the hub.

    Call it with images (see `forward`); `embed` and `paint` are the same on tensors, in two halves.
    """

    _disk_type: DiskType = "fp32"

    def forward(
        self,
        structure: ImageInput | Sequence[ImageInput],
        appearance: ImageInput | Sequence[ImageInput],
        *,
        weights: Sequence[float] | None = None,
        size: int | None = None,
        strength: float = 1.0,
        refine: int = 0,
        seed: int = 0,
        output_type: OutputType = "pil",
        callback: Callable[[Progress], object] | None = None,
    ) -> Any:
        """Paint structure images with the looks of appearance images.

        Examples:
            >>> from splice_ff import SpliceFF
            >>> model = SpliceFF.from_pretrained("everyday")
            >>> image = model("examples/raccoon.jpg", "examples/cat.jpg")
            >>> image.size  # a PIL image of the structure image's size
            (600, 500)
            >>> two = model(["examples/raccoon.jpg", "examples/cat.jpg"], "examples/cat.jpg", size=64, output_type="np")
            >>> [image.shape for image in two]
            [(500, 600, 3), (300, 451, 3)]

        Args:
            structure, appearance: images as `splice_ff.load_image` takes them: paths, PIL images, arrays (H, W, 3) or
                tensors (3, H, W), uint8 or float in [0, 1]; or lists of them, arrays (B, H, W, 3), tensors
                (B, 3, H, W). One appearance image serves all structure images; as many belong to one each.
            weights: mix all appearance images, by these shares, for every structure image.
            size: shorter side, in pixels, at which to work; if None the model's default; for refining, 1.4 times that.
            strength: from 0, the structure image as it is, to 1, the whole look: a share of the change.
            refine: per-pair steps from the one-shot answer on (see `splice_ff.one_shot.refine`); 100 take a while.
            seed: of refining.
            output_type: "pil"; "np", float32 arrays (H, W, 3); or "pt", float32 tensors (3, H, W) on the model's
                device. Transparent structure images come back with their alpha channel.
            callback: called after every step, that is, after the images painted together or after a refining step.
                When it returns False the call ends: refining with the best image so far; images of a list that were
                not yet begun are None.

        Returns:
            One image, or as many in a list, as `structure` was given; for a tensor or array of four dimensions one of
            four dimensions, or a list of PIL images.

        Raises:
            InputError: an image, a number of images or a value that cannot be used; the message says what was given
                and what is wanted.
        """
        if output_type not in get_args(OutputType):
            raise InputError(f"unknown output_type {output_type!r}. Known: {', '.join(get_args(OutputType))}")
        steps, seed = whole_number("refine", refine), whole_number("seed", seed)
        with plain_torch():
            structures, appearances = read_images(structure, "structure"), read_images(appearance, "appearance")
            if size is None:
                size = refining_size(self) if steps else self.config.size
            call = OneShotCall(self, structures, appearances, weights, size, strength, callback)
            outputs = call.refine(steps, seed) if steps else call.paint()
            return in_the_form_of(structure, structures, outputs, output_type)

    def save_pretrained(self, save_directory: str | Path, *, dtype: DiskType = "fp32", **hub: Any) -> str | None:
        """Write config.json, model.safetensors and README.md; not the backbone, which config.json names.

        Examples:
            >>> from splice_ff import SpliceFF
            >>> SpliceFF.from_pretrained("everyday").save_pretrained("my-model", dtype="fp16")
            >>> SpliceFF.from_pretrained("my-model").config.size
            160

        Args:
            save_directory: the folder, made if it is not there.
            dtype: "fp32" or "fp16", of the weights on disk.
            hub: `push_to_hub`, `repo_id` and the like, as `huggingface_hub.ModelHubMixin.save_pretrained` takes them.

        Raises:
            CheckpointError: weights that are not finite in that dtype, or a place that takes no files.
        """
        self._disk_type = dtype
        try:
            return super().save_pretrained(save_directory, **hub)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise CheckpointError(f"{save_directory}: cannot be written ({error.strerror})") from error

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(save_directory, self.generator, self.config, self._disk_type)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin's reads only the hub and plain folders
        cls,
        name: str | Path,
        *,
        backbone: ViTFeatures | str | Path | None = None,
        weights: str | Path | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> SpliceFF:
        """Load a model, in eval mode.

        Examples:
            >>> import torch
            >>> from splice_ff import SpliceFF
            >>> SpliceFF.from_pretrained("everyday", dtype=torch.bfloat16).dtype
            torch.bfloat16

        Args:
            name: a bundled model, a folder, or a hub id `owner/name`.
            backbone: a loaded one, or where to find it, if not under the name that the model knows.
            weights: file or folder with the backbone's weights.
            device: where to put it; the CPU, or where a loaded backbone is, if None.
            dtype: of its weights: `torch.float32`, `torch.bfloat16` or `torch.float16`.
            revision, token, cache_dir, local_files_only: for the hub, as `huggingface_hub.snapshot_download` takes
                them: branch, tag or commit; access token; where to keep files; never ask the network.

        Raises:
            CheckpointError: no such model, damaged or unknown files, NaN weights, or another backbone than the one it
                was trained with.
            splice_ff.vit.weights.WeightsError: the backbone cannot be loaded.
        """
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise InputError(f"unknown dtype {dtype!r:.60}; use torch.float32, torch.bfloat16 or torch.float16")
        hub = HubOptions(revision, token, cache_dir, local_files_only)
        with plain_torch():
            folder = find_model(name, hub)
            generator, config = load_model(folder)
            if not isinstance(backbone, ViTFeatures):
                backbone = load_backbone(str(backbone or config.backbone), weights)
            if backbone.fingerprint != config.backbone_fingerprint:
                raise CheckpointError(
                    f"{folder}: trained with backbone {config.backbone} (SHA-256 {config.backbone_fingerprint[:12]}…), "
                    f"which {backbone.name} (SHA-256 {backbone.fingerprint[:12]}…) is not"
                )
            model = cls(generator, backbone, vit_size=config.vit_size, size=config.size, card=config.training).eval()
            place = backbone.mean.device if device is None else device
            try:
                return model.to(torch.device(place), dtype)
            except (RuntimeError, AssertionError) as error:
                raise InputError(f"device '{place}' cannot be used here: {first_line(error)}") from error
