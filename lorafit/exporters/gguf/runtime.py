"""llama.cpp itself, from the package xllamacpp: tokens and next-token distributions of a GGUF file.

The package exports llama.cpp's C interface, which is called by ctypes: one pass gives the logits at all positions of a
text. Its structures change between versions, so their default values are compared before the first use.
Keys and values of attention are in float32, and flash attention is off, or answers differ by 0.04 nats.
"""

import ctypes as c
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafit.errors import ConfigError, EngineError
from lorafit.exporters.gguf.quantize import PACKAGE
from lorafit.messages import _

PLACE = 256  # bytes for the end of a structure: more than any version uses
COUNTS = ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq", "n_outputs_max", "n_outputs_max_per_seq",
          "n_threads", "n_threads_batch")  # fmt: skip
KINDS = ("ctx_type", "rope_scaling_type", "pooling_type", "attention_type", "flash_attn_type")
ROPE = ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")
F32, OFF = 0, 0
DEFAULTS = {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "type_k": 1, "type_v": 1}
ERRORS_FROM = 4  # level of llama.cpp's messages


class _ModelParams(c.Structure):
    _fields_ = (("rest", c.c_ubyte * PLACE),)


class _ContextParams(c.Structure):
    _fields_ = (
        *((name, c.c_int32) for name in (*COUNTS, *KINDS)),
        *((name, c.c_float) for name in ROPE),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p),
        ("cb_eval_user_data", c.c_void_p),
        ("type_k", c.c_int32),
        ("type_v", c.c_int32),
        ("rest", c.c_ubyte * PLACE),
    )


class _Batch(c.Structure):
    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    )


class LlamaCpp:
    """A GGUF file that llama.cpp loaded on the CPU, with a context of `length` tokens; `lora` is an adapter's file.

    Raise ConfigError without xllamacpp or with a version whose structures differ, EngineError if the file cannot be
    loaded. Use it as a context manager.
    """

    def __init__(self, path: Path, length: int, threads: int = 1, lora: Path | None = None) -> None:
        self._lib = lib = _library()
        self._model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not self._model:
            raise _failed(path)
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = length
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type, params.type_k, params.type_v = OFF, F32, F32
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            lib.llama_model_free(self._model)
            raise _failed(path)
        self._batch = lib.llama_batch_init(length, 0, 1)
        self._length, self._vocab = length, lib.llama_model_get_vocab(self._model)
        if lora is not None:
            self._apply(lora)

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(self, *_error: object) -> None:
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def logits(self, ids: Sequence[int], positions: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Return the logits [positions, vocabulary] after the tokens of `ids` at `positions` (None: all).

        `ids` are at most as many as the context holds.
        """
        if not 0 < len(ids) <= self._length:
            raise ValueError(f"{len(ids)} tokens in a context of {self._length}")
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        return self._read(ids, 0, range(len(ids)) if positions is None else positions)

    def log_probs(self, ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
        """Return log-probabilities [positions, vocabulary] of the token after each of `positions` in `ids`."""
        found = self.logits(ids, positions)
        found -= found.max(-1, keepdims=True)
        found -= np.log(np.exp(found, dtype=np.float64).sum(-1, keepdims=True)).astype(np.float32)
        return found

    def generate(self, prompts: Sequence[Sequence[int]], limit: int, stops: frozenset[int]) -> list[list[int]]:
        """Return the greedy answers, each of at most `limit` tokens, with the stop token that ended it if one did."""
        return [self._answer(prompt, limit, stops) for prompt in prompts]

    def _answer(self, prompt: Sequence[int], limit: int, stops: frozenset[int]) -> list[int]:
        answer = [int(self.logits(prompt, [len(prompt) - 1]).argmax())]
        while len(answer) < limit and answer[-1] not in stops:
            answer.append(int(self._read(answer[-1:], len(prompt) + len(answer) - 1, [0]).argmax()))
        return answer

    def _read(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> NDArray[np.float32]:
        """Read `ids`, which follow the `start` tokens in the cache, and return the logits [positions, vocabulary]."""
        lib, batch, wanted = self._lib, self._batch, {*positions}
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.logits[place] = token, start + place, place in wanted
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        if failure := lib.llama_decode(self._context, batch):
            raise EngineError(_("llama.cpp could not compute this text."), found=failure)
        size = lib.llama_vocab_n_tokens(self._vocab)
        rows = (lib.llama_get_logits_ith(self._context, place) for place in positions)
        return np.stack([np.ctypeslib.as_array(row, (size,)) for row in rows])

    def tokenize(self, text: str) -> list[int]:
        """Return the token IDs of `text`, in which special tokens are read as such. No bos is added."""
        data = text.encode()
        place = (c.c_int32 * (len(data) + 8))()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), place, len(place), False, True)
        return list(place[:count])

    def ends(self, token: int) -> bool:
        """Return whether the token ends an answer."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    @property
    def eos(self) -> int:
        """The token that the file names as the end of an answer."""
        return int(self._lib.llama_vocab_eos(self._vocab))

    @property
    def adds_bos(self) -> bool:
        """Whether llama.cpp puts the bos token before a text."""
        return bool(self._lib.llama_vocab_get_add_bos(self._vocab))

    @property
    def template(self) -> str:
        """The chat template in the file; "" if it has none."""
        return (self._lib.llama_model_chat_template(self._model, None) or b"").decode()

    def setting(self, name: str) -> str | None:
        """The setting `name` of the file as text; None if it has none."""
        place = c.create_string_buffer(PLACE)
        there = self._lib.llama_model_meta_val_str(self._model, name.encode(), place, PLACE) >= 0
        return place.value.decode() if there else None

    @property
    def elements(self) -> int:
        """How many numbers are in all tensors of the file."""
        return int(self._lib.llama_model_n_params(self._model))

    def _apply(self, lora: Path) -> None:
        adapter = self._lib.llama_adapter_lora_init(self._model, str(lora).encode())
        if not adapter:
            raise _failed(lora)
        self._lib.llama_set_adapters_lora(self._context, (c.c_void_p * 1)(adapter), 1, (c.c_float * 1)(1.0))


def _failed(path: Path) -> EngineError:
    return EngineError(_("llama.cpp cannot load this file."), where=path, found=" ".join(_said[-3:]) or None)


_said: list[str] = []  # llama.cpp's last errors


def _listen(level: int, text: bytes, _data: object) -> None:
    if level >= ERRORS_FROM:
        _said.append(text.decode(errors="replace").strip())


_listener = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)(_listen)


