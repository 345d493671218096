"""llama.cpp as a peer of `decode.py`, through the C functions that llama-cpp-python wraps.

`pip install llama-cpp-python gguf` builds it for the processor that it is installed on, which is its best setting:
prebuilt wheels leave out what not every processor has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

# Of a prompt, read in one piece; llama.cpp's own default would read 512 positions at a time.
_BATCH = 1024


class LlamaCpp:
    """Q4_0 in every matrix, head and embedding table too; repacked for the processor as it is loaded."""

    def __init__(self, folder: Path, size: Any, threads: int) -> None:
        self._file, self._size, self._threads = folder / "llama.gguf", size, threads

    def write(self, model: Any) -> None:
        import llama_cpp  # noqa: F401  where it is missing, nothing is written

        write_gguf(model, self._file)

    def open(self) -> None:
        import ctypes

        import llama_cpp

        self._library = llama_cpp
        silent = llama_cpp.llama_log_callback(_silent)
        self._kept = silent  # the library calls it for as long as it lives
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(self._file).encode(), llama_cpp.llama_model_default_params()
        )
        asked = llama_cpp.llama_context_default_params()
        asked.n_ctx = asked.n_batch = asked.n_ubatch = _BATCH
        asked.n_threads = asked.n_threads_batch = self._threads
        self._context = llama_cpp.llama_init_from_model(self._model, asked)
        if not self._context:
            raise RuntimeError(f"llama.cpp does not open {self._file.name}")
        self.about = {
            "build": f"llama-cpp-python {llama_cpp.__version__}",
            "kernels": llama_cpp.llama_print_system_info().decode().strip(),
        }
        self.bytes_a_token = _read_each_token(self._file, self._size.tied)

    def prefill(self, tokens: int) -> None:
        library = self._library
        library.llama_memory_clear(library.llama_get_memory(self._context), True)
        self._read(np.arange(tokens) % self._size.vocabulary)

    def step(self) -> None:
        self._read(np.asarray([self._token]))

    def _read(self, ids: np.ndarray[Any, Any]) -> None:
        library = self._library
        held = (library.llama_token * len(ids))(*ids.tolist())
        if library.llama_decode(self._context, library.llama_batch_get_one(held, len(ids))):
            raise RuntimeError("llama_decode failed")
        logits = np.ctypeslib.as_array(library.llama_get_logits_ith(self._context, -1), (self._size.vocabulary,))
        self._token = int(logits.argmax())


def write_gguf(model: Any, file: Path, precision: str = "Q4_0", tokenizer: Path | None = None) -> None:
    """A Llama of transformers as GGUF in Q4_0 or F32; without `tokenizer`, a tokenizer.json, it knows ids alone."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{precision}" if precision != "F32" else "ALL_F32"])
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        _add_tokenizer(writer, tokenizer, config.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    quantized = gguf.GGMLQuantizationType[precision]
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = value.float().numpy()
        if key.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
            weight = _interleaved(weight, heads)
        name = names.get_name(key, try_suffixes=(".weight",))
        if weight.ndim == 1 or precision == "F32":
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, gguf.quants.quantize(weight, quantized), raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, file: Path, eos: int) -> None:
    """A byte-level BPE: enough to tell what an id spells. Special tokens are spelled out too."""
    model = json.loads(file.read_text())
    words = model["model"]["vocab"] | {token["content"]: token["id"] for token in model["added_tokens"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(words, key=words.__getitem__))
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(eos)


def _interleaved(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of a head whose halves rotate together, side by side as llama.cpp wants them: (heads d, K) -> the same."""
    by_half = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(by_half.swapaxes(1, 2).reshape(weight.shape))


def _read_each_token(file: Path, tied: bool) -> float:
    """Bytes of the matrices that a token meets: all but an embedding table that is no head."""
    import gguf

    tensors = gguf.GGUFReader(file).tensors
    return float(sum(tensor.n_bytes for tensor in tensors if tied or tensor.name != "token_embd.weight"))


def _silent(level: int, text: bytes, data: Any) -> None:
    """Nothing of what llama.cpp tells."""
