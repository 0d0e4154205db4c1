package wireguard

import (
	"encoding/base64"
	"errors"
	"strings"
)

// clamp gives a private key the form that Curve25519 computes with (RFC 7748 section
// 5), as the kernel does when it is told one: what it answers is compared with ours.
func (s secret) clamp() secret {
	s[0] &= 248
	s[31] = s[31]&127 | 64
	return s
}

// parseKeyFile reads the content of a key file.
func parseKeyFile(content []byte) (secret, error) {
	text := strings.TrimSpace(string(content))
	key, ok := parseSecret(text)
	switch {
	case text == "":
		return secret{}, errors.New("the file is empty (remove it, and a new key is made)")
	case !ok, key == secret{}:
		return secret{}, errors.New("there is no private key in it: 32 bytes in base64, as `wg genkey` makes them (remove it, and a new key is made)")
	}
	return key.clamp(), nil
}

// keyFile is the content of the file of a key.
func (s secret) keyFile() []byte { return []byte(base64.StdEncoding.EncodeToString(s[:])) }
