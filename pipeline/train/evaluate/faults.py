"""Errors of rasters and vectors that are compared, made in one place so that they read alike."""

from __future__ import annotations

from pipeline.errors import InputError, UsageError


def unusable_pred(
    what: str, where: object, *, fix: str = "give the mask.tif of a run, or a raster of class numbers with one band"
) -> InputError:
    """EV-001."""
    return InputError(what, code="EV-001", title="PRED cannot be used", where=str(where), fix=fix)


def unusable_truth(
    what: str, where: object, *, fix: str = "give a raster of class numbers with one band, or polygons"
) -> InputError:
    """EV-002."""
    return InputError(what, code="EV-002", title="TRUTH cannot be used", where=str(where), fix=fix)


def no_overlap(what: str, where: object) -> InputError:
    """EV-003."""
    return InputError(
        what,
        code="EV-003",
        title="TRUTH does not overlap PRED",
        where=str(where),
        fix="compare both on a map; is each file's CRS what its coordinates are in?",
    )


def no_crs(what: str, where: object) -> InputError:
    """EV-004."""
    return InputError(
        what,
        code="EV-004",
        title="PRED and TRUTH cannot be laid over each other",
        where=str(where),
        fix="write the CRS into the file that lacks it: gdal_edit.py -a_srs EPSG:xxxx, or ogr2ogr -a_srs",
    )


def unclear(what: str, *, fix: str) -> UsageError:
    """EV-006."""
    return UsageError(what, code="EV-006", title="An option is missing or does not fit the files", fix=fix)
