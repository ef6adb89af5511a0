"""Which test stands for which row of the catalogue of faults: those of severity 1 about inputs, F9, and the threats.

And whether docs/sources.md names tests that there are.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = {
    "C3": "test_c3_c4_a_block_that_cannot_be_decoded_is_an_error_not_nodata",
    "C4": "test_c3_c4_a_block_that_cannot_be_decoded_is_an_error_not_nodata",
    "C6": "test_c6_gcps_only",
    "C7": "test_c7_rpc_only",
    "C8": "test_c8_c9_odd_grids_are_kept",
    "C9": "test_c8_c9_odd_grids_are_kept",
    "C10": "test_c10_a_scene_across_the_antimeridian_is_cut_in_two",
    "C12": "test_c12_one_degree_boxes",
    "C14": "test_c14_pixel_is_point_means_the_centre",
    "C15": "test_c15_declared_nodata",
    "C16": "test_c16_undeclared_collar",
    "C17": "test_c17_nan_and_infinity_are_invalid_whatever_is_declared",
    "C18": "test_c18_nodata_alpha_and_dataset_mask_all_count",
    "C19": "test_c19_different_nodata_per_band",
    "C21": "test_c21_scenes_smaller_than_a_patch",
    "C22": "test_patch_cores_cover_every_tile",
    "C25": "test_c25_a_file_whose_writer_was_killed_is_suspicious",
    "C26": "test_c26_values_out_of_the_models_range_are_told",
    "C27": "test_c27_one_source_says_what_scale_and_offset_are",
    "C31": "test_c31_bands_are_matched_by_name",
    "C32": "test_c32_nothing_shifts",
    "C33": "test_what_lies_elsewhere_is_no_band_of_the_scene",
    "C34": "test_c34_pixels_far_from_the_models_are_warned_of_or_refused",
    "C36": "test_c36_pixels_come_from_the_image_itself_never_from_overviews",
    "C38": "test_c38_a_changed_file_is_noticed",
    "C43": "test_c43_duplicates_are_refused_before_any_work",
    "F9": "test_f9_t13_a_secret_in_a_settings_file_is_refused_and_not_repeated",
    "T1": "test_d2_t1_a_pickled_module_is_refused_and_not_run",
    "T2": "test_t2_a_program_is_refused",
    "T3": "test_weights_elsewhere_are_refused",
    "T4": "test_t4_virtual_files_are_not_opened_whatever_their_name",
    "T4 in NetCDF": "test_t4_hdf5_that_points_to_other_files_is_refused",
    "T5": "test_t5_redirections_to_services_of_machines_are_not_followed",
    "T6": "test_t6_names_that_would_lead_elsewhere",
    "T7": "test_t7_limits",
    "T8": "test_t8_yaml_has_no_code_and_no_bombs",
    "T13": "test_t13_secrets_are_taken_out_of_text",
    "T15": "test_t15_a_link_planted_at_the_temporary_name_is_not_followed",
    "T16": "test_t16_cells_that_a_spreadsheet_would_run_are_quoted",
}
"""Row -> the first of its tests."""


@pytest.fixture(scope="module")
def names() -> set[str]:
    files = Path(__file__).parents[1].rglob("test_*.py")
    return {name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("row", TESTS)
def test_the_row_has_its_test(names: set[str], row: str) -> None:
    assert TESTS[row] in names


def test_what_the_page_of_sources_says_is_shown_is_shown() -> None:
    root = Path(__file__).parents[2]
    told = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (root / "docs" / "sources.md").read_text())
    assert len(told) > 20
    for file, name in told:
        assert f"\ndef {name}" in (root / file).read_text(), f"{file}::{name}"
