#!/bin/sh
# Unit and process tiers on the oldest Python and aiohttp that are supported: tests/on39.sh [pytest arguments].
# PYTHON39 names the interpreter (default: python3.9 on PATH, or one of pyenv).
set -eu
cd "$(dirname "$0")/.."
python=
for candidate in ${PYTHON39:-python3.9 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.9.*/bin/python}; do
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 9))' 2>/dev/null; then
        python=$candidate
    fi
done
if [ -z "$python" ]; then
    echo "no Python 3.9: dnf install python39, or name one with PYTHON39=/path/to/python3.9"
    exit 0
fi
venv=.venv-39
if [ ! -e "$venv/.stamp" ] || [ setup.cfg -nt "$venv/.stamp" ]; then
    "$python" -m venv "$venv"
    "$python" packaging/dev/requirements.py sysinfer | sed 's/^aiohttp>=.*/aiohttp==3.8.4/' >"$venv/requirements.txt"
    echo "pytest>=8.0,<9
pytest-asyncio>=0.24
pytest-timeout>=2.1
pytest-xdist>=3.3
hypothesis>=6.80
openai>=1.40" >>"$venv/requirements.txt"
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check -r "$venv/requirements.txt"
    touch "$venv/.stamp"
fi
"$venv/bin/python" -c 'import sys, aiohttp; print("Python", sys.version.split()[0], "aiohttp", aiohttp.__version__)'
if [ $# -eq 0 ]; then
    set -- -q -n 2 --dist loadfile tests/unit tests/process
fi
PYTHONPATH=.:kernels/python exec "$venv/bin/python" -m pytest -p no:cacheprovider "$@"
