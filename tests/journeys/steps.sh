# What the journeys share; they source this file with their arguments. It makes an empty folder and works there.
#
# $text is the text to work with: the first argument of the journey, by default some modules of Python's standard
# library, so that no network is needed.
set -uo pipefail
exec 2>&1

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [ -d "$root/.venv/bin" ]; then PATH=$root/.venv/bin:$PATH; fi
command -v gpt2 >/dev/null || { echo "gpt2 is not on the path; run make setup first"; exit 2; }
# shellcheck disable=SC2034 # the journeys use it
text=$(realpath "${1:-$(python -c 'import asyncio, os; print(os.path.dirname(asyncio.__file__))')}") || exit 2
work=$(mktemp -d)
cd "$work" || exit 2

fail() {  # STEP: ends the journey at a step, with the last lines of its output
  tail -n 15 "$work/$1.log"
  echo "failed: $1 (everything is in $work)"
  exit 1
}

step() {  # STEP COMMAND…: runs a command, which must succeed, and prints its time in seconds
  local name=$1
  shift
  TIMEFORMAT="%1R s  $name"
  time "$@" >"$work/$name.log" 2>&1 || fail "$name"
}

answered() {  # STEP TEXT COMMAND…: runs a command, which must end with one line that contains the text
  local name=$1 answer=$2
  shift 2
  TIMEFORMAT="%1R s  $name"
  time "$@" >"$work/$name.log" 2>&1
  [ $? -eq 2 ] && tail -n 1 "$work/$name.log" | grep -qF -- "$answer" || fail "$name"
}

skipped() {  # STEP REASON: prints that a step cannot be done here
  echo "skipped  $1: $2"
}

installed() {  # MODULE: whether Python can import it
  python -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"
}

finish() {
  cd / && rm -rf "$work"
  echo ok
}
