#!/bin/sh
# The tests of pyconcord.ext.django on the oldest Django that is supported, which stands before the
# one of the virtual environment on the path. Further arguments are pytest's.
set -eu

cd "$(dirname "$0")/.."
old=build/django42
sh tools/venv.sh .venv test
[ -d "$old/django" ] || .venv/bin/python -m pip install -q --no-deps --target "$old" 'Django==4.2.*'
PYTHONPATH="$old" .venv/bin/python -c 'import django; print("Django", django.get_version())'
PYTHONPATH="$old" .venv/bin/python -m pytest tests/python/test_django_*.py "$@"
