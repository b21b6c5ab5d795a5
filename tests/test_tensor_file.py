"""What is written without the safetensors library is what it reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier import tensor_file
from luthier.models import save
from luthier.tensor_file import Stored

DTYPES = list(save.DTYPE_NAMES)


def drawn(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    bits = torch.randint(0, 2 if dtype == torch.bool else 120, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return bits.to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3).map(tuple), st.integers(0, 99)),
        max_size=6,
    )
)
def test_every_kind_of_tensor_is_read_back_and_lies_where_it_may(kinds: dict[str, Any]) -> None:
    tensors = {name: drawn(*kind) for name, kind in kinds.items()}
    written = b"".join(
        bytes(piece) for piece in tensor_file.pieces({name: save.stored(tensor) for name, tensor in tensors.items()}, {"format": "pt"})
    )
    found = safetensors.torch.load(written)
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == tensor.dtype and torch.equal(found[name].float(), tensor.float()) for name, tensor in tensors.items())
    size = int.from_bytes(written[:8], "little")
    header = json.loads(written[8 : 8 + size])
    # Each begins where its kind of number may, and the next one where it ends.
    assert size % 8 == 0
    assert all(header[name]["data_offsets"][0] % max(1, tensor.element_size()) == 0 for name, tensor in tensors.items())
    assert sum(tensor.nbytes for tensor in tensors.values()) == len(written) - 8 - size


def test_a_view_is_written_as_what_it_shows(tmp_path: Path) -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    save.write_tensors(tmp_path / "model.safetensors", {"t": weight.T, "row": weight[1], "one": torch.tensor(3.0)})
    found = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["t"], weight.T)
    assert torch.equal(found["row"], weight[1])
    assert found["one"].item() == 3.0


def test_it_is_written_without_torch_from_bytes_too() -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    written = b"".join(bytes(piece) for piece in tensor_file.pieces({"x": Stored("F32", (2, 3), lambda: values.tobytes())}))
    assert np.array_equal(safetensors.numpy.load(written)["x"], values)


def test_bytes_that_do_not_fit_the_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x has 8 bytes and its shape \(3,\) of F32 12"):
        list(tensor_file.pieces({"x": Stored("F32", (3,), lambda: bytes(8))}))


def test_tensors_are_cut_into_files_by_their_size() -> None:
    tensors = {name: Stored("F32", (count,), lambda count=count: bytes(4 * count)) for name, count in (("a", 3), ("b", 2), ("c", 50), ("d", 1))}  # type: ignore[misc]
    cut = tensor_file.shards(tensors, 20)
    assert {name: list(group) for name, group in cut.items()} == {
        "model-00001-of-00003.safetensors": ["a", "b"],
        "model-00002-of-00003.safetensors": ["c"],
        "model-00003-of-00003.safetensors": ["d"],
    }
    assert list(tensor_file.shards(tensors, 10**6)) == ["model.safetensors"]
