# lorafit on a CPU: docker build -f docker/cpu.Dockerfile -t lorafit:cpu .
FROM python:3.13.9-slim-bookworm

# torch.compile calls a C++ compiler.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 lorafit \
 && install -d -o lorafit -g lorafit /runs /cache
WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt torch --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE ./
COPY lorafit lorafit
RUN pip install --no-cache-dir -c constraints.txt '.[compare]'

ENV LORAFIT_CACHE=/cache/lorafit HF_HOME=/cache/huggingface
USER 1000
WORKDIR /runs
VOLUME ["/runs", "/cache"]
ENTRYPOINT ["lorafit"]
CMD ["train", "--demo"]
