// Colors for the hidden pixels of a cut-out: what splice_ff/images/decode.py does. A canvas gives black for them, which
// would count as part of a look, and as an edge of a layout.

// Planes (an image as in model.js) with colors everywhere, from those where `alpha` (height x width, 0 to 1) is not 0.
export function fillHidden(planes, alpha) {
  if (alpha.every((a) => a > 0)) return planes;
  const filled = spread(planes, alpha);
  const area = alpha.length;
  return { ...planes, data: planes.data.map((v, i) => (alpha[i % area] > 0 ? v : filled.data[i])) };
}

// A pyramid of weighted means, read from coarse to fine (the pull-push of Gortler et al., "The Lumigraph", 1996).
function spread(planes, weight) {
  const { height, width } = planes;
  if (height === 1 && width === 1) return planes;
  const [h, w] = [Math.ceil(height / 2), Math.ceil(width / 2)];
  const total = new Float32Array(h * w);
  const mean = { data: new Float32Array(3 * h * w), height: h, width: w };
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [from, to] = [y * width + x, (y >> 1) * w + (x >> 1)];
      total[to] += weight[from];
      for (let c = 0; c < 3; c++) mean.data[c * h * w + to] += weight[from] * planes.data[c * height * width + from];
    }
  }
  for (let i = 0; i < mean.data.length; i++) mean.data[i] /= Math.max(total[i % (h * w)], 1e-12);
  const most = total.reduce((a, b) => Math.max(a, b), 0);
  const coarser = spread(mean, total.map((t) => t / most));
  const coarse = { ...mean, data: mean.data.map((v, i) => (total[i % (h * w)] > 0 ? v : coarser.data[i])) };
  return enlarge(coarse, height, width);
}

// Bilinear.
function enlarge({ data, height, width }, tall, wide) {
  const places = (count, from) => Array.from({ length: count }, (_, i) => {
    const at = Math.min(Math.max(((i + 0.5) * from) / count - 0.5, 0), from - 1);
    const first = Math.floor(at);
    return [first, Math.min(first + 1, from - 1), at - first];
  });
  const [rows, columns] = [places(tall, height), places(wide, width)];
  const enlarged = new Float32Array(3 * tall * wide);
  for (let c = 0, i = 0; c < 3; c++) {
    for (const [above, below, v] of rows) {
      const [upper, lower] = [above, below].map((y) => (c * height + y) * width);
      for (const [left, right, u] of columns) {
        enlarged[i++] = (1 - v) * ((1 - u) * data[upper + left] + u * data[upper + right])
          + v * ((1 - u) * data[lower + left] + u * data[lower + right]);
      }
    }
  }
  return { data: enlarged, height: tall, width: wide };
}
