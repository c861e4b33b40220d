"""A one-shot model with random weights that paints strongly, and images for it."""

import torch
import torch.nn.functional as F

from splice_ff.networks.amortized import AmortizedGenerator, GeneratorConfig
from splice_ff.networks.cross_attention_unet import SIZES
from splice_ff.one_shot.pipeline import SpliceFF


def make_model(backbone, seed=0, context="cls", generator="tiny", **options):
    """`SpliceFF` with a generator of a size, one of `SIZES` or its numbers, for work at 64 px, in eval mode."""
    size = SIZES[generator] if isinstance(generator, str) else generator
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = AmortizedGenerator(GeneratorConfig(backbone.depth, backbone.width, size, context))
        with torch.no_grad():
            generator.unet.to_rgb[-1].weight.normal_(std=0.15)  # zero at first: it would copy
            if (guide := generator.unet.guide) is not None:
                generator.unet.color_affine.weight.normal_(std=0.05)
                guide.out.weight.normal_(std=0.3)
            for name, parameter in generator.named_parameters():
                if "modulation" in name or "to_kv" in name:
                    parameter.mul_(4)  # looks differ visibly
    return SpliceFF(generator, backbone, **{"vit_size": 48, "size": 64} | options).eval()


def random_image(seed, h=64, w=64, batch=1):
    """Smooth random colors, (batch, 3, h, w) in [0, 1]."""
    small = torch.rand(batch, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, (h, w), mode="bicubic").clamp(0, 1)
