"""The settings of `segment`: one frozen, validated value, the same for command line, file and Python."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from pipeline.access import Access
from pipeline.errors import UsageError
from pipeline.location import is_remote, parse_location
from pipeline.quantities import parse_bytes, sentence, unknown_key
from pipeline.run.clusters.options import NAMES, absolute_file, check_cluster, is_file

if TYPE_CHECKING:
    from collections.abc import Mapping


def _quantity(unit: str) -> BeforeValidator:
    """A number, or text such as `64 px`; another unit is refused, never converted by guessing."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z0-9²%]*)\s*", value)
        if match is None or match.group(2).replace("²", "2") not in ("", unit):
            msg = f"{value!r} is not a number of {unit}; write `64 {unit}` or `64`"
            raise ValueError(msg)
        number = float(match.group(1))
        return int(number) if number.is_integer() else number

    return BeforeValidator(parse)


def _measure(what: str, *units: str) -> BeforeValidator:
    """A number of the first unit, or text such as `1.5 px`, as (number, unit)."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value if isinstance(value, list | tuple) else (value, units[0])
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z0-9²]*)\s*", value)
        unit = match.group(2).replace("²", "2") or units[0] if match else ""
        if match is None or unit not in units:
            msg = f"{value!r} is not {what}; write `5`, `5 {units[0]}` or `5 {units[1]}`"
            raise ValueError(msg)
        return float(match.group(1)), unit

    return BeforeValidator(parse)


def _whole(value: Any) -> Any:
    """Digits become a number."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _listed(value: Any) -> Any:
    """Text with commas, or a single value, becomes a list."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value if isinstance(value, list | tuple) else (value,)


def _texts(value: Any) -> Any:
    return tuple(_text(part) for part in _listed(value))


def _text(part: Any) -> Any:
    """Numbers of bands are text too; what a file's reader took for something else is not guessed back."""
    if isinstance(part, float) or part is None:
        msg = f"{part!r} is no name; put it in quotes if it is meant as one"
        raise ValueError(msg)
    return str(part) if isinstance(part, int) and not isinstance(part, bool) else part


def _vectors(value: Any) -> Any:
    names = _listed(value)
    return () if names == ("none",) else names


Formats = Annotated[tuple[Literal["geojson", "gpkg", "fgb", "parquet"], ...], BeforeValidator(_vectors)]
Pixels = Annotated[int, _quantity("px")]
Seconds = Annotated[float, _quantity("s")]
Area = Annotated[tuple[Annotated[float, Field(ge=0)], Literal["m2", "px"]], _measure("an area", "m2", "px")]
Names = Annotated[tuple[str, ...], BeforeValidator(_texts)]


def _on_disk(value: Any) -> Any:
    if is_remote(value):
        msg = "is an address, expected a path on a disk"
        raise ValueError(msg)
    return value


AbsolutePath = Annotated[Path, BeforeValidator(_on_disk), AfterValidator(Path.absolute)]
"""Read from the folder in which the command was given: workers may stand in another one."""


def _place(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _absolute_place(text: str) -> str:
    """A file's path as seen from any folder; addresses and names of bands stay as they are."""
    return text if is_remote(text) or not Path(text).exists() else str(Path(text).absolute())


def _folder_or_prefix(value: Any) -> Any:
    if not is_remote(value):
        return Path(value).absolute() if isinstance(value, str | Path) else value
    try:
        return str(parse_location(value, schemes=("s3",))).rstrip("/")
    except UsageError as error:
        raise ValueError(error.what) from error


FolderOrPrefix = Annotated[Path | str, BeforeValidator(_folder_or_prefix)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_listed)]
Probabilities = Annotated[
    tuple[Annotated[float, Field(gt=0, lt=1)], ...], BeforeValidator(_listed), Field(min_length=1)
]


Length = Annotated[tuple[Annotated[float, Field(gt=0)], Literal["m", "px"]], _measure("a length", "m", "px")]


