"""Which files of a repository a name means."""

from __future__ import annotations

import pytest

from gguf_harness.errors import ModelNotFound
from gguf_harness.inputs.hub_names import pick_files

NAMES = [
    "Flora-7B-F16.gguf",
    "Flora-7B-Q4_K_M.gguf",
    "Flora-7B-Q4_K_S.gguf",
    "Flora-7B-UD-Q4_K_XL.gguf",
    "Flora-7B-UD-Q8_0.gguf",
    "Flora-7B.i1-IQ2_M.GGUF",
    "flora_7b_Q5_K_M.gguf",
    "mmproj-Flora-7B-F16.gguf",
    "Q6_K/Flora-7B-Q6_K-00001-of-00002.gguf",
    "Q6_K/Flora-7B-Q6_K-00002-of-00002.gguf",
]


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("Q4_K_M", ["Flora-7B-Q4_K_M.gguf"]),
        ("q4_k_m", ["Flora-7B-Q4_K_M.gguf"]),
        ("UD-Q4_K_XL", ["Flora-7B-UD-Q4_K_XL.gguf"]),
        ("Q8_0", ["Flora-7B-UD-Q8_0.gguf"]),
        ("IQ2_M", ["Flora-7B.i1-IQ2_M.GGUF"]),
        ("Q5_K_M", ["flora_7b_Q5_K_M.gguf"]),
        ("F16", ["Flora-7B-F16.gguf"]),
        ("mmproj-Flora-7B-F16", ["mmproj-Flora-7B-F16.gguf"]),
        ("Q6_K", ["Q6_K/Flora-7B-Q6_K-00001-of-00002.gguf", "Q6_K/Flora-7B-Q6_K-00002-of-00002.gguf"]),
        (
            "Q6_K/Flora-7B-Q6_K-00002-of-00002.gguf",
            ["Q6_K/Flora-7B-Q6_K-00001-of-00002.gguf", "Q6_K/Flora-7B-Q6_K-00002-of-00002.gguf"],
        ),
    ],
)
def test_a_type_or_a_file_names_one_model(what: str, expected: list[str]) -> None:
    assert pick_files(NAMES, what, f"hf:org/repo:{what}") == expected


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("Q4_K", "'Q4_K' matches nothing there"),
        ("Q2_K", "'Q2_K' matches nothing there"),
        ("K_M", "'K_M' matches nothing there"),
        ("Flora-7B", "matches 7 models"),
    ],
)
def test_a_part_of_a_type_is_not_the_type(what: str, message: str) -> None:
    with pytest.raises(ModelNotFound, match=message):
        pick_files(NAMES, what, f"hf:org/repo:{what}")
