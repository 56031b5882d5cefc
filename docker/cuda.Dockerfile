# lorafit on NVIDIA GPUs: docker build -f docker/cuda.Dockerfile -t lorafit:cuda .
# The CUDA libraries come with PyTorch's package. The host needs the driver and the NVIDIA Container Toolkit.
FROM python:3.13.9-slim-bookworm

# torch.compile and Triton call a compiler.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 lorafit \
 && install -d -o lorafit -g lorafit /runs /cache
WORKDIR /src
COPY constraints.txt ./
# For GPUs before Turing: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126
ARG TORCH_INDEX=https://pypi.org/simple
RUN pip install --no-cache-dir -c constraints.txt torch --index-url "$TORCH_INDEX"
COPY pyproject.toml README.md LICENSE ./
COPY lorafit lorafit
RUN pip install --no-cache-dir -c constraints.txt '.[compare]'

ENV LORAFIT_CACHE=/cache/lorafit HF_HOME=/cache/huggingface
USER 1000
WORKDIR /runs
VOLUME ["/runs", "/cache"]
ENTRYPOINT ["lorafit"]
CMD ["train", "--demo"]
