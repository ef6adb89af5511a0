"""T3, T4, T6, T7, T8, T13, T15, T16, F9: what somebody may have put into an input, and where it must not lead.

T1 and T2 stand in unit/model/test_weights.py and test_foreign.py, T5 in unit/scene/test_remote.py, more of T6, T12 and
T15 beside the code that they are about.
"""

from __future__ import annotations

import csv
import io
import os
import stat
import time
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine

import pipeline as sm
from pipeline.errors import PipelineError, UsageError
from pipeline.grid import GeoBox
from pipeline.model import write_traits
from pipeline.run.outcomes import Outcome, Outcomes
from pipeline.run.scene_list import SceneRow
from pipeline.run.settings import SegmentSettings, make_settings
from pipeline.scene import Aoi, describe_scene, open_scene
from pipeline.yaml_file import read_yaml
from tests.commands import Cli, assert_block
from tests.scenes import NORTH_UP, UTM, save_threshold_model, smooth_values, write_scene

if TYPE_CHECKING:
    from pathlib import Path

CANARY = "c4n4ry53cr3t"
SHAPE = (40, 50)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_threshold_model(folder)
    return folder


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "scene.tif", smooth_values(2, SHAPE), names=("b0", "b1"))


# --- T4: virtual files -------------------------------------------------------------------------------------------

_SIMPLE = """<VRTDataset rasterXSize="50" rasterYSize="40"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename>{path}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"""
_RAW = """<?xml version="1.0"?>
<VRTDataset rasterXSize="5" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">
<SourceFilename relativetoVRT="0">{path}</SourceFilename><PixelOffset>1</PixelOffset><LineOffset>5</LineOffset>
</VRTRasterBand></VRTDataset>"""
_OGR = '<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>{path}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>'
_WMS = '<GDAL_WMS><Service name="TMS"><ServerUrl>http://169.254.169.254/${{z}}</ServerUrl></Service></GDAL_WMS>'


@pytest.mark.parametrize("text", [_SIMPLE, _RAW, _WMS, "<!-- -->" + _SIMPLE, "\n \t" + _RAW])
@pytest.mark.parametrize("name", ["scene.vrt", "scene.tif", "scene.jp2"])
def test_t4_virtual_files_are_not_opened_whatever_their_name(tmp_path: Path, text: str, name: str) -> None:
    secret = write_scene(tmp_path / "secret.tif", smooth_values(1, SHAPE))
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / name
    path.write_text(text.format(path=secret))
    with pytest.raises(PipelineError) as caught:
        open_scene(path, allow_no_crs=True)
    assert caught.value.code in {"IN-014", "IN-002"}


@pytest.mark.parametrize("suffix", [".msk", ".ovr", ".OVR", ".Ovr", ".MSK", ".msk.ovr"])
@pytest.mark.parametrize("packed", [False, True])
def test_t4_a_virtual_file_beside_a_scene_is_never_opened(tmp_path: Path, suffix: str, *, packed: bool) -> None:
    """Refused, or not seen: names that GDAL finds only by listing the folder."""
    secret = write_scene(tmp_path / "secret.tif", np.full((1, 40, 50), 0, np.uint8))
    (tmp_path / "in").mkdir()
    scene = write_scene(tmp_path / "in" / "s.tif", smooth_values(1, SHAPE))
    scene.with_name(f"s.tif{suffix}").write_text(_SIMPLE.format(path=secret))
    if packed:
        with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
            for path in scene.parent.iterdir():
                archive.write(path, path.name)
    try:
        opened = open_scene(tmp_path / "s.zip" if packed else scene)
    except PipelineError as error:
        assert error.code == "IN-014"  # noqa: PT017 - either of two ends is right
        return
    assert suffix in {".Ovr", ".MSK"}
    facts = describe_scene(opened)
    assert not facts.get("overviews")
    assert facts["valid_frac"] == 1.0


@pytest.mark.parametrize("place", ["sidecar", "tag"])
def test_t4_a_file_named_for_overviews_is_not_followed(tmp_path: Path, place: str) -> None:
    """GDAL opens it with any driver, and our look for collars would read its pixels."""
    secret = write_scene(tmp_path / "secret.tif", np.full((1, 256, 256), 77, np.uint8))
    (tmp_path / "o.vrt").write_text(_SIMPLE.format(path=secret))
    path = write_scene(tmp_path / "s.tif", np.full((1, 512, 512), 5, np.uint8))
    if place == "tag":
        with rasterio.open(path, "r+") as file:
            file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(tmp_path / "o.vrt"))
    else:
        item = f'<MDI key="OVERVIEW_FILE">{tmp_path / "o.vrt"}</MDI>'
        sidecar = f'<PAMDataset><Metadata domain="OVERVIEWS">{item}</Metadata></PAMDataset>'
        (tmp_path / "s.tif.aux.xml").write_text(sidecar)
    with pytest.raises(PipelineError, match="overviews lie in") as caught:
        open_scene(path)
    assert caught.value.code == "IN-014"


