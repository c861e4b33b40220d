// The exported one-shot model in onnxruntime-web; the graphs resize, pad and paint in bands by themselves.
// An image is {data: Float32Array of three planes in [0, 1], height, width}.

import * as ort from "./ort/ort.wasm.min.mjs";

export async function loadModel(folder) {
  ort.env.wasm.wasmPaths = new URL("ort/", document.baseURI).href;
  const model = { card: await (await get(`${folder}/model.json`)).json() };
  for (const name of ["encode", "paint"]) {
    const bytes = await (await get(`${folder}/${name}.onnx`)).arrayBuffer();
    model[name] = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  }
  return model;
}

export async function embed(model, appearance) {
  return (await model.encode.run({ image: tensor(appearance), size: number(0) })).tokens;
}

// `strength` is the share of the change that is made: 0 leaves the structure image as it is, 1 is all of it.
export async function paint(model, structure, tokens, size, strength) {
  const { features } = await model.encode.run({ image: tensor(structure), size: number(size) });
  const { image } = await model.paint.run({
    structure: tensor(structure), size: number(size), features, tokens,
    strength: new ort.Tensor("float32", [strength], []),
  });
  return { data: image.data, height: image.dims[2], width: image.dims[3] };
}

async function get(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${answer.statusText}`);
  return answer;
}

const tensor = ({ data, height, width }) => new ort.Tensor("float32", data, [1, 3, height, width]);
const number = (size) => new ort.Tensor("int64", BigInt64Array.of(BigInt(size)), [1]);
