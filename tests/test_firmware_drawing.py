"""The picture of a plan of memory: what it shows, and that it is the same each time."""

from __future__ import annotations

from xml.etree import ElementTree

import matplotlib
from matplotlib.patches import Rectangle

from secateurs.firmware.arena import Step, lay_out
from secateurs.firmware.drawing import arena_svg, draw_arena

STEPS = [
    Step("conv", ("x",), ("a",), scratch=300),
    Step("relu", ("a",), ("b",), in_place=("a",)),
    Step("flatten", ("b",), ("flat",), view=True),
    Step("linear", ("flat",), ("y",), scratch=100),
]
ARENA = lay_out(STEPS, {"x": 500, "a": 800, "b": 800, "flat": 800, "y": 10}, ["x"], ["y"])


def boxes(figure):
    found = [each for each in figure.axes[0].patches if isinstance(each, Rectangle) and (not each.get_fill() or each.get_hatch())]
    return {(each.get_x(), each.get_y(), each.get_width(), each.get_height()) for each in found}


def test_each_thing_has_a_box_where_it_lies_while_it_is_needed():
    figure = draw_arena(ARENA, STEPS, limit=2000)
    at = {name: slot.offset for name, slot in ARENA.places.items()}
    own = {name: slot.offset for name, slot in ARENA.scratch.items()}
    assert at["a"] == at["b"] == at["flat"]
    assert boxes(figure) == {
        (0, at["x"], 1, 500),
        (0, at["a"], 1.5, 800),  # until the next step overwrites it
        (1.5, at["b"], 2.5, 800),
        (3, at["y"], 1, 10),
        (0, own["conv"], 1, 300),
        (3, own["linear"], 1, 100),
    }
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"x", "a", "b, flat", "for conv", "limit 2,000 bytes "} <= texts
    assert "y" not in texts  # ten bytes have no room for a name
    assert figure.axes[0].get_title(loc="left") == "arena: 1,600 bytes, fullest at conv"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [step.name for step in STEPS]
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == [1600, 2000]


def test_files_are_the_same_each_time(tmp_path):
    before = dict(matplotlib.rcParams)
    for name in ("plan.svg", "plan.png"):
        files = []
        for _ in range(2):
            draw_arena(ARENA, STEPS, tmp_path / name)
            files.append((tmp_path / name).read_bytes())
        assert files[0] == files[1]
    text = arena_svg(ARENA, STEPS)
    assert text == arena_svg(ARENA, STEPS) == (tmp_path / "plan.svg").read_text()
    assert dict(matplotlib.rcParams) == before


def test_names_are_text_whatever_they_are():
    steps = [Step("$conv$ <層>", ("x & y",), ("$a$",)), Step("a rather long name of a step, with an end", ("$a$",), ("b",))]
    arena = lay_out(steps, {"x & y": 500, "$a$": 400, "b": 300}, ["x & y"], ["b"])
    texts = [each.text for each in ElementTree.fromstring(arena_svg(arena, steps)).iter() if each.text and each.text.strip()]
    assert {"x & y", "$a$", "$conv$ <層>", "a rather l…with an end"} <= {text.strip() for text in texts}


def test_hundreds_of_steps_and_none_can_be_drawn():
    steps = [Step(f"s{number}", (f"a{number}",), (f"a{number + 1}",)) for number in range(300)]
    arena = lay_out(steps, {f"a{number}": 1000 for number in range(301)}, ["a0"], ["a300"])
    figure = draw_arena(arena, steps)
    assert len(boxes(figure)) == 301
    assert len(figure.axes[0].get_xticklabels()) < 80
    assert draw_arena(lay_out([], {}, [], []), []).axes[0].get_title(loc="left") == "arena: 0 bytes"
