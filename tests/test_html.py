"""What a notebook shows: tables whose content stays text."""

from __future__ import annotations

from fedlab._html import LONGEST, table

HOSTILE = "<script>alert('x')</script>&\""


def test_a_hostile_text_is_shown_and_not_run():
    shown = table(HOSTILE, [(HOSTILE, HOSTILE)], head=[HOSTILE, HOSTILE])
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;&quot;") == 5


def test_numbers_read_well_and_long_texts_are_cut():
    shown = table("", [(1_234_567, 0.123456, None, True, "x" * (LONGEST + 1))], head=list("abcde"))
    for cell in (">1,234,567<", ">0.1235<", ">none<", ">yes<", f">{'x' * LONGEST} …<", ">e</th>"):
        assert cell in shown
    assert not shown.startswith("<b>")
