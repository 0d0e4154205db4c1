package lease_test
import ("testing";"time")
func TestZZ(t *testing.T) {
	bubble(t, network4, func(t *testing.T, c *cluster) {
		a := c.host(1, ttl(time.Hour, 10*time.Minute))
		a.join()
		a.run()
		settle(time.Second)
		t0 := time.Now()
		b := c.host(2)
		b.join()
		settle(time.Minute)
		a.has(b)
		b.reg.Release(t.Context())
		for range 10 { settle(time.Second*3); t.Log(time.Since(t0), keysOf(a.last().Peers)) }
		t.Log(a.log.all())
	})
}
