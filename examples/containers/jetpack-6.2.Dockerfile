# Jetson Orin, JetPack 6.2 (L4T 36.4, CUDA 12.6, TensorRT 10.3): written from documentation, not built here, never run.
#
#   docker build -f examples/containers/jetpack-6.2.Dockerfile -t mvlm .
#   docker run --rm --runtime nvidia -v $PWD/bundle:/bundle mvlm build /bundle        once on each device
#   docker run --rm --runtime nvidia -v $PWD/bundle:/bundle -e MVLM_TOKEN=secret -p 8080:8080 mvlm
#
# Not verified: the tag of the base image; that the bindings compile for this Python on aarch64.
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0
ENV DEBIAN_FRONTEND=noninteractive

# JetPack's Python is 3.10, and so are its bindings of TensorRT; mvlm needs 3.11.
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential cmake git software-properties-common \
    && add-apt-repository -y ppa:deadsnakes/ppa \
    && apt-get install -y --no-install-recommends python3.11-dev python3.11-venv \
    && rm -rf /var/lib/apt/lists/* && python3.11 -m venv /opt/mvlm
ENV PATH=/opt/mvlm/bin:$PATH

# NVIDIA's source of the bindings, for the TensorRT that the image holds (github.com/NVIDIA/TensorRT, python/README.md).
# pybind11 knows Python 3.11 from 2.10 on. No wheel on PyPI is for a Jetson's TensorRT 10.3.
ENV EXT_PATH=/tmp/external
RUN git clone --depth 1 -b v2.13.6 https://github.com/pybind/pybind11.git $EXT_PATH/pybind11 \
    && git clone --depth 1 --recursive --shallow-submodules -b release/10.3 \
       https://github.com/NVIDIA/TensorRT.git /tmp/TensorRT \
    && mkdir -p $EXT_PATH/python3.11 && cp -r /usr/include/python3.11 $EXT_PATH/python3.11/include \
    && cp /usr/include/aarch64-linux-gnu/python3.11/pyconfig.h $EXT_PATH/python3.11/include/ \
    && pip install --no-cache-dir setuptools wheel && cd /tmp/TensorRT/python \
    && TRT_OSSPATH=/tmp/TensorRT TENSORRT_MODULE=tensorrt TARGET_ARCHITECTURE=aarch64 \
       PYTHON_MAJOR_VERSION=3 PYTHON_MINOR_VERSION=11 bash ./build.sh \
    && pip install --no-cache-dir --no-deps $(find build -name "tensorrt-*.whl") \
    && rm -rf /tmp/TensorRT $EXT_PATH

COPY . /tmp/mvlm
RUN pip install --no-cache-dir "/tmp/mvlm[serve]" && rm -rf /tmp/mvlm && python -c "import tensorrt, export.runtime"

EXPOSE 8080
ENTRYPOINT ["mvlm"]
CMD ["serve", "--bundle", "/bundle", "--provider", "tensorrt", "--host", "0.0.0.0"]
