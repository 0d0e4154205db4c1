package main

import "testing"

// TestWithGateways: routes get the gateway of the first address of their family, and
// what has another form is left alone.
func TestWithGateways(t *testing.T) {
	const ips = `"ips":[{"address":"fd00::5/64"},{"address":"10.1.17.5/24","gateway":"10.1.17.1"},{"address":"fd01::5/64","gateway":"fd01::1"},{"address":"10.2.17.5/24","gateway":"10.2.17.1"}]`
	for result, want := range map[string]string{
		`{"cniVersion":"1.0.0",` + ips + `,"routes":[{"dst":"10.1.0.0/16"},{"dst":"::/0"},{"dst":"0.0.0.0/0","gw":"10.1.17.9"},{"dst":"10.9.0.0/16","scope":253}]}`: `{"cniVersion":"1.0.0",` + ips +
			`,"routes":[{"dst":"10.1.0.0/16","gw":"10.1.17.1"},{"dst":"::/0","gw":"fd01::1"},{"dst":"0.0.0.0/0","gw":"10.1.17.9"},{"dst":"10.9.0.0/16","scope":253}]}`,
		`{"ips":[{"address":"10.1.17.5/24"}],"routes":[{"dst":"10.1.0.0/16"}]}`:     `{"ips":[{"address":"10.1.17.5/24"}],"routes":[{"dst":"10.1.0.0/16"}]}`,
		`{"ips":[{"gateway":"10.1.17.1"}],"routes":[{"dst":"what"},{}]}`:            `{"ips":[{"gateway":"10.1.17.1"}],"routes":[{"dst":"what"},{}]}`,
		`{"ips":[{"gateway":"10.1.17.x"}],"routes":[{"dst":"10.1.0.0/16"}], "a":1}`: `{"ips":[{"gateway":"10.1.17.x"}],"routes":[{"dst":"10.1.0.0/16"}], "a":1}`,
		`{"ips":[],"routes":7}`: `{"ips":[],"routes":7}`,
		`{ "ips":[]}`:           `{ "ips":[]}`,
		`null`:                  `null`,
		`7`:                     `7`,
	} {
		if got := string(withGateways([]byte(result))); got != want {
			t.Errorf("of\n%s it makes\n%s, want\n%s", result, got, want)
		}
	}
	if usesGateways("mydelegate") || !usesGateways("bridge") {
		t.Error("a plugin that nobody knows is taken for one of the reference plugins, or bridge is not")
	}
}
