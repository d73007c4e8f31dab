#!/bin/bash
# Checks what is for Prometheus and Grafana. With promtool the alerts' rules, that each of them fires when it should and not
# before, and that each panel of the dashboard asks something that Prometheus understands; and the dashboard by Grafana's own
# schemas. That all metrics exist is checked by e2e/tests/written/metrics.rs.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly alerts=deploy/chart/files/alerts.yaml dashboard=deploy/chart/files/dashboard.json
readonly cache=${HYBRIDNIC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hybridnic}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Debian's package, unpacked beside the system where it is not installed: a Prometheus that runs is not wanted here.
tool=$(command -v promtool) || {
	tool=$cache/promtool
	if [[ ! -x $tool ]]; then
		(cd "$work" && apt-get download -q prometheus >&2 && dpkg -x prometheus_*.deb unpacked)
		mkdir -p "$cache"
		# Whole, or not at all, should two of us do it at once.
		cp "$work/unpacked/usr/bin/promtool" "$tool.$$"
		mv "$tool.$$" "$tool"
	fi
}

"$tool" check rules "$alerts"
"$tool" test rules e2e/monitoring/alerts_test.yaml

# Each query of the dashboard as a rule: promtool refuses what does not parse. JSON's strings are YAML's too. Grafana's
# variables stand within strings only, where they harm nothing.
{
	echo "groups: [{name: dashboard, rules: ["
	n=0
	while read -r expr; do
		echo "  {record: 'panel:$((n++))', expr: $expr},"
	done < <(sed -n 's/^ *"expr": \(".*"\),\?$/\1/p' "$dashboard")
	echo "]}]"
} >"$work/dashboard.yaml"
queries=$(grep -c '^  {record' "$work/dashboard.yaml")
all=$(grep -o '"expr"' "$dashboard" | wc -l)
[[ $queries -gt 0 && $queries -eq $all ]] || {
	echo "only $queries of the dashboard's $all queries could be read" >&2
	exit 1
}
"$tool" check rules "$work/dashboard.yaml"

grafana=$(e2e/controlplane/build.sh --schemas | sed -n 's/^grafana-dashboard\t//p')
"$grafana" "$dashboard"
# A field that Grafana does not know is found, or this says nothing.
sed 's/"gridPos"/"gridPosition"/' "$dashboard" >"$work/wrong.json"
if said=$("$grafana" "$work/wrong.json" 2>&1) || [[ $said != *gridPosition* ]]; then
	echo "a dashboard with a wrong field was taken: $said" >&2
	exit 1
fi
echo "the dashboard is as Grafana's schemas say"
