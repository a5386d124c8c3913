#!/bin/sh
# Finds what has to be on the machine before Python can take over, and prints the path of a usable Python.
#
#   sh tools/bootstrap.sh [COMMAND=PACKAGE]...
#
# Needed: Python >= 3.11 with venv and headers, and a C compiler. Each COMMAND=PACKAGE is a wish: what it serves is
# skipped without it. As root on Debian and its kin, what is missing is installed; otherwise it is named.
set -eu
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { echo "bootstrap: $*" >&2; }

find_python() {
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if "$candidate" - >/dev/null 2>&1 <<'PY'
import ensurepip, os, sys, sysconfig, venv
headers = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (sys.version_info >= (3, 11) and os.path.exists(headers)))
PY
        then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

has_compiler() { echo 'int main(void) { return 0; }' | ${CC:-cc} -x c - -o /dev/null >/dev/null 2>&1; }

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

install() {
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq -o DPkg::Lock::Timeout=300 update >&2 || true # an old package list may still do
    apt-get -qq -y -o DPkg::Lock::Timeout=300 --no-install-recommends install "$@" >&2
}

needed=""
find_python >/dev/null || needed=" python3-dev python3-venv"
has_compiler || needed="$needed build-essential"

wished=""
for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || wished="$wished ${pair#*=}"
done

if [ -n "$needed" ]; then
    can_install || { say "missing:$needed (names as in Debian); install them, or run this as root"; exit 1; }
    # shellcheck disable=SC2086 # lists of words
    install $needed
fi
if [ -n "$wished" ]; then
    # shellcheck disable=SC2086
    { can_install && install $wished; } || say "missing:$wished (names as in Debian); what needs them is skipped"
fi

has_compiler || { say "no working C compiler, even now"; exit 1; }
find_python || { say "no Python >= 3.11 with venv and headers, even now; set PYTHON to one"; exit 1; }
