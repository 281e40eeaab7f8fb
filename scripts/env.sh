# Sourced by the scripts beside it: where things lie, and how the compiler cache is shared.
set -euo pipefail

if [ -z "${HOME:-}" ]; then
  HOME=$(getent passwd "$(id -u)" | cut -d: -f6)
  export HOME
fi
dd2_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dd2_cache=${XDG_CACHE_HOME:-$HOME/.cache}/dd2
dd2_torch=$dd2_cache/torch-2.11.0

# Paths below the checkout are hashed as relative ones, so another checkout finds these objects.
export CCACHE_DIR=${CCACHE_DIR:-$dd2_cache/ccache}
export CCACHE_BASEDIR=$dd2_root CCACHE_NOHASHDIR=1 CCACHE_MAXSIZE=${CCACHE_MAXSIZE:-5G}

# How many compilers at once: one a core, but each wants up to 1.5 GB (files with LibTorch).
dd2_jobs() {
  local cores memory_kb
  cores=$(nproc)
  memory_kb=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
  local fits=$((memory_kb / 1500000))
  [ "$fits" -ge 1 ] || fits=1
  echo $((cores < fits ? cores : fits))
}

# A python3 that has pip; nothing when there is none.
python_with_pip() {
  local python
  for python in python3 /usr/bin/python3; do
    if "$python" -m pip --version >/dev/null 2>&1; then
      echo "$python"
      return
    fi
  done
}
