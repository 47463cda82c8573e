"""What a run records of the code that made it."""

import importlib.metadata

import pytest

from securefed.errors import ConfigError
from securefed.evidence import software
from securefed.evidence.software import dependencies, dependencies_sha256, source_sha256


@pytest.fixture(autouse=True)
def unremembered():
    software._dependencies.cache_clear()
    yield
    software._dependencies.cache_clear()


def test_versions_are_those_installed_of_what_is_declared_and_of_what_that_needs():
    found = dependencies()
    assert list(found) == sorted(found)
    for name in ("cryptography", "dp-accounting", "numpy", "cffi"):  # the last by the first
        assert found[name] == importlib.metadata.version(name)
    assert not {"securefed", "pytest", "ruff"} & found.keys()


def test_a_requirement_that_is_not_installed_is_left_out_and_names_are_normal(monkeypatch):
    known = {
        "securefed": ["One_A>=1", "gone; extra == 'he'", "pytest; extra == 'test'"],
        "one-a": ["two[x]>=2; python_version >= '3'", "never; extra == 'docs'"],
        "two": ["One.A"],
        "never": [],
        "pytest": [],
    }

    def requires(name):
        if name not in known:
            raise importlib.metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{len(requires(name))}.0")
    assert dependencies() == {"one-a": "2.0", "two": "1.0"}


def test_without_the_distribution_nothing_is_recorded_and_the_error_says_what_to_do(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    with pytest.raises(ConfigError, match=r"securefed is not installed.*pip install"):
        dependencies()


def test_digests_follow_every_version_and_every_source(tmp_path, monkeypatch):
    assert dependencies_sha256({"a": "1"}) != dependencies_sha256({"a": "2"})
    (tmp_path / "evidence").mkdir()
    place = tmp_path / "evidence" / "software.py"
    place.write_text("one")
    monkeypatch.setattr(software, "__file__", str(place))
    digests = {software.source_sha256.__wrapped__()}
    for path, text in [(place, "two"), (tmp_path / "new.py", ""), (tmp_path / "new.txt", "")]:
        path.write_text(text)
        digests.add(software.source_sha256.__wrapped__())
    assert len(digests) == 3  # a file that is no source changes nothing
    assert len(source_sha256()) == 64
