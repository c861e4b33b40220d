// The page: two images in, the result out, as soon as both are there.

import { fillHidden } from "./cutout.js";
import { embed, loadModel, paint } from "./model.js";

const MAX_SIDE = 1536; // a phone's memory; larger photographs are reduced first
const MIN_SIDE = 16;
const images = {};
const element = (id) => document.getElementById(id);
let model, busy = false, again = false;

function say(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

async function read(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob); // applies the orientation
  } catch {
    throw new Error(`${name}: not an image that this browser can read`);
  }
  if (Math.min(bitmap.width, bitmap.height) < MIN_SIDE) {
    throw new Error(`${name}: ${bitmap.width}x${bitmap.height} is too small; both sides need ${MIN_SIDE} pixels`);
  }
  const factor = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.round(bitmap.width * factor), Math.round(bitmap.height * factor));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  if (pixels.data.every((value, i) => i % 4 < 3 || value === 0)) {
    throw new Error(`${name}: no pixel is visible; export it without transparency`);
  }
  return pixels;
}

function toPlanes({ data: pixels, height, width }) {
  const data = new Float32Array(3 * height * width);
  const alpha = new Float32Array(height * width);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) data[c * height * width + i] = pixels[4 * i + c] / 255;
    alpha[i] = pixels[4 * i + 3] / 255;
  }
  return fillHidden({ data, height, width }, alpha);
}

function toPixels({ data: planes, height, width }, alphaOf) {
  const pixels = new ImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = Math.round(255 * planes[c * height * width + i]);
    pixels.data[4 * i + 3] = alphaOf.data[4 * i + 3];
  }
  return pixels;
}

function show(canvas, pixels) {
  [canvas.width, canvas.height] = [pixels.width, pixels.height];
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  canvas.dataset.filled = "";
}

async function take(role, blob, name) {
  try {
    images[role] = await read(blob, name);
  } catch (error) {
    say(error.message, true);
    return;
  }
  show(element(role).querySelector("canvas"), images[role]);
  await update();
}

async function update() {
  if (!model || !images.structure || !images.appearance) {
    const missing = images.structure ? "appearance" : "structure";
    if (model && (images.structure || images.appearance)) say(`Now the ${missing} image.`);
    return;
  }
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  try {
    do {
      again = false;
      say("Painting …");
      await new Promise((resolve) => setTimeout(resolve, 20)); // lets the message appear
      const { structure, appearance } = images;
      const start = performance.now();
      const tokens = await embed(model, toPlanes(appearance));
      const [size, strength] = ["size", "strength"].map((id) => Number(element(id).value));
      const output = await paint(model, toPlanes(structure), tokens, size, strength);
      const seconds = (performance.now() - start) / 1000;
      show(element("output"), toPixels(output, structure));
      say(`Painted ${output.width}x${output.height} px in ${seconds.toFixed(1)} s.`);
      element("output").toBlob((blob) => {
        URL.revokeObjectURL(element("download").href);
        element("download").href = URL.createObjectURL(blob);
        element("download").hidden = false;
      });
    } while (again);
  } catch (error) {
    say(`The images could not be painted: ${error.message}`, true);
  } finally {
    busy = false;
  }
}

for (const role of ["structure", "appearance"]) {
  const drop = element(role);
  drop.querySelector("input").addEventListener("change", ({ target }) => {
    if (target.files.length) take(role, target.files[0], target.files[0].name);
    target.value = "";
  });
  drop.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") drop.querySelector("input").click();
  });
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) take(role, file, file.name);
  });
}
for (const id of ["size", "strength"]) element(id).addEventListener("change", update);
element("example").addEventListener("click", async () => {
  for (const [role, name] of [["structure", "cat.jpg"], ["appearance", "raccoon.jpg"]]) {
    await take(role, await (await fetch(`examples/${name}`)).blob(), name);
  }
});

try {
  model = await loadModel("model");
  const sizes = [...new Set([128, model.card.size, 256, 384])].sort((a, b) => a - b);
  element("size").replaceChildren(...sizes.map((s) => new Option(`${s} px`, s, s === model.card.size, s === model.card.size)));
  say("Choose two images, or try the example.");
  await update();
} catch (error) {
  say(`The model could not be loaded: ${error.message}`, true);
}
