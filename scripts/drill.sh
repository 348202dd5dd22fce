#!/usr/bin/env bash
# Runs the tests with real faults in their long form: each course several times, faults that outlast every lease. Options go
# to cargo; DRILL chooses some of them by a part of their name, such as DRILL=cuts.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build -p pgstead "$@"
# Not with cargo-nextest: it would end what takes its time. Here nothing may be left out for want of rights.
CI=true PGSTEAD_DRILL=1 exec cargo test -p pgstead-cluster-tests --test nodes "$@" -- --test-threads 1 --nocapture "faults::${DRILL-}"
