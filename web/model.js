// The exported one-shot model in onnxruntime-web: what splice_ff/onnx/runner.py does, on typed arrays.
// An image is {data: Float32Array of three planes in [0, 1], height, width}.

import * as ort from "./ort/ort.wasm.min.mjs";

const BAND = 2 ** 18; // pixels that are sliced at once
const MARGIN = 0.02; // splice_ff/networks/bilateral_grid.py
const MAX_ASPECT = 480 / 224; // the longest shape that the ViT sees at full size: splice_ff/vit/inputs.py

export async function loadModel(folder) {
  ort.env.wasm.wasmPaths = new URL("ort/", document.baseURI).href;
  const card = await (await get(`${folder}/model.json`)).json();
  const graphs = {};
  for (const name of ["encode", "paint", "upsample", ...(card.cell ? ["slice"] : [])]) {
    const bytes = await (await get(`${folder}/${name}.onnx`)).arrayBuffer();
    graphs[name] = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  }
  return { card, graphs };
}

export async function embed(model, appearance) {
  return (await run(model, "encode", { vit_input: tensor(vitInput(model.card, appearance)) })).tokens;
}

// `strength` is the share of the change that is made: 0 leaves the structure image as it is, 1 is all of it.
export async function paint(model, structure, tokens, size, strength) {
  const working = resizeShorterSide(structure, size);
  const { height, width } = working;
  const painted = await run(model, "paint", {
    structure: tensor(pad(working, model.card.stride)), vit_input: tensor(vitInput(model.card, working)), tokens,
    strength: new ort.Tensor("float32", [strength], []),
  });
  const isSame = width === structure.width && height === structure.height;
  const isLarger = width > structure.width;
  const enlarge = async (values) => image((await run(model, "upsample", {
    output: tensor(values), structure: tensor(working), full: tensor(structure),
  })).image);
  if (!model.card.cell) {
    const output = crop(image(painted.output), height, width);
    return isSame ? output : isLarger ? atSmallerSize(output, working, structure) : enlarge(output);
  }
  const pixels = crop(image(painted.pixels), height, width);
  const extent = [height, width].map((side) => side / model.card.cell);
  if (isLarger) return atSmallerSize(await slice(model, working, pixels, painted.grid, extent), working, structure);
  return slice(model, structure, isSame ? pixels : await enlarge(pixels), painted.grid, extent);
}

// A small structure image, changed as its enlarged copy was: the change of logits is reduced.
function atSmallerSize(painted, working, structure) {
  const logit = (v) => Math.log((v * (1 - 2 * MARGIN) + MARGIN) / (1 - v * (1 - 2 * MARGIN) - MARGIN));
  const data = painted.data.map((v, i) => logit(v) - logit(working.data[i]));
  const change = resize({ ...working, data }, structure.height, structure.width, cubic, 2);
  const colors = structure.data.map((v, i) => (1 / (1 + Math.exp(-logit(v) - change.data[i])) - MARGIN) / (1 - 2 * MARGIN));
  return clamp({ ...structure, data: colors });
}

// An image changed by a bilateral grid that it covers `extent` cells of, a few rows at a time.
async function slice(model, source, pixels, grid, extent) {
  const { height, width } = source;
  const [rows, columns] = [height, width].map((n, i) => Float32Array.from({ length: n }, (_, k) => (k + 0.5) * (extent[i] / n)));
  const step = Math.max(1, Math.floor(BAND / width));
  const data = new Float32Array(3 * height * width);
  for (let top = 0; top < height; top += step) {
    const count = Math.min(step, height - top);
    const band = (whole) => tensor(gather(whole, count, width, (y) => top + y, (x) => x));
    const { output } = await run(model, "slice", {
      structure: band(source), pixels: band(pixels), grid,
      rows: new ort.Tensor("float32", rows.subarray(top, top + count), [count]),
      columns: new ort.Tensor("float32", columns, [width]),
    });
    for (let c = 0; c < 3; c++) {
      data.set(output.data.subarray(c * count * width, (c + 1) * count * width), (c * height + top) * width);
    }
  }
  return { data, height, width };
}

