"""Whether memory holds several models at once."""

from __future__ import annotations

import math
from pathlib import Path

from gguf_harness.measure.memory import available_memory, container_memory, hold_together, needed_memory


def test_two_models_fit_where_a_container_has_room(tmp_path: Path) -> None:
    assert container_memory(tmp_path) == math.inf
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 300\nfile 400\nfile_mapped 9\n")
    assert container_memory(tmp_path) == math.inf
    (tmp_path / "memory.max").write_text("1000\n")
    assert container_memory(tmp_path) == 700
    model = tmp_path / "model"
    with model.open("wb") as file:
        file.truncate(10**6)
    assert hold_together([model, model], on_gpu=False)
    assert needed_memory([model, model]) == 2.5e6 < available_memory(on_gpu=False)
    with model.open("wb") as file:
        file.truncate(2**43)  # 8 TiB, of which nothing is on disk
    assert not hold_together([model, model], on_gpu=False)
