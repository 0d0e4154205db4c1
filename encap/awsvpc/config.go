package awsvpc

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// maxTables is how many values one filter of DescribeRouteTables may have.
const maxTables = 200

// parseTables reads the backend's part of the network's configuration and returns the
// route tables it names, each once; none means that the table is to be found. Keys are
// compared without regard to case, and unknown ones ignored, as flannel does.
func parseTables(part json.RawMessage) ([]string, error) {
	if len(part) == 0 {
		return nil, nil
	}
	var keys struct{ RouteTableID json.RawMessage }
	if err := json.Unmarshal(part, &keys); err != nil {
		return nil, fmt.Errorf(`awsvpc: Backend of the network's configuration: %w (want an object like {"Type": "aws-vpc", "RouteTableID": "rtb-1"})`, err)
	}
	ids, err := parseIDs(keys.RouteTableID)
	if err != nil {
		return nil, fmt.Errorf(`awsvpc: Backend.RouteTableID of the network's configuration is %.80s: %w (write "rtb-1" or ["rtb-1", "rtb-2"], or leave it out for the table of the interface's subnet)`,
			keys.RouteTableID, err)
	}
	return ids, nil
}

// parseIDs reads a string or a list of strings.
func parseIDs(value json.RawMessage) ([]string, error) {
	if len(value) == 0 || string(value) == "null" {
		return nil, nil
	}
	var one string
	if json.Unmarshal(value, &one) == nil {
		if one == "" { // flannel's way to say none
			return nil, nil
		}
		return []string{one}, nil
	}
	var list []*string
	if err := json.Unmarshal(value, &list); err != nil {
		return nil, errors.New("neither a string nor a list of strings")
	}
	var ids []string
	for _, id := range list {
		if id == nil || *id == "" {
			return nil, errors.New("an entry is empty")
		}
		if !slices.Contains(ids, *id) {
			ids = append(ids, *id)
		}
	}
	if len(ids) > maxTables {
		return nil, fmt.Errorf("%d tables are more than %d", len(ids), maxTables)
	}
	return ids, nil
}
