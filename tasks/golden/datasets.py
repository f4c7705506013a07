"""Golden cases of the datasets: SEVIR's splits, order and windows, ICAR-ENSO's folding, N-body's flights."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.transform import Transform
from tasks.golden.cases import Document, GoldenResult
from tasks.golden.comparisons import Comparison, compare_all, exact, near
from tasks.training.datasets.enso import (
    CMIP5_MODELS,
    CMIP5_YEARS,
    CMIP6_MODELS,
    CMIP6_YEARS,
    fold_rows,
    target_index,
    window_months,
)
from tasks.training.datasets.nbody import Launch, Physics, crop, draw, trajectory
from tasks.training.datasets.sampling import DatasetSamples
from tasks.training.datasets.sevir import Sevir, published_order
from tasks.training.samples import SampleSpec, Window

Arrays = Mapping[str, NDArray[Any]]
Comparisons = Iterator[Comparison]

# 100 float32 steps of bodies that feel each other: the last bit of the first step grows to a few by the end.
FLIGHT = 1e-5
LOW_RESOLUTION_FRAMES = 13  # of SEVIR-LR's windows; SEVIR's have 25
_SPLIT = re.compile(r"(?P<split>train|val|test)(?P<plain>_noshuffle)?_bs(?P<size>\d+)")
_WINDOWS = re.compile(r"len(\d+)_in(\d+)_out(\d+)_gap(\d+)_is(\d+)_os(\d+)")
_SPANS = re.compile(r"(\d+)\s*->\s*(\d+)")
_RAMP = re.compile(r"arange\(([\d*]+)\)\.reshape\(([\d, ]+)\)(?:/(\d+))?")
_ITEM = re.compile(r"item(\d+)_(\w+)")


class SevirLoader:
    """A JSON of expected splits beside CATALOG.csv and the HDF5 files."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """Splits, in the folder of a catalogue."""
        return document is not None and "splits" in document and path.with_name("CATALOG.csv").is_file()

    def companions(self, path: Path) -> Collection[Path]:
        """The catalogue and the files of events."""
        return [path.with_name("CATALOG.csv"), *(path.parent / "data").rglob("*.h5")]

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """Lengths, order of events, shapes and pixels of every batch, exactly."""
        return compare_all(path, _sevir(path.parent, document or {}))


def _sevir(folder: Path, document: Document) -> Comparisons:
    for name, golden in document["splits"].items():
        told = _SPLIT.fullmatch(name)
        if told is None:
            yield exact(f"split {name}", "a known split", name)
            continue
        size, length = int(told["size"]), int(golden["item_shape"][1])
        dataset = Sevir(str(folder), dataset="sevir" if length > LOW_RESOLUTION_FRAMES else "sevir-lr")
        samples = DatasetSamples(dataset, SampleSpec(t_in=length - 1, t_out=1))
        events = samples.sequences.splits[told["split"]]
        if told["split"] == "train" and not told["plain"]:
            events = events[published_order(events.size)]
        windows = _in_order(samples, told["split"], events)
        whole = [windows[at : at + size] for at in range(0, len(windows) // size * size, size)]
        yield exact(f"{name}: batches", golden["len"], len(whole))
        yield exact(f"{name}: events", golden["num_events"], int(events.size))
        yield exact(f"{name}: order", golden["event_order"], [samples.sequences.name(int(e)) for e in events])
        yield exact(f"{name}: windows per event", golden["num_seq_per_event"], len(windows) // max(int(events.size), 1))
        yield from _batches(name, samples, whole, golden)


def _in_order(samples: DatasetSamples, split: str, events: NDArray[np.int64]) -> list[Window]:
    starts = samples.windows(split)
    owners = samples.sequence_of(starts)
    return [Window(int(frame)) for event in events for frame in starts[owners == event]]


def _batches(name: str, samples: DatasetSamples, batches: list[list[Window]], golden: Mapping[str, Any]) -> Comparisons:
    reader, scale = samples.reader(), Transform.of_quantity(samples.info.quantity)
    pixels = []
    for batch in batches:
        fields = reader.read(batch)
        yield exact(f"{name}: shape", list(golden["item_shape"]), [*fields.shape, 1])
        seen = np.rint(scale.forward(fields) * 255).astype(np.int64)
        pixels.append([[int(item[0, 0, 0]), int(item[-1, -1, -1])] for item in seen])
    yield exact(f"{name}: pixels", golden["first_and_last_pixel_of_each_batch_row"], pixels)


class EnsoLoader:
    """A JSON with windows, folding and scaling of ICAR-ENSO."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """Sections of that dataset, and nothing else but remarks."""
        sections = {key for key, value in (document or {}).items() if isinstance(value, dict)}
        return bool(sections) and sections <= set(_SECTIONS)

    def companions(self, path: Path) -> Collection[Path]:
        """None."""
        return ()

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """Counts and months exactly, scaled values to 1e-6."""
        sections = {key: value for key, value in (document or {}).items() if key in _SECTIONS}
        return compare_all(path, (one for key, value in sections.items() for one in _SECTIONS[key](value)))


def _windows(golden: Mapping[str, Any]) -> Comparisons:
    for name, told in golden.items():
        sizes = _WINDOWS.fullmatch(name)
        if sizes is None:
            yield exact(f"windows {name}", "lengths and strides", name)
            continue
        length, t_in, t_out, gap, stride_in, stride_out = map(int, sizes.groups())
        months = window_months(length, t_in, t_out, gap=gap, stride_in=stride_in, stride_out=stride_out)
        yield exact(f"{name}: count", told["count"], len(months))
        for key, row in (("first", 0), ("last", -1)):
            yield exact(f"{name}: {key}", told.get(key, []), months[row].tolist() if len(months) else [])


def _transform(golden: Mapping[str, Any]) -> Comparisons:
    """Row (model, year) of the input holds base * model + 12 * year + 0..35."""
    base = re.search(r"(\d+)\*m", str(golden.get("input", "")))
    factor, years = int(base[1]) if base else 1000, int(golden["years"])
    rows = factor * np.arange(golden["models"])[:, None, None] + 12 * np.arange(years)[:, None] + np.arange(36)
    series = np.stack([fold_rows(model) for model in rows], axis=-1)
    yield exact("folded shape", golden["output_shape"], [len(series), 1, 1, series.shape[-1]])
    for model in range(series.shape[-1]):
        if f"model{model}" in golden:
            yield exact(f"model {model}", golden[f"model{model}"], series[:, model].tolist())


def _fold(golden: Mapping[str, Any]) -> Comparisons:
    for years, told in golden.items():
        series = fold_rows(12 * np.arange(int(years))[:, None] + np.arange(36))
        yield exact(f"{years} years: length", told["len"], len(series))
        yield exact(f"{years} years: unbroken", told["is_arange"], bool((series == np.arange(len(series))).all()))


def _scale(golden: Mapping[str, Any]) -> Comparisons:
    scaling = Transform.of_quantity("sea_surface_temperature")
    yield near("lowest temperature", golden["SST_MIN"], scaling.offset)
    yield near("highest temperature", golden["SST_MAX"], scaling.offset + scaling.scale)
    yield near("scaled", golden["example_out"], scaling.forward(np.asarray(golden["example_in"], np.float64)))


def _toy(golden: Mapping[str, Any]) -> Comparisons:
    setup = str(golden["setup"])
    fields, index = (_ramp(found) for found in _RAMP.finditer(setup))
    gap, spans = re.search(r"samples_gap (\d+)", setup), _SPANS.search(setup)
    if gap is None or spans is None:
        yield exact("setup", "samples_gap N, T_IN -> T_OUT", setup)
        return
    t_in, t_out = int(spans[1]), int(spans[2])
    months = window_months(len(fields), t_in, t_out, gap=int(gap[1]))
    models = [*range(fields.shape[-1]), 0]  # CMIP6 models, then the first once more as CMIP5
    scaled = Transform.of_quantity("sea_surface_temperature").forward(fields)
    sst = np.concatenate([scaled[months][..., model] for model in models])
    nino = np.concatenate([target_index(index[:, model].astype(np.float32), months, t_in) for model in models])
    yield exact("toy length", golden["length"], len(sst))
    yield exact("toy fields", golden["sst_shape"], list(sst.shape))
    yield exact("toy indices", golden["nino_shape"], list(nino.shape))
    for key, value in golden.items():
        if item := _ITEM.fullmatch(key):
            number = int(item[1])
            yield near(key, value, nino[number] if item[2] == "nino" else sst[number][:, 0, 0])


def _ramp(found: re.Match[str]) -> NDArray[np.float64]:
    count = int(np.prod([int(factor) for factor in found[1].split("*")]))
    shape = [int(size) for size in found[2].split(",")]
    return np.arange(count, dtype=np.float64).reshape(shape) / int(found[3] or 1)


def _counts(golden: Mapping[str, Any]) -> Comparisons:
    cmip6, cmip5 = (12 * years + 24 for years in (CMIP6_YEARS, CMIP5_YEARS))
    for name, told in golden.items():
        spans, gap = _SPANS.search(name), re.search(r"gap (\d+)", name)
        if spans is None:
            yield exact(f"number of samples of {name}", "T_IN->T_OUT", name)
            continue
        step = int(gap[1]) if gap else 1
        t_in, t_out = int(spans[1]), int(spans[2])
        long, short = (len(window_months(length, t_in, t_out, gap=step)) for length in (cmip6, cmip5))
        train = CMIP6_MODELS * long + (CMIP5_MODELS - 2) * short
        yield exact(f"samples {name}", told, {split: {"train": train}.get(split, short) for split in told})


_SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], Comparisons]] = {
    "windows": _windows,
    "data_transform": _transform,
    "fold": _fold,
    "scale": _scale,
    "toy_dataset": _toy,
    "num_samples": _counts,
}


class NBodyLoader:
    """A JSON of force laws and digit sizes beside the launches, flights and frames."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """Force laws, beside their tensors."""
        return document is not None and "modes" in document and path.with_suffix(".safetensors").is_file()

    def companions(self, path: Path) -> Collection[Path]:
        """The tensors."""
        return [path.with_suffix(".safetensors")]

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """Sizes of the digits exactly, flights and frames to float32's rounding."""
        from safetensors.numpy import load_file

        return compare_all(path, _nbody(document or {}, load_file(path.with_suffix(".safetensors"))), FLIGHT)


