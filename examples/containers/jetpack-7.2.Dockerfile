# Jetson Orin and Thor, JetPack 7.2 (L4T 39.2, TensorRT 10.16): written from documentation, not built here, never run.
#
#   docker build -f examples/containers/jetpack-7.2.Dockerfile -t mvlm .
#   docker run --rm --runtime nvidia -v $PWD/bundle:/bundle mvlm build /bundle        once on each device
#   docker run --rm --runtime nvidia -v $PWD/bundle:/bundle -e MVLM_TOKEN=secret -p 8080:8080 mvlm
#
# Not verified: that the package repository has this name for L4T 39, and that its TensorRT installs outside a flashed
# system. NVIDIA's image tensorrt:26.02-py3-igpu is no way round: on an Orin with L4T 39 `import tensorrt` was seen to
# fail in it for want of libnvdla_compiler.so (github.com/blakeblackshear/frigate, pull request 23582).
FROM ubuntu:24.04
ARG L4T=r39.2
ENV DEBIAN_FRONTEND=noninteractive

# Python is 3.12 here, for JetPack's bindings of TensorRT and for mvlm alike.
ADD https://repo.download.nvidia.com/jetson/jetson-ota-public.asc /etc/apt/trusted.gpg.d/jetson.asc
RUN chmod 644 /etc/apt/trusted.gpg.d/jetson.asc \
    && apt-get update && apt-get install -y --no-install-recommends ca-certificates \
    && echo "deb https://repo.download.nvidia.com/jetson/common $L4T main" > /etc/apt/sources.list.d/jetson.list \
    && apt-get update && apt-get install -y --no-install-recommends python3-venv python3-libnvinfer libnvonnxparsers10 \
    && rm -rf /var/lib/apt/lists/* && python3 -m venv --system-site-packages /opt/mvlm
ENV PATH=/opt/mvlm/bin:$PATH

COPY . /tmp/mvlm
RUN pip install --no-cache-dir "/tmp/mvlm[serve]" && rm -rf /tmp/mvlm && python -c "import tensorrt, export.runtime"

EXPOSE 8080
ENTRYPOINT ["mvlm"]
CMD ["serve", "--bundle", "/bundle", "--provider", "tensorrt", "--host", "0.0.0.0"]
