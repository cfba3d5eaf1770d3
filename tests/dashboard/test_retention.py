"""The retention lab: what it says is what the hub's previews say, and it changes a hub only when that is meant."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import plotly.io
import pytest
from streamlit.testing.v1 import AppTest

from dashboard.policies import NEW, duration, parts, replaced
from fedlab import Hub, KeepForever, MaxAge, MaxEpisodes, MinReward
from fedlab.net import connect_sync, load_key, make_token
from fedlab.net.tokens import KEY_FILE
from fedlab.retention import RetentionPolicy, Where
from tests.dashboard.conftest import HOSTILE, Look
from tests.processes import HubProcess


@pytest.fixture
def hub(lively_hub: Path, tmp_path: Path) -> Path:
    """A copy of the lively hub that may be changed."""
    return Path(shutil.copytree(lively_hub, tmp_path / "hub"))


def numbers(app: AppTest) -> dict[str, str]:
    assert not app.exception, app.exception
    return {each.label: str(each.value) for each in app.metric}


def later(app: AppTest) -> list[int]:
    """How many would go, as the chart draws it."""
    assert not app.exception, app.exception
    figure = plotly.io.from_json(app.get("plotly_chart")[-1].proto.spec)
    return [int(y) for line in figure.data for y in line.y]


def previewed(path: Path, policy: RetentionPolicy, tenants: list[str]) -> tuple[str, str]:
    with Hub(path) as hub:
        each = [hub.preview_retention(tenant, policy) for tenant in tenants]
    return f"{sum(one.removed for one in each):,}", f"{sum(one.kept for one in each):,}"


def test_a_slider_moves_the_policy_its_address_and_the_numbers_which_are_those_of_the_preview(
    look_at: Look, hub: Path, tmp_path: Path
):
    copy = Path(shutil.copytree(hub, tmp_path / "copy"))
    tenants = ["acme", "globex", "initech"]
    app = look_at("retention", hub, policy="MinReward(reward=0.5)")
    before = numbers(app)
    assert (before["Would go"], before["Would stay"]) == previewed(copy, MinReward(0.5), tenants)
    (slider,) = app.slider
    slider.set_value(0.9).run()
    after = numbers(app)
    assert (after["Would go"], after["Would stay"]) == previewed(copy, MinReward(0.9), tenants)
    assert after != before
    assert app.query_params["policy"] == "MinReward(reward=0.9)"
    assert app.text_input(key="policy").value == "MinReward(reward=0.9)"
    app.text_input(key="policy").set_value("MaxEpisodes(7, keep='best')").run()
    assert numbers(app)["Would stay"] == "21"
    app.select_slider[0].set_value(5).run()
    assert app.text_input(key="policy").value == "MaxEpisodes(n=5, keep='best')"
    assert numbers(app)["Would stay"] == "15"
    app.text_input(key="policy").set_value("MaxAge(days=400000)").run()
    app.toggle(key="later").set_value(True).run()
    assert later(app) == [0] * 7 * 3
    app.text_input(key="policy").set_value("MaxAge(days=100)").run()
    with Hub(copy) as same:
        wanted = [
            same.preview_retention("acme", MaxAge(days=100), after=timedelta(days=days)).removed
            for days in (0, 1, 7, 30, 90, 180, 365)
        ]
    assert later(app)[:7] == wanted
    assert wanted[-1] > 0


def test_a_policy_is_built_from_parts_compared_and_taken_apart(look_at: Look, hub: Path):
    app = look_at("retention", hub, policy="MaxAge(days=30)", tenants="acme")
    for kind in NEW:
        app.selectbox(key="part").set_value(kind)
        app.button(key="and" if kind != "Number" else "or").click().run()
        numbers(app)
    policy = RetentionPolicy.parse(app.text_input(key="policy").value)
    assert [part for _, part in parts(policy)] == [MaxAge(30), *NEW.values()]
    app.button(key="compare this").click().run()
    app.multiselect(key="compare").set_value([*app.multiselect(key="compare").value, "MaxAge(1)", "nonsense"]).run()
    assert repr(policy).startswith(
        "(MaxAge(days=30) & MaxAge(days=30) & MinReward(reward=0.5) & MinReward(quantile=0.5) | "
    )
    assert app.dataframe[0].value["policy"].to_list() == [repr(policy), repr(policy), "MaxAge(days=1)"]
    assert "nonsense" in app.error[0].value
    for _ in NEW:
        app.button(key="remove 1").click().run()
    assert app.text_input(key="policy").value == "MaxAge(days=30)"
    app.text_input(key="of task").set_value("task 1").run()
    assert app.text_input(key="policy").value == "MaxAge(days=30).where(task='task 1')"
    app.button(key="remove 0").click().run()
    assert app.text_input(key="policy").value == "KeepForever()"
    assert numbers(app)["Would go"] == "0"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_task_may_have_any_name(text: str, look_at: Look, hostile_hub: Path):
    policy = MinReward(10.0).where(task=text)
    app = look_at("retention", hostile_hub, policy=repr(policy), tenants="hostile")
    assert numbers(app)["Would go"] == "1"
    assert app.text_input(key="of task").value == text


def test_what_is_no_policy_is_said_and_can_be_mended(look_at: Look, hub: Path):
    for text in ("", "MaxAge(-1)", "__import__('os')", "<script>", "MaxAge(1) &", '{"policy": "Nothing"}'):
        app = look_at("retention", hub, policy=text)
        assert not app.exception
        assert len(app.error) == 1
        app.text_input(key="policy").set_value("MaxAge(1)").run()
        assert numbers(app)["Would stay"] == "0"


def test_apply_needs_the_tenants_name_and_then_what_was_previewed_is_gone(look_at: Look, hub: Path):
    app = look_at("retention", hub, policy="MinReward(0.7)", tenants="acme")
    before = numbers(app)
    app.button(key="apply").click().run()
    question = "\n".join(each.value for each in app.markdown)
    assert f"**{before['Would go']}** of 72 episodes go now" in question
    assert "held" in question
    for typed in ("", "Acme", "globex"):
        app.text_input(key="typed").set_value(typed).run()
        assert app.button(key="confirmed").disabled
    app.text_input(key="typed").set_value("acme").run()
    assert not app.button(key="confirmed").disabled
    app.button(key="confirmed").click().run()
    after = numbers(app)
    assert (after["Would go"], after["Would stay"]) == ("0", before["Would stay"])
    assert f"{before['Would go']} episodes were forgotten" in app.success[0].value


def test_saved_a_policy_is_the_tenants_and_nothing_goes(look_at: Look, hub: Path):
    app = look_at("retention", hub, policy="MaxEpisodes(3)", tenants="globex")
    before = numbers(app)
    app.button(key="save").click().run()
    app.text_input(key="typed").set_value("globex").run()
    app.button(key="confirmed").click().run()
    assert numbers(app) == before
    assert "MaxEpisodes(n=3)" in app.multiselect(key="compare").options


def test_who_may_not_is_offered_nothing(look_at: Look, hub: Path):
    with HubProcess(hub) as process:
        app = look_at("retention", process.url, policy="MaxEpisodes(3)")
        assert app.button(key="apply")
        with connect_sync(process.url) as connection:
            hub_id = connection.info().hub_id
        for role in ("observer", "agent"):
            token = make_token(load_key(hub / KEY_FILE), hub_id, "acme", role, None, 60)
            app = look_at("retention", process.url, policy="MaxEpisodes(3)", tenants="globex")
            app.text_input(key=f"token {process.url}").set_value(token).run()
            assert numbers(app)["Would stay"] == "3"
            keys = [button.key for button in app.button]
            assert "apply" not in keys
            assert "save" not in keys


def test_a_part_is_replaced_where_it_stands():
    policy = RetentionPolicy.parse(
        "MaxAge(1) & (MinReward(0.5) | MaxEpisodes(9)).where(task='t') & MaxAge(2).where(task='u')"
    )
    found = dict(parts(policy))
    assert list(found.values()) == [MaxAge(1), MinReward(0.5), MaxEpisodes(9), MaxAge(2).where(task="u")]
    for path, part in found.items():
        assert replaced(policy, path, part) == policy
        changed = replaced(policy, path, KeepForever())
        assert changed is not None
        assert dict(parts(changed)) == {**found, path: KeepForever()}
        less = replaced(policy, path, None)
        assert less is not None
        assert len(dict(parts(less))) == len(found) - 1
    assert replaced(MaxAge(1), (), None) is None
    assert isinstance(found["second",], Where)


def test_days_are_told_in_the_unit_that_fits():
    said = [duration(days) for days in (1 / 1440, 0.05, 1, 30, 2_000)]
    assert said == ["1 minute", "1.2 hours", "1 day", "30 days", "2,000 days"]
