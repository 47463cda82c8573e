"""The page "choosing protection": its settings are run files, its epsilons are computed."""

import math
import re
import tomllib

import pytest
from guides import GUIDES, anchors, links

from securefed.config import parse_config
from securefed.engines.arrangement import told
from securefed.engines.settings import Settings
from securefed.privacy.accounting import epsilon_text

PAGE = (GUIDES / "choosing_protection.md").read_text(encoding="utf-8")
SECTIONS = {
    title: body
    for title, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
ROWS = re.findall(r"^\| \[([^\]]+)\]\(#([^)]+)\) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)
_PLANNED = re.compile(
    r"Planned for ([\d,]+) clients with ([\d,]+) units each: (.+?) against the server, (.+?) "
    r"against the release, (.+?) against one fellow client \(delta (\S+)\)\."
)
VALUES = 23_040  # that travel in the demo: LoRA of rank 4 on one projection of SmolLM2-135M
WIDTHS = (5_760, 17_280)  # its columns of rank 1 to 2, and 3 to 8


def section(title: str) -> str:
    (found,) = (body for name, body in SECTIONS.items() if name.lower() == title.lower())
    return found


def fragment(title: str) -> dict:
    (block,) = re.findall(r"```toml\n(.*?)```", section(title), re.DOTALL)
    return tomllib.loads(block)


def planned(title: str) -> tuple[int, int, dict[str, str], str]:
    found = _PLANNED.search(" ".join(section(title).split()))
    assert found, title
    clients, units = (int(found[place].replace(",", "")) for place in (1, 2))
    stated = {
        who: words.removeprefix("epsilon ")
        for who, words in zip(
            ("server", "release", "fellow_client"), found.groups()[2:5], strict=True
        )
    }
    return clients, units, stated, found[6]


def settings(title: str, **changes) -> Settings:
    values = fragment(title)
    values["privacy"] = {
        key: value
        for key, value in (values.get("privacy", {}) | changes).items()
        if value is not None
    }
    config = parse_config(values)
    clients, units, _, _ = planned(title)
    return Settings(
        config,
        sizes={f"site-{number}": units for number in range(clients)},
        dimension=VALUES,
        **({"widths": WIDTHS} if config.cohort.ranks else {}),
    )


TITLES = [title for title, *_ in ROWS]
LATER = ("deployment.md", "faults.md", "load.md")
"""Guides that come with other changes; they are checked as soon as they are there."""


@pytest.mark.parametrize("page", sorted(GUIDES.glob("*.md")), ids=lambda page: page.name)
def test_what_a_guide_links_to_is_there(page):
    for target, anchor in links(page.read_text(encoding="utf-8")):
        linked = (page.parent / target).resolve() if target else page
        if target in LATER and not linked.exists():
            continue
        assert linked.exists(), target
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked.read_text(encoding="utf-8")), (target, anchor)


def test_the_index_names_every_guide():
    index = (GUIDES / "README.md").read_text(encoding="utf-8")
    named = {target for target, _ in links(index)}
    assert {page.name for page in GUIDES.glob("*.md")} - {"README.md"} <= named


def test_the_table_names_every_section_that_has_settings():
    with_settings = {title.lower() for title, body in SECTIONS.items() if "```toml" in body}
    assert {title.lower() for title in TITLES} == with_settings
    assert len(TITLES) == len(set(TITLES)) >= 8
    assert {anchor for _, anchor, _, _ in ROWS} <= anchors(PAGE)


def flat(values: dict, before: str = "") -> dict[str, object]:
    found = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{before}{key}.") if inner else {f"{before}{key}": value}
    return found


def canonical(value: object) -> object:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return sorted(str(sorted(item.items(), key=str)) for item in value)
    return value


@pytest.mark.parametrize(("title", "cells"), [(row[0], row[2]) for row in ROWS])
def test_what_a_row_names_is_in_its_sections_run_file(title, cells):
    named = flat(tomllib.loads("\n".join(re.findall(r"`([^`]+)`", cells))))
    assert named
    config = parse_config(fragment(title))
    given = flat(fragment(title))
    for key, value in named.items():
        whole = config
        for part in key.split("."):  # as the run file has it, defaults too
            whole = getattr(whole, part)
        if key in given:
            assert canonical(given[key]) == canonical(value), key
        else:
            assert whole == value, key


@pytest.mark.parametrize(("title", "against"), [(row[0], row[3]) for row in ROWS])
def test_an_epsilon_is_claimed_against_whom_it_holds(title, against):
    _, _, stated, delta = planned(title)
    holds = {who.replace("_", " ") for who, words in stated.items() if words != "no epsilon"}
    assert holds == set(against.split(", "))
    assert float(delta) == parse_config(fragment(title)).privacy.delta


@pytest.mark.parametrize("title", TITLES)
def test_a_sections_run_file_plans_for_its_sizes(title):
    """Without the search for noise; its epsilons are in a slow test."""
    found = settings(title, target_epsilon=None, noise_multiplier=1.0)
    assert found.bounds.honest_floor >= 2
    assert found.config.cohort.min_clients <= found.bounds.survivor_floor
    body = section(title)
    for claim in re.findall(r"`(C-[a-z-]+)`", body):
        assert claim in CLAIMS, claim


CLAIMS = {
    claim
    for path in (GUIDES.parents[1] / "threat_models").glob("*.yaml")
    for claim in re.findall(
        r"^  - id: (C-[a-z-]+)$", path.read_text(encoding="utf-8"), re.MULTILINE
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("title", TITLES)
def test_the_epsilons_are_those_of_the_settings(title):
    found = settings(title)
    _, _, stated, _ = planned(title)
    for who, words in stated.items():
        epsilon = found.guarantee(who, found.config.training.rounds).epsilon
        if words == "no epsilon":
            assert math.isinf(epsilon), who
        else:
            assert epsilon_text(epsilon) == words, who


def test_the_bytes_of_encrypted_and_masked_contributions_are_those_stated():
    title = "a party that may hold a key"
    encrypted = settings(title)
    values = fragment(title)
    values["aggregation"] = {"kind": "pairwise"}
    masked = Settings(parse_config(values), sizes=encrypted.sizes, dimension=VALUES)
    for found in (encrypted, masked):
        words = told(found.aggregation, found.plan, found.bounds)
        (contribution,) = re.findall(r"a contribution is ([\d,]+) bytes", words)
        assert contribution in section(title)


def test_ten_of_twenty_make_the_counted_noise():
    found = settings("no trust among clients")
    assert (found.bounds.corrupt, found.bounds.honest_floor) == (8, 10)
    counted = (found.plan.clip_units * 1.0) ** 2  # at noise_multiplier = 1
    assert found.plan.local_std**2 * found.cohort_size / counted == pytest.approx(2.0, rel=0.01)


def test_a_small_fraction_counts_for_nobody():
    found = settings("few silos that know each other", corrupt_fraction=0.1)
    assert found.bounds.corrupt == 0
