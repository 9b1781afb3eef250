#!/usr/bin/env bash
# Runs a command that says when things happened, as demo.sh does ("   0.78 s  TEXT"), and draws what it said as a terminal in which
# each line appears when it was said. Where nothing moves, as in print, all lines are there. A command that fails leaves no file.
# Usage: record.sh SVG COMMAND [ARGUMENT...]
set -euo pipefail

[ $# -ge 2 ] || { printf 'usage: %s SVG COMMAND [ARGUMENT...]\n' "$0" >&2; exit 2; }
svg=$1
shift

new=$(mktemp "$svg.XXXXXX")
trap 'rm -f "$new"' EXIT

"$@" | tee >(cat >&2) | command="$*" awk '
    function escaped(text) {
        gsub(/[[:cntrl:]]/, " ", text)
        gsub(/&/, "\\&amp;", text)
        gsub(/</, "\\&lt;", text)
        gsub(/>/, "\\&gt;", text)
        return text
    }

    function write(line, class, marked, rest) {
        printf "<text class=\"%s\" x=\"%d\" y=\"%d\" xml:space=\"preserve\">", class, margin, margin + size + line * step
        printf "<tspan>%s</tspan>%s</text>\n", escaped(marked), escaped(rest)
    }

    # A line without a time belongs to the moment of the one before it.
    {
        is_timed = $0 ~ /^ *[0-9]+\.[0-9]+ s  /
        moment[NR] = is_timed ? $1 + 0 : moment[NR - 1] + 0
        time[NR] = is_timed ? substr($0, 1, index($0, " s  ") + 1) : ""
        text[NR] = substr($0, length(time[NR]) + 1)
        if (length($0) > columns) columns = length($0)
    }

    END {
        if (NR == 0) exit 1
        # A character of these fonts is about 0.6 of their size wide. The last picture stays for six seconds.
        size = 13; step = 20; margin = 18
        width = int(columns * size * 0.6) + 2 * margin
        height = (NR + 1) * step + 2 * margin
        cycle = moment[NR] + 6

        printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\">\n", width, height, width, height
        printf "<title>%s</title>\n<style>\n", escaped(ENVIRON["command"])
        printf "text { font: %dpx ui-monospace, Menlo, \"DejaVu Sans Mono\", monospace; fill: #e6edf3 }\n", size
        print "tspan { fill: #8b949e }\n@media (prefers-reduced-motion: no-preference) {"
        for (line = 1; line <= NR; line++) {
            printf "@keyframes at%d { 0%% { opacity: 0 } %.2f%% { opacity: 1 } }", line, 100 * moment[line] / cycle
            printf " .at%d { animation: at%d %.2fs step-end infinite }\n", line, line, cycle
        }
        print "}\n</style>\n<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#0d1117\"/>"
        write(0, "command", "$ ", ENVIRON["command"])
        for (line = 1; line <= NR; line++) write(line, "at" line, time[line], text[line])
        print "</svg>"
    }' >"$new"

chmod 644 "$new"
mv "$new" "$svg"
