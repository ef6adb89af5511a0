"""Settings of `train`: every key explained in one file, and one sentence for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.train import make_train_settings, read_train_settings
from pipeline.train.settings import to_yaml

CONFIGS = Path(__file__).parents[3] / "configs" / "train"
SMALL: dict[str, Any] = {
    "name": "fields",
    "classes": [{"name": "other", "background": True}, "field"],
    "scenes": [{"scene": "scene.tif", "labels": "labels.gpkg", "label_class": "field"}],
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_example_is_valid_and_survives_being_written(path: Path, tmp_path: Path) -> None:
    settings = read_train_settings(path)
    (tmp_path / "again.yaml").write_text(to_yaml(settings))
    assert read_train_settings(tmp_path / "again.yaml") == settings


def test_full_example_names_every_key_with_its_default() -> None:
    assert read_train_settings(CONFIGS / "full.yaml") == make_train_settings(SMALL)
    text = (CONFIGS / "full.yaml").read_text()

    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list | tuple) else set()

    missing = [key for key in keys(make_train_settings(SMALL).model_dump()) if f"{key}:" not in text]
    assert not missing


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("schedule.stesp=3", "did you mean 'steps'"),
        ("chips.size=100", "multiple of the network's stride 16"),
        ("scenes.0.label_class=feld", "did you mean 'field'"),
        ("scenes.3.labels=x", "3 holds no keys"),
        ("name.x=3", "name holds no keys"),
        ("loss={cross_entropy: 0, dice: 0}", "the loss has no part"),
        ("loss.class_weights=[1, 2, 3]", "3 values for 2 classes"),
        ("classes=[a, a]", "named twice"),
        ("schedule.time_limit=soon", "is not a time"),
        ("schedule", "expected key=value"),
    ],
)
def test_mistakes_are_told_in_a_sentence(change: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        read_train_settings(CONFIGS / "full.yaml", [change])


def test_a_wrong_entry_of_a_list_is_told_once() -> None:
    with pytest.raises(UsageError) as error:
        make_train_settings({**SMALL, "scenes": [{**SMALL["scenes"][0], "label_clas": "field"}]})
    assert error.value.what == "scenes.0: unknown key 'label_clas', did you mean 'label_class'?"


def test_single_entries_can_be_changed() -> None:
    changes = ["schedule.steps=7", "schedule.time_limit=20 min", "scenes.0.labels=other.gpkg", "bands=[red, '4']"]
    settings = read_train_settings(CONFIGS / "full.yaml", changes)
    assert settings.schedule.steps == 7
    assert settings.schedule.time_limit == 1200
    assert settings.scenes[0].labels == Path("other.gpkg")
    assert settings.bands == ("red", "4")
