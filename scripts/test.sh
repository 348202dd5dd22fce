#!/usr/bin/env bash
# Runs every test of the workspace; options go to cargo. Nothing is printed after the runner's own closing line.
#
# cargo-nextest is used where it is installed: it runs the tests of all crates side by side. It is never installed for
# this, since building it takes longer than it saves once. It knows no documentation tests, so those come first.
set -euo pipefail
cd "$(dirname "$0")/.."

# The tests of real nodes run this very binary; no test target depends on it by itself.
cargo build --workspace --bins "$@"

if ! cargo nextest --version >/dev/null 2>&1; then
    exec cargo test --workspace --no-fail-fast "$@"
fi

docs=0
cargo test --workspace --doc --quiet "$@" || docs=$?
[ "$docs" -eq 0 ] || echo "test: documentation tests failed, see above; going on with the others" >&2
cargo nextest run --workspace --no-fail-fast "$@" || exit
exit "$docs"
