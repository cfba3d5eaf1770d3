"""Every limit has a default and a sentence that says what it is."""

from __future__ import annotations

import pytest

from fedlab import InvalidRequest
from fedlab.net import SETTINGS, Settings


def test_the_table_names_every_setting_with_its_default_and_help():
    assert {setting.name for setting in SETTINGS} == set(Settings.__struct_fields__)
    assert all(setting.default == getattr(Settings(), setting.name) for setting in SETTINGS)
    assert all(len(setting.help) > 10 for setting in SETTINGS)


@pytest.mark.parametrize(
    ("name", "value"), [("max_message", 0), ("lease", -1.0), ("page_rows", 0), ("max_requests", "7"), ("origins", "x")]
)
def test_a_value_out_of_range_is_refused(name: str, value: object):
    with pytest.raises(InvalidRequest, match=name):
        Settings(**{name: value})  # type: ignore[arg-type]  # the point
