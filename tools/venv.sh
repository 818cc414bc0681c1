#!/bin/sh
# Makes the virtual environment, with this checkout installed into it and the dependencies of the named extras:
#   venv.sh DIRECTORY EXTRA[,EXTRA…]
# Does nothing when that was done before for this place, this Python and this pyproject.toml. PYTHON names the
# interpreter to use. Run from the top of the checkout.
set -eu

venv=$1 extras=$2

say() { echo "pyconcord: $*" >&2; }

works() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    works "$PYTHON" || { say "PYTHON=$PYTHON is not a Python 3.10 or newer"; exit 1; }
    echo "$PYTHON"
    return
  fi
  for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
    if works "$name"; then echo "$name"; return; fi
  done
  say "Python 3.10 or newer is needed, and none is on PATH (PYTHON=/path/to/python3 names one)"
  exit 1
}

make_venv() {
  python=$(find_python)
  rm -rf -- "$venv"
  say "making $venv with $("$python" --version)"
  if "$python" -c 'import ensurepip' >/dev/null 2>&1; then
    "$python" -m venv "$venv"
  elif "$python" -m pip --python "$python" --version >/dev/null 2>&1; then
    # Debian's python3 without python3-venv: its pip, if there is one, can put pip into an environment without.
    "$python" -m venv --without-pip "$venv"
    "$python" -m pip --python "$venv/bin/python" --quiet install pip
  else
    say "this Python can't make virtual environments that have pip: on Debian and Ubuntu install python3-venv"
    say "(apt install python3-venv), or name another interpreter with PYTHON=/path/to/python3"
    exit 1
  fi
}

PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export PIP_NO_INPUT PIP_DISABLE_PIP_VERSION_CHECK
exec </dev/null

# What the stamps must hold to count: an environment can't be moved, nor the checkout under an editable install.
state="$(pwd -P) $(cksum <pyproject.toml)"

if [ ! -x "$venv/bin/python" ] || ! works "$venv/bin/python" || [ "$(cat "$venv/.at" 2>/dev/null)" != "$(pwd -P)" ]; then
  make_venv
  pwd -P >"$venv/.at"
fi
stamp=$venv/.with-$(echo "$extras" | tr , -)
if [ "$(cat "$stamp" 2>/dev/null)" != "$state" ]; then
  say "installing into $venv: $extras"
  if ! "$venv/bin/python" -m pip install --quiet --editable ".[$extras]"; then
    say "pip could not install the dependencies (see above)"
    exit 1
  fi
  echo "$state" >"$stamp"
fi
