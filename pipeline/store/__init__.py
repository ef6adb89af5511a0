"""Scratch store and ledger of a run, its lock, and the files that it leaves. Knows no torch, no Dask."""

from pipeline.store.blocks import block_rows, damaged_blocks
from pipeline.store.cog import cog_scratch_bytes, write_mask_cog, write_probability_cog
from pipeline.store.damage import DamagedTilesError
from pipeline.store.digest import sha256_array, sha256_file
from pipeline.store.files import (
    atomic_write_bytes,
    atomic_write_json,
    open_files_as_error,
    private_folder,
    read_json,
    remove_temporaries,
    require_free_space,
    same_disk,
    to_bytes,
)
from pipeline.store.ledger import LedgerScan, LedgerWriter, TileRecord, merge_records, read_ledger, scan_ledger
from pipeline.store.lines import LineWriter, iter_lines
from pipeline.store.lock import RunLock
from pipeline.store.place import Folder, Place, Prefix, as_place, read_object
from pipeline.store.probabilities import (
    PROBABILITY_NODATA,
    PROBABILITY_STEPS,
    quantize_probabilities,
    restore_probabilities,
)
from pipeline.store.records import TileRecords
from pipeline.store.runfile import (
    OutputKind,
    OutputState,
    Staging,
    changed_files,
    create_output_folder,
    describe_files,
    foreign_output,
    inspect_output,
    refuse_own_input,
)
from pipeline.store.stac import ResultFile, build_item
from pipeline.store.style import read_legend, write_class_names, write_qgis_style
from pipeline.store.tiles import TileDigest, TileStore

__all__ = [
    "PROBABILITY_NODATA",
    "PROBABILITY_STEPS",
    "DamagedTilesError",
    "Folder",
    "LedgerScan",
    "LedgerWriter",
    "LineWriter",
    "OutputKind",
    "OutputState",
    "Place",
    "Prefix",
    "ResultFile",
    "RunLock",
    "Staging",
    "TileDigest",
    "TileRecord",
    "TileRecords",
    "TileStore",
    "as_place",
    "atomic_write_bytes",
    "atomic_write_json",
    "block_rows",
    "build_item",
    "changed_files",
    "cog_scratch_bytes",
    "create_output_folder",
    "damaged_blocks",
    "describe_files",
    "foreign_output",
    "inspect_output",
    "iter_lines",
    "merge_records",
    "open_files_as_error",
    "private_folder",
    "quantize_probabilities",
    "read_json",
    "read_ledger",
    "read_legend",
    "read_object",
    "refuse_own_input",
    "remove_temporaries",
    "require_free_space",
    "restore_probabilities",
    "same_disk",
    "scan_ledger",
    "sha256_array",
    "sha256_file",
    "to_bytes",
    "write_class_names",
    "write_mask_cog",
    "write_probability_cog",
    "write_qgis_style",
]
