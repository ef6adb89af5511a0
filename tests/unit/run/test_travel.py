"""Errors cross from worker to client with everything that they say."""

from __future__ import annotations

import pickle

import pytest
from distributed.core import error_message

from pipeline.errors import InputError, PipelineError
from pipeline.grid import Window
from pipeline.run.travel import portable
from pipeline.store import DamagedTilesError

WINDOW = Window(row_off=1, col_off=2, height=3, width=4)


class _LostError(Exception):
    """As GDAL's errors in rasterio: can be pickled, not restored."""

    def __init__(self, first: int, second: str) -> None:
        super().__init__(second)
        self.first = first


def _through_dask(error: Exception) -> BaseException:
    message = error_message(error)
    arrived = pickle.loads(message["exception"].data)
    assert isinstance(arrived, BaseException)
    return arrived


def _fail() -> None:
    raise _LostError(7, "TIFFReadEncodedTile() failed")


def _caused(error: Exception) -> Exception:
    error.__cause__ = OSError("read failed; see previous exception")
    error.__cause__.__cause__ = _LostError(7, "TIFFReadEncodedTile() failed")
    return error


ERRORS: list[PipelineError] = [
    InputError("what", code="IN-005", title="title", where="where", fix="fix"),
    DamagedTilesError("what", code="ST-001", title="title", where="where", fix="fix", windows=[WINDOW]),
]


@pytest.mark.parametrize("error", ERRORS, ids=["input", "damaged"])
def test_expected_errors_keep_every_field(error: PipelineError) -> None:
    arrived = _through_dask(portable(_caused(error)))
    assert type(arrived) is type(error)
    assert vars(arrived) == vars(error)
    assert "_LostError: TIFFReadEncodedTile() failed" in str(arrived.__cause__)
    assert "OSError: read failed" in str(arrived.__cause__)


def test_the_context_is_no_stowaway() -> None:
    error = ERRORS[0]
    try:
        try:
            _fail()
        except _LostError:
            raise error  # noqa: B904 - the point
    except InputError as caught:
        failure = portable(caught)
    assert _through_dask(failure).__context__ is None


@pytest.mark.parametrize("error", [MemoryError("no"), FileNotFoundError(2, "No such file", "x"), KeyError("k")])
def test_built_in_errors_keep_their_kind(error: Exception) -> None:
    error.add_note("a note")
    arrived = _through_dask(portable(error))
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert arrived.__notes__ == ["a note"]


def test_an_error_that_cannot_be_restored_arrives_as_text() -> None:
    arrived = _through_dask(portable(_LostError(7, "CPLE")))
    assert type(arrived) is RuntimeError
    assert str(arrived) == "_LostError: CPLE"