@pytest.mark.parametrize(
    "text",
    [
        _OGR,
        '<?xml version="1.0"?>\n' + _OGR,
        "<OGRWFSDataSource><URL>http://169.254.169.254/</URL></OGRWFSDataSource>",
        '<gml:FeatureCollection xsi:schemaLocation="a http://169.254.169.254/a.xsd"/>',
    ],
)
@pytest.mark.parametrize("name", ["a.vrt", "a.geojson", "a.gml"])
def test_t4_virtual_areas_of_interest_are_not_opened(tmp_path: Path, text: str, name: str) -> None:
    inside = shapely.box(500_000, 4_999_000, 501_000, 5_000_000)
    pyogrio.raw.write(
        tmp_path / "secret.gpkg", geometry=shapely.to_wkb(np.array([inside])), field_data=[], fields=[],
        geometry_type="Polygon", crs="EPSG:32633",
    )  # fmt: skip
    (tmp_path / name).write_text(text.format(path=tmp_path / "secret.gpkg"))
    geobox = GeoBox(shape=(100, 100), transform=NORTH_UP, crs_wkt=pyproj.CRS(UTM).to_wkt())
    with pytest.raises(PipelineError, match="none of GeoJSON") as caught:
        Aoi.from_file(tmp_path / name, geobox)
    assert caught.value.code == "IN-020"


# --- T5: addresses for GDAL --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["/vsicurl/http://169.254.169.254/a.tif", "/vsizip/a.zip/b.tif", "/vsimem/a.tif"])
def test_t5_virtual_paths_are_refused_for_every_input(
    cli: Cli, scene: Path, model: Path, tmp_path: Path, text: str
) -> None:
    run = ["segment", scene, "-m", model, "-o", tmp_path / "out"]
    for command, code in (
        (["inspect", text], "IN-001"),
        (["segment", text, "-m", model, "-o", tmp_path / "out"], "IN-001"),
        ([*run, "--aoi", text], "IN-020"),
        ([*run, "--mask-layer", text, "--mask-values", "1"], "IN-001"),
        (["vectorize", text, "-o", tmp_path / "o.geojson"], "IN-001"),
    ):
        status, _, err = cli(*command)
        assert status == 3, err
        assert_block(err, code)


# --- T7: sizes ---------------------------------------------------------------------------------------------------


def test_t7_a_small_file_that_declares_a_huge_scene_costs_nothing(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "huge.tif"
    profile = {"driver": "GTiff", "count": 2, "height": 400_000, "width": 400_000, "dtype": "uint16", "nodata": 0}
    extra = {"tiled": True, "blockxsize": 1024, "blockysize": 1024, "sparse_ok": True, "bigtiff": "YES"}
    with rasterio.open(path, "w", **profile, **extra, crs="EPSG:32633", transform=Affine(1, 0, 5e5, 0, -1, 5e6)):
        pass
    assert path.stat().st_size < 10_000_000
    started = time.process_time()
    status, out, err = cli("inspect", path, "--json")
    assert status == 0, err
    assert '"width": 400000' in out
    assert time.process_time() - started < 60


# --- T8: YAML ----------------------------------------------------------------------------------------------------

_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (_BOMB, "aliases"),
        ("bands: &x [1, 2]\nregularize: *x", "aliases"),
        ("a: 1\n<<: {b: 2}", "<<"),
        ("patch: 64\npatch: 65", "given twice"),
        ("a: !!python/object/apply:os.system ['touch {marker}']", "python/object"),
        ("a: !!python/name:os.system", "python/name"),
        ("a: !include /etc/hostname", "include"),
        ("scratch: ${HOME}", ""),
        ("a: " + "[" * 5000, ""),
        ("x" * 1_000_001, "more than"),
    ],
    ids=["bomb", "alias", "merge", "twice", "object", "name", "include", "environment", "deep", "long"],
)
def test_t8_yaml_has_no_code_and_no_bombs(tmp_path: Path, text: str, told: str) -> None:
    path, marker = tmp_path / "s.yaml", tmp_path / "marker"
    path.write_text(text.replace("{marker}", str(marker)))
    started = time.process_time()
    if told:
        with pytest.raises(UsageError, match=told):
            make_settings(read_yaml(path))
    else:
        try:
            found = read_yaml(path)
        except UsageError:
            found = {}
        assert os.environ["HOME"] not in str(found)
    assert time.process_time() - started < 5
    assert not marker.exists()


