"""What the README prints is what runs."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_ci_runs_the_readmes_test_command_word_for_word():
    _, tests = blocks("bash")[:2]
    script = (ROOT / ".ci" / "run").read_text()
    assert tests.strip() in script.splitlines()
    assert tests.strip().endswith("pytest")


def test_the_first_command_runs_the_demo():
    assert blocks("bash")[0].strip().endswith("securefed demo")


def test_every_python_block_runs():
    found = blocks("python")
    assert found
    for code in found:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert "differential privacy" in done.stdout


def test_files_and_commands_that_the_readme_names_exist():
    for name in re.findall(r"`(?:examples/)?([\w]+\.(?:toml|py))`", README):
        if name != "config.toml":
            assert (ROOT / "examples" / name).exists(), name
    helped = subprocess.run(
        [sys.executable, "-m", "securefed", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in set(re.findall(r"`securefed (\w+)", README)):
        assert command in helped, command


def test_docstring_examples_run():
    import doctest

    import securefed.engines.in_process as in_process

    assert doctest.testmod(in_process).failed == 0
