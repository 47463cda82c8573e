"""Puts threat_models/, which lies beside the package, inside it when a wheel is built.

Everything else is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildWithThreatModels(build_py):
    """Copies the threat models and their stored evidence to securefed/threats/shipped."""

    def run(self) -> None:
        """Build as ever, then copy; an editable install reads the folder where it is."""
        super().run()
        if self.editable_mode:
            return
        source = HERE / "threat_models"
        for path in [*source.glob("*.yaml"), *source.glob("evidence/*.json")]:
            target = Path(self.build_lib, "securefed/threats/shipped", path.relative_to(source))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


setup(cmdclass={"build_py": BuildWithThreatModels})
