#!/bin/sh
# A browser for the tests in tests/browser: use the one that is here, else fetch Debian's, else say what to do.
# `--which` only prints the path of the one that is here (make hands it to the tests as BROWSER_PATH).
for b in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$b" >/dev/null 2>&1; then
        [ "${1:-}" != --which ] || command -v "$b"
        exit 0
    fi
done
[ "${1:-}" != --which ] || exit 0
if [ "$(id -u)" = 0 ]; then SUDO=; elif sudo -n true 2>/dev/null; then SUDO=sudo; else SUDO=none; fi
if [ "$SUDO" != none ] && command -v apt-get >/dev/null 2>&1 && grep -q '^ID=debian' /etc/os-release; then
    echo "Installing chromium with apt-get (the browser tests need it)."
    export DEBIAN_FRONTEND=noninteractive
    $SUDO apt-get update -qq && $SUDO apt-get install -y -qq chromium >/dev/null && exit 0
fi
echo "The browser tests need Chromium or Chrome: 'sudo apt-get install chromium' on Debian, a Chrome package on Ubuntu, then run make again." >&2
exit 1
