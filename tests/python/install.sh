#!/usr/bin/env bash
# Installs the Python programs that tests run, once, and prints the directory that they are in:
#   venv      schemathesis, with all it needs (requirements.txt)
#   clients   client libraries as they are on PyPI (clients.txt), without what they depend on
# It is in $XDG_CACHE_HOME/mote/python, by the hash of those files and of Python's version.
# Usage: export PYTHON_TOOLS=$(tests/python/install.sh)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Debian's own, which its package python3-venv goes with.
python=/usr/bin/python3
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    { echo "$0: there is no Python that makes environments: apt-get install python3-venv" >&2; exit 1; }
hash=$({ "$python" --version; cat "$here"/{install.sh,requirements.txt,clients.txt}; } | sha256sum | cut -c1-16)
all=${XDG_CACHE_HOME:-$HOME/.cache}/mote/python
tools=$all/$hash
mkdir -p "$tools"
exec {lock}>"$tools/.lock"
flock "$lock"
if [ ! -e "$tools/complete" ]; then
    echo "$0: installing into $tools (once)" >&2
    # What a run left that was cut off.
    rm -rf "$tools/venv" "$tools/clients"
    # Not built elsewhere and moved: an environment knows its own path.
    "$python" -m venv "$tools/venv"
    pip=("$tools/venv/bin/pip" --quiet --disable-pip-version-check install)
    "${pip[@]}" --requirement "$here/requirements.txt" >&2
    "${pip[@]}" --no-deps --target "$tools/clients" --requirement "$here/clients.txt" >&2
    : >"$tools/complete"
    # Those of other versions, once they are a week old.
    find "$all" -mindepth 2 -maxdepth 2 -name complete -mtime +7 -not -path "$tools/*" -printf '%h\0' | xargs -0 -r rm -rf
fi
echo "$tools"
