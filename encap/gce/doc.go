// Package gce is flannel's gce backend: no packet is carried by this host. A route
// in the project's VPC network leads each host's subnet to its instance, and Google's
// network does the rest, at full speed and with the interface's whole MTU. Any
// flannel with the gce backend, v0.5 to v0.19, can be the peer: the routes have the
// same names and the same form.
//
// # What the instance needs
//
//   - It must be allowed to forward: gcloud compute instances create
//     --can-ip-forward. It can be switched on later only by gcloud compute instances
//     update-from-file, which restarts the instance.
//
//   - A service account with the scope https://www.googleapis.com/auth/compute (the
//     alias compute-rw of gcloud) or cloud-platform, or another credential that
//     Application Default Credentials find: the file that
//     GOOGLE_APPLICATION_CREDENTIALS names, then gcloud's own, then the metadata
//     server.
//
//   - The permissions of the role below, the least that does.
//
//   - A firewall rule that lets the flannel network's addresses in.
//
//   - Ranges that differ, where two VPC networks of one project carry a flannel network
//     each: names of routes are unique in the project.
//
//   - For an IPv6 range, a network interface with IPv6 (stack type IPV4_IPV6 or
//     IPV6_ONLY).
//
//   - The instance's project must be the network's: a route of a shared VPC's host
//     project can't name an instance of a service project.
//
// The role:
//
//	gcloud iam roles create flannel --project=PROJECT --permissions=\
//	compute.routes.create,compute.routes.delete,compute.routes.get,compute.routes.list,\
//	compute.networks.get,compute.networks.updatePolicy,\
//	compute.instances.get,compute.instances.use,compute.globalOperations.get
//
// Each host costs one static route per family, and Google limits them: 100 in a
// project once, today a quota of each VPC network that can be raised on request.
// [ErrQuota] says when it is reached; while a wrong route is replaced there is one
// more.
//
// # What happens to the routes
//
// The route of this host's subnet 10.5.34.0/24 is named flannel-10-5-34-0-24 and has
// priority 1000. One that is right already is left alone: a restart writes nothing.
//
// One that leads elsewhere is replaced. The API can't change a route, names are
// unique, and between deletion and insertion under the same name packets would be
// lost. So first a second route is inserted, flannel-10-5-34-0-24-next, with a better
// priority: from then on packets arrive here, whatever the old one says. Then the old
// one is deleted, the right one inserted under its proper name, where flannel's hosts
// look for it, and the second one deleted. There is no gap. Only where the limit of
// routes leaves no room for a second one is the old one deleted first.
//
// A route that flannel's naming gives to a subnet inside the network, and whose
// instance does not exist any more, is removed unless a peer's lease has the subnet:
// flannel leaves them behind for ever, and they count. Every host may do that, each at a
// random time of the next five minutes, so that one does it and the others find it
// done. So is the route of a subnet that this instance had once: one that leads to it,
// and that is exactly what the network hands out. Nothing else is touched.
//
// About every five minutes it looks again and puts right what somebody removed or
// changed. Nothing is asked when peers come and go.
//
// # When the API can't be reached
//
// A connection may take 5 seconds, an answer 15, and each request is tried again for
// about a minute, or for as long as the API asks in Retry-After, 5 minutes each time at
// most. While a host joins, what fails is logged as a warning at the first try, and
// again when the reason is another one; then Prepare or Start fails. Later the loop that
// keeps the routes logs an error after that minute, and goes on trying.
//
// # Emulators
//
// GCE_METADATA_HOST (host:port) is where the metadata server is,
// CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE (gcloud's variable, a URL such as
// http://localhost:8080/compute/v1/) where the Compute Engine API is.
//
// Source: Compute Engine API v1, resources Route, Operation, Instance and Network, and
// "Static routes" in Google's VPC documentation.
package gce
