from __future__ import annotations

import logging
import pickle

import pytest

from pipeline.errors import InputError
from pipeline.redact import redact

CANARY = "c4n4ry"


@pytest.mark.parametrize(
    "text",
    [
        f"https://host/a.tif?X-Amz-Signature={CANARY}&X-Amz-Credential={CANARY}/20260101 cannot be read",
        f"'/vsicurl/https://host/a.tif?sv=2020&sig={CANARY}%3D' not recognized",
        f"a.tif?sig={CANARY}, band 1: IReadBlock failed",
        f"https://host/a.tif?{CANARY}",
        f"https://user:{CANARY}@host/a.tif",
        f"s3://{CANARY}:{CANARY}@bucket/key",
        f"token={CANARY} is wrong",
        f"Authorization: Bearer {CANARY}",
        f"{{'authorization': 'AWS4-HMAC-SHA256 Credential={CANARY}'}}",
    ],
)
def test_t13_secrets_are_taken_out_of_text(text: str) -> None:
    assert CANARY not in redact(text)
    error = InputError(text, code="IN-005", title="x", where=text, fix=text)
    for shown in (error.block(), str(error), repr(error), str(pickle.loads(pickle.dumps(error))), str(error.to_dict())):
        assert CANARY not in shown


def test_t13_keys_of_the_environment_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    assert redact(f"wrong key {CANARY}!") == "wrong key ***!"


@pytest.mark.parametrize(
    "text",
    [
        "scene.tif is not a raster: it starts with '<html>'; is it a web page?",
        "give --simplify '1 px' or min_area=12; what=now?",
        "s3://bucket/prefix/mask.tif fails (window rows 0-600, columns 0-700)",
        "the scene's key has 3 values: scale=1, offset=0, mean=0.5",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text


def test_t13_rasterios_log_is_redacted(caplog: pytest.LogCaptureFixture) -> None:
    import pipeline.scene.datasets  # noqa: F401 - puts the filter in place

    with caplog.at_level(logging.DEBUG, "rasterio"):
        logging.getLogger("rasterio._env").error("CURL error: %s", f"https://host/a.tif?sig={CANARY}")
    assert caplog.records
    assert CANARY not in caplog.text
