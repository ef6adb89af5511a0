"""From the scratch store to finished files in the staging folder: masks first, then what is derived from them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import vector
from pipeline.report.preview import read_overview_mask, write_preview
from pipeline.run.doctor import versions
from pipeline.run.events import Event, Notice, StageAdvanced, StageFinished, StageStarted
from pipeline.run.mask_grid import as_computed, on_own_pixels
from pipeline.run.picture import Picture
from pipeline.run.vectorize import classes_to_polygonize, cleaning_of, say_regularized
from pipeline.scene.regrid import own_grid
from pipeline.store import (
    ResultFile,
    atomic_write_json,
    build_item,
    describe_files,
    write_class_names,
    write_mask_cog,
    write_probability_cog,
    write_qgis_style,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.model import Model
    from pipeline.run.mask_grid import MaskSource
    from pipeline.run.plan import Plan
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Scene
    from pipeline.store import Staging, TileRecord, TileStore
    from pipeline.vector import Hands, Outcome, PolygonSet

_MANY_POLYGONS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What lies in the staging folder, ready to be moved."""

    names: tuple[str, ...]
    """Files in the order in which they are moved."""
    files: dict[str, dict[str, object]]
    """Name -> size and SHA-256."""
    num_polygons: int | None
    """None without vectors."""
    regularized: Outcome | None
    """What became of walls; None where straight ones were not asked for."""
    area_m2: tuple[float, ...] | None
    """Geodesic area per class; None without a CRS."""
    tile_hw: tuple[int, int]
    """Of the mask's tiles, in pixels."""
    columns: int
    """Tiles in a row."""
    records: tuple[TileRecord, ...]
    """What the mask's tiles hold, in their order."""