async function get(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${answer.statusText}`);
  return answer;
}

const run = (model, graph, inputs) => model.graphs[graph].run(inputs);

const tensor = ({ data, height, width }) => new ort.Tensor("float32", data, [1, 3, height, width]);
const image = (t) => ({ data: t.data, height: t.dims[2], width: t.dims[3] });

function vitInput(card, source) {
  const { height, width } = source;
  const factor = Math.min(card.vit_size / Math.min(height, width), MAX_ASPECT * card.vit_size / Math.max(height, width));
  const patch = card.backbone.patch;
  const [h, w] = [height, width].map((side) => Math.max(2, Math.round(side * factor / patch)) * patch);
  return resize(source, h, w, triangle, 1);
}

function resizeShorterSide(source, size) {
  const { height: h, width: w } = source;
  if (Math.min(h, w) === size) return source;
  const sides = h <= w ? [size, Math.trunc(size * w / h)] : [Math.trunc(size * h / w), size];
  return clamp(resize(source, ...sides, cubic, 2));
}

// Filters as Pillow has them: they widen when they reduce, which is antialiasing.
export const triangle = (x) => Math.max(0, 1 - Math.abs(x));
function cubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function weights(from, to, filter, support) {
  const scale = from / to;
  const stretch = Math.max(1, scale);
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support * stretch + 0.5));
    const last = Math.min(from, Math.trunc(center + support * stretch + 0.5));
    const raw = Array.from({ length: last - first }, (_, k) => filter((first + k - center + 0.5) / stretch));
    const sum = raw.reduce((a, b) => a + b, 0);
    return { first, values: raw.map((v) => v / sum) };
  });
}

export function resize(source, height, width, filter, support) {
  if (source.height === height && source.width === width) return source;
  const across = weights(source.width, width, filter, support);
  const down = weights(source.height, height, filter, support);
  const rows = new Float32Array(3 * source.height * width);
  for (let row = 0; row < 3 * source.height; row++) {
    for (let x = 0; x < width; x++) {
      const { first, values } = across[x];
      let sum = 0;
      for (let k = 0; k < values.length; k++) sum += values[k] * source.data[row * source.width + first + k];
      rows[row * width + x] = sum;
    }
  }
  const data = new Float32Array(3 * height * width);
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < height; y++) {
      const { first, values } = down[y];
      const to = (c * height + y) * width;
      for (let k = 0; k < values.length; k++) {
        const from = (c * source.height + first + k) * width;
        for (let x = 0; x < width; x++) data[to + x] += values[k] * rows[from + x];
      }
    }
  }
  return { data, height, width };
}

function clamp(source) {
  return { ...source, data: source.data.map((v) => Math.min(1, Math.max(0, v))) };
}

// Below and to the right, by reflection; what lies beyond one image's width of it repeats the edge.
function pad(source, stride) {
  const [height, width] = [source.height, source.width].map((side) => Math.ceil(side / stride) * stride);
  const at = (i, side) => (i < side ? i : Math.max(0, 2 * (side - 1) - i));
  return gather(source, height, width, (y) => at(y, source.height), (x) => at(x, source.width));
}

function crop(source, height, width) {
  return gather(source, height, width, (y) => y, (x) => x);
}

function gather(source, height, width, rowOf, columnOf) {
  if (source.height === height && source.width === width) return source;
  const data = new Float32Array(3 * height * width);
  for (let c = 0, i = 0; c < 3; c++) {
    for (let y = 0; y < height; y++) {
      const row = (c * source.height + rowOf(y)) * source.width;
      for (let x = 0; x < width; x++) data[i++] = source.data[row + columnOf(x)];
    }
  }
  return { data, height, width };
}
