"""What is around the networks of an exported model, in ONNX's text form: sizes, resizing, padding, and bands of rows.

Antialiased resizing with `exclude_outside` is what Pillow and torch compute. Full-size images are painted a band of
rows at a time, in a loop, because reading the grid takes some 300 bytes a pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from splice_ff.networks.bilateral_grid import MARGIN
from splice_ff.vit.inputs import MAX_ASPECT

OPSET = 18
"""The first with everything the graphs use; browsers' onnxruntime knows it."""
ROWS = 64
"""Of a band."""
HEAD = f'<ir_version: 10, opset_import: ["" : {OPSET}, "networks" : 1]>\n'
CUBIC = 'antialias=1, exclude_outside=1, axes=[2, 3], cubic_coeff_a=-0.5, mode="cubic"'
LINEAR = 'antialias=1, exclude_outside=1, axes=[2, 3], mode="linear"'
WORKING = f"""
    shape = Shape <start=2> (image)
    short = ReduceMin <keepdims=1> (shape)
    zero = Constant <value_ints=[0]> ()
    is_zero = Equal(size, zero)
    wanted = Where(is_zero, short, size)
    scaled = Mul(shape, wanted)
    sides = Div(scaled, short)
    resized = Resize <{CUBIC}> (image, , , sides)
    low = Constant <value_float=0.0> ()
    high = Constant <value_float=1.0> ()
    working = Clip(resized, low, high)
"""
"""The image with a shorter side of `size`, as `splice_ff.utils.resize.resize_shorter_side` makes it."""


def encode_text(vit_size: int, patch: int) -> str:
    """The graph of encode.onnx; `splice_ff.vit.inputs.ViTInput` has the rule for the size."""
    return f"""{HEAD}
encode (float[1,3,H,W] image, int64[1] size) => (float[1,M,C] tokens, float[1,D,h,w] features) {{
    {WORKING}
    pixels = Cast <to=11> (sides)
    least = ReduceMin <keepdims=1> (pixels)
    most = ReduceMax <keepdims=1> (pixels)
    limits = Constant <value = double[2] {{{float(vit_size)!r}, {MAX_ASPECT * vit_size!r}}}> ()
    extremes = Concat <axis=0> (least, most)
    factors = Div(limits, extremes)
    factor = ReduceMin <keepdims=1> (factors)
    aim = Mul(pixels, factor)
    patch = Constant <value = double[1] {{{float(patch)!r}}}> ()
    patches = Div(aim, patch)
    rounded = Round(patches)
    two = Constant <value = double[1] {{2.0}}> ()
    whole = Max(rounded, two)
    seen = Mul(whole, patch)
    seen_sides = Cast <to=7> (seen)
    vit_input = Resize <{LINEAR}> (working, , , seen_sides)
    tokens, features = networks.encode(vit_input)
}}"""


