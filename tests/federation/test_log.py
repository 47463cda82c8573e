import pytest

from securefed.errors import ConfigError
from securefed.federation.log import appended


def test_a_log_is_its_owners_alone(tmp_path):
    path = tmp_path / "agent.log"
    with appended(path) as stream:
        stream.write("a line\n")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"mode 0644 .*chmod 600"), appended(path):
        pass
