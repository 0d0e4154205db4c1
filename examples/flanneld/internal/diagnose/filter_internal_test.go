package diagnose

import (
	"strings"
	"testing"

	"github.com/flannelkit/flannelkit/examples/flanneld/internal/report"
)

// docker is what a Docker engine makes of the table filter.
const docker = `*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 10.5.1.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
`

// before puts rules before all others of FORWARD.
func before(table string, rules ...string) string {
	return strings.Replace(table, "-A FORWARD", strings.Join(rules, "\n")+"\n-A FORWARD", 1)
}

// filterCases are rules of FORWARD, and whether they are in containers' way.
func filterCases() []struct{ name, rules, want string } {
	const empty = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n%COMMIT\n"
	table := func(rules string) string { return strings.Replace(empty, "%", rules, 1) }
	return []struct{ name, rules, want string }{
		{"accept", empty[:strings.Index(empty, "%")] + "COMMIT\n", ""},
		{"docker", docker, "(policy of FORWARD)"},
		{"docker with flanneld's rules", before(docker, `-A FORWARD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT`, `-A FORWARD -d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT`), ""},
		{"one way only", before(docker, "-A FORWARD -s 10.5.1.0/24 -j ACCEPT"), "(policy of FORWARD)"},
		{"by interface", before(docker, "-A FORWARD -i flannel+ -j ACCEPT", "-A FORWARD -o flannel.1 -j ACCEPT"), ""},
		{"another's interface", before(docker, "-A FORWARD -i flannel.2 -j ACCEPT"), "(policy of FORWARD)"},
		{"a rule that drops", table("-A FORWARD ! -s 10.5.1.0/24 -d 10.5.1.0/24 -j REJECT\n"), "(rule 1 of FORWARD)"},
		{"a rule that drops others'", table("-A FORWARD ! -s 10.5.0.0/16 -d 10.5.1.0/24 -j DROP\n"), ""},
		{"marked ones only", before(docker, "-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT"), "(policy of FORWARD)"},
		{"ICMP alone", before(docker, "-A FORWARD -p icmp -j ACCEPT", "-A FORWARD ! -p tcp -j ACCEPT"), "(policy of FORWARD)"},
		{"who knows", before(docker, "-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT"), ""},
		{"a port that is dropped", table("-A FORWARD -p tcp -m tcp --dport 25 -j DROP\n"), ""},
		{"a chain that does not come back", strings.NewReplacer(":DOCKER -", ":MINE - [0:0]\n:DOCKER -", "-A FORWARD -j DOCKER-USER", "-A FORWARD -g MINE\n-A FORWARD -j ACCEPT").Replace(docker), "(policy of FORWARD)"},
		{"by a chain's way", before(strings.Replace(docker, ":DOCKER -", ":MINE - [0:0]\n:DOCKER -", 1), "-A FORWARD -g MINE", "-A MINE -s 10.0.0.0/8 -d 10.0.0.0/8 -j ACCEPT"), ""},
	}
}

// TestFilterTexts takes packets through rules as iptables-save prints them.
func TestFilterTexts(t *testing.T) {
	for _, c := range filterCases() {
		t.Run(c.name, func(t *testing.T) {
			f, h := made()
			h.filters = []filter{parseSave(c.rules, "iptables-legacy", false)}
			checkFilter(t, checkFilters(f, h), "iptables-legacy", c.want)
		})
	}
}

func checkFilter(t *testing.T, got []report.Problem, name, want string) {
	t.Helper()
	if want == "" {
		wantProblems(t, got)
		return
	}
	wantProblems(t, got, "error filter "+name+": "+name+" drops containers' packets to or from other hosts "+want)
}
