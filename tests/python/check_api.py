"""Asks a running server what its OpenAPI document allows, and what it does not: ADDRESS [EXAMPLES].

Needs `pip install schemathesis==4.32.5`, and a server with a short context, since the cases ask for as many
tokens as there is room for: `pleach --max-model-len 64 --max-queue 100000`. EXAMPLES is the number of
cases per operation and phase (default 300).
"""

import subprocess
import sys

address, examples = sys.argv[1], (sys.argv[2:] or ["300"])[0]
checks = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
]
command = [
    *[sys.executable, "-m", "schemathesis.cli", "run", f"http://{address}/openapi.json"],
    *["--checks", ",".join(checks), "--max-examples", examples, "--mode", "all"],
    *["--phases", "coverage,fuzzing", "--workers", "4", "--request-timeout", "60"],
    *["--generation-deterministic", "--no-color"],
]
sys.exit(subprocess.run(command).returncode)
