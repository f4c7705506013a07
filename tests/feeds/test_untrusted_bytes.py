"""Decompression, images, HDF5 and npz from bytes that nobody vouches for."""

from __future__ import annotations

import bz2
import gzip
import pickle
import struct
import zipfile
import zlib
from datetime import UTC, datetime
from io import BytesIO

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.feeds import FrameRejected
from tasks.feeds.bounded import bunzip2, gunzip, unzip
from tasks.feeds.hdf5 import attribute, dataset, numbers, open_hdf5, read_array
from tasks.feeds.images import read_gif, read_png
from tasks.feeds.npz import read_moments, read_numbers

MILLION = 1_000_000


def reason(raised: pytest.ExceptionInfo[FrameRejected]) -> str:
    return raised.value.reason


# --- gzip, bzip2, zip


@given(parts=st.lists(st.binary(max_size=50), min_size=1, max_size=3), padding=st.integers(0, 9))
def test_all_members_of_a_stream_come_back_and_padding_does_not_matter(parts: list[bytes], padding: int) -> None:
    assert gunzip(b"".join(map(gzip.compress, parts)) + bytes(padding), MILLION) == b"".join(parts)
    assert bunzip2(b"".join(map(bz2.compress, parts)), MILLION) == b"".join(parts)


def test_a_ceiling_holds_exactly_and_over_all_members_together() -> None:
    one = gzip.compress(bytes(1000))
    assert len(gunzip(one + one, 2000)) == 2000
    for open_stream, data in ((gunzip, one + one), (bunzip2, bz2.compress(bytes(2000)))):
        with pytest.raises(FrameRejected) as raised:
            open_stream(data, 1999)
        assert reason(raised) == "oversized"


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", "truncated"), (gzip.compress(b"rain", mtime=0)[:-1], "truncated"), (b"no gzip", "corrupt")],
)
def test_gzip_without_its_trailer_is_truncated_and_anything_else_corrupt(data: bytes, expected: str) -> None:
    with pytest.raises(FrameRejected) as raised:
        gunzip(data, MILLION)
    assert reason(raised) == expected


def test_garbage_behind_a_stream_is_corrupt() -> None:
    with pytest.raises(FrameRejected, match="corrupt"):
        gunzip(gzip.compress(b"rain") + b"garbage", MILLION)


def test_a_zip_gives_its_members_within_the_ceiling() -> None:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(1000))
        archive.writestr("b", b"rain")
    assert unzip(stream.getvalue(), 1004) == {"a": bytes(1000), "b": b"rain"}
    with pytest.raises(FrameRejected, match="oversized"):
        unzip(stream.getvalue(), 1003)


def test_a_zip_that_lies_about_a_members_size_gives_no_more_than_it_declared() -> None:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(MILLION))
    honest = struct.pack("<I", MILLION)
    with pytest.raises(FrameRejected, match="corrupt"):
        unzip(stream.getvalue().replace(honest, struct.pack("<I", 10)), 1000)


def test_a_zip_of_another_method_than_deflate_is_not_opened() -> None:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", b"rain")
    with pytest.raises(FrameRejected, match="corrupt"):
        unzip(stream.getvalue(), MILLION)


# --- GIF and PNG