# --- T13, F9: secrets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "aws_secret_access_key: {s}",
        "endpoint: https://key:{s}@storage.example.org",
        "endpoint: https://storage.example.org/?token={s}",
        "mask_layer: https://user:{s}@example.org/SCL.tif\nmask_values: [3]",
        "mask_layer: s3://key:{s}@bucket/SCL.tif\nmask_values: [3]",
        "mask_layer: http://127.0.0.1:9/SCL.tif?sig={s}\nmask_values: [3]\nretries: 0\nallow_loopback: true",
        "cluster: tls://user:{s}@127.0.0.1:8786",
        "aoi: https://example.org/a.geojson?sig={s}",
        "scratch: s3://key:{s}@bucket/x",
        "assume_crs: https://example.org/?token={s}",
    ],
)
def test_f9_t13_a_secret_in_a_settings_file_is_refused_and_not_repeated(
    cli: Cli, scene: Path, model: Path, tmp_path: Path, text: str
) -> None:
    (tmp_path / "s.yaml").write_text(text.format(s=CANARY))
    out = tmp_path / "out"
    status, stdout, stderr = cli("segment", scene, "-m", model, "-o", out, "--config", tmp_path / "s.yaml", "--json")
    assert status in {2, 3, 8}, stderr
    assert CANARY not in stdout + stderr
    for path in out.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path


def test_t13_no_text_of_the_settings_may_carry_a_secret_into_records(tmp_path: Path) -> None:
    """Every text setting is listed here with why it cannot, or what takes it out."""
    texts = {
        name
        for name, info in SegmentSettings.model_fields.items()
        if "str" in str(info.annotation) and "Literal" not in str(info.annotation)
    }
    assert texts == {
        "bands", "assume_crs", "regularize", "class_names",  # names, compared with those of scene or model
        "endpoint",  # CF-054 where it holds a password or a path
        "cluster",  # an address without a path
        "mask_layer",  # CF-051; its query is cut off in records
    }  # fmt: skip


# --- T15: shared folders -----------------------------------------------------------------------------------------


def test_t15_the_folder_of_a_run_is_private_while_it_lasts(scene: Path, model: Path, tmp_path: Path) -> None:
    out, modes = tmp_path / "out", {}

    def look(_: Any) -> None:
        for path in (out / ".scenemask").rglob("*"):
            modes[path] = stat.S_IMODE(path.stat().st_mode)
        if (out / ".scenemask").exists():
            modes[out / ".scenemask"] = stat.S_IMODE((out / ".scenemask").stat().st_mode)

    before = os.umask(0)
    try:
        sm.segment(scene, model, out, listener=look, vectors="geojson,gpkg", tile=1, patch=64)
    finally:
        os.umask(before)
    assert modes[out / ".scenemask"] == 0o700
    assert len(modes) > 3


def test_t15_a_link_planted_where_results_come_is_replaced_not_followed(
    scene: Path, model: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    for name in (
        "mask.tif",
        "polygons.geojson",
        "run.json",
        "item.json",
        "preview.png",
        "mask.tif.aux.xml",
        "mask.qml",
    ):
        (out / name).symlink_to(victim)
    sm.segment(scene, model, out, overwrite=True)
    assert victim.read_text() == "precious"
    assert not any(path.is_symlink() for path in out.iterdir())


def test_t15_a_link_planted_beside_a_model_is_not_followed(tmp_path: Path) -> None:
    made = save_threshold_model(tmp_path / "m")
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    (tmp_path / "m" / "model.json.tmp").symlink_to(victim)
    write_traits(made)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "m" / "model.json").is_symlink()
    assert sm.load_model(tmp_path / "m").traits == made.traits


# --- T16: tables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", " @"])
def test_t16_cells_that_a_spreadsheet_would_run_are_quoted(tmp_path: Path, start: str) -> None:
    evil = start + "HYPERLINK(1)"
    rows = [SceneRow(name="a", scene="/data/a.tif")]
    outcomes = Outcomes(tmp_path)
    made = Outcome(name="a", status="failed", code="IN-005", exit_code=3, what=evil, where=evil, fix=evil, attempt=1)
    outcomes.add(made)
    outcomes.write_summary(rows, {})
    outcomes.close()
    cells = next(csv.DictReader(io.StringIO((tmp_path / "failed.csv").read_text())))
    for name in ("what", "where", "fix"):
        assert cells[name] == "'" + evil.strip()
