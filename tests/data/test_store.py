"""Reading of samples from mapped files."""

from pathlib import Path

import numpy as np
import pytest

from lorafit.data import store
from lorafit.data.store import NpyWriter, open_mapped, read_places


@pytest.mark.parametrize("piece", [50, 1000, 10_000], ids=["rows far apart", "in pieces", "whole"])
def test_places_of_a_mapped_file_are_read_like_those_of_an_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(store, "PIECE", piece)
    monkeypatch.setattr(store, "ROWS", 7)
    numbers = np.random.default_rng(0).integers(0, 1000, 5000).astype(np.int32)
    with NpyWriter(tmp_path / "a.npy", np.int32) as writer:
        writer.append(numbers)
    places_NP = np.sort(np.random.default_rng(1).integers(0, 5000, (100, 4)), axis=None).reshape(100, 4)
    found = read_places(open_mapped(tmp_path / "a.npy"), places_NP)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, numbers[places_NP])
    np.testing.assert_array_equal(read_places(numbers, places_NP), numbers[places_NP])
