"""Peers of `real_beside.py`: each writes files of one real language model, and says logits of what it reads.

Files are written once and kept; a peer that is not installed, or that cannot, says so by an exception.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.decode.llama import _silent, write_gguf
from benchmarks.decode.real_own import POSITIONS

Array = NDArray[Any]
MIB = 2**20
_BUILD_S = 1800


class Peer(Protocol):
    """One way to run the model, on so many threads; `mib` are of decoder and head, without another embedding table."""

    about: dict[str, str]
    mib: float

    def begin(self, ids: Array) -> Array:
        """Read a prompt (S,) in one step of a new conversation: logits (V,) behind it."""

    def read(self, token: int) -> Array:
        """Read one token more: logits (V,) behind it."""


class Torch:
    """transformers, as it comes."""

    def __init__(self, model: Path, work: Path, dtype: str, threads: int) -> None:
        import torch
        import transformers

        self._torch, self._threads = torch, threads
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, local_files_only=True
        ).eval()
        self.about = {"transformers": transformers.__version__, "torch": torch.__version__}
        self.mib = sum(weight.numel() for weight in self._model.parameters()) * self._model.dtype.itemsize / MIB

    def begin(self, ids: Array) -> Array:
        import transformers

        self._cache = transformers.DynamicCache(config=self._model.config)
        return self._read(ids)

    def read(self, token: int) -> Array:
        return self._read(np.asarray([token]))

    def _read(self, ids: Array) -> Array:
        from mvlm_core.modeling.kv_cache import cache_argument  # torch, which not every peer has

        torch = self._torch
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            given = torch.from_numpy(np.asarray(ids, np.int64))[None]
            found = self._model(given, use_cache=True, logits_to_keep=1, **cache_argument(self._cache))
        logits: Array = found.logits[0, -1].float().numpy()
        return logits


class LlamaCpp:
    """llama.cpp through the C functions that llama-cpp-python wraps, quantised by its own function from float32."""

    def __init__(self, model: Path, work: Path, kind: str, threads: int) -> None:
        import llama_cpp

        self._library = llama_cpp
        self._kept = llama_cpp.llama_log_callback(_silent)  # the library calls it for as long as it lives
        llama_cpp.llama_log_set(self._kept, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        _load_backends()
        file = work / f"llama.{kind}.gguf"
        if not file.is_file():
            self._quantise(model, work / "llama.F32.gguf", file, kind)
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        asked = llama_cpp.llama_context_default_params()
        asked.n_ctx = asked.n_batch = asked.n_ubatch = POSITIONS
        asked.n_threads = asked.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, asked)
        if not self._context:
            raise RuntimeError(f"llama.cpp does not open {file.name}")
        self._words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.about = {
            "build": f"llama-cpp-python {llama_cpp.__version__}",
            "kernels": llama_cpp.llama_print_system_info().decode().strip(),
        }
        self.mib = llama_cpp.llama_model_size(self._model) / MIB  # tied: the table is the head

    def _quantise(self, model: Path, whole: Path, file: Path, kind: str) -> None:
        from transformers import AutoModelForCausalLM

        if not whole.is_file():
            write_gguf(AutoModelForCausalLM.from_pretrained(model, dtype="float32"), whole, "F32")
        library, asked = self._library, self._library.llama_model_quantize_default_params()
        asked.ftype, asked.nthread = getattr(library, f"LLAMA_FTYPE_MOSTLY_{kind}"), 1
        half = file.with_suffix(".part")
        if library.llama_model_quantize(str(whole).encode(), str(half).encode(), ctypes.byref(asked)):
            raise RuntimeError(f"llama.cpp does not quantise to {kind}")
        half.rename(file)

    def begin(self, ids: Array) -> Array:
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        return self._read(ids)

    def read(self, token: int) -> Array:
        return self._read(np.asarray([token]))

    def _read(self, ids: Array) -> Array:
        library = self._library
        held = (library.llama_token * len(ids))(*ids.tolist())
        if library.llama_decode(self._context, library.llama_batch_get_one(held, len(ids))):
            raise RuntimeError("llama_decode failed")
        return np.ctypeslib.as_array(library.llama_get_logits_ith(self._context, -1), (self._words,)).copy()


class GenAi:
    """onnxruntime-genai, by its own builder, accuracy level 4; `options` are the builder's."""

    def __init__(self, model: Path, work: Path, options: str, threads: int) -> None:
        import onnxruntime_genai

        self._library, folder = onnxruntime_genai, work / f"genai {options.replace('/', ' ')}"
        if not (folder / "genai_config.json").is_file():
            self._build(model, folder, options.split())
        config = json.loads((folder / "genai_config.json").read_text())
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        (folder / "genai_config.json").write_text(json.dumps(config))
        self._model = onnxruntime_genai.Model(str(folder))
        self.about = {"onnxruntime-genai": onnxruntime_genai.__version__, "options": options}
        self.mib = _stored_bytes(folder / "model.onnx") / MIB

    def _build(self, model: Path, folder: Path, options: list[str]) -> None:
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", "int4"]
        places = ["-i", str(model), "-o", str(folder), "-c", str(folder)]
        done = subprocess.run(
            [*builder, *places, "--extra_options", "accuracy_level=4", *options], capture_output=True, text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"}, timeout=_BUILD_S,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])

    def begin(self, ids: Array) -> Array:
        parameters = self._library.GeneratorParams(self._model)
        parameters.set_search_options(max_length=POSITIONS, do_sample=False)
        self._generator = self._library.Generator(self._model, parameters)
        return self._read(ids)

    def read(self, token: int) -> Array:
        return self._read(np.asarray([token]))

    def _read(self, ids: Array) -> Array:
        self._generator.append_tokens(np.asarray(ids, np.int32)[None])
        logits: Array = np.asarray(self._generator.get_logits(), np.float32)
        return logits.reshape(-1, logits.shape[-1])[-1]


class OpenVino:
    """OpenVINO with the stateful graph that optimum-intel writes for OpenVINO GenAI, weights in few bits by NNCF.

    The graph is written by the program that `MVLM_OPTIMUM` names (`optimum-cli` of an environment of its own: it wants
    an older transformers), which reads the same folder.
    """

    def __init__(self, model: Path, work: Path, options: str, threads: int) -> None:
        import openvino

        folder = work / f"openvino {options}"
        if not (folder / "openvino_model.xml").is_file():
            self._write(model, folder, options.split())
        core, asked = openvino.Core(), {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._request = core.compile_model(folder / "openvino_model.xml", "CPU", asked).create_infer_request()
        self._names = {name for given in self._request.model_inputs for name in given.names}
        self.about = {"openvino": openvino.__version__, "options": options}
        self.mib = (folder / "openvino_model.bin").stat().st_size / MIB

    def _write(self, model: Path, folder: Path, options: list[str]) -> None:
        if "MVLM_OPTIMUM" not in os.environ:
            raise RuntimeError("MVLM_OPTIMUM names no optimum-cli that writes its files")
        command = [os.environ["MVLM_OPTIMUM"], "export", "openvino", "--task", "text-generation-with-past"]
        done = subprocess.run(
            [*command, "--model", str(model), *options, str(folder)], capture_output=True, text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"}, timeout=_BUILD_S,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])

    def begin(self, ids: Array) -> Array:
        self._request.reset_state()
        self._seen = 0
        return self._read(ids)

    def read(self, token: int) -> Array:
        return self._read(np.asarray([token]))

    def _read(self, ids: Array) -> Array:
        places = np.arange(self._seen, self._seen + len(ids), dtype=np.int64)
        self._seen += len(ids)
        given = {
            "input_ids": np.asarray(ids, np.int64)[None], "attention_mask": np.ones((1, self._seen), np.int64),
            "position_ids": places[None], "beam_idx": np.zeros(1, np.int32),
        }  # fmt: skip
        found = self._request.infer({name: value for name, value in given.items() if name in self._names})
        logits: Array = np.asarray(found["logits"], np.float32)[0, -1]
        return logits


def _load_backends() -> None:
    """Of llama.cpp's prebuilt libraries, which `LLAMA_CPP_LIB_PATH` names: what this processor runs fastest. What was
    built for it has all in one."""
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH", ""))
    if any(folder.glob("libggml-cpu-*.so")):
        ctypes.CDLL(str(folder / "libggml.so")).ggml_backend_load_all_from_path(str(folder).encode())


def _stored_bytes(file: Path) -> float:
    """Bytes of the tensors that a graph of genai reads for a token, those of an embedding table of its own left out."""
    from benchmarks.decode.own import weight_bytes

    return weight_bytes(file, leaving="embed_tokens")