def _resolution(value: Any) -> Any:
    return value if value in ("native", "model") else _metres(value)


def _metres(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)\s*(m?)\s*", value)
    if match is None:
        msg = f"{value!r} is not native, model or a length; write `10` or `10 m`"
        raise ValueError(msg)
    return float(match.group(1))


Resolution = Annotated[Literal["native", "model"] | Annotated[float, Field(gt=0)], BeforeValidator(_resolution)]


class SegmentSettings(BaseModel):
    """Options of `segment`; each is a flag, a key of a settings file and a keyword in Python."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    bands: Names | None = None
    """Bands of the scene by name or 1-based number, in the model's order; matched by name if not given."""
    aoi: AbsolutePath | None = None
    """Polygons (GeoJSON, GeoPackage, FlatGeobuf or Shapefile; any CRS); nothing outside is computed or written."""
    mask_layer: Annotated[str, BeforeValidator(_place), AfterValidator(_absolute_place)] | None = None
    """Quality layer, such as Sentinel-2's SCL: a raster of one band in any resolution and CRS, or the name of a band of
    the scene. Its pixels with one of mask_values come out as nodata; what the network sees stays as it is."""
    mask_values: Annotated[tuple[int, ...], BeforeValidator(_listed)] = ()
    """Class numbers of mask_layer that are left out, such as `3,8,9,10`."""
    nodata: float | None = Field(default=None, allow_inf_nan=True)
    """Value that means "no data", where the file declares none or a wrong one."""
    assume_crs: str | None = None
    """CRS of a scene that has none, such as `EPSG:32633`."""
    allow_no_crs: bool = False
    """Take a scene without CRS; polygons are then in pixel space."""
    resampling: Literal["auto", "nearest", "bilinear", "cubic", "average"] = "auto"
    """How bands come onto a grid with other pixels than theirs; auto: average where the grid is coarser, else
    bilinear."""
    resolution: Resolution = "native"
    """Pixels that the network sees, and the mask has: native, the scene's own; model, those that the model was trained
    on; or metres on the ground."""
    mask_grid: Literal["model", "scene"] = "model"
    """Pixels of the mask, with resolution: those that the network saw (model), or the scene's own, each with the class
    of the one that its centre lies in (scene)."""
    force_resolution: bool = False
    """Take scenes whose pixels are four times as large or as small as those that the model was trained on."""
    crs: str | None = None
    """CRS to bring the scene into while it is read, such as `EPSG:32633`."""
    align: AbsolutePath | None = None
    """Raster on whose grid, pixel by pixel, the scene is read and the mask written."""
    warp_gcps: bool = False
    """Take a scene that only ground control points or RPCs place, and move its pixels to where they belong."""
    rpc_height: Annotated[float, _quantity("m")] | None = None
    """Height of the ground above the ellipsoid in metres, for a scene that RPCs place; with rpc_dem what is added to
    it, such as the geoid's height."""
    rpc_dem: AbsolutePath | None = None
    """Raster of heights of the ground, for a scene that RPCs place."""
    values: Literal["auto", "model", "scene"] = "auto"
    """Whose word on scale and offset counts: model, stored values go in as they are; scene, they are converted by the
    scene's own scale and offset; auto: the scene's where it has both in the model's units."""
    tiling: Literal["auto", "exact", "blend"] = "auto"
    """exact: equals one whole forward; blend: weighted mean of overlapping patches; auto: what the network allows."""
    halo_tolerance: float | None = Field(default=None, gt=0, lt=1)
    """Take the smallest halo at which no probability of sampled windows changes by more, where the whole one costs too
    much; the result then equals one whole forward up to about this."""
    overlap: Pixels | None = Field(default=None, ge=0)
    """Pixels that neighbouring patches share in blend mode; a quarter of the patch if not given."""
    patch: Pixels | None = Field(default=None, ge=1)
    """Side of the square given to the network; chosen from the memory budget if not given."""
    tile: Pixels = Field(default=512, ge=1)
    """Least side of a tile's core; rounded up to whole patch cores. Changes no pixel."""
    taper: Literal["hann", "gaussian", "linear"] = "hann"
    """Weights of blend mode."""
    tta: Literal["none", "flips", "d4"] = "none"
    """Test-time augmentation: probabilities averaged over 4 flips, or over all 8 flips and turns of each patch."""
    padding: Literal["auto", "reflect", "edge", "zero", "network"] = "auto"
    """How the scene is extended beyond its rim; auto: what the model says, mirror if it says nothing."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where forwards run."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the forward; auto: bfloat16 where hardware and `max_flip` allow it. float32 is the reference of exactness."""
    max_flip: float = Field(default=0.002, ge=0, le=1)
    """Largest share of sampled pixels whose class may differ from float32 for `precision: auto` to take bfloat16."""
    backend: Literal["auto", "torch", "openvino", "onnxruntime"] = "auto"
    """Library that runs the network; auto: OpenVINO on x86 CPUs where it gives what the network gives."""
    deterministic: bool = False
    """Use only kernels that give the same bits each time, and fail where memory does not suffice for the plan's patch;
    else it is cut in two there, which may change low bits and is recorded."""
    trust_model: bool = False
    """Run a TorchScript or torch.export model: such files are programs and can do anything."""
    probabilities: bool = False
    """Also write probabilities.tif, one band per class."""
    vectors: Annotated[tuple[Literal["geojson", "gpkg", "fgb", "parquet"], ...], BeforeValidator(_vectors)] = (
        "geojson",
    )
    """Formats of the polygons; `none` for none."""
    connectivity: Annotated[Literal[4, 8], BeforeValidator(_whole)] = 4
    """Whether pixels of a class that touch at a corner only are one polygon (8, of several parts) or several (4)."""
    fill_holes: Area | None = None
    """Fill holes of polygons below this, in m2 or as `12 px`, and leave out what lies inside them; the mask stays as it
    is."""
    min_area: Area | None = None
    """Smallest polygon that is written, in m2 on the ellipsoid or as `12 px`; the mask stays as it is."""
    sieve: bool = False
    """Give regions below min_area to the neighbour with the longest shared border, all at once, instead of leaving
    holes."""
    smooth: bool = False
    """Make straight diagonals of staircases, for both sides of an edge alike; before simplify."""
    simplify: Length | None = None
    """Simplify polygons: corners whose triangle is no larger than the square of this go, in metres or as `1 px`; shared
    edges move once for both sides, so that no gaps or overlaps appear. Where three polygons meet, and where edges leave
    the scene's rim, they stay. The mask stays as it is."""
    regularize: Names = ()
    """Classes, by name or number, whose polygons get straight walls and right angles (buildings): walls that touch stay
    shared and neighbours follow. Walls may be off by simplify, at least 1.5 px. The mask stays as it is."""
    min_iou: float = Field(default=0.8, ge=0, le=1)
    """With regularize: polygons whose intersection over union with what was traced would be less keep their outline."""
    verify: int = Field(default=0, ge=0)
    """Windows that are computed once more, away from the tiling, and compared before results are written; 0: none."""
    cluster: Annotated[str, AfterValidator(absolute_file)] = "local"
    """Where workers come from: `local`; `cuda`, a process for each GPU of this machine; `slurm`, `pbs`, `lsf`, `sge` or
    `kubernetes`, which are started for the run; the address of a running Dask scheduler (`tls://host:port`); or a file
    with the options of one of these (`configs/cluster/`)."""
    workers: int = Field(default=1, ge=1)
    """Local workers, with `cluster: cuda` for each GPU; more than one are processes, which take the GPUs in turn. With
    slurm, kubernetes and the like: how many are kept, instead of the number in their file."""
    insecure_cluster: bool = False
    """Use a scheduler on another host without encryption: whoever reaches it can run programs as you."""
    allow_version_skew: bool = False
    """Use workers whose packages differ from those here in the patch level, such as NumPy 2.4.1 and 2.4.3."""
    stuck_after: Seconds = Field(default=300, gt=0)
    """Seconds in which no tile ends, at least ten times as long as a tile takes, after which what runs is written down
    and worker processes are started anew."""
    memory: Annotated[int, BeforeValidator(parse_bytes)] | None = Field(default=None, ge=2**28)
    """Memory per worker, such as `8GB`; sets the patch and how many decoded blocks are kept. If not given: what the
    cluster's file says, else 1.75 GB, or 6 GB beside a GPU."""
    scratch: FolderOrPrefix | None = None
    """Where unfinished tiles lie: a folder, or `s3://bucket/prefix`, which workers reach without a shared disk; inside
    the output folder if not given."""
    keep: bool = False
    """Keep the scratch store after success."""
    endpoint: str | None = None
    """Address of a service that answers as S3 does, for all `s3://` addresses (`gs://`, `az://`: as Google or Azure).
    The cloud's own, or for S3 what AWS_ENDPOINT_URL says, if not given. Keys come from where each cloud's tools
    look."""
    allow_loopback: bool = False
    """Follow web addresses that lead to this machine."""
    retries: int = Field(default=5, ge=0)
    """Further attempts where a server answers with a passing trouble (429, 500, 502, 503, 504) or cuts its answer."""
    connect_timeout: Annotated[float, _quantity("s")] = Field(default=10.0, gt=0)
    """Seconds until a connection to a server must stand."""
    read_timeout: Annotated[float, _quantity("s")] = Field(default=30.0, gt=0)
    """Seconds that a transfer from a server may stand still."""
    scale: Numbers = (1.0,)
    """For a bare weights file: input = (DN x scale + offset - mean) / std, one value or one per band."""
    offset: Numbers = (0.0,)
    """See scale."""
    mean: Numbers = (0.0,)
    """See scale."""
    std: Numbers = (1.0,)
    """See scale."""
    class_names: Names = ()
    """For a bare weights file: names of the classes in order."""
    activation: Literal["none", "softmax", "sigmoid"] | None = None
    """For a bare weights file: what turns its output into probabilities."""
    multilabel: bool = False
    """For a bare weights file: a pixel may have several classes, or none; the mask has a band per class."""
    threshold: Probabilities = (0.5,)
    """For a bare weights file with one output: class 1 where p >= threshold. With --multilabel: each class where its
    p >= threshold; one number for all, or one per class."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Python counts True as 1."""
        assert info.field_name is not None
        parts = value if isinstance(value, list | tuple) else (value,)
        if cls.model_fields[info.field_name].annotation is not bool and any(isinstance(part, bool) for part in parts):
            msg = "expected a value, not true or false (put it in quotes if it is meant as text)"
            raise ValueError(msg)
        return value

    @field_serializer("nodata", when_used="json")
    def _nodata_in_json(self, value: float | None) -> float | str | None:
        """JSON has no NaN; and the text equals itself, so that a rerun finds the same setting."""
        return value if value is None or math.isfinite(value) else str(value)

    @field_serializer("mask_layer", when_used="json")
    def _layer_in_json(self, value: str | None) -> str | None:
        """The query of an address may be a signature."""
        return value.partition("?")[0] if value is not None and is_remote(value) else value

    def _grid_problems(self) -> list[str]:
        problems = []
        if self.align is not None and (self.crs is not None or self.resolution != "native"):
            problems.append("align says what grid it is; crs and resolution would say it again")
        if self.mask_grid == "scene" and (self.align is not None or self.crs is not None):
            problems.append("align and crs say where the mask lies; mask_grid: scene goes with resolution only")
        if (self.rpc_height is not None or self.rpc_dem is not None) and not self.warp_gcps:
            problems.append("rpc_height and rpc_dem belong to warp_gcps")
        return problems

    @model_validator(mode="after")
    def _possible(self) -> Self:
        problems = self._grid_problems()
        if self.overlap is not None and self.patch is not None and self.overlap >= self.patch:
            problems.append(f"overlap {self.overlap} px must be smaller than patch {self.patch} px")
        if self.overlap is not None and self.tiling == "exact":
            problems.append("overlap belongs to blend mode; exact mode takes the halo measured from the network")
        if self.sieve and (self.min_area is None or not self.min_area[0]):
            problems.append("sieve needs min_area, below which regions are given away")
        if self.smooth and self.regularize:
            problems.append("smooth and regularize exclude each other: straight walls have no staircases")
        if self.sieve and self.connectivity != 4:  # noqa: PLR2004
            problems.append("sieve gives regions to neighbours across their sides; it needs connectivity 4")
        if self.assume_crs is not None and self.allow_no_crs:
            problems.append("assume_crs and allow_no_crs exclude each other")
        if (self.mask_layer is None) != (not self.mask_values):
            problems.append(
                "mask_layer and mask_values need each other: a layer, and which of its numbers to leave out"
            )
        if self.cluster not in NAMES and "://" not in self.cluster and not is_file(self.cluster):
            problems.append(
                f"cluster {self.cluster!r} is none of {', '.join(NAMES)}, no address such as tls://host:8786 and no "
                ".yaml file"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


def access_of(settings: SegmentSettings) -> Access:
    """How servers are reached.

    Raises:
        UsageError: CF-054, the endpoint is no address.
    """
    return Access(
        endpoint=settings.endpoint,
        allow_loopback=settings.allow_loopback,
        retries=settings.retries,
        connect_s=settings.connect_timeout,
        stall_s=settings.read_timeout,
    ).resolved()


# What may differ between a run and its resumption: it changes no output.
COSMETIC = frozenset({
    "trust_model", "workers", "cluster", "memory", "scratch", "keep", "verify", "stuck_after",
    "insecure_cluster", "allow_version_skew",
    "endpoint", "allow_loopback", "retries", "connect_timeout", "read_timeout",
})  # fmt: skip

_COMMAND_LINE = {
    "scene": "SCENE", "model": "-m/--model", "out": "-o/--out", "config": "--config", "overwrite": "--overwrite",
    "json": "--json", "verbose": "-v", "v": "-v", "quiet": "-q", "q": "-q", "debug": "--debug",
}  # fmt: skip
"""What one command does once, and a settings file cannot hold."""


def make_settings(given: Mapping[str, Any], *, where: str = "options") -> SegmentSettings:
    """Validated settings from option names and values.

    Args:
        given: Only what was given explicitly; names as in `SegmentSettings`.
        where: Named in errors: the file, or "options".

    Raises:
        UsageError: CF-005 with every problem at once, unknown names with the nearest known one; what `check_cluster`
            refuses.
    """
    known = SegmentSettings.model_fields
    named = {str(key).replace("-", "_"): value for key, value in given.items()}
    problems = [_unknown(key, list(known)) for key in named if key not in known]
    settings, wrong = _validated({key: value for key, value in named.items() if key in known})
    problems += wrong
    if settings is None or problems:
        raise UsageError(
            "; ".join(problems),
            code="CF-005",
            title="Settings are wrong" if len(problems) > 1 else "Setting is wrong",
            where=where,
            fix="see `scenemask segment --help` or configs/segment/full.yaml",
        )
    check_cluster(settings)
    return settings


def _validated(named: dict[str, Any]) -> tuple[SegmentSettings | None, list[str]]:
    """Settings, or None and every problem: what cannot be combined is looked for among the right values too."""
    try:
        return SegmentSettings(**named), []
    except ValidationError as error:
        details = error.errors()
    wrong = {detail["loc"][0] for detail in details if detail["loc"]}
    problems = [sentence(detail) for detail in details]
    if wrong:
        problems += _validated({key: value for key, value in named.items() if key not in wrong})[1]
    return None, problems


def _unknown(key: str, known: list[str]) -> str:
    if key in _COMMAND_LINE:
        return f"{key!r} is no setting: give {_COMMAND_LINE[key]} on the command line"
    return unknown_key(key, known)
