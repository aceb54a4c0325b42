"""Texts → embeddings: all-MiniLM-L6-v2, quantised to int8, by ONNX Runtime."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from apex_dagster.errors import InvalidInput

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODEL_FOLDER = Path(__file__).parent / "model"
TOKENS_MAX = 256  # what the model was trained on, its two special tokens included


class Embedder(Protocol):
    """Turns texts into vectors that can be compared by dot product."""

    @property
    def model(self) -> str:
        """Stored with each embedding; vectors of two models are never comparable."""
        ...

    @property
    def dim(self) -> int:
        """Floats in one embedding."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed `texts`, keeping their order.

        Returns shape (len(texts), dim); each row has L2 norm 1. No texts give shape (0, dim).
        Raises InvalidInput for a text longer than the model reads; it is never cut.
        """
        ...


class MiniLmEmbedder:
    """The default: offline, about 50 chunks a CPU-second. The same text gives the same bytes."""

    model = "all-MiniLM-L6-v2-int8"
    dim = 384

    def __init__(self, *, threads: int = 1) -> None:
        self.threads = threads
        self._lock = threading.Lock()

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        embeddings = np.empty((len(texts), self.dim), dtype=np.float32)
        # One at a time: int8 activations are scaled for each call, so in a batch a text's vector
        # would depend on its neighbours (cosine down to .984); on one core it is no slower.
        for row, text in enumerate(texts):
            embeddings[row] = self._embed(text)
        return embeddings

    def _embed(self, text: str) -> NDArray[np.float32]:
        tokens = minilm_tokenizer().encode(text).ids
        if len(tokens) > TOKENS_MAX:
            raise InvalidInput(
                f"a text of {len(tokens)} tokens is too long to embed: {self.model} reads"
                f" {TOKENS_MAX}; split it"
            )
        ids = np.array([tokens], dtype=np.int64)
        (token_embeddings,) = self._session().run(None, {"input_ids": ids})
        return unit_length(token_embeddings[0].mean(axis=0, dtype=np.float64))

    def _session(self) -> Any:
        with self._lock:
            return onnx_session(self.threads)


def unit_length(vector: NDArray[np.float64]) -> NDArray[np.float32]:
    """The vector scaled to L2 norm 1. The caller has excluded zero vectors."""
    # Dividing by the largest part first keeps the squares of extreme floats finite.
    scaled = vector / np.abs(vector).max()
    normalised: NDArray[np.float32] = (scaled / np.linalg.norm(scaled)).astype(np.float32)
    return normalised


@functools.cache
def minilm_tokenizer() -> Tokenizer:
    """The model's own tokenizer, without the cut at 128 tokens that its file asks for."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@functools.cache
def onnx_session(threads: int) -> Any:
    import onnxruntime  # 0.1 s

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    path = MODEL_FOLDER / "all-MiniLM-L6-v2-int8.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
