#!/bin/sh
# Copies the extension's files to a server's extension directory, or removes exactly those.
#   extension.sh install|uninstall PG_CONFIG DESTDIR SCRIPT
# A plain copy: no compiler, no server headers, no Python. Run from the top of the checkout.
set -eu

action=$1 pg_config=$2 destdir=$3 script=$4

if ! sharedir=$("$pg_config" --sharedir); then
  echo "make $action: can't run $pg_config; name the one of your server with PG_CONFIG=" >&2
  exit 1
fi
directory=$destdir$sharedir/extension

if [ "$action" = uninstall ]; then
  # Every version's: older upgrade scripts were put there by an older checkout.
  for file in "$directory"/concord.control "$directory"/concord--[0-9]*.sql; do
    if [ -e "$file" ]; then rm -- "$file" && echo "removed $file"; fi
  done
  exit 0
fi

mkdir -p "$directory"
if [ ! -w "$directory" ]; then
  echo "make install: no right to write to $directory (sudo make install?)" >&2
  exit 1
fi
for file in sql/concord.control "$script" migrations/concord--*--*.sql; do
  if [ -e "$file" ]; then
    target=$directory/${file##*/}
    cp -- "$file" "$target" && chmod 644 "$target" && echo "installed $target"
  fi
done
