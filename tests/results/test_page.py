"""A page of lines, pictures and tables: complete in itself, with its files beside it."""

import csv
import re

import pytest
from browser import opened
from matplotlib.figure import Figure

from nni_gumbel.errors import UsageError
from nni_gumbel.results.page import Picture, Section, Table, write_page


def drawing(points=1):
    figure = Figure()
    axes = figure.add_subplot()
    (line,) = axes.plot(range(points), "o")
    line.set_gid("point")
    axes.set_title("a < b")
    return figure


PICTURE = Picture("drawing", drawing, "One point.", {"point": "network-1: <op> & 1"})
TABLE = Table("numbers", ("name", "value"), [("<a>", 0.123456), ("b", None)])


def text_of(page):
    return page.read_text(encoding="utf-8")


def test_a_page_has_its_pictures_and_tables_in_itself_and_as_files(tmp_path):
    page = write_page(
        tmp_path / "deep" / "report",
        "An & experiment",
        [Section("First", ["a <line>"], [PICTURE], "a command", [TABLE])],
        {"more.txt": "more"},
    )
    assert {path.name for path in page.parent.iterdir()} == {
        "report.html", "drawing.png", "drawing.svg", "numbers.csv", "more.txt",
    }  # fmt: skip
    text = text_of(page)
    for part in (
        "An &amp; experiment",
        "a &lt;line&gt;",
        "<pre>a command</pre>",
        "<svg",
        "&lt;a&gt;",
        ">0.1235<",
        ">–<",
    ):
        assert part in text
    with open(page.parent / "numbers.csv", newline="") as file:
        assert list(csv.reader(file)) == [["name", "value"], ["<a>", "0.123456"], ["b", ""]]
    assert (page.parent / "drawing.png").read_bytes().startswith(b"\x89PNG")


def test_a_part_of_a_picture_tells_more_when_it_is_pointed_at(tmp_path):
    text = text_of(write_page(tmp_path, "t", [Section("s", pictures=[PICTURE])], {}))
    assert re.search(r'<g id="drawing-point"><title>network-1: &lt;op&gt; &amp; 1</title>', text)


def test_a_page_opens_without_a_message_and_asks_for_nothing_also_from_a_copied_file(tmp_path):
    twice = [Section("s", pictures=[PICTURE, Picture("other", drawing, "Another.")], tables=[TABLE])]
    page = write_page(tmp_path / "report", "t", twice, {})
    copied = page.rename(tmp_path / "copied.html")
    with opened(copied) as (shown, said, asked):
        assert said == [] and asked == [copied.as_uri()]
        assert shown.locator("svg").count() == 2 and shown.locator("td").count() == 4
        ids = shown.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
        assert len(ids) == len(set(ids))


def test_a_picture_that_cannot_be_drawn_is_a_line_and_the_rest_is_there(tmp_path, caplog):
    def fails():
        raise RuntimeError("no font")

    sections = [Section("s", pictures=[Picture("lost", fails, "What is lost"), PICTURE])]
    page = write_page(tmp_path, "t", sections, {})
    assert "What is lost: could not be drawn: RuntimeError: no font" in text_of(page)
    assert "<svg" in text_of(page) and not (tmp_path / "lost.png").exists()
    assert "no font" in caplog.text


def test_a_picture_of_nothing_is_left_out(tmp_path):
    page = write_page(tmp_path, "t", [Section("s", pictures=[Picture("none", lambda: None, "Nothing")])], {})
    assert "Nothing" not in text_of(page)


def test_a_large_picture_and_a_long_table_keep_the_page_small(tmp_path):
    large = Picture("large", lambda: drawing(40_000), "Many points.")
    long = Table("long", ("n",), [(n,) for n in range(10_000)])
    page = write_page(tmp_path, "t", [Section("s", pictures=[large], tables=[long])], {})
    assert page.stat().st_size < 500_000 and (tmp_path / "large.svg").stat().st_size > 600_000
    assert 'src="data:image/png' in text_of(page) and "long.csv; 9800 rows more there" in text_of(page)
    assert len((tmp_path / "long.csv").read_text().splitlines()) == 10_001


def test_a_table_may_be_for_its_file_alone(tmp_path):
    page = write_page(tmp_path, "t", [Section("s", tables=[Table("file", ("n",), [(1,)], ((), ()))])], {})
    assert "<table" not in text_of(page) and (tmp_path / "file.csv").exists()


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written") as caught:
        write_page(tmp_path / "file", "t", [], {})
    assert "\n" not in str(caught.value)
