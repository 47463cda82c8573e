"""The README's picture of a finished run: what the program prints, with nothing loaded."""

import importlib.util
import re
from pathlib import Path

import pytest
from tiny import write_run

from securefed import Federation
from securefed.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURE = EXAMPLES / "finished_run.svg"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("finished_run", EXAMPLES / "finished_run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loads_nothing(picture: str) -> bool:
    return not re.search(r"url\((?!#)|href=|@import|@font-face|<script", picture)


def words_of(picture: str) -> str:
    return re.sub(r"<[^>]+>", " ", picture).replace("&#160;", " ")


def test_the_stored_picture_shows_the_demo_and_no_place_of_a_machine():
    picture = PICTURE.read_text(encoding="utf-8")
    assert loads_nothing(picture)
    words = words_of(picture)
    assert "demo: 6 rounds" in words
    assert "epsilon against fellow client (one window of 32 tokens, delta 1e-05)" in words
    assert not re.search(r"/\w+/\w+/", words)


@pytest.mark.slow
def test_it_is_drawn_from_a_finished_run_alone(script, tmp_path):
    path = write_run(tmp_path, training={"rounds": 2})
    result = Federation.from_config(path).run(tmp_path / "run")
    script.draw(result.folder, tmp_path / "run.svg")
    picture = (tmp_path / "run.svg").read_text(encoding="utf-8")
    assert loads_nothing(picture)
    assert "tiny: 2 rounds" in words_of(picture)
    assert f"{result.after.perplexity:.1f}" in words_of(picture)

    def stop(event):
        if event.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(path, on_round_end=stop).run(tmp_path / "stopped")
    with pytest.raises(ConfigError, match="not finished"):
        script.draw(tmp_path / "stopped", tmp_path / "none.svg")