def _nbody(document: Document, arrays: Arrays) -> Comparisons:
    note = str(document.get("note", ""))
    canvas, speed = _told(r"raw size (\d+)", note, 128), _told(r"max velocity ([\d.]+)", note, 2.0)
    drawn = re.search(r"output frames ([\d, ]+\d)", note)
    for mode, told in document["modes"].items():
        physics = Physics(
            gravity=told["G"], softening=told["softening"], power=int(mode[1:]), speed=speed, canvas=int(canvas)
        )
        for sequence in sorted(key for key in told if key.isdigit()):
            launch, digits = _launch(arrays, mode, int(sequence))
            sizes = np.array([digit.shape for digit in digits])
            yield exact(f"{mode}/{sequence}: digits", told[sequence]["crop_hw"], sizes.tolist())
            golden = arrays[f"{mode}/traj{sequence}"]
            path = trajectory(launch, sizes[:, ::-1].astype(np.float64), len(golden), physics)
            yield near(f"{mode}/{sequence}: flight", golden, path, FLIGHT)
            pictures = arrays.get(f"{mode}/frames{sequence}")
            if pictures is not None and drawn is not None:
                chosen = [int(number) * physics.stride for number in drawn[1].split(",")]
                frames = np.stack([draw(digits, golden[step], physics.canvas) for step in chosen])
                yield near(f"{mode}/{sequence}: frames", pictures, frames)


def _told(pattern: str, note: str, default: float) -> float:
    found = re.search(pattern, note)
    return float(found[1]) if found else default


def _launch(arrays: Arrays, mode: str, sequence: int) -> tuple[Launch, list[NDArray[np.float32]]]:
    names = ("digit_indices", "affine_transforms_multipliers", "init_velocity_magnitude", "init_velocity_angle")
    numbers, corner, speed, angle = (arrays[f"{mode}/{name}"][sequence] for name in names)
    launch = Launch(numbers.astype(np.int64), corner, speed, angle)
    return launch, [crop(arrays["digits"][number]) for number in launch.digits]
