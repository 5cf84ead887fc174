"""Softmax and its relatives as torch, JAX, ONNX Runtime, SciPy and NumPy compute them, on seeded rows of logits.

Runs where those are installed, and needs nothing of this project: a throw-away environment, never a dependency. What is there
is asked, what is not is left out, and what a framework refuses (a format, an op) is told.

    python -m venv ENV
    ENV/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    ENV/bin/pip install jax optax onnx onnxruntime scipy ml_dtypes
    ENV/bin/python tests/frameworks.py OUT
    python -m tests.kept OUT

OUT gets a file for each format and n, <format>-<n>.npz. Arrays are bit patterns, unsigned integers of the format's width, under
<family>/logits, <family>/index (class indices), <family>/weights (distributions) and <family>/<framework>/<op>; the op's losses
and gradients with class indices end in :index, those with distributions in :weights. provenance.json says what made them.
"""

from __future__ import annotations

import json
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
BITS = {"float16": np.uint16, "bfloat16": np.uint16, "float32": np.uint32, "float64": np.uint64}
ROWS = {1: 2, 2: 8, 3: 8, 10: 8, 100: 8, 1000: 3, 4096: 1, 32000: 1, 128256: 1}
"""Rows of each family, by n."""
LONG = ("gauss_1", "gauss_10", "offset_1e4", "near_equal", "confident", "unit", "flat")
"""The families for the two largest n."""
PACKAGES = ("torch", "jax", "jaxlib", "optax", "onnxruntime", "onnx", "scipy", "numpy", "ml_dtypes")

Array = Any
Maker = Callable[[np.random.Generator, int, str], Array]
OPS = ("softmax", "log_softmax", "logsumexp", "cross_entropy:index", "cross_entropy:weights")
GRADS = ("cross_entropy_grad:index", "cross_entropy_grad:weights")


# ---- rows ------------------------------------------------------------------------------------------------------------


def _gauss(sigma: float, offset: float = 0.0) -> Maker:
    return lambda rng, n, fmt: rng.normal(offset, sigma, n)


def _near_equal(rng: np.random.Generator, n: int, fmt: str) -> Array:
    base = np.full(n, rng.normal(0, 4)).astype(DTYPES[fmt])
    return (base.view(BITS[fmt]) + rng.integers(0, 3, n).astype(BITS[fmt])).view(DTYPES[fmt]).astype(float)


def _confident(rng: np.random.Generator, n: int, fmt: str) -> Array:
    x = rng.normal(0, 1, n)
    x[rng.integers(n)] += rng.choice((5.0, 10.0, 20.0, 40.0))
    return x


def _masked(rng: np.random.Generator, n: int, fmt: str) -> Array:
    x = rng.normal(0, 2, n)
    x[rng.random(n) < 0.4] = -np.inf
    x[rng.integers(n)] = 1.0
    return x


def _gaps(rng: np.random.Generator, n: int, fmt: str) -> Array:
    return rng.choice((0.0, 0.75, -10.0, -100.0, -750.0, -5000.0), n) + rng.normal(0, 0.5, n)


_TAILS = {"float16": (8.0, 18.0), "bfloat16": (80.0, 95.0), "float32": (80.0, 105.0), "float64": (700.0, 746.0)}


def _tails(rng: np.random.Generator, n: int, fmt: str) -> Array:
    x = -rng.uniform(*_TAILS[fmt], n)
    x[rng.integers(n)] = 0.0
    return x


_FLAT = {"float16": 7.5, "bfloat16": 5.40625, "float32": 16.5, "float64": 36.625}


def _flat(rng: np.random.Generator, n: int, fmt: str) -> Array:
    """One logit ahead, the others' exponentials a little above half an ulp of 1: a sum begun with it rounds each of them up."""
    x = np.full(n, -_FLAT[fmt])
    x[0] = 0.0
    return x


FAMILIES: dict[str, Maker] = {
    "gauss_1": _gauss(1.0),
    "gauss_10": _gauss(10.0),
    "gauss_100": _gauss(100.0),
    "offset_1e3": _gauss(1.0, 1e3),
    "offset_1e4": _gauss(1.0, -1e4),
    "offset_1e5": _gauss(1.0, 1e5),
    "offset_1e6": _gauss(1.0, -1e6),
    "offset_1e7": _gauss(10.0, 1e7),
    "near_equal": _near_equal,
    "confident": _confident,
    "masked": _masked,
    "gaps": _gaps,
    "tails": _tails,
    "unit": lambda rng, n, fmt: rng.random(n),
    "flat": _flat,
}


