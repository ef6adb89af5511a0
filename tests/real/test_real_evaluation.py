"""Published scores of real masks, from the files as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import pipeline as sm

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]


def test_the_published_iou_of_a_cloud_mask(real_data: Path) -> None:
    found = sm.evaluate(
        real_data / "golden" / "cloud6__cloud_s2_mask.tif",
        real_data / "labelled" / "cloud_s2_label.tif",
        classes="1=clear,2=cloud",
        recode="4=cloud,*=clear",
    )
    assert found.iou["cloud"] == pytest.approx(0.832, abs=5e-4)
    assert found.to_dict()["pixels"]["compared"] == 512 * 512


def test_a_town_burnt_by_others_is_burnt_the_same(real_data: Path) -> None:
    """1466 polygons in degrees against the mask that was made of them in metres: not one pixel differs."""
    labels = real_data / "labels"
    found = sm.evaluate(
        labels / "banepa_buildings_mask.tif",
        labels / "banepa_buildings.geojson",
        classes="other,building",
        outside="other",
        objects="building",
    )
    assert found.overall_accuracy == 1
    objects = found.to_dict()["objects"][0]
    assert objects["f1"] == 1
    assert objects["matched"] > 1000
