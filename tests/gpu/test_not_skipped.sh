#!/bin/sh
# What not_skipped.sh makes of how a test ends: 77 becomes a failure, and it is said why; all else stays as it is.
#
#   test_not_skipped.sh NOT-SKIPPED-SH
set -u
wrap=$1
failed=0

# EXPECTED-STATUS TEXT COMMAND...: the status has to be this, and the output this text, or have it in it where there is any.
ends() {
    expected=$1 text=$2
    shift 2
    output=$("$wrap" "$@" 2>&1)
    status=$?
    case $output in
        *"$text"*) said=1 ;;
        *) said=0 ;;
    esac
    [ -n "$text" ] || { [ -z "$output" ] && said=1 || said=0; }
    if [ "$status" -ne "$expected" ] || [ "$said" -eq 0 ]; then
        echo "not_skipped.sh $*: status $status, expected $expected; it printed '$output', expected '$text'"
        failed=1
    fi
}

export LD_LIBRARY_PATH=/a/folder
ends 0 '' true
ends 1 '' false
ends 3 '' sh -c 'exit 3'
ends 1 'it skipped itself: it did not run on tests/fake_hip, in /a/folder' sh -c 'exit 77'
ends 0 '<a  b><c>' printf '<%s>' 'a  b' c
ends 127 'not found' /nonexistent/test
exit "$failed"
