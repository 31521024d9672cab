# The policy server on NVIDIA GPUs. Build it in the root of the repository:
#   docker build -f docker/cuda.Dockerfile -t jat-engine:cuda .
ARG CUDA=13.0.1
ARG UBUNTU=24.04

FROM nvidia/cuda:${CUDA}-devel-ubuntu${UBUNTU} AS wheel
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python3 -m venv /opt/build
COPY requirements/build.txt requirements/
RUN /opt/build/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r requirements/build.txt
COPY setup.py pyproject.toml MANIFEST.in CMakeLists.txt README.md CHANGELOG.md LICENSE ./
COPY csrc csrc
COPY kernels kernels
COPY jat_engine jat_engine
RUN PATH=/opt/build/bin:$PATH pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# torch brings CUDA's libraries, so NVIDIA's smallest image is enough. Triton compiles its launcher at run time, with a C
# compiler and Python's headers.
FROM nvidia/cuda:${CUDA}-base-ubuntu${UBUNTU} AS base
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

FROM base AS environment
WORKDIR /src
RUN python3 -m venv /opt/jat-engine
COPY requirements/torch-cuda.txt requirements/serve-cuda.txt requirements/
RUN /opt/jat-engine/bin/pip install --no-cache-dir --no-deps -r requirements/torch-cuda.txt
RUN /opt/jat-engine/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: \
    -r requirements/serve-cuda.txt
COPY --from=wheel /wheels /wheels
# A wheel without its compiled modules works, but slowly: fail the build instead.
RUN /opt/jat-engine/bin/pip install --no-cache-dir --no-deps --no-index /wheels/*.whl \
    && /opt/jat-engine/bin/python -c "import jat_engine._cpu, jat_engine._cuda"

FROM base
# Ubuntu's images have a user of this number already.
RUN userdel --remove ubuntu && useradd --uid 1000 --create-home jat && install -d -o jat -g jat /state /home/jat/.cache
COPY --from=environment /opt/jat-engine /opt/jat-engine
ENV PATH=/opt/jat-engine/bin:$PATH PYTHONUNBUFFERED=1
USER jat
WORKDIR /home/jat
EXPOSE 8000
# Not /ready, which answers 503 while all sessions are open.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["jat-engine", "serve", "--host", "0.0.0.0", "--port", "8000", "--api_key_file", "/run/secrets/api_keys"]
CMD ["--model_name_or_path", "jat-mini"]
