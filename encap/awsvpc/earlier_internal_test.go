package awsvpc

import (
	"slices"
	"testing"

	"github.com/flannelkit/flannelkit/lease"
)

// TestEarlierSubnet has routes to this host that it, or somebody, made before. Those
// that can only be from an earlier lease go, once the peers are known.
func TestEarlierSubnet(t *testing.T) {
	r := newRig(t)
	r.on("i-3")
	keep := []string{
		"10.5.0.0/24 eni-3",    // before SubnetMin
		"10.5.1.0/24 eni-3",    // a peer's, which has not come yet
		"10.5.2.0/24 eni-1",    // to another host
		"10.5.3.0/25 eni-3",    // not of the network's length
		"10.5.4.0/23 eni-3",    // nor this
		"10.6.1.0/24 eni-3",    // not in the network
		"192.168.1.0/24 eni-3", // nor this
		"fd00:5:0:1::/64 eni-3",
	}
	for _, k := range keep {
		dest, eni := k[:len(k)-len(" eni-3")], k[len(k)-len("eni-3"):]
		r.ec2.SetRoute("rtb-main", dest, eni)
	}
	r.ec2.SetRoute("rtb-main", "10.5.200.0/24", "eni-3")
	r.ec2.SetRoute("rtb-main", "10.5.201.0/24", "eni-4") // the instance's other interface
	r.ec2.SetRoute("rtb-main", "10.5.202.0/24", "eni-3")
	r.ec2.Kill("rtb-main", "10.5.202.0/24")
	v := r.backend(network4, never)
	r.start(v, "10.0.2.30", "10.5.7.0/24")
	r.expectWrites("ModifyNetworkInterfaceAttribute eni-3", "CreateRoute rtb-main 10.5.7.0/24 eni-3")
	check(t, v.Sync(t.Context(), []lease.Lease{leaseOf("10.5.1.0/24"), leaseOf("10.5.2.0/24")}))
	wait(t, "they go", func() bool { return r.log.Count("INFO", "nobody needs") == 1 })
	r.expectWrites("DeleteRoute rtb-main 10.5.200.0/24", "DeleteRoute rtb-main 10.5.201.0/24", "DeleteRoute rtb-main 10.5.202.0/24")
	keep = append(keep, "10.5.7.0/24 eni-3")
	slices.Sort(keep)
	r.expect("rtb-main", keep...)
	if r.log.Count("put right") > 0 {
		t.Errorf("it is taken for damage: %q", r.log.With("put right"))
	}
	// A peer goes, and its subnet is nobody's.
	check(t, v.Sync(t.Context(), []lease.Lease{leaseOf("10.5.2.0/24")}))
	v.loop.Wake()
	wait(t, "the peer's goes", func() bool { return len(r.ec2.Writes()) == 1 })
	r.expectWrites("DeleteRoute rtb-main 10.5.1.0/24")
}

// TestEarlierSubnetFillsTable has no room but where the earlier subnet's route is.
func TestEarlierSubnetFillsTable(t *testing.T) {
	r := newRig(t)
	r.on("i-1")
	r.ec2.SetRoute("rtb-a", "10.5.8.0/24", "eni-1")
	r.ec2.SetRoute("rtb-a", "10.5.9.0/24", "eni-2")
	r.ec2.SetLimit("rtb-a", 2)
	r.start(r.backend(network4, never), "10.0.1.10", "10.5.7.0/24")
	r.expect("rtb-a", "10.5.7.0/24 eni-1", "10.5.9.0/24 eni-2")
}

// TestNewIsNoDamage has things that are made for the first time: that is not said as if
// somebody had removed them.
func TestNewIsNoDamage(t *testing.T) {
	r := newRig(t)
	r.on("i-3")
	v := r.backend(network4, soon)
	h := host("10.0.2.30") // Start alone, so that it switches the check off
	_, err := v.Prepare(t.Context(), h)
	check(t, err)
	r.ec2.SetCheck("eni-3", true)
	r.start(v, "10.0.2.30", "10.5.7.0/24")
	r.start(v, "10.0.2.40", "10.5.7.0/24") // on another interface, by the loop
	r.ec2.Associate("rtb-c", "subnet-b")   // and in another table
	wait(t, "it is in the other table", func() bool { return len(r.ec2.Routes("rtb-c")) == 1 })
	wait(t, "and in the log", func() bool { return r.log.Count("INFO", "EC2 is told of this host", "rtb-c") == 1 })
	for _, what := range []string{"eni-3 switched off", "in rtb-main created", "eni-4 switched off", "in rtb-main replaced"} {
		if r.log.Count("INFO", "EC2 is told of this host", what) != 1 {
			t.Errorf("nobody says: %s", what)
		}
	}
	if said := r.log.With("put right"); len(said) > 0 {
		t.Errorf("it is taken for damage: %q", said)
	}
	r.ec2.SetRoute("rtb-c", "10.5.7.0/24", "")
	wait(t, "that is damage", func() bool { return r.log.Count("WARN", "put right", "rtb-c created") == 1 })
	r.ec2.SetCheck("eni-4", true)
	wait(t, "that is, too", func() bool { return r.log.Count("WARN", "put right", "check of eni-4") == 1 })
}