def rows(fmt: str, n: int) -> Iterator[tuple[str, Array, Array, Array]]:
    """(family, logits (rows, n), class indices (rows,), distributions (rows, n)), numbers of the format; targets are not masked."""
    for family, maker in FAMILIES.items():
        if (fmt == "float16" and family in ("offset_1e5", "offset_1e6", "offset_1e7")) or (n > 10000 and family not in LONG):
            continue
        rng = np.random.default_rng([n, list(DTYPES).index(fmt), list(FAMILIES).index(family)])
        logits = np.stack([maker(rng, n, fmt) for _ in range(ROWS[n])]).astype(DTYPES[fmt])
        live = np.isfinite(logits.astype(float))
        index = np.array([rng.choice(np.flatnonzero(row)) for row in live])
        index[::2] = np.argmax(logits[::2], axis=-1)  # a loss and a gradient near 0 where the row is confident
        weights = live * rng.gamma(0.5, 1.0, live.shape)
        yield family, logits, index, (weights / weights.sum(-1, keepdims=True)).astype(DTYPES[fmt])


# ---- frameworks: name -> op -> function of (logits, index, weights), all NumPy arrays ----------------------------------


def _torch(along: int = -1) -> dict[str, Callable[..., Array]]:
    torch = import_module("torch")
    f = torch.nn.functional

    def to(a: Array) -> Any:
        """A tensor of the same bits; logits over dim 0 lie in memory as such."""
        if a.dtype == ml_dtypes.bfloat16:
            t = torch.from_numpy(a.view(np.int16).copy()).view(torch.bfloat16)
        else:
            t = torch.from_numpy(a.copy())
        return t.T.contiguous() if along == 0 else t

    def back(t: Any) -> Array:
        t = t.detach().contiguous()
        found = t.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if t.dtype == torch.bfloat16 else t.numpy()
        return found.T if along == 0 else found

    def loss(x: Any, y: Any) -> Any:
        return f.cross_entropy(x, y, reduction="none")

    def grad(x: Array, y: Any) -> Array:
        leaf = to(x).requires_grad_()
        loss(leaf, y).sum().backward()
        return back(leaf.grad)

    one = {
        "softmax": lambda x, i, y: back(torch.softmax(to(x), along)),
        "log_softmax": lambda x, i, y: back(torch.log_softmax(to(x), along)),
        "logsumexp": lambda x, i, y: back(torch.logsumexp(to(x), along)),
    }
    return (
        one
        if along == 0
        else one
        | {
            "cross_entropy:index": lambda x, i, y: back(loss(to(x), torch.from_numpy(i))),
            "cross_entropy:weights": lambda x, i, y: back(loss(to(x), to(y))),
            "cross_entropy_grad:index": lambda x, i, y: grad(x, torch.from_numpy(i)),
            "cross_entropy_grad:weights": lambda x, i, y: grad(x, to(y)),
        }
    )


def _jax(jit: bool = True) -> dict[str, Callable[..., Array]]:
    jax = import_module("jax")
    optax = import_module("optax")
    jax.config.update("jax_enable_x64", True)
    by_index, by_weights = optax.softmax_cross_entropy_with_integer_labels, optax.softmax_cross_entropy
    functions = {
        "softmax": lambda x, i, y: jax.nn.softmax(x, axis=-1),
        "log_softmax": lambda x, i, y: jax.nn.log_softmax(x, axis=-1),
        "logsumexp": lambda x, i, y: jax.nn.logsumexp(x, axis=-1),
        "cross_entropy:index": lambda x, i, y: by_index(x, i),
        "cross_entropy:weights": lambda x, i, y: by_weights(x, y),
        "cross_entropy_grad:index": jax.grad(lambda x, i, y: by_index(x, i).sum()),
        "cross_entropy_grad:weights": jax.grad(lambda x, i, y: by_weights(x, y).sum()),
    }

    def run(function: Callable[..., Any]) -> Callable[..., Array]:
        compiled = jax.jit(function) if jit else function
        return lambda x, i, y: np.asarray(compiled(jax.numpy.asarray(x), jax.numpy.asarray(i), jax.numpy.asarray(y)))

    return {op: run(function) for op, function in functions.items()}


def _onnxruntime() -> dict[str, Callable[..., Array]]:
    ort, onnx = import_module("onnxruntime"), import_module("onnx")
    ort.set_default_logger_severity(4)
    kinds = {fmt: getattr(onnx.TensorProto, fmt.upper().replace("FLOAT32", "FLOAT").replace("FLOAT64", "DOUBLE")) for fmt in DTYPES}
    sessions: dict[tuple[str, str], Any] = {}

    def session(op: str, fmt: str) -> Any:
        tensor, x = onnx.helper.make_tensor_value_info, onnx.helper.make_tensor_value_info("x", kinds[fmt], ["rows", "n"])
        inputs, attributes = [x], {"axis": -1}
        if op == "SoftmaxCrossEntropyLoss":
            inputs, attributes = [x, tensor("t", onnx.TensorProto.INT64, ["rows"])], {"reduction": "none"}
        names = [value.name for value in inputs]
        if op == "ReduceLogSumExp":
            inputs, attributes, names = inputs, {"keepdims": 0}, ["x", "axes"]
        node = onnx.helper.make_node(op, names, ["out"], **attributes)
        axes = [onnx.numpy_helper.from_array(np.array([1]), "axes")] if "axes" in names else []
        graph = onnx.helper.make_graph([node], "g", inputs, [tensor("out", kinds[fmt], None)], axes)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
        return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(op: str) -> Callable[..., Array]:
        def call(x: Array, i: Array, y: Array) -> Array:
            fmt = x.dtype.name
            if (op, fmt) not in sessions:
                sessions[op, fmt] = session(op, fmt)
            named = {"x": ort.OrtValue.ortvalue_from_numpy_with_onnx_type(x, kinds[fmt])} if fmt == "bfloat16" else {"x": x}
            if op == "SoftmaxCrossEntropyLoss":
                named["t"] = i
            return sessions[op, fmt].run(["out"], named)[0]

        return call

    return {
        "softmax": run("Softmax"),
        "log_softmax": run("LogSoftmax"),
        "logsumexp": run("ReduceLogSumExp"),
        "cross_entropy:index": run("SoftmaxCrossEntropyLoss"),
    }


