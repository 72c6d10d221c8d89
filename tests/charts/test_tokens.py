"""Coloured tokens: the numbers shown, colour and underline, and that nothing in a token acts."""

from html.parser import HTMLParser

import polars as pl
import pytest

from lmdynamics import charts
from lmdynamics.charts.tokens import visible
from lmdynamics.errors import UserError

HOSTILE = [
    "<s>",
    "<script>window.pwned=1</script>",
    "</style><b>",
    '" onmouseover="window.pwned=1',
    "' onclick='window.pwned=1",
    "<img src=x onerror=window.pwned=1>",
    "\u202edrow",
    "a\x00b",
    "&lt;",
    "\ud800",
]


class Elements(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, html):
        super().__init__()
        self.seen, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def changes(n=9, **columns):
    frame = pl.DataFrame({"row": 0, "position": range(1, n + 1), "change": [0.1 * (i - 4) for i in range(n)]})
    return frame.with_columns(loss=pl.lit(3.0), **columns)


def tokens(text=HOSTILE, frame=None, **options):
    return charts.ColouredTokens({0: text}, changes() if frame is None else frame, **options)


def titled(view):
    """The tokens' own elements, in order."""
    return [attributes for tag, attributes in Elements(view._repr_html_()).seen if "title" in attributes]


def test_only_our_elements_and_attributes_appear():
    view = tokens(title="<b>a title</b>")
    parser = Elements(view._repr_html_())
    assert {tag for tag, _ in parser.seen} == {"div", "span", "b", "wbr"}
    assert sum(tag == "b" for tag, _ in parser.seen) == 1
    assert {name for _, attributes in parser.seen for name in attributes} == {"style", "title", "dir", "class"}
    assert "<b>a title</b>" in parser.text


def test_the_text_is_shown_literally_and_what_cannot_be_seen_is_escaped():
    text = Elements(tokens()._repr_html_()).text
    for token in HOSTILE[1:6]:
        assert token in text
    assert "\\u202edrow" in text
    assert "a\\x00b" in text
    assert "\\ud800" in text
    assert not any(c in text for c in "\u202e\x00\ud800")
    tokens()._repr_html_().encode()


def test_styles_hold_nothing_of_the_text():
    plain = [each["style"] for each in titled(tokens(["word"] * len(HOSTILE)))]
    assert [each["style"] for each in titled(tokens())] == plain


def test_sign_is_shown_by_colour_and_by_underline():
    first, *styles = [each["style"] for each in titled(tokens())]
    assert "opacity" in first  # predicted from nothing
    assert all("solid rgb(0,114,178)" in style for style in styles[:4])
    assert "transparent" in styles[4]
    assert all("dotted rgb(213,94,0)" in style for style in styles[5:])


def test_strength_grows_with_the_change_and_stops_at_the_most():
    styles = [each["style"] for each in titled(tokens(limit=0.2))][1:]
    shades = [float(style.rsplit(",", 1)[1].rstrip(")")) for style in styles if "background" in style]
    assert shades[0] == shades[1] == shades[2] == max(shades)
    assert shades[2] > shades[3]
    assert max(shades) < 0.6


def test_the_tooltip_has_the_numbers():
    view = tokens(frame=changes(first_order=pl.lit(-0.25)))
    assert titled(view)[0]["title"] == "not predicted"
    assert titled(view)[1]["title"] == (
        "“<script>window.pwned=1</script>”; loss before 3.000 nats; change −0.40 nats; first order −0.25 nats"
    )
    bare = tokens(frame=changes().drop("loss"))
    assert titled(bare)[5]["title"].endswith("”; change 0 nats")


def test_a_reader_without_html_reads_the_same_numbers():
    view = tokens(title="step 64")
    assert view._repr_mimebundle_() == {"text/html": view._repr_html_(), "text/plain": str(view)}
    lines = str(view).splitlines()
    assert lines[:2] == ["step 64", "4 tokens gained, 4 lost; from −0.40 to +0.40 nats"]
    assert lines[2].startswith("0: <s> <script>window.pwned=1</script>(−0.40)")
    assert "\\u202edrow(+0.10)" in lines[2]


def test_the_legend_spans_the_scale():
    assert "−0.30" in Elements(tokens(limit=0.3)._repr_html_()).text
    assert "+0.30" in Elements(tokens(limit=0.3)._repr_html_()).text


def test_rows_come_in_the_order_of_the_frame_and_from_a_function_too():
    frame = pl.concat([changes(2).with_columns(row=pl.lit(row)) for row in (5, 2)])
    view = charts.ColouredTokens(lambda row: [f"a{row}", "b", "c"], frame)
    text = Elements(view._repr_html_()).text
    assert text.index("row 5") < text.index("row 2")
    assert "a5" in text


def test_the_page_is_written_whole(tmp_path):
    view = tokens(title="</title><script>")
    view.save(tmp_path / "new" / "tokens.html")
    page = (tmp_path / "new" / "tokens.html").read_text(encoding="utf-8")
    assert page == view.page()
    assert "<script" not in page
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another output_dir"):
        view.save(tmp_path / "file" / "tokens.html")


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("", "∅"),
        (" the", " the"),
        ("\n", "\\n"),
        ("x" * 200, "x" * 30 + "…" + "x" * 15),
        ("ש", "ש"),
        ("\xa0", "\\xa0"),
        ("Ġa", " a"),
        ("▁a", " a"),
        ("aĠ", "aĠ"),
    ],
)
def test_what_a_token_is_shown_as(token, expected):
    assert visible(token) == expected


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (changes().drop("change"), "needs the columns"),
        (changes().clear(), "no changes to show"),
        (changes().with_columns(change=pl.lit(float("nan"))), "no changes to show"),
        (pl.concat([changes(), changes()]), "several changes; choose one checkpoint"),
        (changes(12), "row 0 has 10 tokens, and a change at position 12"),
    ],
)
def test_what_cannot_be_shown_is_reported(frame, message):
    with pytest.raises(UserError, match=message):
        tokens(frame=frame)
