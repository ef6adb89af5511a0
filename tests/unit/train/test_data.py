"""What the network sees: means of squares, the same from whatever window; parts that never touch; honest statistics."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.grid import Window
from pipeline.train import make_train_settings
from pipeline.train.chips import ChipPlaces
from pipeline.train.data import BlockCache, LabelledView, open_views
from pipeline.train.settings import ChipSettings, SplitSettings
from pipeline.train.split import Area, make_split, require_apart
from pipeline.train.survey import survey, warnings_of
from pipeline.train.target import IGNORE
from tests.labelled import SIZE, blobs, document, write_labelled, write_labels
from tests.scenes import UTM, write_scene


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_labelled(folder)
    return folder


def _views(folder: Path, **changes: Any) -> list[LabelledView]:
    return open_views(make_train_settings(document(folder / "scene.tif", folder / "labels.tif", **changes)))


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_pixels_are_means_of_squares_and_targets_their_commonest_class(folder: Path, factor: int) -> None:
    view = _views(folder, downsample=factor)[0]
    found = view.read(view.whole)
    side = SIZE // factor
    with rasterio.open(folder / "scene.tif") as file:
        pixels = file.read()[:, : side * factor, : side * factor].astype(float)
    squares = pixels.reshape(2, side, factor, side, factor)
    assert np.allclose(found.data, squares.mean(axis=(2, 4)), rtol=1e-6)
    share = blobs()[: side * factor, : side * factor].reshape(side, factor, side, factor).mean(axis=(1, 3))
    assert (found.target == (share > 0.5)).all()
    assert view.geobox.transform.a == 10 * factor


def test_missing_pixels_have_no_part_in_a_mean(tmp_path: Path) -> None:
    data = np.full((1, 4, 4), 100, np.uint16)
    data[0, 0, 0] = data[0, 2:, 2:] = 0
    write_scene(tmp_path / "scene.tif", data, nodata=0)
    write_labels(tmp_path / "labels.tif", np.zeros((4, 4), np.uint8))
    view = _views(tmp_path, downsample=2)[0]
    found = view.read(view.whole)
    assert found.data[0].tolist() == [[100, 100], [100, 0]]
    assert found.valid[0].tolist() == [[True, True], [True, False]]
    assert found.target.tolist() == [[0, 0], [0, IGNORE]]


@given(st.integers(-40, SIZE), st.integers(-40, SIZE), st.integers(1, 80), st.integers(1, 80))
def test_a_window_is_that_part_of_the_whole(row: int, col: int, height: int, width: int) -> None:
    view = _cached()
    window = Window(row_off=row, col_off=col, height=height, width=width)
    found, whole = view.read(window), view.read(view.whole)
    inside = window.intersect(view.whole)
    rows, cols = inside.slices_in(window)
    known = np.zeros(window.shape, bool)
    known[rows, cols] = True
    assert (found.target[~known] == IGNORE).all()
    assert not found.valid[:, ~known].any()
    if inside.num_pixels:
        assert (found.data[:, rows, cols] == whole.data[:, *inside.slices_in(view.whole)]).all()
        assert (found.target[rows, cols] == whole.target[inside.slices_in(view.whole)]).all()


_CACHED: list[LabelledView] = []


def _cached() -> LabelledView:
    if not _CACHED:
        import tempfile

        folder = Path(tempfile.mkdtemp())
        write_labelled(folder)
        # A cache with room for one block: reading again must give the same.
        _CACHED.extend(dataclasses.replace(v, cache=BlockCache(1)) for v in _views(folder))
    return _CACHED[0]


def test_bands_must_agree(folder: Path, tmp_path: Path) -> None:
    other = write_scene(tmp_path / "o.tif", np.ones((2, SIZE, SIZE), np.uint16), names=("nir", "red"))
    both = [{"scene": str(s), "labels": str(folder / "labels.tif")} for s in (folder / "scene.tif", other)]
    with pytest.raises(InputError, match="has the bands nir, red") as error:
        _views(folder, scenes=both)
    assert error.value.code == "TR-006"
    views = _views(folder, scenes=both, bands=["red", "nir"])
    assert [[b.name for b in v.scene.bands] for v in views] == [["red", "nir"]] * 2


@given(st.integers(0, 99), st.integers(0, 12), st.sampled_from([32, 48, 64]))
def test_drawn_parts_never_touch_and_repeat(seed: int, guard: int, block: int) -> None:
    settings = SplitSettings(block_px=block, guard_px=guard, val=0.2, test=0.2, seed=seed)
    split = make_split([_cached()], settings, num_classes=2)
    assert all(split.values())
    grown = [dataclasses.replace(area, window=area.window.expand(2 * guard)) for area in split["train"]]
    require_apart({**split, "train": grown})
    assert make_split([_cached()], settings, num_classes=2) == split


def test_overlapping_areas_are_an_error() -> None:
    """D22: a test on pixels that were learnt from says nothing."""
    one = Area(view=0, window=Window(row_off=0, col_off=0, height=10, width=10))
    other = Area(view=0, window=Window(row_off=9, col_off=9, height=10, width=10))
    elsewhere = dataclasses.replace(other, view=1)
    require_apart({"train": [one], "test": [elsewhere], "val": []})
    require_apart({"train": [one, other], "test": [], "val": []})
    with pytest.raises(InputError, match="share rows 9-10, columns 9-10") as error:
        require_apart({"train": [one], "test": [other], "val": []})
    assert error.value.code == "TR-011"


def _areas(path: Path, names: list[str], **more: Any) -> Path:
    boxes = [shapely.box(500_000 + 500 * i, 4_999_000, 500_400 + 500 * i, 5_000_000) for i in range(len(names))]
    geopandas.GeoDataFrame({"split": names, **more}, geometry=boxes, crs=UTM).to_crs(4326).to_file(path)
    return path


def test_areas_of_a_file_become_whole_pixels(folder: Path, tmp_path: Path) -> None:
    path = _areas(tmp_path / "a.geojson", ["train", "val", "test"])
    split = make_split(_views(folder), SplitSettings(areas=path), num_classes=2)
    found = [(part, a.window.col_off, a.window.col_stop) for part, areas in split.items() for a in areas]
    for (_, first, stop), expected in zip(found, [(0, 40), (50, 90), (100, 140)], strict=True):
        assert abs(first - expected[0]) <= 1
        assert abs(stop - expected[1]) <= 1


def test_areas_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    for names, text in ((["train", "dev"], "`split` is dev"), (["val"], "none of its areas with `split` = train")):
        with pytest.raises(InputError, match=text) as error:
            make_split(_views(folder), SplitSettings(areas=_areas(tmp_path / "a.gpkg", names)), num_classes=2)
        assert error.value.code == "TR-010"
        (tmp_path / "a.gpkg").unlink()
    with pytest.raises(InputError, match="TR-012"):
        make_split(_views(folder), SplitSettings(block_px=512), num_classes=2)


def test_survey_counts_every_labelled_pixel_and_its_statistics_are_numpys(folder: Path) -> None:
    view = _views(folder)[0]
    area = Window(row_off=5, col_off=11, height=150, width=90)
    rest = Window(row_off=160, col_off=0, height=20, width=192)
    split: Any = {"train": (Area(view=0, window=area),), "val": (Area(view=0, window=rest),), "test": ()}
    found = survey([view], split, num_classes=2)
    with rasterio.open(folder / "scene.tif") as file:
        pixels = file.read()[:, *area.slices_in(view.whole)].astype(float)
    assert np.allclose(found.mean, pixels.mean(axis=(1, 2)))
    assert np.allclose(found.std, pixels.std(axis=(1, 2)), rtol=1e-6)
    assert found.class_px["train"].tolist() == np.bincount(blobs()[area.slices_in(view.whole)].ravel()).tolist()
    assert found.class_px["val"].sum() == rest.num_pixels
    for value, places in enumerate(found.places):
        assert len(places)
        assert (blobs()[places[:, 1], places[:, 2]] == value).all()
    assert warnings_of(found, make_train_settings(document(folder, folder)).legend) == [
        "the test part has no labels: the model's accuracy will not be known"
    ]


def test_missing_pixels_have_no_part_in_statistics(tmp_path: Path) -> None:
    scene, _ = write_labelled(tmp_path)
    with rasterio.open(scene) as file:
        pixels = file.read()
    pixels[:, 20:90, 30:100] = 0
    write_scene(scene, pixels, names=("red", "nir"), nodata=0)
    view = _views(tmp_path)[0]
    split: Any = {"train": (Area(view=0, window=view.whole),), "val": (), "test": ()}
    found = survey([view], split, num_classes=2)
    valid = pixels[0] != 0
    assert np.allclose(found.mean, pixels[:, valid].mean(axis=1))
    assert np.allclose(found.std, pixels[:, valid].std(axis=1), rtol=1e-6)
    assert found.unknown_px["train"] == 70 * 70


@pytest.mark.parametrize(("fill", "code"), [(255, "TR-013"), (1, "TR-014"), (9, "TR-004")])
def test_nothing_to_learn_is_said_before_the_first_step(tmp_path: Path, fill: int, code: str) -> None:
    """D19: empty labels, one class, values out of range."""
    write_labelled(tmp_path)
    write_labels(tmp_path / "labels.tif", np.full((SIZE, SIZE), fill, np.uint8))
    view = _views(tmp_path)[0]
    split: Any = {"train": (Area(view=0, window=view.whole),), "val": (), "test": ()}
    with pytest.raises(InputError) as error:
        survey([view], split, num_classes=2)
    assert error.value.code == code


_TWO = (
    Area(view=0, window=Window(row_off=0, col_off=0, height=100, width=80)),
    Area(view=0, window=Window(row_off=0, col_off=100, height=20, width=92)),
)


def _chips(**settings: Any) -> ChipPlaces:
    places = tuple(np.array([[0, 50, 40]]) if value else np.argwhere(np.ones((1, 90, 70))) for value in range(2))
    return ChipPlaces(_TWO, places, ChipSettings(size=32, batch=4, **settings), seed=1)


@pytest.mark.parametrize("sampling", ["random", "balanced", "grid"])
def test_chips_stay_in_their_area_and_depend_on_the_step_alone(sampling: str) -> None:
    chips = _chips(sampling=sampling)
    for step in (0, 1, 17):
        places = chips.of_step(step)
        assert _chips(sampling=sampling).of_step(step) == places
        for place in places:
            inside = place.window.intersect(place.area)
            assert inside.width == 32
            assert inside.height == min(32, place.area.height)
    assert chips.of_step(0) != chips.of_step(1)


def test_balanced_chips_find_the_rare_class() -> None:
    hits = {}
    for sampling in ("random", "balanced"):
        places = [p for step in range(100) for p in _chips(sampling=sampling).of_step(step)]
        hits[sampling] = sum(
            p.window.row_off <= 50 < p.window.row_stop and p.window.col_off <= 40 < p.window.col_stop for p in places
        )
    assert hits["balanced"] > hits["random"] + 40


def test_a_grid_shows_all_chips_equally_often() -> None:
    chips = _chips(sampling="grid")
    seen: dict[Any, int] = {}
    rounds = 15  # 4 x 3 chips and 1 x 3
    for step in range(rounds * 15 // 4):
        for place in chips.of_step(step):
            seen[place] = seen.get(place, 0) + 1
    assert max(seen.values()) - min(seen.values()) <= 1
    covered = np.zeros((100, 80), bool)
    for place in seen:
        if place.area == _TWO[0].window:
            covered[place.window.slices_in(_TWO[0].window)] = True
    assert covered.all()


def test_few_places_stay_the_same_and_apart() -> None:
    chips = _chips(sampling="random", limit=3)
    places = {p for step in range(20) for p in chips.of_step(step)}
    assert len(places) == 3
    windows = [p.window for p in places]
    assert all(a == b or not a.intersect(b).num_pixels for a in windows for b in windows)
