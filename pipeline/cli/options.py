"""Command-line options of `segment` and `plan`, made from the settings: one place says what an option is."""

from __future__ import annotations

import functools
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_METAVARS = {
    "overlap": "PX", "patch": "PX", "tile": "PX", "bands": "NAMES|NUMBERS", "aoi": "FILE", "nodata": "V",
    "mask_layer": "FILE|BAND", "mask_values": "NUMBERS",
    "assume_crs": "CRS", "min_area": "M2", "workers": "N", "verify": "N", "scratch": "DIR|s3://…", "memory": "SIZE",
    "simplify": "M", "fill_holes": "M2", "regularize": "CLASS,…", "min_iou": "SHARE",
    "cluster": "NAME|ADDRESS|FILE.yaml", "vectors": "geojson,gpkg,fgb,parquet|none", "class_names": "NAMES",
    "scale": "NUMBERS", "offset": "NUMBERS", "mean": "NUMBERS", "std": "NUMBERS", "threshold": "NUMBERS",
    "halo_tolerance": "P", "stuck_after": "S", "max_flip": "SHARE",
    "resolution": "native|model|METRES", "crs": "CRS", "align": "FILE", "rpc_height": "METRES", "rpc_dem": "FILE",
    "endpoint": "URL", "retries": "N", "connect_timeout": "S", "read_timeout": "S",
}  # fmt: skip


class Place(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """A path, or an address, which is no path: `//` means something there."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Text with `://` in it stays text."""
        del param, ctx

        return value if isinstance(value, Path) or "://" in value else Path(value)


model_option = click.option(
    "-m",
    "--model",
    required=True,
    type=click.Path(path_type=Path),
    help="Model folder or network file (weights, ONNX, TorchScript, .pt2).",
)
config_option = click.option(
    "--config", type=click.Path(path_type=Path), help="Settings file (YAML); flags win over it."
)


class SettingsCommand(click.Command):
    """A command whose options are fields of `SegmentSettings`, added when it is first looked at.

    Building them needs pydantic, which `scenemask --help` does not.
    """

    _complete = False

    def settings(self) -> Iterable[str] | None:
        """Which fields; all if None."""
        return None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Own parameters, then one option per setting."""
        if not self._complete:
            self._complete = True
            self.params += settings_options(self.settings())
        return super().get_params(ctx)


class SceneCommand(SettingsCommand):
    """A command with those options of `segment` that say what is read of a scene."""

    def settings(self) -> Iterable[str]:
        """See `SettingsCommand`."""
        from pipeline.run.inspect import SCENE_SETTINGS

        return SCENE_SETTINGS


def settings_options(names: Iterable[str] | None = None) -> list[click.Option]:
    """One option per field of the settings, with its description and default.

    Args:
        names: Fields; all if None.
    """
    from pipeline.run.settings import SegmentSettings

    options = []
    for name, info in SegmentSettings.model_fields.items():
        if names is not None and name not in names:
            continue
        flag = "--" + name.replace("_", "-")
        text = " ".join((info.description or "").split())
        if info.annotation is bool:
            options.append(click.Option([flag], is_flag=True, default=None, help=text))
            continue
        default = _shown(info.default)
        help_text = f"{text}  [default: {default}]" if default else text
        options.append(click.Option([flag], metavar=_metavar(name, info.annotation), help=help_text))
    return options


def given_settings(values: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """What was given explicitly: the settings file's keys, then the flags, which win.

    Raises:
        UsageError: The file cannot be read; CF-005 for its wrong keys and values.
    """
    from pipeline.run.settings import SegmentSettings, make_settings
    from pipeline.yaml_file import read_yaml

    given: dict[str, Any] = {}
    if config is not None:
        given = {str(key).replace("-", "_"): value for key, value in read_yaml(config).items()}
        make_settings(given, where=str(config))
    known = SegmentSettings.model_fields
    return given | {name: value for name, value in values.items() if name in known and value is not None}


def with_common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """-v, -q, --json and --debug, the same on every command."""
    for option in (
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        click.option("-v", "--verbose", count=True, help="Say more."),
    ):
        function = option(function)
    return function


_SERVERS = ("endpoint", "allow_loopback", "retries", "connect_timeout", "read_timeout")


def with_servers(function: Callable[..., Any]) -> Callable[..., Any]:
    """How servers are reached, as one value `access`; the same options and defaults as those of `segment`."""

    @functools.wraps(function)
    def with_access(**values: Any) -> Any:
        from pipeline.run.settings import access_of, make_settings

        given = {name: value for name in _SERVERS if (value := values.pop(name)) is not None}
        return function(**values, access=access_of(make_settings(given)))

    for option in (
        click.option("--read-timeout", metavar="S", help="Seconds that a transfer from a server may stand still."),
        click.option("--connect-timeout", metavar="S", help="Seconds until a connection must stand."),
        click.option("--retries", metavar="N", help="Further attempts where a server has a passing trouble."),
        click.option("--allow-loopback", is_flag=True, default=None, help="Follow web addresses to this machine."),
        click.option("--endpoint", metavar="URL", help="Address of a service in place of the cloud's own."),
    ):
        option(with_access)
    return with_access


def _metavar(name: str, annotation: Any) -> str:
    if name in _METAVARS:
        return _METAVARS[name]
    parts = get_args(annotation) if get_origin(annotation) in (types.UnionType, Union) else (annotation,)
    for part in parts:
        if get_origin(part) is Literal:
            return "|".join(str(choice) for choice in get_args(part))
    return "TEXT"


def _shown(default: Any) -> str:
    if default is None or default == () or default is False:
        return ""
    return ",".join(str(part) for part in default) if isinstance(default, tuple) else str(default)
