"""What docs/payments.md shows runs as it is written."""

import json
import re
import subprocess
from pathlib import Path

from evm_session import PROVIDER_URL, challenge

PAGE = Path(__file__).parents[3] / "docs" / "payments.md"


def test_the_example_shows_a_challenge():
    [script] = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    script = script.replace("http://127.0.0.1:8080/v1", PROVIDER_URL)
    shown = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout) == challenge().request
    for line in ("HTTP/1.1 402 Payment Required", "content-type: application/problem+json", "www-authenticate: Payment id="):
        assert line in shown.stderr
