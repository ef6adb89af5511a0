"""Labels on a scene's pixels: rasters, polygons, other CRS; whatever the window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.features import rasterize

from pipeline.errors import InputError, UsageError
from pipeline.grid import Window
from pipeline.legend import default_legend
from pipeline.scene import open_scene
from pipeline.train.settings import LabelledScene
from pipeline.train.target import IGNORE, Target, open_target
from tests.labelled import SIZE, blobs, write_labelled, write_labels
from tests.scenes import NORTH_UP, UTM

LEGEND = default_legend(["low", "high"], background="low")
WHOLE = Window(row_off=0, col_off=0, height=SIZE, width=SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_labelled(folder)
    return folder


def _polygons(folder: Path) -> geopandas.GeoDataFrame:
    rng = np.random.default_rng(3)
    xy = rng.uniform(0, SIZE * 10, (40, 2)) + np.array([500_000, 5_000_000 - SIZE * 10])
    shapes = [shapely.Point(p).buffer(r, quad_segs=3) for p, r in zip(xy, rng.uniform(5, 150, 40), strict=True)]
    kinds = rng.choice(["low", "high"], 40)
    return geopandas.GeoDataFrame({"kind": kinds, "code": np.where(kinds == "high", 1, 0)}, geometry=shapes, crs=UTM)


def _target(folder: Path, labels: Path, **more: Any) -> Target:
    labelled = LabelledScene(scene=folder / "scene.tif", labels=labels, **more)
    return open_target(labelled, open_scene(folder / "scene.tif").geobox, LEGEND)


def test_a_raster_on_the_same_pixels_is_read_as_it_is(folder: Path) -> None:
    assert (_target(folder, folder / "labels.tif").read(WHOLE) == blobs()).all()


def test_nodata_of_labels_is_not_learnt_from(folder: Path, tmp_path: Path) -> None:
    classes = blobs()
    classes[:7] = 255
    found = _target(folder, write_labels(tmp_path / "l.tif", classes)).read(WHOLE)
    assert (found[:7] == IGNORE).all()
    assert (found[7:] == classes[7:]).all()


def test_a_raster_elsewhere_is_warped_by_nearest_neighbour(folder: Path, tmp_path: Path) -> None:
    """Twice as fine and shifted by whole pixels: each pixel of the scene holds one value of it."""
    fine = np.kron(blobs(), np.ones((2, 2), np.uint8))[20:, 40:]
    moved = NORTH_UP @ Affine.translation(20, 10) @ Affine.scale(0.5)
    found = _target(folder, write_labels(tmp_path / "l.tif", fine, transform=moved)).read(WHOLE)
    assert (found[10:, 20:] == blobs()[10:, 20:]).all()
    assert (found[:10] == IGNORE).all()
    assert (found[:, :20] == IGNORE).all()


def test_values_are_given_their_classes(folder: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "l.tif", blobs() * 7 + 3)
    found = _target(folder, labels, values={"3": None, "10": "high"}).read(WHOLE)
    assert (found == np.where(blobs(), 1, IGNORE)).all()


def test_a_value_that_is_no_class_is_an_error(folder: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "l.tif", blobs() + 1)
    with pytest.raises(InputError, match="holds the value 2, which is no class") as error:
        _target(folder, labels).read(WHOLE)
    assert error.value.code == "TR-004"


@pytest.mark.parametrize("crs", [UTM, "EPSG:4326", "EPSG:3857"])
def test_polygons_of_any_crs_are_burnt_by_their_centres(folder: Path, tmp_path: Path, crs: str) -> None:
    frame = _polygons(folder)
    frame.to_crs(crs).to_file(tmp_path / "p.gpkg")
    found = _target(folder, tmp_path / "p.gpkg", attribute="kind").read(WHOLE)
    pairs = zip(frame.geometry, frame["code"], strict=True)
    expected = rasterize(pairs, (SIZE, SIZE), fill=0, transform=NORTH_UP, dtype="uint16")
    assert np.count_nonzero(found != expected) <= (0 if crs == UTM else 2)


@given(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1), st.integers(1, 90), st.integers(1, 90))
def test_a_window_of_polygons_is_that_part_of_the_whole(row: int, col: int, height: int, width: int) -> None:
    target = _cached_polygons()
    window = Window(row_off=row, col_off=col, height=height, width=width).intersect(WHOLE)
    assert (target.read(window) == target.read(WHOLE)[window.slices_in(WHOLE)]).all()


_CACHED: dict[str, Target] = {}


def _cached_polygons() -> Target:
    if not _CACHED:
        import tempfile

        folder = Path(tempfile.mkdtemp())
        write_labelled(folder)
        _polygons(folder).to_file(folder / "p.gpkg")
        _CACHED["target"] = _target(folder, folder / "p.gpkg", attribute="code")
    return _CACHED["target"]


def test_pixels_in_no_polygon(folder: Path, tmp_path: Path) -> None:
    _polygons(folder).query("kind == 'high'").to_file(tmp_path / "p.gpkg")
    for unlabelled, value in ((None, 0), ("ignore", IGNORE), ("high", 1)):
        found = _target(folder, tmp_path / "p.gpkg", label_class="high", unlabelled=unlabelled).read(WHOLE)
        assert set(np.unique(found)) == {1, value}


def _refused(code: str, text: str, folder: Path, labels: Path, **more: Any) -> None:
    with pytest.raises((InputError, UsageError), match=text) as error:
        _target(folder, labels, **more).read(WHOLE)
    assert error.value.code == code


def test_labels_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    frame = _polygons(folder)
    frame.to_file(tmp_path / "p.gpkg")
    frame.to_crs(4326).translate(xoff=5).to_file(tmp_path / "far.gpkg")
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        frame.set_crs(None, allow_override=True).to_file(tmp_path / "nocrs.fgb")
    frame.set_geometry(frame.centroid).to_file(tmp_path / "points.gpkg")
    (tmp_path / "text.gpkg").write_text("no such thing")
    (tmp_path / "other.gpkg").write_text("<OGRVRTDataSource/>")
    far = write_labels(tmp_path / "far.tif", blobs(), transform=NORTH_UP @ Affine.translation(9000, 0))
    _refused("TR-001", "there is no such file", folder, tmp_path / "none.gpkg")
    _refused("TR-001", "cannot be read", folder, tmp_path / "text.gpkg")
    _refused("TR-001", "virtual file", folder, tmp_path / "other.gpkg", label_class="high")
    _refused("TR-001", "not one polygon", folder, tmp_path / "points.gpkg", label_class="high")
    _refused("TR-001", "did you mean 'kind'", folder, tmp_path / "p.gpkg", attribute="knd")
    _refused("TR-002", "lies outside the scene", folder, tmp_path / "far.gpkg", label_class="high")
    _refused("TR-002", "lies outside the scene", folder, far)
    _refused("TR-003", "has no CRS", folder, tmp_path / "nocrs.fgb", label_class="high")
    _refused("TR-005", "not said which class", folder, tmp_path / "p.gpkg")
    frame.assign(kind="pond").to_file(tmp_path / "pond.gpkg")
    _refused("TR-004", "holds pond, which are no classes", folder, tmp_path / "pond.gpkg", attribute="kind")


def test_a_raster_without_crs_needs_the_scenes_size(folder: Path, tmp_path: Path) -> None:
    same = write_labels(tmp_path / "same.tif", blobs(), crs=None)
    assert (_target(folder, same).read(WHOLE) == blobs()).all()
    small = write_labels(tmp_path / "small.tif", blobs((50, 60)), crs=None)
    _refused("TR-003", "no CRS", folder, small)