def gif(**options: object) -> bytes:
    stream = BytesIO()
    image = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20), mode="P")
    image.putpalette([255 - value // 3 for value in range(768)])
    image.save(stream, "GIF", optimize=False, **options)
    return stream.getvalue()


def test_a_gif_gives_indices_and_a_long_comment_whole() -> None:
    read = read_gif(gif(comment=b"rain " * 100), MILLION)
    np.testing.assert_array_equal(read.indices, np.arange(200).reshape(10, 20))
    assert read.comment == "rain " * 100


def test_a_gif_of_two_images_is_no_frame() -> None:
    second = Image.fromarray(np.zeros((10, 20), np.uint8), mode="P")
    with pytest.raises(FrameRejected, match="expected one image"):
        read_gif(gif(save_all=True, append_images=[second]), MILLION)


@pytest.mark.parametrize("length", range(0, 900, 37))
def test_a_gif_cut_anywhere_is_rejected(length: int) -> None:
    data = gif(comment=b"rain")
    with pytest.raises(FrameRejected):
        read_gif(data[: min(length, len(data) - 1)], MILLION)


def test_a_png_with_a_flipped_bit_in_its_image_data_fails_its_crc() -> None:
    stream = BytesIO()
    Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).save(stream, "PNG")
    data = stream.getvalue()
    np.testing.assert_array_equal(read_png(data, MILLION), np.arange(200).reshape(10, 20))
    broken = bytearray(data)
    broken[data.index(b"IDAT") + 10] ^= 1
    with pytest.raises(FrameRejected, match="CRC of PNG chunk b'IDAT'"):
        read_png(bytes(broken), MILLION)


def test_a_png_is_refused_by_its_declared_size_alone() -> None:
    body = b"IHDR" + struct.pack(">IIBBBBB", 3000, 3000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    with pytest.raises(FrameRejected, match="oversized"):
        read_png(data, MILLION)


def test_sixteen_bit_samples_are_another_quantity() -> None:
    stream = BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(stream, "PNG")
    with pytest.raises(FrameRejected, match="wrong_quantity"):
        read_png(stream.getvalue(), MILLION)


# --- HDF5


def hdf5(values: np.ndarray, **options: object) -> bytes:
    stream = BytesIO()
    with h5py.File(stream, "w") as file:
        file.create_dataset("rain", data=values, **options)
        file.attrs["name"], file.attrs["bounds"] = np.bytes_("De Bilt"), [1.0, 2.0]
    return stream.getvalue()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    chunk=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    shuffle=st.booleans(),
)
def test_chunks_of_any_size_are_put_back_in_their_place(
    rows: int, columns: int, chunk: tuple[int, int], shuffle: bool
) -> None:
    values = np.arange(rows * columns, dtype=np.int16).reshape(rows, columns)
    chunks = (min(chunk[0], rows), min(chunk[1], columns))
    with open_hdf5(hdf5(values, chunks=chunks, compression="gzip", shuffle=shuffle)) as file:
        np.testing.assert_array_equal(read_array(dataset(file, "rain"), MILLION), values)


@pytest.mark.parametrize("options", [{}, {"chunks": (2, 2)}, {"chunks": (2, 2), "fletcher32": True}])
def test_unpacked_and_checksummed_arrays_are_read_by_the_library(options: dict[str, object]) -> None:
    values = np.arange(16.0).reshape(4, 4)
    with open_hdf5(hdf5(values, **options)) as file:
        np.testing.assert_array_equal(read_array(dataset(file, "rain"), MILLION), values)


def test_a_chunk_that_inflates_above_its_size_is_stopped() -> None:
    stream = BytesIO()
    with h5py.File(stream, "w") as file:
        node = file.create_dataset("rain", (10, 10), np.uint8, chunks=(10, 10), compression="gzip")
        node.id.write_direct_chunk((0, 0), zlib.compress(bytes(50 * MILLION)))
    with pytest.raises(FrameRejected, match="does not inflate to its 100 bytes"), open_hdf5(stream.getvalue()) as file:
        read_array(dataset(file, "rain"), MILLION)


def test_a_chunk_that_was_never_written_is_not_dry() -> None:
    stream = BytesIO()
    with h5py.File(stream, "w") as file:
        node = file.create_dataset("rain", (10, 10), np.uint8, chunks=(5, 10), compression="gzip")
        node[:5] = 1
    with pytest.raises(FrameRejected, match="1 of 2 chunks"), open_hdf5(stream.getvalue()) as file:
        read_array(dataset(file, "rain"), MILLION)


def test_other_filters_and_text_are_not_numbers() -> None:
    values = np.arange(16).reshape(4, 4)
    with pytest.raises(FrameRejected, match="filters"), open_hdf5(hdf5(values, compression="lzf")) as file:
        read_array(dataset(file, "rain"), MILLION)
    with pytest.raises(FrameRejected, match="expected numbers"), open_hdf5(hdf5(np.array([b"rain"]))) as file:
        read_array(dataset(file, "rain"), MILLION)


def test_attributes_are_text_or_numbers_and_a_missing_one_is_a_rejection() -> None:
    with open_hdf5(hdf5(np.zeros(3))) as file:
        assert attribute(file, "name") == "De Bilt"
        assert (attribute(file, "bounds"), numbers(file, "bounds")) == (1.0, [1.0, 2.0])
    with pytest.raises(FrameRejected, match="corrupt"), open_hdf5(hdf5(np.zeros(3))) as file:
        attribute(file, "absent")
    with pytest.raises(FrameRejected, match="wrong_quantity"), open_hdf5(hdf5(np.zeros(3))) as file:
        dataset(file, "absent")


# --- npz


def npy(values: np.ndarray) -> bytes:
    stream = BytesIO()
    np.save(stream, values, allow_pickle=True)
    return stream.getvalue()


@given(moments=st.lists(st.datetimes(datetime(1900, 1, 1)).map(lambda moment: moment.replace(fold=0)), max_size=5))
def test_pickled_datetimes_are_read_without_unpickling(moments: list[datetime]) -> None:
    expected = [moment.replace(tzinfo=UTC) for moment in moments]
    values = np.empty(len(moments), object)
    values[:] = moments
    for protocol in (3, 4, 5):
        header = npy(values)
        start = header.index(b"\n") + 1
        assert read_moments(header[:start] + pickle.dumps(values, protocol=protocol), "dates") == expected


class Intruder:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled",)


def test_a_pickle_of_anything_else_is_rejected_and_never_run(capsys: pytest.CaptureFixture[str]) -> None:
    values = np.array([Intruder(), datetime(2020, 1, 1)], dtype=object)
    with pytest.raises(FrameRejected, match="other objects than datetimes"):
        read_moments(npy(values), "dates")
    assert capsys.readouterr().out == ""


def test_numbers_come_back_and_shapes_that_lie_do_not() -> None:
    values = np.arange(12, dtype=np.int16).reshape(3, 4)
    np.testing.assert_array_equal(read_numbers(npy(values), "data"), values)
    with pytest.raises(FrameRejected, match="truncated"):
        read_numbers(npy(values)[:-1], "data")
    with pytest.raises(FrameRejected, match="corrupt"):
        read_numbers(npy(values).replace(b"(3, 4)", b"(-3,-4)"), "data")
    with pytest.raises(FrameRejected, match="vary fastest"):
        read_numbers(npy(np.asfortranarray(values)), "data")
    with pytest.raises(FrameRejected, match="wrong_quantity"):
        read_numbers(npy(np.array(["rain"])), "data")
