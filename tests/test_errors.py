from __future__ import annotations

import re

import pytest

import fedlab
from fedlab import errors


def family(cls: type, depth: int = 0) -> list[tuple[int, str]]:
    children = [line for child in cls.__subclasses__() for line in family(child, depth + 1)]
    return [(depth, cls.__name__), *children]


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    lines = errors.__doc__.splitlines()
    drawn = [
        (match.start(1) // 4, match[1]) for line in lines if (match := re.match(r"[│├└─ ]*([A-Z]\w+)(  |$)", line))
    ]
    assert drawn == family(fedlab.FedlabError)


def test_every_error_is_public_has_its_own_code_and_a_docstring():
    classes = {getattr(errors, name) for _, name in family(fedlab.FedlabError)}
    assert {cls.__name__ for cls in classes} <= set(fedlab.__all__)
    assert {cls.code: cls for cls in classes} == errors.BY_CODE
    assert len(errors.BY_CODE) == len(classes)
    assert all(cls.__doc__ for cls in classes)


def test_an_error_carries_its_facts():
    error = fedlab.IdConflict("taken", ids=["a", "b"], forgotten=True)
    assert (str(error), error.ids, error.forgotten, error.code) == ("taken", ["a", "b"], True, "id_conflict")
    assert (fedlab.IdConflict("taken").ids, fedlab.IdConflict("taken").forgotten) == ([], False)


@pytest.mark.parametrize(
    ("raised", "builtin"),
    [
        ("InvalidEpisode", ValueError),
        ("InvalidVector", ValueError),
        ("HubUnavailable", ConnectionError),
        ("UnknownTenant", LookupError),
    ],
)
def test_python_code_can_catch_what_it_knows(raised, builtin):
    assert issubclass(getattr(fedlab, raised), builtin)


def test_unsynced_episodes_are_in_the_error(episode):
    assert fedlab.UnsyncedEpisodes("lost", [episode(1)]).episodes[0].input == "input 1"
