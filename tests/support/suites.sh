# Runs suites, alone or beside each other, and keeps what is said of them at the end. Read in by tests/run; needs `set -m`.
#
# Each suite is a process group of its own, so that all of it can be ended. Its output is kept as it is in target/test-logs,
# and shown line by line under its name: several may speak at once.

suite_logs=target/test-logs
run_started=$SECONDS
# Seconds: the longest a run may take, and a suite that is told to end; containers take their time to go.
longest_run=5000
longest_end=120
report=()
failed=()
broken=()
skipped=()
# By suite.
declare -A begun pipeline watcher

# Begins a suite: begin NAME COMMAND...
begin() {
    local name=$1
    local log=$suite_logs/$name.log
    shift
    mkdir -p "$suite_logs"
    rm -f "$log.status" "$log.ended"
    printf '\n=== %s: %s\n' "$name" "$*"
    begun[$name]=$SECONDS
    # In the background, so that an interrupt reaches the trap at once and not after the suite.
    {
        # Told to end, a suite still clears up: that it did, and what it says meanwhile, is waited for.
        trap : INT TERM
        "$@"
        echo "$? $((SECONDS - begun[$name]))" >"$log.status"
    } </dev/null 2>&1 | {
        trap '' INT TERM
        tee "$log" | sed -u "s/^/$name | /"
    } &
    pipeline[$name]=$!
    watch_over "$name" "$(jobs -p %%)" &
    watcher[$name]=$!
}

# Ends a suite with which the run would take longer than it may, so that the summary still names what failed.
watch_over() {
    local left=$((run_started + longest_run - SECONDS))
    [ "$left" -le 0 ] || sleep "$left"
    echo "tests/run: the run takes longer than $longest_run s; $1 is ended" >&2
    # Whatever its status is then, the suite has failed.
    : >"$suite_logs/$1.log.ended"
    end_groups "$2"
}

# Ends process groups: asks all of them, waits for each, and kills what is left.
end_groups() {
    local group deadline=$((SECONDS + longest_end))
    for group in "$@"; do kill -TERM -- "-$group"; done
    for group in "$@"; do
        while kill -0 -- "-$group" && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.1; done
        kill -KILL -- "-$group"
    done
} 2>/dev/null

# Waits for a suite that was begun and reports it; its exit status is the suite's.
await() {
    local name=$1 status took closing
    local log=$suite_logs/$name.log
    wait "${pipeline[$name]}"
    { kill -KILL -- "-${watcher[$name]}" && wait "${watcher[$name]}"; } 2>/dev/null
    # One that was killed has left none.
    read -r status took 2>/dev/null <"$log.status" || { status=143 took=$((SECONDS - begun[$name])); }
    [ ! -e "$log.ended" ] || status=143
    rm -f "$log.status" "$log.ended"
    closing=$(closing_line "$name" "$log")
    if [ "$status" -eq 0 ]; then
        note ok "$name" "$took" "$closing"
    else
        note FAIL "$name" "$took" "${closing:-exit code $status}"
        failed+=("$name")
        mapfile -t -O ${#broken[@]} broken < <(faults "$name" "$log")
    fi
    mapfile -t -O ${#skipped[@]} skipped < <(skips "$name" "$log")
    return "$status"
}

# Runs one suite to its end.
suite() {
    begin "$@"
    await "$1"
}

# Writes one line of the summary: note ok|FAIL|skip NAME SECONDS TEXT
note() {
    report+=("$(printf '%-4s  %-10s %4d s  %s' "$@")")
}

# Names what was not run, with the reason where the suite knows one.
skips() {
    case $1 in
    rust)
        sed -n -e 's/^test \(.*\) \.\.\. ignored\(, \(.*\)\)\{0,1\}$/rust: \1 - \3/p' -e 's/^skipped: /rust: /p' "$2"
        ;;
    deploy | book | e2e | compose) sed -n "s/^SKIPPED /$1: /p" "$2" ;;
    esac
}

# Names the tests that failed, with the first line of the reason where the suite tells one.
faults() {
    case $1 in
    rust) sed -n -e 's/^test \(.*\) \.\.\. FAILED$/rust: \1/p' "$2" ;;
    deploy | book | e2e | compose) sed -n -e "s/^\(FAILED\|ERROR\) tests/$1: tests/p" "$2" ;;
    esac
}

closing_line() {
    case $1 in
    rust)
        # One line of `test result` a binary; together they are the suite's.
        awk '/^test result:/ { passed += $4; failed += $6; ignored += $8; binaries += 1 }
            /^session loop: / { simulated = "; " $0 }
            END {
                printf "%d passed, %d failed, %d ignored in %d test binaries", passed, failed, ignored, binaries
                printf "%s", simulated
            }' "$2"
        ;;
    *) grep -v '^[[:space:]]*$' "$2" | tail -n 1 ;;
    esac
}

# Every stack that the conformance suites were run on, with the number of cases that held.
conformance_table() {
    awk -F ': ' '
        function pad(text, width) { return sprintf("%-" width "s", text) }
        $1 == "conformance" && $3 ~ / cases passed$/ {
            stack = $2; suite = "backend"
            if (sub(/^engine over /, "", stack)) suite = "engine"
            if (!(stack in seen)) { seen[stack] = 1; stacks[++count] = stack }
            if (length(stack) > width) width = length(stack)
            split($3, words, " "); cases[stack, suite] = words[1]
        }
        END {
            if (!count) exit
            print "\n=== conformance: cases that held, by suite and stack"
            printf "%s  %8s  %8s\n", pad("stack", width), "backend", "engine"
            for (n = 1; n <= count; n++) {
                stack = stacks[n]
                backend = (stack, "backend") in cases ? cases[stack, "backend"] : "-"
                engine = (stack, "engine") in cases ? cases[stack, "engine"] : "-"
                printf "%s  %8s  %8s\n", pad(stack, width), backend, engine
            }
        }' "$1"
}

# Says how every suite ended, and ends the run.
summary() {
    printf '\n=== summary\n'
    printf '%s\n' "${report[@]}"
    if [ ${#broken[@]} -gt 0 ]; then printf 'FAIL  %s\n' "${broken[@]}"; fi
    if [ ${#skipped[@]} -gt 0 ]; then printf 'skip  %s\n' "${skipped[@]}"; fi
    printf 'total %d s; logs in %s\n' $((SECONDS - run_started)) "$suite_logs"
    if [ ${#failed[@]} -gt 0 ]; then
        printf 'FAILED: %s\n' "${failed[*]}"
        exit 1
    fi
    if printf '%s\n' "${report[@]}" | grep -q '^skip '; then
        echo 'all suites that ran passed'
    else
        echo 'all suites passed'
    fi
    exit 0
}
