"""Text for calibration is prose, and apart from what is judged on."""

from __future__ import annotations

from burnish.tools.text import calibration_text, held_out_text, plain_paragraphs

_LONG = "Words that go on for long enough to be taken for prose and not for a heading or an item of a list, " * 2

_DUMP = f"""
<page><text xml:space="preserve">{{{{Infobox|a={{{{b}}}}}}}}
== Heading ==
'''{_LONG}''' of [[Links|a link]] and [[another]], &lt;ref name="x"&gt;a note&lt;/ref&gt;[http://a.b named].
* {_LONG}
{{| class="table"
| {_LONG}
|}}
</text></page>
"""


def test_markup_goes_and_prose_stays() -> None:
    # A paragraph that begins with markup begins with a capital without it.
    (paragraph,) = plain_paragraphs(_DUMP)
    assert paragraph == f"{_LONG} of a link and another, named."


def test_nothing_is_judged_that_was_calibrated_on() -> None:
    seen = set(calibration_text().split("\n\n"))
    assert not any(paragraph in seen for paragraph in held_out_text().split("\n\n"))