def _scipy() -> dict[str, Callable[..., Array]]:
    special = import_module("scipy.special")
    return {
        "softmax": lambda x, i, y: special.softmax(x, axis=-1),
        "log_softmax": lambda x, i, y: special.log_softmax(x, axis=-1),
        "logsumexp": lambda x, i, y: special.logsumexp(x, axis=-1),
    }


def _numpy() -> dict[str, Callable[..., Array]]:
    """As people write it, in the format of the logits throughout."""

    def parts(x: Array) -> tuple[Array, Array, Array]:
        d = x - x.max(-1, keepdims=True)
        e = np.exp(d)
        return d, e, e.sum(-1, keepdims=True)

    def softmax(x: Array, *_: Array) -> Array:
        _, e, s = parts(x)
        return e / s

    def log_softmax(x: Array, *_: Array) -> Array:
        d, _, s = parts(x)
        return d - np.log(s)

    def one_hot(x: Array, i: Array) -> Array:
        return (np.arange(x.shape[-1]) == i[:, None]).astype(x.dtype)

    return {
        "softmax": softmax,
        "log_softmax": log_softmax,
        "logsumexp": lambda x, i, y: x.max(-1) + np.log(parts(x)[2])[:, 0],
        "cross_entropy:index": lambda x, i, y: -np.take_along_axis(log_softmax(x), i[:, None], -1)[:, 0],
        "cross_entropy:weights": lambda x, i, y: -np.where(y > 0, y * log_softmax(x), x.dtype.type(0)).sum(-1),
        "cross_entropy_grad:index": lambda x, i, y: softmax(x) - one_hot(x, i),
        "cross_entropy_grad:weights": lambda x, i, y: softmax(x) * y.sum(-1, keepdims=True) - y,
    }


FRAMEWORKS: dict[str, Callable[[], dict[str, Callable[..., Array]]]] = {
    "torch": _torch,
    "torch.dim0": lambda: _torch(0),
    "jax": _jax,
    "jax.eager": lambda: _jax(False),
    "onnxruntime": _onnxruntime,
    "scipy": _scipy,
    "numpy": _numpy,
}


# ---- what is written ---------------------------------------------------------------------------------------------------


def bits(a: Array, fmt: str) -> Array:
    """The bit patterns of an array, which must be of the format."""
    if a.dtype != DTYPES[fmt]:
        raise TypeError(f"came back in {a.dtype}")
    return np.ascontiguousarray(a).view(BITS[fmt])


def outputs(found: dict[str, dict[str, Callable[..., Array]]], fmt: str, n: int, refused: dict[str, str]) -> dict[str, Array]:
    """The arrays of one file."""
    arrays: dict[str, Array] = {}
    for family, logits, index, weights in rows(fmt, n):
        arrays |= {f"{family}/logits": bits(logits, fmt), f"{family}/index": index, f"{family}/weights": bits(weights, fmt)}
        for name, functions in found.items():
            for op, function in functions.items():
                if (key := f"{name} {op} {fmt}") in refused:
                    continue
                try:
                    arrays[f"{family}/{name}/{op}"] = bits(function(logits, index, weights), fmt)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is that framework's answer, and told
                    refused[key] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    return arrays


def main(folder: str) -> None:
    """Make all files, and say what made them."""
    warnings.simplefilter("ignore")
    Path(folder).mkdir(parents=True, exist_ok=True)
    found, refused = {}, {}
    for name, functions in FRAMEWORKS.items():
        try:
            found[name] = functions()
        except ImportError as error:
            refused[name] = str(error)
    with np.errstate(all="ignore"):
        for fmt in DTYPES:
            for n in ROWS:
                np.savez_compressed(Path(folder) / f"{fmt}-{n}.npz", **outputs(found, fmt, n, refused))
    versions = {p: metadata.version(p) for p in PACKAGES if any(d.name == p for d in metadata.distributions())}
    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    told = {"versions": versions, "python": platform.python_version(), "machine": platform.machine(), "simd": simd.get("found", [])}
    (Path(folder) / "provenance.json").write_text(json.dumps(told | {"refused": refused}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
