# The server in a container, on a CPU or a GPU by one argument:
#
#   docker build -t streamingvlm .
#   docker build -t streamingvlm:cuda --build-arg TORCH_BUILD=cu130 .
#
# TORCH_BUILD names an index of PyTorch's builds: cpu, cu126, cu130. CUDA's libraries come with torch, so that the image
# needs the driver of the host only: docker run --gpus all. compose.yaml starts the server.
FROM python:3.11-slim

ARG TORCH_BUILD=cpu
ARG TORCH_VERSION=2.13.0
RUN pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/${TORCH_BUILD}" "torch==${TORCH_VERSION}"

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY streamingvlm streamingvlm
RUN pip install --no-cache-dir ".[serve]"

RUN useradd --create-home viewer
USER viewer
WORKDIR /home/viewer
EXPOSE 8000
# Within the container every address must be served, so a key is required: STREAMINGVLM_API_KEY.
ENTRYPOINT ["streamingvlm"]
CMD ["serve", "host=0.0.0.0", "port=8000"]
