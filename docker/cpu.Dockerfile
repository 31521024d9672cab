# The policy server on CPUs. Build it in the root of the repository:
#   docker build -f docker/cpu.Dockerfile -t jat-engine:cpu .
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS wheel
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements/build.txt requirements/
RUN pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r requirements/build.txt
COPY setup.py pyproject.toml MANIFEST.in CMakeLists.txt README.md CHANGELOG.md LICENSE ./
COPY csrc csrc
COPY kernels kernels
COPY jat_engine jat_engine
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:${PYTHON}-slim AS environment
WORKDIR /src
RUN python -m venv /opt/jat-engine
COPY requirements/torch-cpu.txt requirements/serve-cpu.txt requirements/
# The CPU build of torch has an index of its own.
RUN /opt/jat-engine/bin/pip install --no-cache-dir --no-deps \
    --index-url https://download.pytorch.org/whl/cpu -r requirements/torch-cpu.txt
RUN /opt/jat-engine/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: \
    -r requirements/serve-cpu.txt
COPY --from=wheel /wheels /wheels
# A wheel without its compiled module works, but slowly: fail the build instead.
RUN /opt/jat-engine/bin/pip install --no-cache-dir --no-deps --no-index /wheels/*.whl \
    && /opt/jat-engine/bin/python -c "import jat_engine._cpu"

FROM python:${PYTHON}-slim
RUN useradd --uid 1000 --create-home jat && install -d -o jat -g jat /state /home/jat/.cache
COPY --from=environment /opt/jat-engine /opt/jat-engine
ENV PATH=/opt/jat-engine/bin:$PATH PYTHONUNBUFFERED=1
USER jat
WORKDIR /home/jat
EXPOSE 8000
# Not /ready, which answers 503 while all sessions are open.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["jat-engine", "serve", "--host", "0.0.0.0", "--port", "8000", "--api_key_file", "/run/secrets/api_keys"]
CMD ["--model_name_or_path", "jat-mini"]
