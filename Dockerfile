# CPU:   docker build -t splice-ff .
# CUDA:  docker build -t splice-ff --build-arg TORCH=cu126 .        then: docker run --gpus all …
# Run:   docker run --rm -v "$PWD:/images" splice-ff transfer raccoon.jpg cat.jpg -o out.png
FROM python:3.12-slim
ARG TORCH=cpu
ARG EXTRAS=features
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/${TORCH}
COPY . /src
RUN pip install --no-cache-dir "/src[${EXTRAS}]" && rm -r /src
WORKDIR /images
ENTRYPOINT ["splice-ff"]
CMD ["--help"]