def paint_text(stride: int, cell: int) -> str:
    """The graph of paint.onnx.

    An image smaller than the working size takes the change of logits, reduced, as
    `splice_ff.networks.bilateral_grid.recolor_at_full_size` does; one as large, or larger, is painted at its own size.
    """
    return f"""{HEAD}
paint (float[1,3,H,W] structure, int64[1] size, float[1,D,h,w] features, float[1,M,C] tokens, float strength)
    => (float[1,3,H,W] image)
{{
    {WORKING.replace("(image", "(structure")}
    stride = Constant <value_ints=[{stride}]> ()
    negative = Neg(sides)
    missing = Mod(negative, stride)
    one = Constant <value_ints=[1]> ()
    mirrored = Sub(sides, one)
    reflected = Min(missing, mirrored)
    repeated = Sub(missing, reflected)
    none = Constant <value_ints=[0, 0]> ()
    axes = Constant <value_ints=[2, 3]> ()
    reflected_pads = Concat <axis=0> (none, reflected)
    repeated_pads = Concat <axis=0> (none, repeated)
    partly = Pad <mode="reflect"> (working, reflected_pads, , axes)
    padded = Pad <mode="edge"> (partly, repeated_pads, , axes)
    all_pixels, grid = networks.paint(padded, features, tokens, strength)
    pixels = Slice(all_pixels, none, sides, axes)

    full = Max(shape, sides)
    enlarged = Resize <{CUBIC}> (structure, , , full)
    source = Clip(enlarged, low, high)
    first = Constant <value_int=0> ()
    second = Constant <value_int=1> ()
    height = Gather(full, first)
    width = Gather(full, second)
    half = Constant <value_float=0.5> ()
    cell = Constant <value_float={float(cell)}> ()
    exact_sides = Cast <to=1> (sides)
    exact_full = Cast <to=1> (full)
    extents = Div(exact_sides, cell)
    steps = Div(extents, exact_full)
    step_down = Gather(steps, first)
    step_across = Gather(steps, second)
    numbers = Range(first, width, second)
    exact_numbers = Cast <to=1> (numbers)
    middles = Add(exact_numbers, half)
    columns = Mul(middles, step_across)
    maps = networks.fit(pixels, working, columns)
    band_rows = Constant <value_int={ROWS}> ()
    in_band = Range(first, band_rows, second)
    last = Sub(height, second)
    whole_bands = Div(last, band_rows)
    count = Add(whole_bands, second)
    true = Constant <value = bool {{1}}> ()
    bands = Loop <body = body (int64 i, bool go) => (bool goes, float[1,3,P,Q] painted) {{
        goes = Identity(go)
        top = Mul(i, band_rows)
        below = Add(in_band, top)
        rows = Min(below, last)
        exact_rows = Cast <to=1> (rows)
        row_middles = Add(exact_rows, half)
        places = Mul(row_middles, step_down)
        band = Gather <axis=2> (source, rows)
        painted = networks.finish(band, maps, grid, places, columns)
    }}> (count, true)
    in_order = Transpose <perm=[1, 2, 0, 3, 4]> (bands)
    full_width = Gather(full, one)
    layout = Constant <value_ints=[1, 3, -1]> ()
    joined = Concat <axis=0> (layout, full_width)
    with_rest = Reshape(in_order, joined)
    full_height = Gather(full, zero)
    two = Constant <value_ints=[2]> ()
    finished = Slice(with_rest, zero, full_height, two)

    own_width = Gather(shape, second)
    working_width = Gather(sides, second)
    is_smaller = Less(own_width, working_width)
    image = If (is_smaller) <then_branch = reduce () => (float[1,3,A,B] small) {{
        before = networks.logit(source)
        after = networks.logit(finished)
        change = Sub(after, before)
        reduced = Resize <{CUBIC}> (change, , , shape)
        own = networks.logit(structure)
        logits = Add(own, reduced)
        inside = Sigmoid(logits)
        margin = Constant <value_float={MARGIN}> ()
        beyond = Sub(inside, margin)
        width_inside = Constant <value_float={1 - 2 * MARGIN}> ()
        colors = Div(beyond, width_inside)
        small = Clip(colors, low, high)
    }}, else_branch = keep () => (float[1,3,A,B] same) {{
        same = Identity(finished)
    }}>
}}
<domain: "networks", opset_import: ["" : {OPSET}]>
logit (colors) => (logits) {{
    width = Constant <value_float={1 - 2 * MARGIN}> ()
    margin = Constant <value_float={MARGIN}> ()
    scaled = Mul(colors, width)
    inside = Add(scaled, margin)
    one = Constant <value_float=1.0> ()
    outside = Sub(one, inside)
    odds = Div(inside, outside)
    logits = Log(odds)
}}"""


def join(text: str, networks: Mapping[str, Any]) -> Any:
    """The graph of a text with the traced networks that it calls in place."""
    import onnx
    import onnx.inliner

    graph = onnx.parser.parse_model(text)
    for name in (name for name in networks if f"networks.{name}(" in text):
        network = networks[name]
        constants = [
            onnx.helper.make_node("Constant", [], [weight.name], value=weight) for weight in network.graph.initializer
        ]
        for node in network.graph.node:
            node.ClearField("metadata_props")  # stack traces, with folders of this machine
        names = [[value.name for value in values] for values in (network.graph.input, network.graph.output)]
        nodes, opsets = [*constants, *network.graph.node], [onnx.helper.make_opsetid("", OPSET)]
        graph.functions.append(onnx.helper.make_function("networks", name, *names, nodes, opsets))
    graph = onnx.inliner.inline_local_functions(graph)
    nodes = list(graph.graph.node)
    del graph.graph.node[:]
    for node in nodes:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            node.attribute[0].t.name = node.output[0]
            graph.graph.initializer.append(node.attribute[0].t)
        else:
            graph.graph.node.append(node)
    return graph
