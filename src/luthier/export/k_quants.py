"""The k-quants of llama.cpp: which tensor is stored in how many bits, by its rules, and ggml's own function that rounds it.

Run as a program, in a process of its own: source.gguf target.gguf q4_k_m. That function lies in the library of xllamacpp;
LUTHIER_GGML_LIBRARY names the file of another one (libggml-base of a llama.cpp).
"""

import ctypes
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIBRARY = "LUTHIER_GGML_LIBRARY"
# general.file_type of the file, and its usual format.
KINDS = {"q4_k_m": (15, "Q4_K"), "q5_k_m": (17, "Q5_K"), "q6_k": (18, "Q6_K")}
# Where a row is no multiple of 256 long: formats in blocks of 32.
SHORT_ROWS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
BLOCKS = {"Q4_K": 256, "Q5_K": 256, "Q6_K": 256, "Q5_0": 32, "Q5_1": 32, "Q8_0": 32}
# Small matrices, and those that choose among experts, stay as they are.
KEPT = re.compile(r"_norm\.weight$|ffn_gate_inp|ffn_gate_tid2eid|position_embd|token_types|ssm_conv1d|shortconv|altup|laurel|per_layer_model_proj")
WRITTEN_ANEW = ("general.architecture", "general.file_type", "general.quantization_version")


def format_of(name: str, shape: Sequence[int], kind: str, layers: int, experts: int, tied: bool) -> str | None:
    """The format of a tensor (`shape` begins with its row's length); None where it stays as it is.

    `tied` says that the embedding is the head too. The rules are those of llama_tensor_get_type in llama.cpp, for these three kinds.
    """
    if len(shape) < 2 or not name.endswith("weight") or KEPT.search(name):
        return None
    usual = KINDS[kind][1]
    block = re.match(r"blk\.(\d+)\.", name)
    more = kind != "q6_k" and block is not None and _more_bits(int(block[1]), layers)
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return "Q6_K" if shape[0] % 256 == 0 else _fitting("Q8_0", shape[0])
    if "attn_qkv.weight" in name:
        wanted = "Q6_K" if more or kind == "q5_k_m" else {"q4_k_m": "Q5_K"}.get(kind, usual)
    elif "attn_v.weight" in name:
        wanted = _of_values(kind, layers, experts, more)
    elif "attn_k.weight" in name and experts == 8:
        wanted = "Q8_0"
    elif "attn_output.weight" in name and experts == 8 and kind == "q4_k_m":
        wanted = "Q5_K"
    else:
        wanted = "Q6_K" if "ffn_down" in name and more else usual
    return _fitting(wanted, shape[0])


def _more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _of_values(kind: str, layers: int, experts: int, more: bool) -> str:
    if experts == 8:
        return "Q8_0"
    if more:
        return "Q6_K"
    # Of 80 layers are the models of 70 billion weights, whose values are an eighth as wide as their queries.
    return "Q5_K" if layers == 80 and kind == "q4_k_m" else KINDS[kind][1]


def _fitting(wanted: str, row: int) -> str:
    for name in (wanted, SHORT_ROWS.get(wanted, wanted)):
        if row % BLOCKS[name] == 0:
            return name
    return "F16"


def quantize(source: Path, target: Path, kind: str) -> None:
    """Write `source` (f16 or bf16) as `target`, its matrices in `kind`. One tensor is in memory at a time."""
    import gguf
    import numpy as np

    round_to = _rounding()
    reader = gguf.GGUFReader(source)
    formats = _formats(reader, kind)
    writer = gguf.GGUFWriter(target, arch=_value(reader, "general.architecture"))
    _copy_fields(reader, writer, kind)
    for tensor in reader.tensors:
        stored = _stored(gguf, tensor, formats[tensor.name])
        block, size = gguf.GGML_QUANT_SIZES[stored]
        rows = [int(length) for length in reversed(tensor.shape)]
        writer.add_tensor_info(tensor.name, rows, np.dtype(np.float32), int(tensor.n_elements) // block * size, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(_rounded(gguf, tensor, formats[tensor.name], round_to))
    writer.close()


def _formats(reader: Any, kind: str) -> dict[str, str | None]:
    architecture = _value(reader, "general.architecture")
    layers = int(_value(reader, f"{architecture}.block_count"))
    experts = int(_value(reader, f"{architecture}.expert_count") or 1)
    shapes = {tensor.name: [int(length) for length in tensor.shape] for tensor in reader.tensors}
    tied = "output.weight" not in shapes
    return {name: format_of(name, shape, kind, layers, experts, tied) for name, shape in shapes.items()}


def _value(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _copy_fields(reader: Any, writer: Any, kind: str) -> None:
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in WRITTEN_ANEW:
            continue
        sub_type = field.types[-1] if len(field.types) > 1 else None  # of a list
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    writer.add_file_type(KINDS[kind][0])
    writer.add_quantization_version(2)


def _stored(gguf: Any, tensor: Any, name: str | None) -> Any:
    return tensor.tensor_type if name is None else gguf.GGMLQuantizationType[name]


def _rounded(gguf: Any, tensor: Any, name: str | None, round_to: Any) -> Any:
    import numpy as np

    if name is None:
        return tensor.data
    values = np.ascontiguousarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    if name == "F16":
        return values.astype(np.float16)
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    row = values.shape[-1]
    rows = values.size // row
    found = np.empty((rows, row // block * size), dtype=np.uint8)
    written = round_to(int(kind), values.ctypes.data, found.ctypes.data, 0, rows, row, None)
    assert written == found.nbytes, (tensor.name, written, found.nbytes)
    return found


def _rounding() -> Any:
    """ggml_quantize_chunk of the library that is there. Ends the process with a line where none is."""
    for path in _libraries():
        library = ctypes.CDLL(str(path))
        if hasattr(library, "ggml_quantize_chunk"):
            function = library.ggml_quantize_chunk
            function.restype = ctypes.c_size_t
            # kind, from, to, first number, rows, numbers of a row, importance of each
            function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
            return function
    raise SystemExit(f'no ggml is here that makes k-quants: pip install "luthier[gguf]", or set {LIBRARY} to a libggml-base.so')


def _libraries() -> list[Path]:
    if chosen := os.environ.get(LIBRARY):
        return [Path(chosen)]
    spec = importlib.util.find_spec("xllamacpp")
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    return [path for folder in folders for path in sorted((*folder.glob("xllamacpp*.so"), *folder.glob("xllamacpp*.pyd")))]


if __name__ == "__main__":
    quantize(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
