package result

import (
	"fmt"
	"math"
	"strings"
)

// Number writes a value with three digits that matter, as all tables and charts do: 0.012, 1.23, 12.3, 123, 1234. From 100 up
// it has no decimals; [Thousands] adds commas.
func Number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 99.95 || a == 0:
		return fmt.Sprintf("%.0f", v)
	case a >= 9.995:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.9995:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// Thousands separates the thousands of a decimal number by commas: 1,234,567.8 of "1234567.8". Signs and decimals stay.
func Thousands(number string) string {
	whole, rest, decimals := strings.Cut(number, ".")
	for i := len(whole) - 3; i > 0 && whole[i-1] >= '0' && whole[i-1] <= '9'; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if decimals {
		return whole + "." + rest
	}
	return whole
}
