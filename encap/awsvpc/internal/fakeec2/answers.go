package fakeec2

import "encoding/xml"

// The answers, as the EC2 API Reference shows them.

const requestID = "59dbff89-35bd-4eac-99ed-be587EXAMPLE"

type errorItem struct {
	Code    string
	Message string
}

type errorsAnswer struct {
	XMLName   xml.Name    `xml:"Response"`
	Errors    []errorItem `xml:"Errors>Error"`
	RequestID string
}

func errorAnswer(e *apiError) any {
	return errorsAnswer{Errors: []errorItem{{e.code, e.message}}, RequestID: requestID}
}

// doneAnswer is that of actions which return nothing but that they are done.
type doneAnswer struct {
	XMLName   xml.Name
	RequestID string `xml:"requestId"`
	Return    bool   `xml:"return"`
}

func returned(action string) any {
	return doneAnswer{XMLName: xml.Name{Space: "http://ec2.amazonaws.com/doc/" + apiVersion + "/", Local: action + "Response"}, RequestID: requestID, Return: true}
}

type instancesAnswer struct {
	XMLName      xml.Name          `xml:"http://ec2.amazonaws.com/doc/2016-11-15/ DescribeInstancesResponse"`
	RequestID    string            `xml:"requestId"`
	Reservations []reservationItem `xml:"reservationSet>item"`
	NextToken    string            `xml:"nextToken,omitempty"`
}

type reservationItem struct {
	ID        string         `xml:"reservationId"`
	Instances []instanceItem `xml:"instancesSet>item"`
}

type instanceItem struct {
	ID         string          `xml:"instanceId"`
	State      string          `xml:"instanceState>name"`
	Address    string          `xml:"privateIpAddress,omitempty"`
	Subnet     string          `xml:"subnetId,omitempty"`
	VPC        string          `xml:"vpcId,omitempty"`
	Interfaces []interfaceItem `xml:"networkInterfaceSet>item"`
}

type interfaceItem struct {
	ID        string        `xml:"networkInterfaceId"`
	Subnet    string        `xml:"subnetId"`
	VPC       string        `xml:"vpcId"`
	Status    string        `xml:"status"`
	Address   string        `xml:"privateIpAddress,omitempty"`
	Check     bool          `xml:"sourceDestCheck"`
	Index     int           `xml:"attachment>deviceIndex"`
	Addresses []addressItem `xml:"privateIpAddressesSet>item"`
	IPv6      []ipv6Item    `xml:"ipv6AddressesSet>item"`
}

type addressItem struct {
	Address string `xml:"privateIpAddress"`
	Primary bool   `xml:"primary"`
}

type ipv6Item struct {
	Address string `xml:"ipv6Address"`
}

func describeInstance(i *Instance) instanceItem {
	out := instanceItem{ID: i.ID, State: i.State}
	for index, n := range i.Interfaces {
		item := interfaceItem{ID: n.ID, Subnet: n.Subnet, VPC: n.VPC, Status: "in-use", Check: n.Check, Index: index}
		for _, a := range n.Addrs {
			if !a.Is4() {
				item.IPv6 = append(item.IPv6, ipv6Item{a.String()})
				continue
			}
			item.Addresses = append(item.Addresses, addressItem{a.String(), len(item.Addresses) == 0})
			item.Address = item.Addresses[0].Address
		}
		if index == 0 {
			out.Address, out.Subnet, out.VPC = item.Address, n.Subnet, n.VPC
		}
		out.Interfaces = append(out.Interfaces, item)
	}
	return out
}

type tablesAnswer struct {
	XMLName   xml.Name    `xml:"http://ec2.amazonaws.com/doc/2016-11-15/ DescribeRouteTablesResponse"`
	RequestID string      `xml:"requestId"`
	Tables    []tableItem `xml:"routeTableSet>item"`
	NextToken string      `xml:"nextToken,omitempty"`
}

type tableItem struct {
	ID           string            `xml:"routeTableId"`
	VPC          string            `xml:"vpcId"`
	Routes       []routeItem       `xml:"routeSet>item"`
	Associations []associationItem `xml:"associationSet>item"`
}

type routeItem struct {
	Dest4    string `xml:"destinationCidrBlock,omitempty"`
	Dest6    string `xml:"destinationIpv6CidrBlock,omitempty"`
	Prefixes string `xml:"destinationPrefixListId,omitempty"`
	Gateway  string `xml:"gatewayId,omitempty"`
	Instance string `xml:"instanceId,omitempty"`
	ENI      string `xml:"networkInterfaceId,omitempty"`
	State    string `xml:"state"`
	Origin   string `xml:"origin"`
}

type associationItem struct {
	ID     string `xml:"routeTableAssociationId"`
	Table  string `xml:"routeTableId"`
	Subnet string `xml:"subnetId,omitempty"`
	Main   bool   `xml:"main"`
}

func (s *Server) describeTable(t *Table) tableItem {
	out := tableItem{ID: t.ID, VPC: t.VPC}
	// Every table has a route without a prefix, which a client must pass over.
	out.Routes = append(out.Routes, routeItem{Prefixes: "pl-1", Gateway: "vpce-1", State: "active", Origin: "CreateRoute"})
	for _, r := range t.Routes {
		if s.unseen[r.Dest.String()] {
			continue
		}
		item := routeItem{Gateway: r.Gateway, ENI: r.ENI, State: s.stateOf(r), Origin: r.Origin}
		if item.State == "active" && r.ENI != "" { // a blackhole keeps only the interface
			i, _ := s.nic(r.ENI)
			item.Instance = i.ID
		}
		if r.Dest.Addr().Is4() {
			item.Dest4 = r.Dest.String()
		} else {
			item.Dest6 = r.Dest.String()
		}
		out.Routes = append(out.Routes, item)
	}
	if t.Main {
		out.Associations = append(out.Associations, associationItem{ID: "rtbassoc-main", Table: t.ID, Main: true})
	}
	for _, subnet := range t.Subnets {
		out.Associations = append(out.Associations, associationItem{ID: "rtbassoc-" + subnet, Table: t.ID, Subnet: subnet})
	}
	return out
}
