"""`scenemask evaluate` from files to report: grids, polygons, samples, runs, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.features import rasterize

import pipeline as sm
from pipeline.legend import default_legend
from pipeline.store import write_class_names
from pipeline.store.cog import LEGEND_TAG, legend_json
from pipeline.train.evaluate import polygons as polygon_module
from tests.commands import assert_block
from tests.evaluations import blobs, write_classes
from tests.scenes import NORTH_UP, UTM, save_threshold_model, smooth_values, write_scene

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.commands import Cli

NAMES = ["water", "land", "cloud"]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, NDArray[np.uint8], NDArray[np.uint8]]:
    """PRED with named classes and nodata, TRUTH on its grid."""
    truth = blobs((60, 80), 3)
    rng = np.random.default_rng(1)
    pred = np.where(rng.random(truth.shape) < 0.85, truth, rng.integers(0, 3, truth.shape)).astype(np.uint8)
    pred[:5, :7] = 255
    mask = write_classes(tmp_path / "mask.tif", pred, nodata=255)
    with rasterio.open(mask, "r+") as file:
        file.update_tags(**{LEGEND_TAG: legend_json(default_legend(NAMES, background="land"))})
    return mask, write_classes(tmp_path / "truth.tif", truth), pred, truth


def test_a_report_a_table_and_plots(cli: Cli, tmp_path: Path, pair: Any) -> None:
    mask, truth_file, pred, truth = pair
    out = tmp_path / "new" / "report.json"
    code, text, err = cli("evaluate", mask, truth_file, "-o", out, "--boundary", "1.5 px", "--objects", "water,2")
    assert code == 0, err
    for word in ("water", "edge F1", "overall accuracy", "objects of cloud", str(out), "confusion.png", "35 left out"):
        assert word in text
    report = json.loads(out.read_text())
    known = pred != 255
    assert report["schema"] == "scenemask-evaluation/1"
    assert report["pixels"] == {
        "total": 4800, "compared": 4765, "left_out": {"pred": 35, "truth": 0, "both": 0}
    }  # fmt: skip
    assert np.trace(report["confusion"]["counts"]) == (pred == truth)[known].sum()
    water = report["per_class"][0]
    hit = ((pred == 0) & (truth == 0)).sum()
    assert water["iou"] == pytest.approx(hit / (((pred == 0) | (truth == 0)) & known).sum())
    assert [of["name"] for of in report["objects"]] == ["water", "cloud"]
    assert report["seams"] is report["calibration"] is report["bootstrap"] is report["sample"] is None
    for name in ("confusion.png", "errors.png"):
        assert (out.parent / name).read_bytes().startswith(b"\x89PNG")
    assert cli("evaluate", mask, truth_file, "-o", out)[0] == 5
    code, text, _ = cli("evaluate", mask, truth_file, "-o", out, "--overwrite", "--plots", "none", "--json")
    assert json.loads(text) == json.loads(out.read_text())


def test_a_truth_on_another_grid_is_warped_by_nearest(cli: Cli, tmp_path: Path, pair: Any) -> None:
    """A TRUTH of twice the pixel size, cut from the middle; its rim is left out, not class 0."""
    mask, _, pred, truth = pair
    coarse = np.ascontiguousarray(truth[10:50:2, 20:60:2])
    path = write_classes(
        tmp_path / "coarse.tif", coarse, transform=NORTH_UP @ Affine.translation(20, 10) @ Affine.scale(2)
    )
    code, text, err = cli("evaluate", mask, path, "--json")
    assert code == 0, err
    report = json.loads(text)
    fine = np.kron(coarse, np.ones((2, 2), np.uint8))
    assert report["truth"]["warped"] is True
    assert report["pixels"]["compared"] == fine.size
    assert report["pixels"]["left_out"] == {"pred": 0, "truth": 4800 - 35 - fine.size, "both": 35}
    assert np.trace(report["confusion"]["counts"]) == (pred[10:50, 20:60] == fine).sum()
    assert any("another grid" in note for note in report["notes"])
    whole = sm.evaluate(mask, path).to_dict()
    assert sm.evaluate(mask, path, window_px=13).to_dict() == whole


def test_each_pixel_takes_what_lies_under_its_centre_in_another_crs(tmp_path: Path) -> None:
    """Kilometres of UTM against degrees, where lines are curves: PROJ says for each centre where it lies."""
    transform = Affine(1000, 0, 300_000, 0, -1000, 5_000_000)
    mask = write_classes(tmp_path / "mask.tif", np.zeros((80, 90), np.uint8), transform=transform)
    truth = np.random.default_rng(0).integers(0, 3, (90, 120)).astype(np.uint8)
    truth[:9] = 9
    place = Affine(0.01, 0, 12.5, 0, -0.01, 45.1)
    options = {"crs": "EPSG:4326", "nodata": 9, "transform": place}
    path = write_classes(tmp_path / "truth.tif", truth, **options)
    rows, cols = np.indices((80, 90)) + 0.5
    to_degrees = pyproj.Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(300_000 + 1000 * cols, 5_000_000 - 1000 * rows)
    col, row = np.floor((lon - 12.5) / 0.01).astype(int), np.floor((45.1 - lat) / 0.01).astype(int)
    inside = (row >= 0) & (row < 90) & (col >= 0) & (col < 120)
    under = np.where(inside, truth[row.clip(0, 89), col.clip(0, 119)], 9)
    expected = [(under == value).sum() for value in range(3)]
    for window_px in (2048, 17):
        found = sm.evaluate(mask, path, classes="a,b,c", window_px=window_px)
        assert [row["truth_px"] for row in found.to_dict()["per_class"]] == expected


def test_metres_are_pixels_where_the_projection_is_true_to_scale(tmp_path: Path, pair: Any) -> None:
    mask, truth, *_ = pair
    metres, pixels = (sm.evaluate(mask, truth, boundary=b).to_dict()["boundary"] for b in ("20 m", "2 px"))
    assert metres["tolerance_px"] == 2
    assert metres["per_class"] == pixels["per_class"]
    mercator = {"crs": "EPSG:3857", "transform": Affine(10, 0, 0, 0, -10, 8_400_000)}  # 60 degrees north: half of it
    files = [write_classes(tmp_path / n, blobs((30, 30), 2, seed=i), **mercator) for i, n in enumerate("ab")]
    assert sm.evaluate(*files, boundary="10 m").to_dict()["boundary"]["tolerance_px"] == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(("crs", "suffix"), [(UTM, "gpkg"), ("EPSG:4326", "geojson"), ("EPSG:3857", "shp")])
def test_polygons_are_burnt_where_their_pixels_have_their_centres(
    tmp_path: Path, pair: Any, monkeypatch: pytest.MonkeyPatch, crs: str, suffix: str
) -> None:
    monkeypatch.setattr(polygon_module, "_BLOCK_PX", 16)
    mask, _, pred, _ = pair
    rings = [shapely.Point(20.2, 20.3).buffer(9.1), shapely.box(-9, 30.1, 40.6, 95), shapely.Point(26, 27).buffer(4.7)]
    values = [0, 2, 0]
    burnt = rasterize(zip(rings, values, strict=True), out_shape=pred.shape, fill=1, dtype=np.uint8)
    shapes = [
        shapely.transform(ring, lambda xy: np.column_stack([500_000 + 10 * xy[:, 0], 5e6 - 10 * xy[:, 1]]))
        for ring in rings
    ]
    frame = gpd.GeoDataFrame({"kind": [NAMES[v] for v in values]}, geometry=shapes, crs=UTM).to_crs(crs)
    frame.to_file(tmp_path / f"truth.{suffix}")
    found = sm.evaluate(mask, tmp_path / f"truth.{suffix}", attribute="kind", window_px=11)
    assert found.to_dict()["truth"]["outside"] == "land"
    expected = sm.evaluate(mask, write_classes(tmp_path / "burnt.tif", burnt))
    assert found.confusion is not None
    assert expected.confusion is not None
    assert abs(found.confusion - expected.confusion).sum() <= (0 if crs == UTM else 4)


def test_numbers_nulls_and_no_outside(tmp_path: Path, pair: Any) -> None:
    mask, *_ = pair
    cells = [shapely.box(500_000 + 100 * i, 4_999_900, 500_100 + 100 * i, 5_000_000) for i in range(3)]
    frame = gpd.GeoDataFrame({"c": [2.0, None, 0.0]}, geometry=cells, crs=UTM)
    frame.to_file(tmp_path / "t.gpkg")
    found = sm.evaluate(mask, tmp_path / "t.gpkg", attribute="c", outside="ignore").to_dict()
    assert found["pixels"]["compared"] == 200 - 35
    assert [row["truth_px"] for row in found["per_class"]] == [100, 0, 65]


def test_a_run_brings_its_seams_and_its_calibration(tmp_path: Path) -> None:
    data = smooth_values(2, (150, 170))
    scene = write_scene(tmp_path / "scene.tif", data)
    save_threshold_model(tmp_path / "model")
    sm.segment(scene, sm.load_model(tmp_path / "model"), tmp_path / "out", probabilities=True, patch=64, vectors=())
    truth = write_classes(tmp_path / "truth.tif", (data[0] > 520).astype(np.uint8))
    found = sm.evaluate(tmp_path / "out" / "mask.tif", truth, seam_px=3, bootstrap=50, block="40 px").to_dict()
    seams = found["seams"]
    assert seams["seam"]["overall"]["pixels"] + seams["elsewhere"]["overall"]["pixels"] == 150 * 170
    assert 0 < seams["seam"]["overall"]["pixels"] < 150 * 170 / 2
    calibration = found["calibration"]
    assert calibration["top"]["pixels"] == 150 * 170
    with rasterio.open(tmp_path / "out" / "probabilities.tif") as file:
        p = file.read(2) / 250
    with rasterio.open(truth) as file:
        hits = file.read(1) == 1
    place = np.minimum((p * 15 + 1e-9).astype(int), 14)
    gaps = [abs(hits[place == b].mean() - p[place == b].mean()) * (place == b).mean() for b in np.unique(place)]
    assert calibration["per_class"][1]["ece"] == pytest.approx(sum(gaps))
    low, high = found["bootstrap"]["overall"]["accuracy"]
    assert low < found["overall"]["accuracy"] < high
    assert found["bootstrap"]["blocks"] == 20
    elsewhere = sm.evaluate(tmp_path / "out" / "mask.tif", truth, seam_px=0, probabilities="none").to_dict()
    assert elsewhere["seams"] is elsewhere["calibration"] is None


def test_a_sample_is_weighed_by_the_whole_of_pred(cli: Cli, tmp_path: Path, pair: Any) -> None:
    """Olofsson's numbers again, through files; a polygon's class is that of most of its pixels."""
    mask, _, pred, truth = pair
    rng = np.random.default_rng(3)
    picks = [rng.permutation(np.argwhere(pred == value))[:40] for value in (0, 1, 2)]
    rows, cols = np.concatenate(picks).T
    for kind in ("points", "polygons"):
        centres = [
            shapely.Point(500_000 + 10 * (c + 0.5), 5e6 - 10 * (r + 0.5)) for r, c in zip(rows, cols, strict=True)
        ]
        shapes = centres if kind == "points" else [p.buffer(4, cap_style="square") for p in centres]
        frame = gpd.GeoDataFrame({"ref": truth[rows, cols], "map": pred[rows, cols]}, geometry=shapes, crs=UTM)
        frame.to_crs("EPSG:4326").to_file(tmp_path / f"{kind}.gpkg")
        code, text, err = cli("evaluate", mask, tmp_path / f"{kind}.gpkg", "--sample", "--attribute", "ref", "--json")
        assert code == 0, err
        sample = json.loads(text)["sample"]
        assert sample["unit"] == kind
        assert sample["units"]["used"] == 120
        weights = np.array([(pred == v).sum() for v in (0, 1, 2)]) / (pred != 255).sum()
        right = [(truth[tuple(p.T)] == v).mean() for v, p in zip((0, 1, 2), picks, strict=True)]
        assert sample["overall_accuracy"]["value"] == pytest.approx(weights @ right)
        error = np.sqrt(sum(w**2 * u * (1 - u) / 39 for w, u in zip(weights, right, strict=True)))
        assert sample["overall_accuracy"]["se"] == pytest.approx(error)
        assert sum(row["area_px"]["value"] for row in sample["per_class"]) == pytest.approx(4765)
        assert sum(row["area_m2"]["value"] for row in sample["per_class"]) == pytest.approx(476_500)
    named = cli("evaluate", mask, tmp_path / "points.gpkg", "--sample", "--attribute", "ref", "--stratum", "map")
    assert named[0] == 0
    assert "user's accuracy" in named[1]


def test_strata_of_their_own_and_strata_without_units(cli: Cli, tmp_path: Path, pair: Any) -> None:
    mask, _, pred, truth = pair
    strata = np.repeat([[7] * 80, [8] * 80, [9] * 80], 20, axis=0).astype(np.uint8)
    raster = write_classes(tmp_path / "strata.tif", strata)
    rows, cols = np.array([10, 12, 14, 30]), np.array([20, 30, 40, 50])
    points = shapely.points(500_000 + 10 * (cols + 0.5), 5e6 - 10 * (rows + 0.5))
    frame = gpd.GeoDataFrame({"ref": truth[rows, cols], "s": strata[rows, cols]}, geometry=points, crs=UTM)
    frame.to_file(tmp_path / "s.gpkg")
    options = ("--sample", "--attribute", "ref", "--strata", raster)
    code, text, err = cli("evaluate", mask, tmp_path / "s.gpkg", *options, "--json")
    assert code == 0, err
    report = json.loads(text)
    sizes = [((strata == v) & (pred != 255)).sum() for v in (7, 8, 9)]
    assert [row["pixels"] for row in report["sample"]["strata"]] == sizes
    assert [row["units"] for row in report["sample"]["strata"]] == [3, 1, 0]
    assert report["sample"]["covered_frac"] == pytest.approx(sum(sizes[:2]) / sum(sizes))
    assert report["sample"]["overall_accuracy"]["se"] is None
    assert any("no unit in the strata 9" in note for note in report["notes"])
    assert any("one unit in the strata 8" in note for note in report["notes"])
    assert cli("evaluate", mask, tmp_path / "s.gpkg", *options, "--stratum", "s", "--json")[1] == text.replace(
        '"stratum": null', '"stratum": "s"'
    )
    code, _, err = cli("evaluate", mask, tmp_path / "s.gpkg", "--sample", "--attribute", "ref", "--stratum", "s")
    assert code == 3
    assert_block(err, "EV-011")


def test_recoding_ignoring_and_naming(tmp_path: Path) -> None:
    """Numbers without names; TRUTH has other ones, negative nodata and one class that is left out."""
    pred = np.array([[1, 2, 2, 0], [1, 1, 2, 2]], np.uint8)
    truth = np.array([[3, 40, 7, 7], [40, 3, 5, -1]], np.int16)
    files = write_classes(tmp_path / "p.tif", pred, nodata=0), write_classes(tmp_path / "t.tif", truth, nodata=-1)
    found = sm.evaluate(*files, classes="1=clear,2=cloud", recode="40=cloud,*=clear", ignore="5")
    assert found.confusion is not None
    assert found.confusion.tolist() == [[2, 1], [1, 1]]
    assert found.to_dict()["pixels"]["left_out"] == {"pred": 1, "truth": 2, "both": 0}
    assert found.iou == {"clear": 0.5, "cloud": pytest.approx(1 / 3)}
    again = sm.evaluate(*files, recode={40: 2, 3: 1, 7: 1, 5: "ignore"})
    assert again.classes == ("1", "2")
    assert again.iou["2"] == found.iou["cloud"]


def test_names_decide_where_both_have_them(tmp_path: Path, pair: Any) -> None:
    mask, _, pred, truth = pair
    order = np.array([2, 0, 1], np.uint8)  # land, cloud, water are 0, 1, 2 in TRUTH
    other = write_classes(tmp_path / "other.tif", order[truth])
    write_class_names(other, default_legend(["land", "cloud", "water"]))
    found = sm.evaluate(mask, other)
    assert found.overall_accuracy == pytest.approx((pred == truth)[pred != 255].mean())


def _points(path: Path, **columns: Any) -> Path:
    frame = gpd.GeoDataFrame(columns, geometry=[shapely.Point(500_100, 4_999_900)], crs=UTM)
    frame.to_file(path)
    return path


def _refusals(folder: Path, mask: Path, truth: Path) -> dict[str, tuple[int, list[Any]]]:
    """Code -> exit code and arguments."""
    ones = np.ones((60, 80), np.uint8)
    square = gpd.GeoDataFrame({"k": ["fog"]}, geometry=[shapely.box(500_000, 4_999_800, 500_200, 5e6)], crs=UTM)
    square.to_file(folder / "square.gpkg")
    far = square.set_geometry(square.translate(9e5))
    far.to_file(folder / "far.gpkg")
    (folder / "text.txt").write_text("no raster")
    named = write_classes(folder / "named.tif", ones)
    write_class_names(named, default_legend(["sand", "land", "cloud"]))
    point = _points(folder / "point.gpkg", ref=["land"])
    return {
        "EV-001": (3, [write_classes(folder / "f.tif", ones.astype(np.float32)), truth]),
        "EV-002": (3, [mask, folder / "text.txt"]),
        "EV-003": (3, [mask, write_classes(folder / "g.tif", ones, transform=Affine(10, 0, 9e5, 0, -10, 9e5))]),
        "EV-003 ": (3, [mask, folder / "far.gpkg", "--attribute", "k"]),
        "EV-004": (3, [mask, write_classes(folder / "n.tif", ones, crs=None)]),
        "EV-005": (3, [mask, write_classes(folder / "o.tif", ones * 5)]),
        "EV-005 ": (3, [mask, named]),
        "EV-005  ": (3, [mask, folder / "square.gpkg", "--attribute", "k"]),
        "EV-005   ": (3, [mask, truth, "--classes", "a,b"]),
        "EV-006": (2, [mask, folder / "square.gpkg"]),
        "EV-006 ": (2, [mask, folder / "square.gpkg", "--attribute", "nothing"]),
        "EV-006  ": (2, [mask, truth, "--bootstrap", "9"]),
        "EV-006   ": (2, [mask, point, "--sample", "--attribute", "ref", "--boundary", "2 px"]),
        "EV-007": (2, [mask, truth, "--recode", "4-cloud"]),
        "EV-007 ": (2, [mask, truth, "--objects", "fog"]),
        "EV-007  ": (2, [mask, truth, "--classes", "a=b"]),
        "EV-008": (3, [mask, truth, "--ignore", "0,1,2"]),
        "EV-009": (2, [mask, truth, "--boundary", "wide"]),
        "EV-009 ": (2, [mask, truth, "--boundary", "5 m"]),
        "EV-009  ": (2, [mask, truth, "--bootstrap", "9", "--block-px", "100"]),
        "EV-010": (3, [mask, truth, "--probabilities", truth]),
        "IN-001": (3, [mask, folder / "absent.tif"]),
        "IN-001 ": (3, [folder / "absent.tif", truth]),
    }


def test_what_cannot_be_compared_is_refused_in_words(cli: Cli, tmp_path: Path, pair: Any) -> None:
    mask, truth, *_ = pair
    for code, (exit_code, arguments) in _refusals(tmp_path, mask, truth).items():
        out = tmp_path / "report.json"
        got, _, err = cli("evaluate", *arguments, "-o", out)
        assert (got, code) == (exit_code, code), err
        assert_block(err, code.strip())
        if code.startswith("EV-005"):
            assert "0 water, 1 land, 2 cloud" in err or "0 a, 1 b" in err
        assert not out.exists()


def test_overlapping_classes_are_refused(tmp_path: Path, pair: Any) -> None:
    scene = write_scene(tmp_path / "bands.tif", np.zeros((3, 60, 80), np.uint8))
    with pytest.raises(sm.PipelineError, match="one band of class numbers, got 3"):
        sm.evaluate(scene, pair[1])
