#!/usr/bin/env bash
# Makes the peers' environment outside the repository: bench/serve/setup.sh [DIRECTORY], default ~/.cache/slipway-bench.
# It sees the torch of the project's .venv. wrk comes from the distribution: apt-get install wrk.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
directory=${1:-$HOME/.cache/slipway-bench}
mkdir -p "$directory"
"$root/.venv/bin/python" -m venv "$directory/peers"
"$directory/peers/bin/python" -m pip install --quiet --disable-pip-version-check mosec==0.9.8
purelib='import sysconfig; print(sysconfig.get_paths()["purelib"])'
"$root/.venv/bin/python" -c "$purelib" > "$("$directory/peers/bin/python" -c "$purelib")/zz_torch.pth"
command -v wrk > /dev/null || echo "wrk is missing: apt-get install wrk"
echo "peers ready in $directory/peers"
