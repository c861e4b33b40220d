#!/usr/bin/env bash
# Gathers the page into web/dist: the page itself, onnxruntime-web from npm, the bundled model as ONNX, the examples.
#     web/build.sh MODEL      then: python -m http.server --directory web/dist
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-../.venv/bin/python}
rm -rf dist && mkdir -p dist/ort dist/examples
npm install --silent --no-audit --no-fund
cp index.html style.css page.js model.js cutout.js dist/
cp node_modules/onnxruntime-web/dist/{ort.wasm.min.mjs,ort-wasm-simd-threaded.mjs,ort-wasm-simd-threaded.wasm} dist/ort/
cp ../examples/{cat,raccoon}.jpg dist/examples/
"$python" -m splice_ff export "$1" -o dist/model --precision fp16