@dataclass(slots=True, kw_only=True)
class Finisher:
    """Makes the files of one run, one stage after the other."""

    scene: Scene
    model: Model
    settings: SegmentSettings
    plan: Plan
    store: TileStore
    records: Mapping[int, TileRecord]
    staging: Staging
    scratch: Path
    tell: Callable[[Event], None]
    check: Callable[[], None]
    """Called often; raises when the run is to stop."""
    hands: Hands | None = None
    """Who traces polygons; this process if not given."""
    _names: list[str] = field(default_factory=list)
    _source: MaskSource = field(init=False)

    def run(self) -> Finished:
        """All files but run.json."""
        with ThreadPoolExecutor(1) as aside:
            scene_picture = aside.submit(Picture.of(self.scene).assemble, self.store.place)  # while the mask is written
            self._stage("mask", self._masks)
            num_polygons, regularized = self._polygons() if self.settings.vectors else (None, None)
            self._stage("files", lambda: self._small_files(scene_picture.result()))
        files = describe_files(self.staging.folder, self._names)
        self._item(files)
        files = describe_files(self.staging.folder, self._names)
        return Finished(
            names=tuple(self._names),
            files=files,
            num_polygons=num_polygons,
            regularized=regularized,
            area_m2=self._areas(),
            tile_hw=self._source.tile_hw,
            columns=-(-self._source.geobox.width // self._source.tile_hw[1]),
            records=tuple(self._source.records[i] for i in range(len(self._source.tiles))),
        )

    def _choose_source(self) -> MaskSource:
        computed = as_computed(self.scene.geobox, self.plan, self.store, self.records)
        own = own_grid(self.scene) if self.settings.mask_grid == "scene" else None
        if own is None:
            return computed
        return on_own_pixels(computed, own, self.model.spec.legend(), self.plan, check=self.check)

    def _stage(self, name: str, work: Callable[[], Any]) -> Any:
        self.check()
        started = time.monotonic()
        self.tell(StageStarted(name=name))
        result = work()
        self.tell(StageFinished(name=name, seconds=time.monotonic() - started))
        return result

    def _path(self, name: str) -> Path:
        self._names.append(name)
        return self.staging.path(name)

    def _masks(self) -> None:
        self._source = self._choose_source()
        common: dict[str, Any] = {
            "tiles": self._source.tiles,
            "geobox": self._source.geobox,
            "legend": self.model.spec.legend(),
            "tags": {"SCENEMASK_MODEL": f"{self.model.spec.name} {self.model.digest[:16]}"},
            "between_steps": self.check,
        }
        digests = {i: r.mask_sha256 for i, r in self._source.records.items()}
        write_mask_cog(self._path("mask.tif"), read=self._source.read_mask, digests=digests, **common)
        if self.plan.probabilities:
            digests = {i: r.prob_sha256 for i, r in self._source.records.items()}
            path = self._path("probabilities.tif")
            write_probability_cog(path, read=self._source.read_probabilities, digests=digests, **common)

    def _polygons(self) -> tuple[int, Outcome | None]:
        legend = self.model.spec.legend()
        started = time.monotonic()
        self.tell(StageStarted(name="polygons"))
        with vector.polygonize(
            self.staging.path("mask.tif"),
            scratch=self.scratch / "polygons",
            include=classes_to_polygonize(legend, None),
            names=legend.names(),
            bands_are_classes=legend.multilabel,
            **cleaning_of(self.settings, legend),
            scene=self.scene.name,
            probabilities=self.staging.path("probabilities.tif") if self.plan.probabilities else None,
            progress=self._polygons_advanced,
            hands=self.hands,
        ) as polygons:
            polygons.before_batch = self.check
            polygons.colors = legend.colors()
            for suffix in self.settings.vectors:
                self._write_polygons(polygons, suffix)
            count, regularized = polygons.num_polygons, polygons.regularized
        self.tell(StageFinished(name="polygons", seconds=time.monotonic() - started))
        if regularized is not None:
            self.tell(Notice(text=say_regularized(regularized, self.settings.min_iou)))
        if count > _MANY_POLYGONS and "geojson" in self.settings.vectors:
            self.tell(Notice(text=f"{count:,} polygons are much for GeoJSON; --vectors parquet is smaller and faster"))
        return count, regularized

    def _polygons_advanced(self, done: int, total: int) -> None:
        self.tell(StageAdvanced(name="polygons", done=done, total=total))
        self.check()

    def _write_polygons(self, polygons: PolygonSet, suffix: str) -> None:
        try:
            vector.write_polygons(polygons, self._path(f"polygons.{suffix}"), overwrite=True)
        except Exception:
            self.check()  # a driver that is stopped in the middle calls it a failed write
            raise

    def _small_files(self, scene_picture: NDArray[np.uint8]) -> None:
        legend = self.model.spec.legend()
        mask = self.staging.path("mask.tif")
        records = self._source.records.values()
        class_px = [sum(r.class_px[c.value] for r in records if r.class_px) for c in legend]
        self._names.append(write_class_names(mask, legend, tags={vector.SCENE_TAG: self.scene.name}).name)
        write_qgis_style(self._path("mask.qml"), legend)
        write_preview(
            self._path("preview.png"),
            rgb=scene_picture,
            mask=read_overview_mask(mask, legend, shape=scene_picture.shape[:2]),
            legend=legend,
            class_px=class_px,
            valid_px=sum(r.valid_px for r in records),
        )

    def _item(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        item = build_item(
            scene=self.scene.name,
            moment=self._moment(),
            geobox=self._source.geobox,
            legend=self.model.spec.legend(),
            files=[
                ResultFile(name=name, size_bytes=int(facts["bytes"]), sha256=str(facts["sha256"]))
                for name, facts in files.items()
            ],
            software={"scenemask": versions()["scenemask"]},
            properties={"scenemask:model": self.model.spec.name, "scenemask:model_digest": self.model.digest},
        )
        atomic_write_json(self._path("item.json"), item)

    def _moment(self) -> datetime:
        """When the scene file was last written: all that most rasters tell of their time."""
        nanoseconds = self.scene.fingerprint().get("mtime_ns")
        seconds = nanoseconds / 1e9 if isinstance(nanoseconds, int) else time.time()
        return datetime.fromtimestamp(seconds, UTC)

    def _areas(self) -> tuple[float, ...] | None:
        """Geodesic area per class: pixels of each tile times the mean area of its pixels."""
        areas = vector.PixelAreas.of(self._source.geobox)
        if areas is None:
            return None
        total = np.zeros(self.plan.num_classes)
        for index, core in enumerate(self._source.tiles):
            record = self._source.records[index]
            if record.class_px is None or not record.valid_px:
                continue
            x = np.array([core.col_off, core.col_stop, core.col_off, core.col_stop])
            y = np.array([core.row_off, core.row_off, core.row_stop, core.row_stop])
            corners = areas.to_m2(areas.integral(x, y))
            total += np.array(record.class_px) * (corners @ np.array([1, -1, -1, 1])) / core.num_pixels
        return tuple(float(v) for v in total)
