package main

import (
	"log/slog"

	"github.com/flannelkit/flannelkit/lease"
	"github.com/flannelkit/flannelkit/lease/etcdv2"
	"github.com/flannelkit/flannelkit/lease/etcdv3"
)

// candidates makes a store for each API that may hold the network, the preferred one
// first. It reads the certificate files, and does not connect.
func candidates(o *options, log *slog.Logger) ([]candidate, error) {
	ca, cert, key := o.caFile, o.certFile, o.keyFile
	if !o.secure() {
		ca, cert, key = "", "", "" // check has warned
	}
	var all []candidate
	add := func(api string, s lease.Store, err error) error {
		if err == nil {
			all = append(all, candidate{api, s})
			return nil
		}
		for _, c := range all {
			_ = c.store.Close() // it has not connected
		}
		return err
	}
	if o.etcdVersion != "2" {
		s, err := etcdv3.New(etcdv3.Config{Endpoints: o.endpoints, Prefix: o.prefix,
			CAFile: ca, CertFile: cert, KeyFile: key,
			Username: o.username, Password: o.password, Log: log})
		if err := add("3", s, err); err != nil {
			return nil, err
		}
	}
	if o.etcdVersion != "3" {
		s, err := etcdv2.New(etcdv2.Config{Endpoints: o.endpoints, Prefix: o.prefix,
			CAFile: ca, CertFile: cert, KeyFile: key,
			Username: o.username, Password: o.password, Log: log})
		if err := add("2", s, err); err != nil {
			return nil, err
		}
	}
	return all, nil
}
