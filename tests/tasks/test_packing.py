"""Packing: every code comes back, nothing wraps, wet stays wet, NaN stays NaN."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from builders.archives import START, TENTHS, frame
from tasks.archive.packing import PackingError, compress, decompress, pack, pack_frame, unpack
from tasks.feeds import Packing

PACKINGS = [
    TENTHS,
    Packing("uint16", 0.12, 0.0, 65535),
    Packing("uint16", 0.3, 0.0, 65535),
    Packing("uint8", 0.5, -32.0, 255),
    Packing("uint16", 0.5, -999.0, 65535),
    Packing("uint32", 2.0**-22, 0.0, 4294967295),
    Packing("uint32", 0.12 / 16, 0.0, 4294967295),
]


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_every_code_comes_back(packing: Packing) -> None:
    top = min(np.iinfo(packing.dtype).max, 10**5)
    codes = np.setdiff1d(np.arange(top + 1), [packing.fill]).astype(packing.dtype)
    values = unpack(codes, packing)
    assert values.dtype == np.float32
    assert np.array_equal(pack(values, packing, packing.add_offset), codes)


@given(hnp.arrays(np.float32, (3, 7), elements=st.floats(0, 6500, width=32) | st.just(np.nan)))
def test_the_round_trip_is_within_half_a_step_or_refused(values: np.ndarray) -> None:
    try:
        back = unpack(pack(values, TENTHS), TENTHS)
    except PackingError:
        assert ((values > 0) & (values <= 0.05)).any()
        return
    assert np.array_equal(np.isnan(back), np.isnan(values))
    seen = ~np.isnan(values)
    assert (np.abs(back - values)[seen] <= 0.0501 + 1e-6 * values[seen]).all()
    assert np.array_equal(back[seen] == 0, values[seen] == 0)


def test_power_of_two_steps_are_exact_for_any_float_above_them() -> None:
    packing = PACKINGS[5]
    values = np.float32([0, 4.0, 12.3456789, 999.9999, np.nan])
    assert np.array_equal(unpack(pack(values, packing), packing), values, equal_nan=True)


@pytest.mark.parametrize("bad", [6553.5, 6553.6, 1e9, -0.1, np.inf, -np.inf])
def test_a_value_without_a_code_raises_and_never_wraps(bad: float) -> None:
    with pytest.raises(PackingError):
        pack(np.float32([[1.0, bad]]), TENTHS)


def test_a_wet_value_never_becomes_dry() -> None:
    with pytest.raises(PackingError, match="wet"):
        pack(np.float32([0.04]), TENTHS)
    assert pack(np.float32([0.06]), TENTHS)[0] == 1


def test_weak_echo_is_not_packed_as_no_echo() -> None:
    packing = Packing("uint8", 0.5, -32.0, 255)
    with pytest.raises(PackingError, match="wet"):
        pack(np.float32([-31.9]), packing, dry=-32.0)
    assert pack(np.float32([-32.0, -31.5]), packing, dry=-32.0).tolist() == [0, 1]


def test_a_frame_of_nan_is_fill_alone_and_zero_is_code_zero() -> None:
    assert (pack(np.full((2, 3), np.nan, np.float32), TENTHS) == 65535).all()
    assert (pack(np.zeros((2, 3), np.float32), TENTHS) == 0).all()


def test_the_largest_code_of_32_bits_does_not_become_fill() -> None:
    packing = PACKINGS[5]
    assert pack(np.float32([1023.9999]), packing)[0] < packing.fill
    with pytest.raises(PackingError):
        pack(np.float32([1024.0]), packing)


def test_chunks_are_what_zarr_stores(tmp_path: object) -> None:
    import zarr
    from zarr.codecs import BytesCodec, ZstdCodec

    codes = np.arange(12, dtype=np.uint16).reshape(3, 4)
    array = zarr.create_array(
        f"{tmp_path}/a.zarr", shape=(3, 4), chunks=(3, 4), dtype="uint16", serializer=BytesCodec(), fill_value=9,
        compressors=ZstdCodec(level=3),
    )  # fmt: skip
    array[:] = codes
    stored = open(f"{tmp_path}/a.zarr/c/0/0", "rb").read()  # noqa: SIM115
    assert stored == compress(codes)
    assert np.array_equal(decompress(stored, "uint16", (3, 4)), codes)


def test_a_packed_frame_carries_time_grid_and_attributes() -> None:
    packed = pack_frame(frame(START, 2.5), TENTHS)
    assert packed.time == START
    assert packed.attrs["units"] == "mm h-1"
    codes = decompress(packed.chunk, "uint16", (4, 5))
    assert codes[0].tolist() == [65535, 0, 25, 25, 25]


@pytest.mark.parametrize("scale", [0.05, 0.1, 0.01, 1 / 3, 2.0**-10, 0.07, 2.5])
@pytest.mark.parametrize("offset", [0.0, -32.0])
def test_every_value_is_its_code_computed_in_double_precision_and_rounded_once(scale: float, offset: float) -> None:
    codes = np.arange(65536, dtype=np.uint16)
    expected = (codes.astype(np.float64) * scale + offset).astype(np.float32)
    expected[65535] = np.nan
    np.testing.assert_array_equal(unpack(codes, Packing("uint16", scale, offset, 65535)), expected)
