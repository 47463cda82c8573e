"""Every rendering: pure, in both languages, from a report that was read back from its file."""

import json

import pytest
import report_sample as sample

from securefed.reports.crosswalk import crosswalk
from securefed.reports.crosswalk.files import frameworks
from securefed.reports.document import Report
from securefed.reports.formats import FORMATS


@pytest.fixture(scope="module")
def whole():
    found = sample.report()
    return found.model_copy(update={"crosswalk": crosswalk(found, frameworks()[2:3])})


def test_the_formats_that_were_asked_for_are_there():
    assert set(FORMATS) == {
        "html",
        "md",
        "json",
        "pdf",
        "cyclonedx",
        "dp-registry",
        "model-card",
    }
    names = [one.file_name("en") for one in FORMATS.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("language", ["en", "ja"])
def test_a_rendering_follows_from_report_json_alone(name, language, whole):
    render = FORMATS[name].load()
    once = render(whole, language)
    again = render(Report.model_validate(json.loads(whole.to_text())), language)
    assert once == again
    assert len(once) > 500
