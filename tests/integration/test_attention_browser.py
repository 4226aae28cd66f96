"""Charts of attention and heads in a real browser: what they draw is what the run stored, and all of it is reached."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.store.arrays import save_arrays
from tests.integration.report_pages import OpenReport, browser, open_report, page, see, shown  # noqa: F401 - fixtures
from tests.unit.test_attention_charts import MODELS, TOKENS, make_pattern, run_with_attention
from tests.unit.test_report import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

CHART = "attention-patterns"
N = len(TOKENS)


def _select(page: Page, what: str, value: str) -> None:  # noqa: F811
    page.locator(f"#{CHART} [data-control={what}] select").select_option(value)


def _assert_drawn(page: Page, place: tuple[int, int], **patterns: NDArray[Any] | None) -> None:  # noqa: F811
    """The head is chosen, and its weights are those given, within half a step of the bytes of their square roots."""
    drawn = shown(page, CHART)
    assert (drawn["layer"], drawn["head"]) == place
    for name, pattern in patterns.items():
        if pattern is None:
            assert drawn[name] is None
            continue
        roots = np.sqrt(np.array(drawn[name])) - np.sqrt(pattern.astype(np.float64))
        assert np.abs(roots).max() < 0.51 / 255, name


def test_a_head_is_chosen_and_seen_over_its_tokens(page: Page, tmp_path: Path, open_report: OpenReport) -> None:  # noqa: F811
    open_report(run_with_attention(tmp_path, 2, 3), tmp_path)
    see(page, CHART)
    own = [make_pattern(6, N, number) for number in range(3)]
    apart = np.abs(own[0].astype(np.float64) - own[2]).sum(axis=(1, 2))
    first = divmod(int(np.argmax(apart)), 3)
    # The smallest candidate, and the head that differs most in it.
    _assert_drawn(page, first, reference=own[0][3 * first[0] + first[1]], other=own[2][3 * first[0] + first[1]])
    assert shown(page, CHART)["parts"] == ["reference", "candidate", "difference"]
    _select(page, "layer", "1")
    _select(page, "head", "2")
    _assert_drawn(page, (1, 2), reference=own[0][5], other=own[2][5])
    _select(page, "candidate", "0")
    _assert_drawn(page, (1, 2), reference=own[0][5], other=own[1][5])
    assert shown(page, CHART)["candidate"] == MODELS[1]
    # A click on the tile of layer 0, head 1 of the last of the three grids.
    grid = page.locator(f"#{CHART} canvas.grid").last
    tile = shown(page, CHART)["tile"]
    grid.click(position={"x": 24 + 1.5 * tile, "y": 18 + 0.5 * tile})
    _assert_drawn(page, (0, 1), reference=own[0][1], other=own[1][1])
    # The keyboard does it as well, and stays there.
    page.locator(f"#{CHART} .side-by-side").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    _assert_drawn(page, (1, 2), reference=own[0][5], other=own[1][5])


def test_scales_are_those_of_all_candidates(page: Page, tmp_path: Path, open_report: OpenReport) -> None:  # noqa: F811
    open_report(run_with_attention(tmp_path, 2, 3), tmp_path)
    see(page, CHART)
    _select(page, "layer", "0")
    _select(page, "head", "0")
    own = [make_pattern(6, N, number)[0].astype(np.float64)[1:] for number in range(3)]
    for candidate in ("0", "1"):
        _select(page, "candidate", candidate)
        drawn = shown(page, CHART)
        assert drawn["most"] == pytest.approx(max(each.max() for each in own), abs=1 / 255)
        assert drawn["apart"] == pytest.approx(max(np.abs(each - own[0]).max() for each in own[1:]), abs=2 / 255)


def test_the_first_token_can_be_left_out(page: Page, tmp_path: Path, open_report: OpenReport) -> None:  # noqa: F811
    run = run_with_attention(tmp_path, 1, 2, models=MODELS[:2])
    shares = []
    for number in range(2):
        pattern = 0.2 * make_pattern(2, N, number).astype(np.float64)
        pattern[:, :, 0] += 0.8
        arrays = {"kept": np.array([(0, 0), (0, 1)]), "kept_prompts": np.array(["p"])}
        arrays |= {"pattern_0": pattern.astype(np.float16), "pieces_0": np.array(TOKENS, dtype=np.bytes_)}
        save_arrays(tmp_path / f"{number}.npz", arrays)
        shares.append(pattern[:, 1:, 0].mean())
    open_report(run, tmp_path)
    see(page, CHART)
    switch = page.locator(f"#{CHART} input[type=checkbox]")
    # It takes more than half of the weight.
    assert switch.is_checked()
    assert f"takes {100 * shares[0]:.0f} % of the weight on average" in page.inner_text(
        f"#{CHART} [data-control=first]"
    )
    rescaled = shown(page, CHART)["most"]
    assert rescaled < 0.21
    switch.uncheck()
    assert shown(page, CHART)["most"] > 0.8
    assert not shown(page, CHART)["withoutFirst"]
    # What was chosen stays when the page is drawn again.
    page.set_viewport_size({"width": 500, "height": 900})
    page.wait_for_function(f"() => document.querySelector('#{CHART} .view').shown.parts.length === 1")
    assert not shown(page, CHART)["withoutFirst"]


def test_lines_of_one_token(page: Page, tmp_path: Path, open_report: OpenReport) -> None:  # noqa: F811
    open_report(run_with_attention(tmp_path, 1, 2), tmp_path)
    see(page, CHART)
    _select(page, "head", "1")
    visible = f"""[...document.querySelectorAll('#{CHART} svg[role=group]')].map(figure =>
        [...figure.querySelectorAll('path')].filter(line => line.getAttribute('stroke-opacity') !== '0').length)"""
    patterns = [make_pattern(2, N, number)[1].astype(np.float64) for number in (0, 2)]
    assert page.evaluate(visible)[:2] == [int((pattern >= 0.01).sum()) for pattern in patterns]
    last = page.locator(f"#{CHART} svg[role=group] text[tabindex='0']").first
    last.focus()
    assert page.evaluate(visible)[:2] == [int((pattern[-1] >= 0.01).sum()) for pattern in patterns]
    told = page.locator(f"#{CHART} svg[role=group]").first.locator("text").nth(N).text_content() or ""
    assert float(told.split()[-1]) == pytest.approx(patterns[0][-1, 0], abs=0.011)
    page.keyboard.press("ArrowUp")
    assert page.evaluate(visible)[:2] == [int((pattern[-2] >= 0.01).sum()) for pattern in patterns]
    page.keyboard.press("Escape")
    assert page.evaluate(visible)[:2] == [int((pattern >= 0.01).sum()) for pattern in patterns]


def test_a_cell_tells_its_weights(page: Page, tmp_path: Path, open_report: OpenReport) -> None:  # noqa: F811
    open_report(run_with_attention(tmp_path, 1, 1), tmp_path)
    see(page, CHART)
    matrix = page.locator(f"#{CHART} canvas.matrix").first
    matrix.scroll_into_view_if_needed()
    box = matrix.bounding_box()
    assert box is not None
    # The last row's first cell is at the bottom, right of the names.
    matrix.hover(position={"x": box["width"] - N * 24 + 5, "y": box["height"] - 8})
    told = page.inner_text(f"#{CHART} .readout")
    values = [float(make_pattern(1, N, number)[0, -1, 0]) for number in (0, 2)]
    assert [float(part.split()[-1]) for part in told.split(": ")[-1].split(", ")[:2]] == pytest.approx(
        values, abs=0.005
    )
    assert float(told.split()[-1]) == pytest.approx(values[1] - values[0], abs=0.008)


def test_models_with_other_heads_have_their_own(page: Page, tmp_path: Path, open_report: OpenReport) -> None:  # noqa: F811
    run = run_with_attention(tmp_path, 2, 3, models=MODELS[:1])
    (tmp_path / "other").mkdir()
    other = run_with_attention(tmp_path / "other", 1, 4, TOKENS[:6], models=MODELS[1:2])
    run["arrays"] += [entry | {"file": f"other/{entry['file']}"} for entry in other["arrays"]]
    open_report(run, tmp_path)
    see(page, CHART)
    # Other tokens: nothing can be subtracted.
    assert shown(page, CHART)["parts"] == ["reference", "candidate"]
    _assert_drawn(page, (0, 0), reference=make_pattern(6, N)[0], other=make_pattern(4, 6)[0])
    _select(page, "head", "3")
    _assert_drawn(page, (0, 3), reference=None, other=make_pattern(4, 6)[3])
    assert page.locator(f"#{CHART}").get_by_text("has no such head").count() == 2
    # The layer that only the reference has, which has no head 3.
    _select(page, "layer", "1")
    _assert_drawn(page, (1, 0), reference=make_pattern(6, N)[3], other=None)
    options = page.locator(f"#{CHART} [data-control=head] option")
    assert options.all_inner_texts() == ["0", "1", "2"]


def test_hostile_tokens_and_names_stay_text(page: Page, tmp_path: Path, open_report: OpenReport) -> None:  # noqa: F811
    run = json.loads(json.dumps(run_with_attention(tmp_path, 1, 2)).replace(MODELS[1], json.dumps(HOSTILE)[1:-1]))
    open_report(run, tmp_path)
    see(page, CHART)
    labels = (
        page.locator(f"#{CHART} svg[role=group]")
        .first.locator("text")
        .evaluate_all("texts => texts.map(text => text.getAttribute('aria-label'))")
    )
    assert labels[2].startswith("from token 3, </script><img src=x")
    assert labels[7] == "from token 8, &lt;"
    assert page.locator(f"#{CHART} [data-control=candidate] option", has_text="</script><img src=x").count() == 1
    assert "</script><img src=x" in page.inner_text(f"#{CHART} .meaning")
    see(page, "head-profiles")
    assert page.locator("#head-profiles .tabs button", has_text="</script><img src=x").count() == 1
    assert page.locator("img").count() == 0


def test_a_thousand_heads_fit_on_a_phone(page: Page, tmp_path: Path, open_report: OpenReport) -> None:  # noqa: F811
    page.set_viewport_size({"width": 390, "height": 800})
    open_report(run_with_attention(tmp_path, 32, 32, tuple(b"t%d" % i for i in range(40)), MODELS[:2]), tmp_path)
    see(page, CHART)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    _select(page, "layer", "31")
    _select(page, "head", "31")
    side = len(shown(page, CHART)["reference"])
    pattern = [make_pattern(1024, 40, number)[-1, :side, :side] for number in range(2)]
    _assert_drawn(page, (31, 31), reference=pattern[0], other=pattern[1])
    # One grid at a time.
    assert page.locator(f"#{CHART} canvas.grid").count() == 1
    page.locator(f"#{CHART} [data-control=seen] button", has_text="difference").click()
    assert shown(page, CHART)["parts"] == ["difference"]
    assert page.evaluate(f"document.querySelector('#{CHART} .view').scrollWidth") <= 390


def test_the_panel_that_the_title_is_about_opens_first(page: Page, tmp_path: Path, open_report: OpenReport) -> None:  # noqa: F811
    run = run_with_attention(tmp_path, 2, 3)
    for row in run["estimates"]:
        if row["metric"] == "attn_cosine" and row["model"] == MODELS[1]:
            row["value"] = 1 - (1 - row["value"]) / 1000
    open_report(run, tmp_path)
    see(page, "attention-moved")
    assert page.inner_text("#attention-moved button[aria-pressed=true]") == "Q4_K_M"
    far = shown(page, "attention-moved")
    assert np.array(far["values"]) == pytest.approx(1 - np.arange(1, 7).reshape(2, 3) / 7)
    page.locator("#attention-moved button", has_text="Q8_0").click()
    near = shown(page, "attention-moved")
    # Other numbers on the same scale: other colours.
    assert near["domain"] == far["domain"]
    assert not set(chain(*near["colors"])) & set(chain(*far["colors"]))


def test_negative_copying_is_seen(page: Page, tmp_path: Path, open_report: OpenReport) -> None:  # noqa: F811
    run = run_with_attention(tmp_path, 1, 3, models=MODELS[:1])
    base = next(row for row in run["estimates"] if row["metric"] == "head_induction")
    values = (-0.6, 0.0, 0.6)
    run["estimates"] += [base | {"metric": "head_copy_score", "head": h, "value": v} for h, v in enumerate(values)]
    open_report(run, tmp_path)
    see(page, "head-profiles")
    assert page.locator("#head-profiles .legend").count() == 2
    colors = [row[-1] for row in shown(page, "head-profiles")["colors"]]
    assert len(set(colors)) == 3
    drawn = page.locator("#head-profiles g[data-mark=cell] rect").evaluate_all(
        "cells => cells.map(cell => cell.getAttribute('fill'))"
    )
    assert set(colors) <= set(drawn)


def test_hundreds_of_heads_scroll_in_their_box(page: Page, tmp_path: Path, open_report: OpenReport) -> None:  # noqa: F811
    page.set_viewport_size({"width": 390, "height": 800})
    open_report(run_with_attention(tmp_path, 30, 9, TOKENS[:2], MODELS[:1]), tmp_path)
    see(page, "head-profiles")
    box = page.locator("#head-profiles .rows-box")
    assert box.bounding_box()["height"] < 700  # type: ignore[index]
    box.focus()
    page.keyboard.press("End")
    end = "box => box.scrollTop + box.clientHeight >= box.scrollHeight - 2"
    page.wait_for_function(f"() => ({end})(document.querySelector('#head-profiles .rows-box'))")
    last, heads = box.get_by_text("29.8 other").bounding_box(), box.locator(".stay").bounding_box()
    around = box.bounding_box()
    assert last is not None
    assert heads is not None
    assert around is not None
    assert last["y"] + last["height"] <= around["y"] + around["height"]
    # The names of the scores are still at the top.
    assert heads["y"] == pytest.approx(around["y"], abs=2)
    # On paper nothing scrolls, and no picture is higher than a page.
    pictures = box.locator(":scope > svg")
    assert pictures.locator("g[data-mark=cell] rect").count() >= 270
    heights = pictures.evaluate_all("pictures => pictures.map((picture) => picture.getBoundingClientRect().height)")
    assert len(heights) == 6
    assert max(heights) < 1000
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("width", [1280, 390])
def test_tiles_of_many_layers_are_square(page: Page, tmp_path: Path, open_report: OpenReport, width: int) -> None:  # noqa: F811
    """SmolLM2 has 30 layers of 9 heads: neither the tiles of a map nor those of the grid are stripes."""
    page.set_viewport_size({"width": width, "height": 800})
    open_report(run_with_attention(tmp_path, 30, 9, TOKENS, MODELS[:2]), tmp_path)
    see(page, "attention-moved")
    tiles = page.locator("#attention-moved g[data-mark=cell] rect").evaluate_all(
        "tiles => tiles.map((tile) => tile.getBoundingClientRect()).map(({ width, height }) => [width, height])"
    )
    assert len(tiles) == 270
    assert all(across == pytest.approx(down, abs=0.5) and across > 9 for across, down in tiles)
    see(page, CHART)
    box = page.locator(f"#{CHART} canvas.grid").first.bounding_box()
    assert box is not None
    # Names of layers and heads take the same room as in a small grid (see the click on a tile above).
    across, down = (box["width"] - 24) / 9, (box["height"] - 18) / 30
    assert across == pytest.approx(shown(page, CHART)["tile"], abs=2)
    assert across == pytest.approx(down, rel=0.1)


def test_more_scores_than_colours_are_told_apart(page: Page, tmp_path: Path, open_report: OpenReport) -> None:  # noqa: F811
    from gguf_harness.report.charts.head_profiles import PROFILE

    run = run_with_attention(tmp_path, 2, 1, models=MODELS[:1])
    base = next(row for row in run["estimates"] if row["metric"] == "head_induction")
    run["estimates"] = [
        base | {"metric": metric, "layer": layer, "value": 0.1 * layer} for metric in PROFILE for layer in range(2)
    ]
    open_report(run, tmp_path)
    see(page, "head-evolution")
    lines = page.locator("#head-evolution g[data-mark=line] path").evaluate_all(
        """lines => lines.map(line =>
            line.getAttribute('stroke') + line.closest('g').getAttribute('stroke-dasharray'))"""
    )
    assert len(lines) == len(set(lines)) == len(PROFILE)


def test_kinds_have_colours_and_reasons(page: Page, tmp_path: Path, open_report: OpenReport) -> None:  # noqa: F811
    run = run_with_attention(tmp_path, 1, 2, models=MODELS[:1])
    for row, kind in zip(run["heads"], ("sink", "mixed"), strict=True):
        row |= {"kind": kind, "reason": HOSTILE}
    open_report(run, tmp_path)
    see(page, "head-kinds")
    ((sink, mixed),) = shown(page, "head-kinds")["colors"]
    assert sink != mixed
    cell = page.locator("#head-kinds g[data-mark=cell] rect").first
    cell.hover()
    page.wait_for_function(
        "() => document.querySelector('#head-kinds g[aria-label=tip]').textContent.includes('kind: sink')"
    )
    assert "</script><img src=x" in (page.locator("#head-kinds g[aria-label=tip]").text_content() or "")
    assert page.locator("img").count() == 0
