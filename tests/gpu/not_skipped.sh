#!/bin/sh
# Runs a test on tests/fake_hip, where there is always a device: that it finds none (77) is a failure. The system's own
# runtime may have been loaded in the fake's place.
"$@"
status=$?
[ "$status" -ne 77 ] || { echo "it skipped itself: it did not run on tests/fake_hip, in $LD_LIBRARY_PATH" >&2; exit 1; }
exit "$status"