@cache
def _library() -> Any:
    """Return the library with the types of the functions that are used."""
    spec = importlib.util.find_spec(f"{PACKAGE}.{PACKAGE}") if importlib.util.find_spec(PACKAGE) else None
    if spec is None or spec.origin is None:
        raise ConfigError(
            _("llama.cpp is not installed."),
            fix=_("Install it: {command}").format(command='pip install "lorafit[gguf]"'),
        )
    lib = c.CDLL(spec.origin)
    pointer, text, ids = c.c_void_p, c.c_char_p, c.POINTER(c.c_int32)
    signatures: dict[str, tuple[Any, ...]] = {  # first the type of the result
        "llama_model_default_params": (_ModelParams,),
        "llama_context_default_params": (_ContextParams,),
        "llama_model_load_from_file": (pointer, text, _ModelParams),
        "llama_init_from_model": (pointer, pointer, _ContextParams),
        "llama_batch_init": (_Batch, c.c_int32, c.c_int32, c.c_int32),
        "llama_batch_free": (None, _Batch),
        "llama_free": (None, pointer),
        "llama_model_free": (None, pointer),
        "llama_get_memory": (pointer, pointer),
        "llama_memory_clear": (None, pointer, c.c_bool),
        "llama_decode": (c.c_int32, pointer, _Batch),
        "llama_get_logits_ith": (c.POINTER(c.c_float), pointer, c.c_int32),
        "llama_model_get_vocab": (pointer, pointer),
        "llama_vocab_n_tokens": (c.c_int32, pointer),
        "llama_vocab_is_eog": (c.c_bool, pointer, c.c_int32),
        "llama_vocab_eos": (c.c_int32, pointer),
        "llama_vocab_get_add_bos": (c.c_bool, pointer),
        "llama_model_chat_template": (text, pointer, text),
        "llama_model_meta_val_str": (c.c_int32, pointer, text, text, c.c_size_t),
        "llama_model_n_params": (c.c_uint64, pointer),
        "llama_tokenize": (c.c_int32, pointer, text, c.c_int32, ids, c.c_int32, c.c_bool, c.c_bool),
        "llama_adapter_lora_init": (pointer, pointer, text),
        "llama_set_adapters_lora": (c.c_int32, pointer, c.POINTER(pointer), c.c_size_t, c.POINTER(c.c_float)),
        "llama_log_set": (None, type(_listener), pointer),
        "llama_backend_init": (None,),
    }
    for name, (result, *arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.llama_log_set(_listener, None)
    lib.llama_backend_init()
    found = {name: getattr(lib.llama_context_default_params(), name) for name in DEFAULTS}
    if found != DEFAULTS:
        raise ConfigError(
            _("This version of {package} is not one that lorafit knows.").format(package=PACKAGE),
            found=found,
            fix=_("Install it: {command}").format(command='pip install "lorafit[gguf]"'),
        )
    return lib
