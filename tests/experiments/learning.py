"""One network trained on one labelled scene and scored on its test part."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray

import pipeline as sm
from pipeline.grid import Window, iter_parts
from pipeline.model import Scaling, UNet, UNetConfig
from pipeline.train import TrainSettings, make_train_settings
from pipeline.train.check import predict_window
from pipeline.train.chips import ChipPlaces
from pipeline.train.data import LabelledView, open_views
from pipeline.train.events import silent
from pipeline.train.loader import BatchMaker
from pipeline.train.loop import train
from pipeline.train.split import Split, make_split
from pipeline.train.survey import Survey, survey
from pipeline.train.target import IGNORE

BOUNDARY = "2 px"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A dataset that has been looked at once."""

    document: dict[str, Any]
    views: list[LabelledView]
    split: Split
    found: Survey

    @property
    def test(self) -> Window:
        """The test area; each dataset has one."""
        (area,) = self.split["test"]
        return area.window

    @property
    def scaling(self) -> Scaling:
        """Scene-wide constants of the training part."""
        bands = len(self.found.mean)
        return Scaling(scale=(1.0,) * bands, offset=(0.0,) * bands, mean=self.found.mean, std=self.found.std)

    def settings(self, **changes: Any) -> TrainSettings:
        """Settings of one training."""
        return make_train_settings({**self.document, **changes})


def prepare(document: dict[str, Any]) -> Prepared:
    """Open a dataset and look at all of it."""
    settings = make_train_settings(document)
    views = open_views(settings)
    split = make_split(views, settings.split, num_classes=len(settings.class_names))
    found = survey(views, split, num_classes=len(settings.class_names))
    return Prepared(document=document, views=views, split=split, found=found)


def learn(data: Prepared, settings: TrainSettings) -> UNet:
    """Train without looking at a validation part: few labels leave none to spare."""
    torch.manual_seed(settings.seed)
    network = UNet(
        UNetConfig(
            bands=len(data.found.mean),
            outputs=len(settings.class_names),
            depth=settings.network.depth,
            width=settings.network.width,
            skips=settings.network.skips,
            dropout=settings.network.dropout,
        )
    )
    places = ChipPlaces(data.split["train"], data.found.places, settings.chips, settings.seed)
    batches = BatchMaker(data.views, places, data.scaling, settings)
    with tempfile.TemporaryDirectory() as folder:
        return train(network, batches, data.found, (), Path(folder), listener=silent).network


def predict(data: Prepared, network: UNet, *, shuffled_band: int | None = None) -> NDArray[np.uint8]:
    """Classes of the test area; with one band's values in random places, for its importance."""
    area, stride = data.test, 1 << network.config.depth
    mask = np.zeros(area.shape, np.uint8)
    view = data.views[0] if shuffled_band is None else _shuffled(data, shuffled_band)
    for window in iter_parts(area, (512, 512)):
        mask[window.slices_in(area)] = predict_window(network, view, window, data.scaling, stride=stride)
    return mask


def truth_of(data: Prepared) -> NDArray[np.uint8]:
    """Class values of the test area, 255 where nothing is known."""
    target = data.views[0].read(data.test).target
    return np.where(target == IGNORE, 255, target).astype(np.uint8)


def score(mask: NDArray[np.uint8], truth: NDArray[np.uint8], names: tuple[str, ...]) -> dict[str, float]:
    """Mean IoU and boundary F1, and those of the last class, by `scenemask evaluate`."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("mask.tif", "truth.tif")]
        for path, values in zip(paths, (mask, truth), strict=True):
            profile = {"driver": "GTiff", "height": values.shape[0], "width": values.shape[1], "count": 1}
            with rasterio.open(
                path, "w", dtype="uint8", nodata=255, crs="EPSG:3857",
                transform=rasterio.Affine(1, 0, 1e5, 0, -1, 1e5), **profile,
            ) as file:  # fmt: skip
                file.write(values, 1)
        report = sm.evaluate(*paths, classes=list(names), boundary=BOUNDARY).to_dict()
    edges = report["boundary"]
    return {
        "mean_iou": report["overall"]["mean_iou"],
        "iou": report["per_class"][-1]["iou"],
        "mean_bf1": edges["mean_f1"],
        "bf1": edges["per_class"][-1]["f1"],
    }


def _shuffled(data: Prepared, band: int) -> LabelledView:
    """The view with one band's values of the test area exchanged at random."""

    class Shuffled(LabelledView):
        def read(self, window: Window, *, inside: Window | None = None) -> Any:
            sample = data.views[0].read(window, inside=inside)
            values = sample.data[band]
            order = np.random.default_rng([abs(window.row_off), abs(window.col_off), band]).permutation(values.size)
            sample.data[band] = values.ravel()[order].reshape(values.shape)
            return sample

    view = data.views[0]
    return Shuffled(name=view.name, scene=view.scene, target=view.target, factor=view.factor, cache=view.cache)
